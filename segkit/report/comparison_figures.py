"""The pictures of a comparison of losses, each from the contents of comparison.json or the arrays of its table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segkit.report.console import score_name

WIDTH = 7.5
# of the losses; Okabe and Ito's, in an order in which neighbours are far apart
LOSS_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
COLOURS = {"better": "#117733", "worse": "#CC6677", "equivalent": "#0072B2", "undecided": "0.45", None: "0.45"}


def forest_figure(result: Mapping[str, Any]) -> Figure:
    """Differences of all pairs with their adjusted intervals, and the margin within which they are of no interest."""
    pairs = [pair for pair in result["pairs"] if pair["difference"] is not None]
    figure, axis = _figure(0.42 * len(pairs) + 1.3)
    axis.axvspan(-result["margin"], result["margin"], color="0.9", zorder=0)
    axis.axvline(0, color="0.6", linewidth=1)
    for place, pair in enumerate(reversed(pairs)):
        colour = COLOURS[pair["verdict"]]
        if pair["ci95_adjusted"] is not None:
            axis.plot(pair["ci95_adjusted"], [place, place], color=colour, linewidth=1.5)
        if pair["ci95"] is not None:
            axis.plot(pair["ci95"], [place, place], color=colour, linewidth=4)
        axis.plot(pair["difference"], place, "o", color="white", markeredgecolor=colour, markersize=7)
    _rows(axis, [f"{pair['a']} - {pair['b']}" for pair in reversed(pairs)])
    axis.set_xlabel(f"difference of {score_name(result)}, more is better for the first; grey: of no interest")
    return figure


def runs_figure(result: Mapping[str, Any]) -> Figure:
    """A dot a run, and the mean of each loss with its interval."""
    losses = result["losses"]
    figure, axis = _figure(0.42 * len(losses) + 1.2)
    for place, loss in enumerate(reversed(losses)):
        scores = [run["mean"] for run in loss["runs"]]
        if loss["ci95"] is not None:
            axis.plot(loss["ci95"], [place, place], color="0.75", linewidth=6, solid_capstyle="butt", zorder=0)
        axis.plot(scores, [place] * len(scores), "o", color="#0072B2", alpha=0.75, markersize=6)
        axis.plot(loss["mean"], place, "|", color="black", markersize=18, markeredgewidth=2)
    _rows(axis, [f"{loss['name']} ({len(loss['runs'])})" for loss in reversed(losses)])
    axis.set_xlabel(f"{score_name(result)}: a dot a run, bar the mean, grey its 95 % interval")
    return figure


def ranks_figure(result: Mapping[str, Any]) -> Figure:
    """Share of resamples in each rank, a panel for each way of averaging."""
    rules, losses = result["ranks"]["rules"], [loss["name"] for loss in result["losses"]]
    figure, axes = _panels(len(rules), 0.3 * len(losses) + 0.8)
    for place, (axis, (rule, found)) in enumerate(zip(axes, rules.items(), strict=True)):
        table = np.array([found["shares"][loss] for loss in losses])
        axis.imshow(table, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        _numbers(axis, table, "{:.0%}")
        axis.set_title(rule, fontsize=10, parse_math=False)
        axis.set_xticks(range(len(losses)), [str(rank + 1) for rank in range(len(losses))])
        axis.set_yticks(range(len(losses)), losses if place % 2 == 0 else [""] * len(losses), parse_math=False)
    figure.supxlabel(f"rank in {result['ranks']['resamples']} resamples of runs and groups of cases", fontsize=10)
    return figure


def rules_figure(result: Mapping[str, Any]) -> Figure:
    """The rank of each loss under every way of averaging."""
    rules = result["ranks"]["rules"]
    losses = [loss["name"] for loss in result["losses"]]
    table = np.array([[rules[rule]["ranks"][loss] for rule in rules] for loss in losses], dtype=float)
    figure, axis = _figure(0.42 * len(losses) + 1.6)
    axis.imshow(table, vmin=1, vmax=max(2, len(losses)), cmap="Blues_r", aspect="auto", alpha=0.45)
    _numbers(axis, table, "{:g}", colour="black")
    axis.set_xticks(range(len(rules)), list(rules), rotation=20, parse_math=False)
    axis.set_yticks(range(len(losses)), losses, parse_math=False)
    axis.set_xlabel("rank by each way to average cases and classes")
    return figure


def critical_difference_figure(result: Mapping[str, Any]) -> Figure:
    """Losses along their mean rank. Where all pairs were tested, those are joined of which no two were found to differ;
    else the dots are filled of those that differ from the baseline.

    Mean ranks are those of the resamples; what is joined follows the verdicts, not a test over ranks.
    """
    shares = next(iter(result["ranks"]["rules"].values()))["shares"]
    ranks = {loss: float(np.dot(share, np.arange(1, len(share) + 1))) for loss, share in shares.items()}
    told = {(pair["a"], pair["b"]) for pair in result["pairs"] if pair["verdict"] in ("better", "worse")}
    joins = result["family"] == "all_pairs" and any(pair["p"] is not None for pair in result["pairs"])
    filled = (
        set() if result["family"] == "all_pairs" else {loss for pair in told for loss in pair} - {result["baseline"]}
    )
    return _ranks_along_a_line(ranks, told if joins else None, filled, "mean rank in the resamples (1 is best)")


def demsar_figure(result: Mapping[str, Any], alpha: float) -> Figure:
    """Losses along their mean rank over data sets; those are joined of which no two differ by Nemenyi's test (Demšar
    2006, figure 1). result: the contents of datasets.json."""
    told = {(pair["a"], pair["b"]) for pair in result["pairs"] if pair["p_adjusted"] < alpha}
    words = f"mean rank over {len(result['datasets'])} data sets (1 is best)"
    return _ranks_along_a_line(result["mean_ranks"], told, set(), words, result["critical_difference"])


def _ranks_along_a_line(
    ranks: Mapping[str, float],
    differing: set[tuple[str, str]] | None,
    filled: set[str],
    words: str,
    critical: float | None = None,
) -> Figure:
    """differing: pairs that are not to be joined, None to join nothing. critical: a length to be drawn above."""
    order = sorted(ranks, key=ranks.__getitem__)
    groups = [] if differing is None else cliques(order, differing)
    figure, axis = _figure(0.28 * len(order) + 0.16 * len(groups) + (1.1 if critical is None else 1.6))
    for place, loss in enumerate(order):
        depth = -0.5 - 0.28 * place
        axis.plot([ranks[loss]] * 2, [0, depth], color="0.6", linewidth=1, zorder=1)
        colour = "black" if loss in filled else "white"
        axis.plot(ranks[loss], 0, "o", color=colour, markeredgecolor="black", zorder=3)
        left = ranks[loss] > len(order) / 2 + 0.5  # names go to the side that has more room
        text = f"{loss} ({ranks[loss]:.2f}) " if left else f" {loss} ({ranks[loss]:.2f})"
        axis.text(
            ranks[loss],
            depth,
            text,
            va="center",
            ha="right" if left else "left",
            fontsize=9,
            parse_math=False,
            zorder=2,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    for number, group in enumerate(groups):
        height = 0.2 + 0.16 * number
        ends = [ranks[loss] for loss in group]
        axis.plot([min(ends) - 0.03, max(ends) + 0.03], [height, height], color="black", linewidth=4)
    top = 0.4 + 0.16 * len(groups)
    if critical is not None:
        axis.plot([1, 1 + critical], [top + 0.1] * 2, "|-", color="black", markersize=8)
        axis.text(1, top + 0.2, f"critical difference {critical:.2f}", fontsize=9, va="bottom")
        top += 0.6
    axis.set_xlim(0.8, max(len(order), 1 + (critical or 0)) + 0.2)
    axis.set_ylim(-0.7 - 0.28 * len(order), top)
    axis.axhline(0, color="black", linewidth=1)
    axis.set_yticks([])
    axis.set_xlabel(words)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    return figure


def cliques(order: Sequence[str], differing: set[tuple[str, str]]) -> list[list[str]]:
    """The longest stretches of neighbours of which no two differ."""

    def alike(group: Sequence[str]) -> bool:
        return not any((a, b) in differing or (b, a) in differing for a, b in itertools.combinations(group, 2))

    found: list[list[str]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and alike(order[start : end + 1]):
            end += 1
        group = list(order[start:end])
        if len(group) > 1 and not any(set(group) <= set(other) for other in found):
            found.append(group)
    return found


def classes_figure(
    values: np.ndarray,
    loss_of: Sequence[str],
    losses: Sequence[str],
    classes: Sequence[str],
    sign: int,
    cases: Sequence[int],
) -> Figure:
    """Mean of each loss and class over runs; values: [R, C], times `sign` so that more is better. cases: of each class,
    those that count."""
    runs = np.asarray(loss_of)
    table = np.array([[_mean(values[runs == loss, number]) for number in range(len(classes))] for loss in losses])
    figure, axis = _figure(0.42 * len(losses) + 1.6)
    best = table - np.nanmean(table, 0)
    reach = float(np.nanmax(np.abs(best))) or 1.0
    axis.imshow(best, vmin=-reach, vmax=reach, cmap="PiYG", aspect="auto", alpha=0.7)
    _numbers(axis, sign * table, "{:.3f}", colour="black")
    names = [f"{name}\n{count} cases" for name, count in zip(classes, cases, strict=True)]
    axis.set_xticks(range(len(classes)), names, parse_math=False, rotation=0 if len(classes) < 7 else 60)
    axis.set_yticks(range(len(losses)), list(losses), parse_math=False)
    axis.set_xlabel("mean of the runs; green: better than the mean of the losses")
    return figure


def paired_figure(pairs: Sequence[tuple[str, np.ndarray, str, np.ndarray]], metric: str) -> Figure:
    """A dot a case: its mean over the runs of one loss over that of another; a panel for each (name, values, name,
    values)."""
    figure, axes = _panels(len(pairs), 3.7)
    for (across, first, up, second), axis in zip(pairs, axes, strict=True):
        both = np.concatenate([first, second])
        low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
        axis.plot([low, high], [low, high], color="0.6", linewidth=1)
        axis.plot(first, second, "o", color="#0072B2", alpha=0.5, markersize=4)
        axis.set_xlabel(f"{metric} of {across}", parse_math=False)
        axis.set_ylabel(f"{metric} of {up}", parse_math=False)
        axis.set_title(f"{int((second > first).sum())} of {len(first)} cases above the line", fontsize=10)
    return figure


def curves_figure(curves: pd.DataFrame, losses: Sequence[str], metric: str) -> Figure:
    """Validation scores over the steps: mean of the runs, and from the lowest to the highest; columns loss, seed, fold,
    step and the metric."""
    figure, axis = _figure(3.4)
    for loss, rows, colour in _by_loss(curves, losses):
        found = rows.groupby("step")[metric].agg(["mean", "min", "max"])
        axis.plot(found.index, found["mean"], "o-", color=colour, markersize=3, label=loss)
        axis.fill_between(found.index, found["min"], found["max"], color=colour, alpha=0.2, linewidth=0)
    axis.set_xlabel("step")
    axis.set_ylabel(f"validation {metric}")
    _legend(axis)
    return figure


def reliability_figure(reliability: pd.DataFrame, losses: Sequence[str], fewest: int) -> Figure:
    """The share of pixels that are right over their mean probability, bin by bin; columns loss, bin, pixels, confidence
    and accuracy. fewest: pixels of a bin that is drawn."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for loss, rows, colour in _by_loss(reliability[reliability["pixels"] >= fewest], losses):
        axis.plot(rows["confidence"], rows["accuracy"], "o-", color=colour, markersize=4, linewidth=1, label=loss)
    axis.set_xlabel("probability of the predicted class")
    axis.set_ylabel("share of pixels that are right")
    _legend(axis)
    return figure


