"""The report of a comparison: report.html, a self-contained page, and report.md with its figures as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from segkit.report import comparison_figures as draw
from segkit.report.advice import MIRRORED, advice, enumerated
from segkit.report.console import best_first, by_mean, noise_sentence, verdict_explanation
from segkit.report.html import Picture, figure_picture, write_both
from segkit.report.score_notes import heading, score_in_words
from segkit.utils.text import listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN_LOSSES, DRAWN_PAIRS, DRAWN_CLASSES = 30, 60, 30  # in a figure
COLOURS = len(draw.LOSS_COLOURS)
LISTED_LOSSES = 12  # in a caption
PAIRED_LOSSES = 4  # losses whose case scores are plotted against those of the reference loss
MIN_PIXELS = 100  # of a calibration bin that is drawn
SENTENCES = {
    "better": "{a} is better than {b}",
    "worse": "{a} is worse than {b}",
    "equivalent": "{a} and {b} are equivalent",
    "undecided": "The comparison of {a} and {b} is inconclusive",
    None: "There is no conclusion about {a} and {b}",
}
DEFINITE = {"better": "is better than", "worse": "is worse than", "equivalent": "is equivalent to"}


@dataclass(frozen=True)
class Table:
    """A table of the report with its title and a caption, which states what the numbers show and are based on."""

    title: str
    caption: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Material:
    """The contents of a report besides the analysis; each is optional.

    Args:
        curves: Validation scores, with the columns loss, seed, fold, step, cases (their number) and the metrics.
        units: Training cost, with the columns loss, seed, fold, steps, seconds, memory_mb and score.
        calibration: Mean calibration measures by loss.
        reliability: Reliability bins, with the columns loss, bin, pixels, confidence and accuracy.
        overlays: A picture as PNG, and how its cases were chosen.
    """

    curves: pd.DataFrame | None = None
    units: pd.DataFrame | None = None
    calibration: pd.DataFrame | None = None
    reliability: pd.DataFrame | None = None
    overlays: tuple[bytes, str] | None = None


def write_pages(
    result: Mapping[str, Any],
    scores: Any,
    class_scores: np.ndarray,
    disagreement: Sequence[Mapping[str, Any]],
    material: Material,
    out: Path,
) -> None:
    """Write report.html, report.md and its figures. The best loss comes first everywhere.

    Args:
        result: The contents of comparison.json.
        scores: The table of scores as arrays.
        class_scores: The score of each run for each class, [R, C].
        disagreement: The cases on which losses disagree most, with case, spread, means, highest and lowest.
        material: The contents of the report besides the analysis.
        out: The output folder.
    """
    result = best_first(result)
    has_verdicts = any(pair["verdict"] for pair in result["pairs"])
    values = {
        "result": result,
        "advice": advice(result),
        "sentences": sentences(result),
        "basis": basis(result, scores),
        "pictures": pictures(result, scores, class_scores, material),
        "score": score_in_words(result),
        "noise": noise_sentence(result["noise_floor"]) if result.get("noise_floor") else None,
        "verdicts": verdict_explanation(result["margin"]).capitalize() if has_verdicts else "No pair has a verdict",
        "difference": "a - b" if result["higher_is_better"] else "b - a",
        "disagreement": disagreement,
        "tables": tables(result, scores, material),
        "plan": plan_rows(result["plan"]) if result.get("plan") else [],
    }
    write_both("comparison", values, out, "report")


def plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings of the current design that are set, with their values as text."""
    design = (plan["changes"][-1] if plan["changes"] else plan)["design"]
    return [(key, _setting(value)) for key, value in design.items() if value is not None]


