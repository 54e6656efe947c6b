"""Figures of a comparison of losses, drawn from the contents of comparison.json or the arrays of its table."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from segkit.report.figure_text import plain_texts, shortened
from segkit.report.score_notes import score_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, NARROW = 7.5, 3.8  # inches: of a figure on a desk, and on a phone
LETTERS, NAME_LETTERS = 12, 18  # of a label per inch, and of a name in a narrow figure
MARGIN_LETTERS = 5  # as wide as the ticks and the border of an axis
_width: ContextVar[float] = ContextVar("width", default=WIDTH)
MAX_CELLS = 600  # of a table that shows its values
# the colours of Okabe and Ito, ordered so that neighbours are easy to tell apart
LOSS_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
VERDICT_COLOURS = {"better": "#117733", "worse": "#CC6677", "equivalent": "#0072B2", "undecided": "0.45", None: "0.45"}


def drawn(make: Callable[[], Figure], width: float = WIDTH) -> Figure:
    """A figure of a width in inches, with its texts broken into lines that fit."""
    token = _width.set(width)
    try:
        figure = make()
    finally:
        _width.reset(token)
    if width < WIDTH:
        _break_names(figure)
    for axis in figure.axes:
        axis.set_xlabel(textwrap.fill(axis.get_xlabel(), _letters(axis, width)))
    if (label := figure.get_supxlabel()) != "":
        figure.supxlabel(textwrap.fill(label, int(LETTERS * width)), fontsize=10)
    figure.draw_without_rendering()
    # it is done, and takes most of the time of writing a figure; with any engine, also "none", figures are drawn twice
    figure.set_layout_engine(None)
    return figure


def _letters(axis: Axes, width: float) -> int:
    """About how many letters fit below an axis, beside the names of its rows."""
    place = axis.get_subplotspec()
    columns = 1 if place is None else place.get_gridspec().ncols
    lines = [line for label in axis.get_yticklabels() for line in label.get_text().split("\n")]
    beside = max(map(len, lines), default=0) + MARGIN_LETTERS
    return max(NAME_LETTERS, int(LETTERS * width / columns) - beside)


def _break_names(figure: Figure) -> None:
    """Break the names of rows, which would leave no room for a narrow figure."""
    for axis in figure.axes:
        names = [label.get_text() for label in axis.get_yticklabels()]
        if max(map(len, names), default=0) > NAME_LETTERS:
            lines = [textwrap.fill(shortened(name, 2 * NAME_LETTERS), NAME_LETTERS) for name in names]
            axis.set_yticks(axis.get_yticks(), lines, parse_math=False)


def forest_figure(result: Mapping[str, Any]) -> Figure:
    """Differences of all pairs with their intervals, and the margin within which they are practically equivalent."""
    pairs = [pair for pair in result["pairs"] if pair["difference"] is not None]
    figure, axis = _figure(0.42 * len(pairs) + 1.3)
    axis.axvspan(-result["margin"], result["margin"], color="0.9", zorder=0)
    axis.axvline(0, color="0.6", linewidth=1)
    for row, pair in enumerate(reversed(pairs)):
        colour = VERDICT_COLOURS[pair["verdict"]]
        if pair["ci95_adjusted"] is not None:
            axis.plot(pair["ci95_adjusted"], [row, row], color=colour, linewidth=1.5)
        if pair["ci95"] is not None:
            axis.plot(pair["ci95"], [row, row], color=colour, linewidth=4)
        axis.plot(pair["difference"], row, "o", color="white", markeredgecolor=colour, markersize=7)
    _rows(axis, [f"{shortened(pair['a'], 40)} - {shortened(pair['b'], 40)}" for pair in reversed(pairs)])
    axis.set_xlabel(
        f"difference of {score_in_words(result)}; positive favours the first loss; grey: practically equivalent"
    )
    return figure


def runs_figure(result: Mapping[str, Any]) -> Figure:
    """One dot per run, and the mean of each loss with its interval."""
    losses = result["losses"]
    figure, axis = _figure(0.42 * len(losses) + 1.2)
    for row, loss in enumerate(reversed(losses)):
        scores = [run["mean"] for run in loss["runs"]]
        if loss["ci95"] is not None:
            axis.plot(loss["ci95"], [row, row], color="0.75", linewidth=6, solid_capstyle="butt", zorder=0)
        axis.plot(scores, [row] * len(scores), "o", color="#0072B2", alpha=0.75, markersize=6)
        axis.plot(loss["mean"], row, "|", color="black", markersize=18, markeredgewidth=2)
    _rows(axis, [f"{shortened(loss['name'])} ({len(loss['runs'])})" for loss in reversed(losses)])
    axis.set_xlabel(f"{score_in_words(result)} (dots: runs; bar: mean; grey: 95 % interval of the mean)")
    return figure


def ranks_figure(result: Mapping[str, Any]) -> Figure:
    """Share of resamples in each rank, with one panel per aggregation."""
    aggregations, losses = result["ranks"]["rules"], [loss["name"] for loss in result["losses"]]
    figure, axes = _panels(len(aggregations), 0.3 * len(losses) + 0.8)
    for axis, (name, aggregation) in zip(axes, aggregations.items(), strict=True):
        place = axis.get_subplotspec()
        is_first = place is None or place.is_first_col()
        table = np.array([aggregation["shares"][loss] for loss in losses])
        axis.imshow(table, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        _numbers(axis, table, "{:.0%}")
        axis.set_title(name, fontsize=10, parse_math=False)
        ranks = table.shape[1]
        steps = range(0, ranks, 1 + ranks // 20)
        axis.set_xticks(steps, [str(rank + 1) for rank in steps])
        names = [shortened(loss, 30) if is_first else "" for loss in losses]
        axis.set_yticks(range(len(losses)), names, parse_math=False)
    figure.supxlabel(
        f"rank in {result['ranks']['resamples']} resamples of runs and groups of cases (1 is best)", fontsize=10
    )
    return figure


def aggregations_figure(result: Mapping[str, Any]) -> Figure:
    """The rank of each loss by every aggregation."""
    aggregations = result["ranks"]["rules"]
    losses = [loss["name"] for loss in result["losses"]]
    table = np.array(
        [[aggregation["ranks"][loss] for aggregation in aggregations.values()] for loss in losses], dtype=float
    )
    figure, axis = _figure(0.42 * len(losses) + 1.6)
    axis.imshow(table, vmin=1, vmax=max(2, len(losses)), cmap="Blues_r", aspect="auto", alpha=0.45)
    _numbers(axis, table, "{:g}", colour="black")
    axis.set_xticks(range(len(aggregations)), list(aggregations), rotation=20, parse_math=False)
    axis.set_yticks(range(len(losses)), [shortened(loss) for loss in losses], parse_math=False)
    axis.set_xlabel("aggregation of cases and classes; 1 is best")
    return figure


def critical_difference_figure(result: Mapping[str, Any]) -> Figure:
    """Losses along their mean rank over the resamples.

    If all pairs were tested, bars join losses between which no difference was found. Otherwise the dots of losses that
    differ from the baseline are filled. Both follow the verdicts, and not a test of the ranks.
    """
    shares = next(iter(result["ranks"]["rules"].values()))["shares"]
    names = [loss["name"] for loss in result["losses"]]
    ranks = {loss: float(np.dot(shares[loss], np.arange(1, len(shares[loss]) + 1))) for loss in names}
    differing = {(pair["a"], pair["b"]) for pair in result["pairs"] if pair["verdict"] in ("better", "worse")}
    joins = result["family"] == "all_pairs" and any(pair["p"] is not None for pair in result["pairs"])
    filled = (
        set()
        if result["family"] == "all_pairs"
        else {loss for pair in differing for loss in pair} - {result["baseline"]}
    )
    return _rank_line_figure(ranks, differing if joins else None, filled, "mean rank over the resamples (1 is best)")


def demsar_figure(result: Mapping[str, Any], alpha: float) -> Figure:
    """Losses along their mean rank over data sets, with bars that join losses that do not differ by Nemenyi's test.

    See Demšar (2006), figure 1.

    Args:
        result: The contents of datasets.json.
        alpha: The level of the test.
    """
    differing = {(pair["a"], pair["b"]) for pair in result["pairs"] if pair["p_adjusted"] < alpha}
    label = f"mean rank over {len(result['datasets'])} data sets (1 is best)"
    return _rank_line_figure(result["mean_ranks"], differing, set(), label, result["critical_difference"])


def _rank_line_figure(
    ranks: Mapping[str, float],
    differing: set[tuple[str, str]] | None,
    filled: set[str],
    label: str,
    critical: float | None = None,
) -> Figure:
    """Losses along a line.

    Args:
        ranks: The mean rank of each loss.
        differing: Pairs that are not joined; None joins none.
        filled: Losses with a filled dot.
        label: The label of the axis.
        critical: A critical difference to draw at the top.
    """
    order = sorted(ranks, key=ranks.__getitem__)
    groups = [] if differing is None else cliques(order, differing)
    figure, axis = _figure(0.28 * len(order) + 0.16 * len(groups) + (1.1 if critical is None else 1.6))
    for row, loss in enumerate(order):
        depth = -0.5 - 0.28 * row
        axis.plot([ranks[loss]] * 2, [0, depth], color="0.6", linewidth=1, zorder=1)
        colour = "black" if loss in filled else "white"
        axis.plot(ranks[loss], 0, "o", color=colour, markeredgecolor="black", zorder=3)
        left = ranks[loss] > len(order) / 2 + 0.5  # put names on the side with more space
        text = f"{shortened(loss, 40)} ({ranks[loss]:.2f})"
        text = f"{text} " if left else f" {text}"
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
    axis.set_xlim(0.8, max(len(order), *ranks.values(), 1 + (critical or 0)) + 0.2)
    axis.set_ylim(-0.7 - 0.28 * len(order), top)
    axis.axhline(0, color="black", linewidth=1)
    axis.set_yticks([])
    axis.set_xlabel(label)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    return figure


def cliques(order: Sequence[str], differing: set[tuple[str, str]]) -> list[list[str]]:
    """The maximal sequences of neighbours in `order` without a differing pair."""

    def alike(group: Sequence[str]) -> bool:
        return not any((a, b) in differing or (b, a) in differing for a, b in itertools.combinations(group, 2))

    groups: list[list[str]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and alike(order[start : end + 1]):
            end += 1
        group = list(order[start:end])
        if len(group) > 1 and not any(set(group) <= set(other) for other in groups):
            groups.append(group)
    return groups


def classes_figure(
    values: np.ndarray,
    loss_of_run: Sequence[str],
    losses: Sequence[str],
    classes: Sequence[str],
    sign: int,
    cases: Sequence[int],
) -> Figure:
    """Mean over runs for each loss and class.

    Args:
        values: The scores of each run and class, [R, C], multiplied with `sign` so that larger is better.
        loss_of_run: The loss of each run.
        losses: The losses in the order of the rows.
        classes: The names of the classes.
        sign: 1, or -1 for distances.
        cases: The number of cases that count for each class.
    """
    runs = np.asarray(loss_of_run)
    table = np.array([[_mean(values[runs == loss, number]) for number in range(len(classes))] for loss in losses])
    figure, axis = _figure(0.42 * len(losses) + 1.6)
    advantage = table - np.array([_mean(column) for column in table.T])
    limit = float(np.nanmax(np.abs(advantage))) or 1.0
    axis.imshow(advantage, vmin=-limit, vmax=limit, cmap="PiYG", aspect="auto", alpha=0.7)
    _numbers(axis, sign * table, "{:.3f}", colour="black")
    names = [f"{shortened(name, 40)}\n{count} cases" for name, count in zip(classes, cases, strict=True)]
    axis.set_xticks(range(len(classes)), names, parse_math=False, rotation=0 if len(classes) < 7 else 60)
    axis.set_yticks(range(len(losses)), [shortened(loss) for loss in losses], parse_math=False)
    axis.set_xlabel("mean over the runs; green: better than the mean over the losses")
    return figure


def paired_figure(pairs: Sequence[tuple[str, np.ndarray, str, np.ndarray]], metric: str) -> Figure:
    """Scatter plots of case means of one loss against another, with one panel per (name, means, name, means)."""
    figure, axes = _panels(len(pairs), 3.7)
    for (first_loss, first, second_loss, second), axis in zip(pairs, axes, strict=True):
        both = np.concatenate([first, second])
        low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
        axis.plot([low, high], [low, high], color="0.6", linewidth=1)
        axis.plot(first, second, "o", color="#0072B2", alpha=0.5, markersize=4)
        axis.set_xlabel(f"{metric} of {shortened(first_loss, 40)}", parse_math=False)
        axis.set_ylabel(f"{metric} of {shortened(second_loss, 40)}", parse_math=False)
        axis.set_title(f"{int((second > first).sum())} of {len(first)} cases above the diagonal", fontsize=10)
    return figure


def curves_figure(curves: pd.DataFrame, losses: Sequence[str], metric: str) -> Figure:
    """Validation scores against training steps: mean and range over the runs.

    Args:
        curves: A table with the columns loss, seed, fold, step and the metric.
        losses: The losses, which determine the colours.
        metric: The metric.
    """
    figure, axis = _figure(3.4)
    for loss, rows, colour in _by_loss(curves, losses):
        by_step = rows.groupby("step")[metric].agg(["mean", "min", "max"])
        axis.plot(by_step.index, by_step["mean"], "o-", color=colour, markersize=3, label=shortened(loss, 40))
        axis.fill_between(by_step.index, by_step["min"], by_step["max"], color=colour, alpha=0.2, linewidth=0)
    axis.set_xlabel("step")
    axis.set_ylabel(f"validation {metric}")
    _legend(axis)
    return figure


def reliability_figure(reliability: pd.DataFrame, losses: Sequence[str], min_pixels: int) -> Figure:
    """Accuracy against confidence in each bin.

    Args:
        reliability: A table with the columns loss, bin, pixels, confidence and accuracy.
        losses: The losses, which determine the colours.
        min_pixels: Bins with fewer pixels are omitted.
    """
    figure = _blank(min(4.6, _width.get()), 4.2)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for loss, rows, colour in _by_loss(reliability[reliability["pixels"] >= min_pixels], losses):
        axis.plot(
            rows["confidence"],
            rows["accuracy"],
            "o-",
            color=colour,
            markersize=4,
            linewidth=1,
            label=shortened(loss, 40),
        )
    axis.set_xlabel("probability of the predicted class")
    axis.set_ylabel("share of correct pixels")
    _legend(axis)
    return figure


def cost_figure(units: pd.DataFrame, losses: Sequence[str], metric: str) -> Figure:
    """The score of each run against its training time and peak memory.

    Args:
        units: A table with the columns loss, seconds, memory_mb and score.
        losses: The losses, which determine the colours.
        metric: The metric of the score.
    """
    figure, (time, memory) = _panels(2, 3.2)
    for loss, rows, colour in _by_loss(units, losses):
        time.plot(rows["seconds"] / 60, rows["score"], "o", color=colour, label=shortened(loss, 40))
        memory.plot(rows["memory_mb"], rows["score"], "o", color=colour, label=shortened(loss, 40))
    time.set_xlabel("minutes of training")
    memory.set_xlabel("MB of memory")
    time.set_ylabel(metric)
    memory.sharey(time)
    memory.tick_params(labelleft=False)
    _legend(time)
    return figure


def components_figure(result: Mapping[str, Any]) -> Figure:
    """Standard deviation of each variance component."""
    components = result["components"]
    figure, axis = _figure(0.35 * len(components) + 1.0)
    axis.barh(list(components)[::-1], list(components.values())[::-1], color="#56B4E9")
    axis.set_xlabel(f"standard deviation of {score_in_words(result)}")
    return figure


def _by_loss(table: Any, losses: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """The name, rows and colour of each loss; colours are the same in all figures."""
    for number, loss in enumerate(losses):
        yield loss, table[table["loss"] == loss], LOSS_COLOURS[number % len(LOSS_COLOURS)]


def _blank(width: float, height: float) -> Figure:
    """An empty figure. Matplotlib is imported here, because processes that only train import this module too."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = _blank(_width.get(), height)
    return figure, figure.subplots()


def _panels(number: int, height: float) -> tuple[Figure, list[Axes]]:
    """A grid of panels with two columns, or one in a narrow figure; `height` is that of one panel."""
    columns = min(2, number) if _width.get() >= WIDTH else 1
    rows = -(-number // columns)
    figure = _blank(_width.get() if columns > 1 or _width.get() < WIDTH else WIDTH / 2, height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]


def _rows(axis: Axes, names: Sequence[str]) -> None:
    """Label the rows of an axis from bottom to top."""
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_yticks(range(len(names)), list(names), parse_math=False)


def _numbers(axis: Axes, table: np.ndarray, template: str, colour: str | None = None) -> None:
    """Write the values of a table into the cells of an image, unless there are too many to be read."""
    if table.size > MAX_CELLS:
        return
    for row, column in zip(*np.nonzero(~np.isnan(table)), strict=True):
        value = float(table[row, column])
        shade = colour or ("white" if value > 0.5 else "black")
        axis.text(column, row, template.format(value), ha="center", va="center", fontsize=8, color=shade)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def _legend(axis: Axes) -> None:
    legend = axis.legend(fontsize=8, frameon=False)
    plain_texts(legend)