def cost_figure(units: pd.DataFrame, losses: Sequence[str], metric: str) -> Figure:
    """The score of each run over the time and the memory that its training took; columns loss, seconds, memory_mb and
    score."""
    figure, (time, memory) = _panels(2, 3.2)
    for loss, rows, colour in _by_loss(units, losses):
        time.plot(rows["seconds"] / 60, rows["score"], "o", color=colour, label=loss)
        memory.plot(rows["memory_mb"], rows["score"], "o", color=colour, label=loss)
    time.set_xlabel("minutes of training")
    memory.set_xlabel("MB of memory")
    time.set_ylabel(metric)
    memory.sharey(time)
    memory.tick_params(labelleft=False)
    _legend(time)
    return figure


def components_figure(result: Mapping[str, Any]) -> Figure:
    """Where the scores vary."""
    parts = result["components"]
    figure, axis = _figure(0.35 * len(parts) + 1.0)
    axis.barh(list(parts)[::-1], list(parts.values())[::-1], color="#56B4E9")
    axis.set_xlabel(f"standard deviation of {score_name(result)}")
    return figure


def _by_loss(table: Any, losses: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """The rows of each loss, and its colour, which is the same in all pictures."""
    for place, loss in enumerate(losses):
        yield loss, table[table["loss"] == loss], LOSS_COLOURS[place % len(LOSS_COLOURS)]


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _panels(number: int, height: float) -> tuple[Figure, list[Axes]]:
    """Two beside each other; height: of one."""
    columns = min(2, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(WIDTH * columns / 2, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]


def _rows(axis: Axes, names: Sequence[str]) -> None:
    """A name for each line of an axis, from the lowest up."""
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_yticks(range(len(names)), list(names), parse_math=False)


def _numbers(axis: Axes, table: np.ndarray, form: str, colour: str | None = None) -> None:
    for row, column in zip(*np.nonzero(~np.isnan(table)), strict=True):
        value = float(table[row, column])
        shade = colour or ("white" if value > 0.5 else "black")
        axis.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=shade)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def _legend(axis: Axes) -> None:
    legend = axis.legend(fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