def _setting(value: Any) -> str:
    """A setting as text; losses that have the name of their label by this name alone."""
    if isinstance(value, Mapping):
        return ", ".join(key if item == key else f"{key}: {json.dumps(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The conclusions: a summary first, then one sentence per pair, definite verdicts and large differences first."""
    if result["scope"] == "checkpoints":
        several = [loss["name"] for loss in result["losses"] if len(loss["runs"]) > 1]
        cause = f"Only {', '.join(several)} has several runs" if several else "There is only one run per loss"
        return [f"{cause}, so the results apply to these checkpoints only, and not to the losses."]
    names = [loss["name"] for loss in result["losses"]]
    if not result["pairs"]:
        return [f"There is only one loss, {names[0]}, and nothing to compare it with."]
    order = list(SENTENCES)
    by_verdict = sorted(result["pairs"], key=lambda pair: (order.index(pair["verdict"]), -abs(pair["difference"] or 0)))
    return [_summary(result), *(_pair_sentence(pair, result) for pair in by_verdict)]


def _pair_sentence(pair: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    a, b, verdict = pair["a"], pair["b"], pair["verdict"]
    if verdict == "worse" and result["family"] == "all_pairs":
        a, b, verdict = b, a, "better"
    detail = ""
    if verdict in ("better", "worse"):
        detail = f" by {abs(pair['difference']):.4f}"
    elif verdict == "equivalent":
        detail = f" within ±{result['margin']:g}"
    elif verdict == "undecided" and "seeds_needed" in pair:
        needed = pair["seeds_needed"]
        detail = (
            f"; about {needed} seeds per loss would give a verdict if difference and variance stay the same"
            if needed
            else "; more seeds alone would not give a verdict"
        )
    reason = f" ({pair['reason']})" if pair.get("reason") else ""
    return f"{SENTENCES[verdict].format(a=a, b=b)}{detail}{reason}."


def _summary(result: Mapping[str, Any]) -> str:
    """The verdicts on the baseline, or on the loss with the best mean, compared with the other losses."""
    all_pairs = result["family"] == "all_pairs"
    centre = by_mean(result)[0]["name"] if all_pairs else result["baseline"]
    others: dict[str | None, list[str]] = {}
    for pair in result["pairs"]:
        if pair["a"] == centre:
            others.setdefault(pair["verdict"], []).append(pair["b"])
        elif pair["b"] == centre:
            others.setdefault(MIRRORED.get(pair["verdict"], pair["verdict"]), []).append(pair["a"])
    clauses = [f"{words} {enumerated(others[verdict])}" for verdict, words in DEFINITE.items() if verdict in others]
    definite = ", and ".join(clauses)
    subject = f"{centre} has the best mean" if all_pairs else f"The baseline {centre}"
    lead = (f"{subject} and {definite}" if all_pairs else f"{subject} {definite}") if definite else subject
    if not definite and not all_pairs:
        inconclusive = others.pop("undecided", []) + others.pop(None, [])
        lead = f"The comparison of the baseline {centre} with {enumerated(inconclusive)} is inconclusive"
    rest = []
    if "undecided" in others:
        rest.append(f"the comparison with {enumerated(others['undecided'])} is inconclusive")
    if None in others:
        rest.append(f"there is no conclusion about {enumerated(others[None])}")
    return f"{'; '.join([lead, *rest])}."


def _losses_with_runs(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The losses that have runs, in the order of `result`."""
    return [loss for loss in result["losses"] if loss["runs"]]


def basis(result: Mapping[str, Any], scores: Any) -> str:
    """The cases, groups, classes and runs on which all numbers are based."""
    runs = listed([f"{loss['name']} {len(loss['runs'])}" for loss in result["losses"]], limit=LISTED_LOSSES)
    classes = f"{len(scores.classes)} class{'es' * (len(scores.classes) != 1)}"
    groups = "" if result["groups"] == result["cases"] else f" in {result['groups']} groups (such as patients)"
    return f"{result['cases']} cases{groups}, {classes}; runs: {runs}"


def pictures(result: Mapping[str, Any], scores: Any, class_scores: np.ndarray, material: Material) -> list[Picture]:
    """All figures that the available results allow."""
    based_on = f"Based on {basis(result, scores)}. {limits_caption(result, scores)}".rstrip()
    has_shares = result["ranks"]["resamples"] and all(rule.get("shares") for rule in result["ranks"]["rules"].values())
    result = drawn_part(result)
    metric, several = result["metric"], len(result["losses"]) > 1
    shown = drawn_classes(class_scores)
    classes, counted = scores.sign * class_scores[:, shown], scores.always_counted.sum(0)[shown]
    class_names = [scores.classes[number] for number in shown]
    loss_of_run, losses = scores.runs["loss"].tolist(), [loss["name"] for loss in result["losses"]]
    curve = "iou" if metric == "iou" else "dice"
    candidates: list[tuple[Any, str, str, str, Callable[[], Figure]]] = [
        (several, "forest", "Differences between losses",
         "Thin lines: intervals adjusted for the number of pairs, from which the verdict is read. Thick lines: 95 % "
         f"intervals. {based_on}",
         lambda: draw.forest_figure(result)),
        (True, "runs", "Scores of the runs", based_on, lambda: draw.runs_figure(result)),
        (several and has_shares, "critical-difference", "Mean ranks",
         f"{mean_rank_caption(result)} {based_on}",
         lambda: draw.critical_difference_figure(result)),
        (several and has_shares, "ranks", "Stability of the ranks",
         "Share of the bootstrap resamples (of runs and groups of cases) in which each loss has each rank, for every "
         f"aggregation. {based_on}",
         lambda: draw.ranks_figure(result)),
        (several, "rules", "Ranks by aggregation", f"{aggregation_caption(result)} {based_on}",
         lambda: draw.aggregations_figure(result)),
        (True, "classes", "Scores by class",
         f"The {heading(metric)} of each class, aggregated over cases as in the comparison; mean over runs. {based_on}",
         lambda: draw.classes_figure(classes, loss_of_run, losses, class_names, scores.sign, counted)),
        (True, "components", "Sources of variation",
         "How much of the variation of the score comes from each source. A group of cases counts by its contribution "
         f"to the score. {based_on}",
         lambda: draw.components_figure(result)),
        (several, "paired", "Scores of the cases", f"{paired_caption(result)} {based_on}",
         lambda: draw.paired_figure(paired(result, scores), metric)),
        (material.curves is not None, "curves", "Validation during training",
         "Lines: mean over the runs. Areas: range from the lowest to the highest run. "
         f"{curves_caption(material.curves, result)}",
         lambda: draw.curves_figure(_not_none(material.curves), losses[:COLOURS], curve)),
        (material.reliability is not None, "reliability", "Calibration",
         "How often the predicted class is correct, against its predicted probability, over the pixels of all runs of "
         f"a loss. 15 bins; bins with fewer than {MIN_PIXELS} pixels are omitted. Below the diagonal, predictions are "
         f"overconfident. {pixels_caption(material.reliability)}{based_on}",
         lambda: draw.reliability_figure(_not_none(material.reliability), losses[:COLOURS], MIN_PIXELS)),
        (material.units is not None, "cost", "Training cost",
         f"One dot per run. Memory is the peak during training. {based_on}",
         lambda: draw.cost_figure(_not_none(material.units), losses[:COLOURS], metric)),
    ]  # fmt: skip
    drawn = [
        figure_picture(name, title, caption, partial(draw.drawn, make), (draw.WIDTH, draw.NARROW))
        for available, name, title, caption, make in candidates
        if available
    ]
    if material.overlays is not None:
        png, choice = material.overlays
        drawn.append(
            Picture("overlays", "Predictions on the cases with the largest disagreement", f"{choice} {based_on}", png)
        )
    return drawn


def drawn_part(result: Mapping[str, Any]) -> dict[str, Any]:
    """The losses that are drawn, the best of those with runs, and their pairs, those with the clearest difference."""
    losses = _losses_with_runs(result)[:DRAWN_LOSSES]
    names = {loss["name"] for loss in losses}
    pairs = [pair for pair in result["pairs"] if {pair["a"], pair["b"]} <= names]
    clearest = sorted(pairs, key=lambda pair: -abs(pair["difference"] or 0))[:DRAWN_PAIRS]
    return {**result, "losses": losses, "pairs": [pair for pair in pairs if pair in clearest]}


def drawn_classes(class_scores: np.ndarray) -> list[int]:
    """The classes that are drawn, of many those whose scores, [R, C], differ most, in the order of the table."""
    if class_scores.shape[1] <= DRAWN_CLASSES:
        return list(range(class_scores.shape[1]))
    scored = np.where(np.isnan(class_scores), -np.inf, class_scores).max(0)
    spread = scored - np.where(np.isnan(class_scores), np.inf, class_scores).min(0)
    return sorted(np.argsort(-spread, kind="stable")[:DRAWN_CLASSES].tolist())


def limits_caption(result: Mapping[str, Any], scores: Any) -> str:
    """What the figures leave out, so that they stay readable and small."""
    losses, pairs, classes = len(_losses_with_runs(result)), len(result["pairs"]), len(scores.classes)
    parts = [f"the best {DRAWN_LOSSES} of {losses} losses"] if losses > DRAWN_LOSSES else []
    parts += [f"curves of the best {COLOURS} of {losses} losses"] if losses > COLOURS else []
    parts += [f"the {DRAWN_PAIRS} of {pairs} pairs with the largest differences"] if pairs > DRAWN_PAIRS else []
    parts += [f"the {DRAWN_CLASSES} of {classes} classes that differ most"] if classes > DRAWN_CLASSES else []
    return f"Figures show at most: {'; '.join(parts)}." if parts else ""


def mean_rank_caption(result: Mapping[str, Any]) -> str:
    """The caption of the figure of mean ranks."""
    if all(pair["p"] is None for pair in result["pairs"]):
        return "Mean ranks over the bootstrap resamples. No pair was tested, so no losses are joined."
    if result["family"] == "all_pairs":
        return "Mean ranks over the bootstrap resamples. Bars join losses between which no difference was found."
    return (
        "Mean ranks over the bootstrap resamples. Filled: losses found to differ from the baseline, the only loss with "
        "which all others are compared."
    )


def reference_loss(result: Mapping[str, Any]) -> str:
    """The loss against which the others are shown: the baseline if it has runs, otherwise the best loss."""
    names = [loss["name"] for loss in _losses_with_runs(result)]
    return result["baseline"] if result["baseline"] in names else names[0]


def paired_caption(result: Mapping[str, Any]) -> str:
    """The caption of the figure of case scores."""
    reference, others = reference_loss(result), len(_losses_with_runs(result)) - 1
    kind = "the baseline" if reference == result["baseline"] else "the loss with the best mean"
    limited = f" Vertical axis: the best {PAIRED_LOSSES} of the other losses." if others > PAIRED_LOSSES else ""
    return (
        f"One dot per case: its mean {result['metric']} over classes and runs, regardless of the aggregation; a run "
        "that correctly predicts nothing has a perfect score where another run has one. "
        f"Horizontal axis: {reference}, {kind}.{limited}"
    )


def paired(result: Mapping[str, Any], scores: Any) -> list[tuple[str, np.ndarray, str, np.ndarray]]:
    """The case means of the reference loss and of each of the best others, for cases in which both have one."""
    reference = reference_loss(result)
    reference_means = scores.case_means(reference)
    others = [loss["name"] for loss in _losses_with_runs(result) if loss["name"] != reference]
    pairs = []
    for loss in others[:PAIRED_LOSSES]:
        means = scores.case_means(loss)
        both = ~np.isnan(reference_means) & ~np.isnan(means)
        pairs.append((reference, reference_means[both], loss, means[both]))
    return pairs


def aggregation_caption(result: Mapping[str, Any]) -> str:
    """All aggregations in words."""
    return "; ".join(f"{name}: {rule['words']}" for name, rule in result["ranks"]["rules"].items()) + "."


def curves_caption(curves: pd.DataFrame | None, result: Mapping[str, Any]) -> str:
    """The number of validation cases and runs behind the curves."""
    if curves is None:
        return ""
    cases = sorted(set(curves["cases"].tolist()))
    runs = listed([f"{loss['name']} {len(loss['runs'])}" for loss in result["losses"]], limit=LISTED_LOSSES)
    number = " to ".join(map(str, dict.fromkeys([cases[0], cases[-1]])))
    return f"Based on {number} validation cases; runs: {runs}."


def pixels_caption(reliability: pd.DataFrame | None) -> str:
    """The number of pixels by loss."""
    if reliability is None:
        return ""
    pixels: Any = reliability.groupby("loss", sort=False)["pixels"].sum()
    return f"Pixels: {', '.join(f'{loss} {number:.3g}' for loss, number in pixels.items())}. "


def tables(result: Mapping[str, Any], scores: Any, material: Material) -> list[Table]:
    """The tables of training cost, calibration and learning rates, as far as available."""
    available, based_on = [], f"Based on {basis(result, scores)}."
    if material.units is not None:
        grouped: Any = material.units.groupby("loss", sort=False)
        means = grouped[["steps", "seconds", "memory_mb"]].mean().assign(runs=grouped.size()).reset_index()
        caption = f"Mean over the runs, for training without evaluation. Memory is the peak during training. {based_on}"
        available.append(Table("Training cost", caption, _in_order(means, result)))
    if material.calibration is not None:
        caption = f"Mean over the runs, each over all pixels of its cases; smaller is better. {based_on}"
        available.append(Table("Calibration", caption, _in_order(material.calibration, result)))
    tried, chosen = result.get("tried_rates"), result.get("learning_rates", {})
    if tried:
        caption = (
            f"{score_in_words(result)} of one run for each loss and learning rate on the validation set; the best rate "
            "was used."
        )
        marks = ["x" if chosen.get(row["loss"]) == row["rate"] else "" for row in tried]
        rows = _in_order(pd.DataFrame(tried).assign(used=marks), result)
        available.append(Table("Learning rates", caption, rows))
    return available


def _in_order(table: Any, result: Mapping[str, Any]) -> pd.DataFrame:
    """The rows in the order of the losses."""
    position = {loss["name"]: number for number, loss in enumerate(result["losses"])}
    return table.sort_values("loss", key=lambda names: names.map(position), kind="stable")


def _not_none(table: pd.DataFrame | None) -> pd.DataFrame:
    assert table is not None
    return table
