"""From the table of cases to reported numbers, by rules: means, medians, intervals, and what they leave out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from segkit.labels import Labels
from segkit.metrics.bootstrap import Intervals, average_intervals, mean_intervals, median_intervals, ratio_intervals
from segkit.metrics.case_table import COUNTS, FROM_COUNTS, Table, averaged_classes, raw_score, ruled
from segkit.metrics.rules import OF_CASES, POOLED, SEGKIT, Rules

NEVER = "the class is in neither prediction nor reference of any case"
NOT_COUNTED = "the class is missed or spurious where it is at all, which these rules do not count for this metric"
NOTHING = "no case has a counted class in its prediction or reference"
INFINITE = "a missed or spurious structure counts as infinitely far, by these rules"


def summarise(
    cases: pd.DataFrame,
    labels: Labels,
    rules: Rules = SEGKIT,
    *,
    metrics: Sequence[str] = ("dice", "iou"),
    intervals: bool = True,
) -> dict[str, Any]:
    """The rules, metrics, classes, mean and global parts of scores.json, from a table that these rules have scored.

    metrics: those of a case as a whole, such as generalized_dice, are under `of_cases`, all others under `classes`.
    `mean_counts` says what each mean rests on: classes, pairs of a case and a class, missed and spurious ones.
    A class that no case counts has mean None with the reason beside it, and is not in the mean over classes but named
    in `mean_left_out`. Where there is no interval, it is None with the reason beside it. `intervals=False` leaves
    the intervals out, for speed.
    """
    table: Table = cases
    of_cases = {
        metric: _case_score(table, metric, labels, rules, intervals=intervals)
        for metric in metrics
        if metric in OF_CASES
    }
    all_metrics, metrics = metrics, [metric for metric in metrics if metric not in OF_CASES]
    names = [name for name in labels.channel_names if name not in rules.exclude_classes]
    values = {metric: _by_case(table, metric, names) for metric in metrics}
    bounds, notes = _all_bounds(table, values, names, rules) if intervals and metrics else ({}, [])
    rows = {name: table[table["class"] == name] for name in names}
    classes = {
        name: {
            metric: _class_score(rows[name], metric, values[metric][:, place], rules) | bounds.get((metric, name), {})
            for metric in metrics
        }
        for place, name in enumerate(names)
    }
    averaged = {metric: averaged_classes(labels, rules, metric) for metric in metrics}
    means = {metric: _mean(table, values[metric], metric, names, averaged[metric], rules) for metric in metrics}
    left_out = {
        metric: [name for name in averaged[metric] if classes[name][metric]["cases"] == 0] for metric in metrics
    }
    reasons = {metric: _mean_reason(mean, left_out[metric], averaged[metric]) for metric, mean in means.items()}
    summary = {
        "rules": rules.to_dict(),
        "rules_in_words": rules.in_words(all_metrics),
        "metrics": {metric: rules.full_name(metric) for metric in all_metrics},
        "classes": classes,
        "mean": {metric: _plain(mean) for metric, mean in means.items()},
        "mean_counts": {metric: _rests_on([classes[name][metric] for name in averaged[metric]]) for metric in metrics},
        "mean_intervals": {
            metric: _mean_bounds(table, values[metric], metric, names, averaged[metric], rules) for metric in metrics
        }
        if intervals
        else {},
        "mean_left_out": {metric: missing for metric, missing in left_out.items() if missing},
        "mean_reason": {metric: reason for metric, reason in reasons.items() if reason},
        "interval_notes": notes,
    }
    return summary | ({"of_cases": of_cases} if of_cases else {}) | {"global": pooled(cases, labels, rules)}


def _rests_on(scores: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What a mean over classes rests on, from the scores of these."""
    sums = {name: sum(score[name] for score in scores) for name in ("cases", "missed", "spurious")}
    counted = sum(score["cases"] > 0 for score in scores)
    return {"classes": counted, "pairs": sums["cases"], "missed": sums["missed"], "spurious": sums["spurious"]}


def _mean_reason(mean: float, left_out: Sequence[str], averaged: Sequence[str]) -> str | None:
    """Why a mean over classes is no number."""
    if math.isinf(mean):
        return INFINITE
    if not math.isnan(mean):
        return None
    return NOTHING if len(left_out) == len(averaged) else f"no case counts {', '.join(left_out)}"


