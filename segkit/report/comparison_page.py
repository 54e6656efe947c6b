"""The report of a comparison: report.html, which holds everything and loads nothing, report.md beside its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from segkit.report import comparison_figures as draw
from segkit.report.console import by_mean, noise_words, score_name
from segkit.report.html import Picture, png_of, write_both

PAIRED = 4  # losses whose cases are drawn against those of one
FEWEST_PIXELS = 100  # of a bin that is drawn
LISTED = 8  # cases in the table of disagreement
SENTENCES = {
    "better": "{a} is better than {b}",
    "worse": "{a} is worse than {b}",
    "equivalent": "{a} and {b} are equivalent",
    "undecided": "{a} and {b} are undecided",
    None: "nothing is said of {a} and {b}",
}
TURNED = {"better": "worse", "worse": "better"} | {one: one for one in ("equivalent", "undecided", None)}
PREPOSITIONS = {
    "better": "better than",
    "worse": "worse than",
    "equivalent": "equivalent to",
    "undecided": "undecided against",
    "None": "not judged against",
}


@dataclass(frozen=True)
class Table:
    """words: below the title, what it shows and what that rests on."""

    title: str
    words: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Material:
    """What a report shows beside the analysis; each may be missing.

    curves: loss, seed, fold, step, the validation scores, and the number of cases that they are of. units: loss, seed,
    fold, steps, seconds, memory_mb, score. calibration: loss and the mean of what was measured. reliability: loss, bin,
    pixels, confidence, accuracy. overlays: a picture, PNG, and the rule that chose its cases.
    """

    curves: pd.DataFrame | None = None
    units: pd.DataFrame | None = None
    calibration: pd.DataFrame | None = None
    reliability: pd.DataFrame | None = None
    overlays: tuple[bytes, str] | None = None


def write_pages(
    result: Mapping[str, Any], scores: Any, class_scores: np.ndarray, material: Material, out: Path
) -> None:
    """Write report.html, report.md and the pictures of the latter; everywhere the best loss comes first.

    scores: see `segkit.compare.score_table`. class_scores: of each run for each class, [R, C].
    """
    result = best_first(result)
    shown = {
        "result": result,
        "sentences": sentences(result),
        "basis": basis(result, scores),
        "pictures": pictures(result, scores, class_scores, material),
        "score": score_name(result),
        "noise": noise_words(result["noise_floor"]) if result.get("noise_floor") else None,
        "difference": "a - b" if result["higher_is_better"] else "b - a",
        "disagreement": disagreement(scores) if len(scores.losses) > 1 else [],
        "tables": tables(result, scores, material),
    }
    write_both("comparison", shown, out, "report")


def best_first(result: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of comparison.json with losses in the order of their means, and pairs in that of their losses."""
    losses = by_mean(result)
    place = {loss["name"]: number for number, loss in enumerate(losses)}

    def in_order(pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return sorted(pairs, key=lambda pair: sorted((place[pair["a"]], place[pair["b"]])))

    ranks = {**result["ranks"], "pairs": in_order(result["ranks"]["pairs"])}
    return {**result, "losses": losses, "pairs": in_order(result["pairs"]), "ranks": ranks}


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What the comparison says, in one sentence first; then the pairs, decided ones and large differences first."""
    if result["scope"] == "checkpoints":
        several = [loss["name"] for loss in result["losses"] if len(loss["runs"]) > 1]
        lead = f"Only {', '.join(several)} has several runs, which" if several else "One run a loss"
        return [f"{lead} says nothing of losses: what follows is about these checkpoints only."]
    names = [loss["name"] for loss in result["losses"]]
    if not result["pairs"]:
        return [f"There is only {names[0]}, and nothing to compare it with."]
    found = [_summary(result)]
    order = list(SENTENCES)
    for pair in sorted(result["pairs"], key=lambda pair: (order.index(pair["verdict"]), -abs(pair["difference"] or 0))):
        a, b, verdict = pair["a"], pair["b"], pair["verdict"]
        if verdict == "worse" and result["family"] == "all_pairs":
            a, b, verdict = b, a, "better"
        words = SENTENCES[verdict].format(a=a, b=b)
        more = f" by {abs(pair['difference']):.4f}" if verdict in ("better", "worse") else ""
        if verdict == "undecided" and "seeds_needed" in pair:
            needed = pair["seeds_needed"]
            more = (
                f"; if difference and spread stay as they are, {needed} seeds a loss would decide"
                if needed
                else "; more seeds alone would not decide"
            )
        if verdict == "equivalent":
            more = f" within {result['margin']:g}"
        why = f" ({pair['reason']})" if pair.get("reason") else ""
        found.append(f"{words}{more}{why}.")
    return found


def _summary(result: Mapping[str, Any]) -> str:
    """Of the baseline against the others, or of the best loss."""
    against_all = result["family"] == "all_pairs"
    centre = by_mean(result)[0]["name"] if against_all else result["baseline"]
    told: dict[str, list[str]] = {}
    for pair in result["pairs"]:
        if pair["a"] == centre:
            told.setdefault(str(pair["verdict"]), []).append(pair["b"])
        elif pair["b"] == centre:
            told.setdefault(str(TURNED[pair["verdict"]]), []).append(pair["a"])
    words = "; ".join(
        f"{PREPOSITIONS[verdict]} {', '.join(told[verdict])}" for verdict in PREPOSITIONS if verdict in told
    )
    decided = any(pair["verdict"] in ("better", "worse", "equivalent") for pair in result["pairs"])
    lead = "" if decided else "No difference between the losses was found, and none was ruled out: "
    whose = f"{centre} has the best mean and" if against_all else f"The baseline {centre}"
    return f"{lead}{whose} is {words}."


def _ranked(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The losses that have runs, as they come in `result`."""
    return [loss for loss in result["losses"] if loss["runs"]]


def basis(result: Mapping[str, Any], scores: Any) -> str:
    """What every number rests on."""
    runs = ", ".join(f"{loss['name']} {len(loss['runs'])}" for loss in result["losses"])
    return f"{result['cases']} cases in {result['groups']} groups, {len(scores.classes)} classes; runs: {runs}"


def pictures(result: Mapping[str, Any], scores: Any, class_scores: np.ndarray, material: Material) -> list[Picture]:
    """All that there is to draw."""
    on = basis(result, scores)
    ranked = result["ranks"]["resamples"] and all(one.get("shares") for one in result["ranks"]["rules"].values())
    result = {**result, "losses": _ranked(result)}
    metric, several = result["metric"], len(result["losses"]) > 1
    classes, counted = scores.sign * class_scores, (~np.isnan(scores.values)).any(0).sum(0)
    loss_of, losses = scores.runs["loss"].tolist(), [loss["name"] for loss in result["losses"]]
    drawn: list[tuple[Any, str, str, str, Callable[[], Figure]]] = [
        (several, "forest", "Differences", f"Thin: adjusted for all pairs, which gives the verdict; thick: 95 %. {on}.",
         lambda: draw.forest_figure(result)),
        (True, "runs", "Runs", f"{on}.", lambda: draw.runs_figure(result)),
        (several and ranked, "critical-difference", "Ranks", f"{joined_words(result)} {on}.",
         lambda: draw.critical_difference_figure(result)),
        (several and ranked, "ranks", "How stable the ranks are",
         f"Share of the resamples of runs and groups of cases in which each loss has each rank, by every rule. {on}.",
         lambda: draw.ranks_figure(result)),
        (several, "rules", "Ranks by other rules", f"{rule_words(result)} {on}.", lambda: draw.rules_figure(result)),
        (True, "classes", "Classes", f"{score_name(result)} of each class by itself, mean of the runs. {on}.",
         lambda: draw.classes_figure(classes, loss_of, losses, scores.classes, scores.sign, counted)),
        (True, "components", "Where scores vary",
         f"Of {score_name(result)}; a group of cases by its share in the score. {on}.",
         lambda: draw.components_figure(result)),
        (several, "paired", "Cases", f"{paired_words(result)} {on}.",
         lambda: draw.paired_figure(paired(result, scores), metric)),
        (material.curves is not None, "curves", "Training",
         "Validation scores while training: mean of the runs, and the range from the lowest to the highest. "
         f"{validation_words(material.curves, result)}",
         lambda: draw.curves_figure(_there(material.curves), losses, "iou" if metric == "iou" else "dice")),
        (material.reliability is not None, "reliability", "Calibration",
         "How often the predicted class is right over how sure it is: all pixels of all runs of a loss, 15 bins, those "
         f"of fewer than {FEWEST_PIXELS} pixels left out. Below the line: surer than right. "
         f"{pixel_words(material.reliability)}{on}.",
         lambda: draw.reliability_figure(_there(material.reliability), losses, FEWEST_PIXELS)),
        (material.units is not None, "cost", "Cost", f"A dot a run; memory: peak while training. {on}.",
         lambda: draw.cost_figure(_there(material.units), losses, metric)),
    ]  # fmt: skip
    found = [Picture(name, title, words, png_of(make())) for there, name, title, words, make in drawn if there]
    if material.overlays is not None:
        png, rule = material.overlays
        found.append(Picture("overlays", "Where the losses disagree most", f"{rule} {on}.", png))
    return found


def joined_words(result: Mapping[str, Any]) -> str:
    if all(pair["p"] is None for pair in result["pairs"]):
        return "Mean ranks in the resamples; no pair was tested, so that nothing is joined."
    if result["family"] == "all_pairs":
        return "Mean ranks in the resamples; bars join losses of which no two were found to differ."
    return (
        "Mean ranks in the resamples; filled: found to differ from the baseline, the only one that all are tested with."
    )


def reference_of(result: Mapping[str, Any]) -> str:
    """The loss that the others are shown against: the baseline if it has runs, or else the best one."""
    names = [loss["name"] for loss in _ranked(result)]
    return result["baseline"] if result["baseline"] in names else names[0]


def paired_words(result: Mapping[str, Any]) -> str:
    against, others = reference_of(result), len(_ranked(result)) - 1
    which = f", and the best {PAIRED} of the others" if others > PAIRED else ""
    kind = "the baseline" if against == result["baseline"] else "the loss with the best mean"
    what = f"its mean {result['metric']} over classes and runs, however the score is made"
    return f"A dot a case, {what}. Across: {against}, {kind}{which}."


def paired(result: Mapping[str, Any], scores: Any) -> list[tuple[str, np.ndarray, str, np.ndarray]]:
    """The means of the cases by the reference, and by each of the best others: where both have one."""
    against, found = reference_of(result), []
    first = scores.case_means(against)
    for loss in [loss["name"] for loss in _ranked(result) if loss["name"] != against][:PAIRED]:
        second = scores.case_means(loss)
        both = ~np.isnan(first) & ~np.isnan(second)
        found.append((against, first[both], loss, second[both]))
    return found


def rule_words(result: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {one['words']}" for name, one in result["ranks"]["rules"].items()) + "."


def disagreement(scores: Any) -> list[dict[str, Any]]:
    """The cases on which the losses' means are furthest apart, the most so first."""
    means = np.stack([scores.case_means(loss) for loss in scores.losses])
    spread = np.where(np.isnan(means).any(0), -np.inf, means.max(0) - means.min(0))
    order = np.argsort(-spread, kind="stable")[:LISTED]
    return [
        {
            "case": scores.cases[place],
            "spread": float(spread[place]),
            "means": dict(zip(scores.losses, means[:, place].tolist(), strict=True)),
            "highest": scores.losses[int(means[:, place].argmax())],
            "lowest": scores.losses[int(means[:, place].argmin())],
        }
        for place in order
        if np.isfinite(spread[place])
    ]


def validation_words(curves: pd.DataFrame | None, result: Mapping[str, Any]) -> str:
    """How many cases and runs the curves rest on."""
    if curves is None:
        return ""
    cases = sorted(set(curves["cases"].tolist()))
    runs = ", ".join(f"{loss['name']} {len(loss['runs'])}" for loss in result["losses"])
    return f"{' to '.join(map(str, dict.fromkeys([cases[0], cases[-1]])))} validation cases; runs: {runs}."


def pixel_words(reliability: pd.DataFrame | None) -> str:
    if reliability is None:
        return ""
    pixels: Any = reliability.groupby("loss", sort=False)["pixels"].sum()
    return f"Pixels: {', '.join(f'{loss} {number:.3g}' for loss, number in pixels.items())}. "


def tables(result: Mapping[str, Any], scores: Any, material: Material) -> list[Table]:
    """Further tables."""
    found, on = [], f"{basis(result, scores)}."
    if material.units is not None:
        grouped: Any = material.units.groupby("loss", sort=False)
        means = grouped[["steps", "seconds", "memory_mb"]].mean().assign(runs=grouped.size()).reset_index()
        means = _in_order(means, result)
        found.append(
            Table("Cost", f"Mean of the runs, of their trainings alone; memory: peak while training. {on}", means)
        )
    if material.calibration is not None:
        words = "Mean of the runs, each of all pixels of its cases; the less, the better."
        found.append(Table("Calibration", f"{words} {on}", _in_order(material.calibration, result)))
    tried, chosen = result.get("tried_rates"), result.get("learning_rates", {})
    if tried:
        words = f"{score_name(result)} of one run for each loss and rate, on the validation part; the best was taken."
        marks = ["x" if chosen.get(row["loss"]) == row["rate"] else "" for row in tried]
        rows = _in_order(pd.DataFrame(tried).assign(taken=marks), result)
        found.append(Table("Learning rates", words, rows))
    return found


def _in_order(table: Any, result: Mapping[str, Any]) -> pd.DataFrame:
    """The rows in the order of the losses."""
    place = {loss["name"]: number for number, loss in enumerate(result["losses"])}
    return table.sort_values("loss", key=lambda names: names.map(place), kind="stable")


def _there(table: pd.DataFrame | None) -> pd.DataFrame:
    assert table is not None
    return table