def pooled(cases: pd.DataFrame, labels: Labels, rules: Rules = SEGKIT) -> dict[str, Any]:
    """Dice and IoU of the whole data set: counts are summed over cases first; then a mean over classes.

    `cases` are those where a class is in prediction or reference, `missed` and `spurious` those where in one only.
    None, with the reason beside it, for a class that is in neither throughout; such a class is not in the mean.
    """
    names = [name for name in labels.channel_names if name not in rules.exclude_classes]
    totals = _totals(cases, names)
    scores = {metric: raw_score(totals, metric) for metric in ("dice", "iou")}
    rows: Table = cases
    classes: dict[str, dict[str, Any]] = {
        name: {metric: _plain(scores[metric][place]) for metric in scores} | _shown(rows[rows["class"] == name])
        for place, name in enumerate(names)
    }
    for score in classes.values():
        if score["dice"] is None:
            score["reason"] = NEVER
    chosen = {metric: averaged_classes(labels, rules, metric) for metric in scores}
    places = {metric: [names.index(name) for name in chosen[metric]] for metric in scores}
    means = {metric: _plain(_nanmean(scores[metric][places[metric]])) for metric in scores}
    result: dict[str, Any] = {
        "classes": classes,
        "mean": means,
        "mean_counts": {metric: _rests_on([classes[name] for name in chosen[metric]]) for metric in scores},
    }
    return result if None not in means.values() else result | {"mean_reason": NOTHING}


def _by_case(table: Table, metric: str, names: Sequence[str]) -> np.ndarray:
    """A metric as float64 [cases, classes]."""
    return table.pivot(index="case", columns="class", values=metric).reindex(columns=list(names)).to_numpy(float)


def _groups(table: Table) -> np.ndarray:
    """The group of each case, in the order of `_by_case`."""
    return table.drop_duplicates("case").set_index("case").sort_index()["group"].to_numpy(str)


def _totals(table: Table, names: Sequence[str]) -> Table:
    """The counts of each class summed over cases, a row a class."""
    columns = [
        column
        for column in table.columns
        if column in {name for made_of, _ in FROM_COUNTS.values() for name in made_of}
    ]
    return table.groupby("class")[columns].sum().reindex(list(names), fill_value=0).reset_index()


def _pooled_scores(table: Table, metric: str, names: Sequence[str], rules: Rules) -> np.ndarray:
    totals = _totals(table, names)
    return ruled(raw_score(totals, metric), totals, rules.empty.get(metric))


def _class_score(rows: Table, metric: str, values: np.ndarray, rules: Rules) -> dict[str, Any]:
    """Mean, median and numbers of cases of one class and metric."""
    counted = values[~np.isnan(values)]
    mean = _nanmean(values)
    if rules.aggregated(metric) in POOLED:
        name = rows["class"].iloc[0] if len(rows) else ""
        mean = float(_pooled_scores(rows, metric, [name], rules)[0])
    shown = _shown(rows)
    score: dict[str, Any] = {"mean": _plain(mean)}
    if score["mean"] is None:
        somewhere = shown["missed"] or shown["spurious"]
        score["mean_reason"] = INFINITE if math.isinf(mean) else NOT_COUNTED if somewhere else NEVER
    if len(counted):
        score["median"] = _plain(float(np.median(counted)))
        score |= {"median_reason": INFINITE} if score["median"] is None else {}
    return score | {**shown, "cases": len(counted)}


def _case_counts(rows: Table) -> dict[str, int]:
    """`missed` and `spurious` of cases as a whole."""
    sums = rows.groupby("case")[["predicted", "reference"]].sum()
    return {name: number for name, number in _shown(sums).items() if name != "cases"}


def _shown(rows: Table) -> dict[str, int]:
    """In how many cases a class is in prediction or reference, and where it is in one of the two only."""
    predicted, reference = rows["predicted"] > 0, rows["reference"] > 0
    numbers = {"cases": predicted | reference, "missed": reference & ~predicted, "spurious": predicted & ~reference}
    return {name: int(where.sum()) for name, where in numbers.items()}


def _mean(
    table: Table, values: np.ndarray, metric: str, names: Sequence[str], averaged: Sequence[str], rules: Rules
) -> float:
    """The metric as one number, by its aggregation; NaN where nothing is counted."""
    places = [names.index(name) for name in averaged]
    way = rules.aggregated(metric)
    if way == "pairs":
        return _nanmean(values[:, places])
    if way == "case_class":
        return _nanmean(np.array([_nanmean(row) for row in values[:, places]]))
    if way == "micro":
        totals = _totals(table[table["class"].isin(list(averaged))], averaged)
        total = totals.drop(columns="class").sum().to_frame().T
        return float(ruled(raw_score(total, metric), total, rules.empty.get(metric))[0])
    of_classes = (
        _pooled_scores(table, metric, names, rules)[places]
        if way == "global"
        else np.array([_nanmean(values[:, place]) for place in places])
    )
    if rules.absent is not None:
        of_classes = np.where(np.isnan(of_classes), rules.absent, of_classes)
        return float(of_classes.mean()) if len(of_classes) else math.nan
    return _nanmean(of_classes)


def _case_score(table: Table, metric: str, labels: Labels, rules: Rules, *, intervals: bool) -> dict[str, Any]:
    """Mean, median and their intervals of a metric that a case has one value of, and the classes that it is of.

    `missed` and `spurious` are cases that have something of these classes in one of prediction and reference only.
    """
    of_case = np.array(table.drop_duplicates("case").set_index("case").sort_index()[metric], dtype=float)
    counted = of_case[~np.isnan(of_case)]
    score: dict[str, Any] = {"mean": _plain(_nanmean(of_case)), "cases": len(counted)}
    averaged = averaged_classes(labels, rules, metric)
    score |= _case_counts(table[table["class"].isin(averaged)]) | {"classes": averaged}
    if not len(counted):
        return score | {"mean_reason": NOTHING}
    score["median"] = float(np.median(counted))
    if not intervals:
        return score
    groups, values = _groups(table), torch.from_numpy(of_case[:, None])
    means = _bounds(mean_intervals(values, groups, rules.bootstrap), 0, "ci95")
    return score | means | _bounds(median_intervals(values, groups, rules.bootstrap), 0, "median_ci95")


def _all_bounds(
    table: Table, values: dict[str, np.ndarray], names: Sequence[str], rules: Rules
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """`ci95`, `median_ci95` and why there are none, for each metric and class, all columns in one bootstrap; and what
    a reader should know of them."""
    groups, columns = _groups(table), [(metric, name) for metric in values for name in names]
    everything = torch.from_numpy(np.concatenate(list(values.values()), 1))
    means = mean_intervals(everything, groups, rules.bootstrap)
    medians = median_intervals(everything, groups, rules.bootstrap)
    found = {
        column: _bounds(means, place, "ci95") | _bounds(medians, place, "median_ci95")
        for place, column in enumerate(columns)
    }
    for metric in values:
        if rules.aggregated(metric) in POOLED and metric in ("dice", "iou"):
            ratios = _pooled_intervals(table, metric, names, groups, rules)
            for place, name in enumerate(names):
                found[metric, name] |= _bounds(ratios, place, "ci95")
    return found, means.notes


def _mean_bounds(
    table: Table, values: np.ndarray, metric: str, names: Sequence[str], averaged: Sequence[str], rules: Rules
) -> dict[str, Any]:
    """`ci95` of the mean over classes, by the aggregation of the metric, or None and why there is none."""
    way, groups, given = rules.aggregated(metric), _groups(table), rules.bootstrap
    chosen = torch.from_numpy(values[:, [names.index(name) for name in averaged]])
    known = ~chosen.isnan()
    if not averaged or not bool(known.any()):
        return {"ci95": None, "ci95_reason": NOTHING}
    if way in POOLED and metric not in ("dice", "iou"):
        return {"ci95": None, "ci95_reason": f"intervals of pooled {metric} are not made"}
    if way in POOLED:
        above, below = _pooled_parts(table, metric, averaged)
        if way == "micro":
            return _bounds(ratio_intervals(above.sum(1, True), below.sum(1, True), groups, given), 0, "ci95")
        return _bounds(average_intervals(above, below, range(len(averaged)), groups, given), 0, "ci95")
    if way == "case_class":
        return _bounds(mean_intervals(chosen.nanmean(1, keepdim=True), groups, given), 0, "ci95")
    if way == "pairs":
        sums = torch.where(known, chosen, 0).sum(1, keepdim=True)
        return _bounds(ratio_intervals(sums, known.sum(1, keepdim=True).to(sums.dtype), groups, given), 0, "ci95")
    return _bounds(average_intervals(chosen, torch.ones_like(chosen), range(len(averaged)), groups, given), 0, "ci95")


def _pooled_intervals(table: Table, metric: str, names: Sequence[str], groups: np.ndarray, rules: Rules) -> Intervals:
    return ratio_intervals(*_pooled_parts(table, metric, names), groups, rules.bootstrap)


def _pooled_parts(table: Table, metric: str, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What pooled Dice or IoU is the ratio of the sums of, [cases, classes] each."""
    tp, predicted, reference = (torch.tensor(_by_case(table, column, names)) for column in COUNTS)
    return (2 * tp, predicted + reference) if metric == "dice" else (tp, predicted + reference - tp)


def _bounds(intervals: Intervals, place: int, name: str) -> dict[str, Any]:
    reason = intervals.reasons[place]
    if reason is not None:
        return {name: None, f"{name}_reason": reason}
    return {name: [float(intervals.low[place]), float(intervals.high[place])]}


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return math.fsum(known) / len(known) if len(known) and np.isfinite(known).all() else _of_extremes(known)


def _of_extremes(known: np.ndarray) -> float:
    return float(known.sum()) if len(known) else math.nan


def _plain(value: float) -> float | None:
    """A number as JSON takes it: NaN and infinity are None."""
    return float(value) if math.isfinite(value) else None
