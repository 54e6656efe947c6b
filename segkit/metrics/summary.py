"""From the table of cases to reported numbers: means, medians and intervals by the rules, and what they leave out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from segkit.labels import Labels
from segkit.metrics.bootstrap import Intervals, average_intervals, mean_intervals, median_intervals, ratio_intervals
from segkit.metrics.case_table import (
    COUNTS,
    FROM_COUNTS,
    Table,
    apply_empty_class_rule,
    averaged_classes,
    raw_score,
)
from segkit.metrics.rules import PER_CASE_METRICS, POOLED_AGGREGATIONS, SEGKIT, Aggregation, Rules

ABSENT = "the class is absent from prediction and reference of every case"
NOT_COUNTED = "the class is missed or spurious in every case that has it, and these rules do not count such cases"
NO_COUNTED_CASE = "no case has a counted class in its prediction or reference"
INFINITE = "these rules count a missed or spurious class as infinitely far"


def summarise(
    cases: pd.DataFrame,
    labels: Labels,
    rules: Rules = SEGKIT,
    *,
    metrics: Sequence[str] = ("dice", "iou"),
    intervals: bool = True,
) -> dict[str, Any]:
    """Summarise a table of cases: the parts of scores.json from `rules` to `global`.

    cases: table from `cases_table`, made with the same rules.
    metrics: names of the metrics to report. Metrics of a case as a whole, such as generalized_dice, are reported under
        `of_cases`, all others under `classes`.
    intervals: whether to compute bootstrap intervals, which takes most of the time.

    For each metric, `mean` is the mean over classes and cases by the aggregation of the rules, and `mean_counts` states
    what it is based on: the number of classes, of pairs of a case and a class, and of missed and spurious classes. A
    class without counted cases has the mean None with a reason; it is not part of the mean over classes and is listed
    in `mean_left_out`. If there is no interval, it is None with a reason.
    """
    table: Table = cases
    classes = reported_classes(labels, rules)
    class_metrics = [
        _class_metric(table, metric, classes, labels, rules) for metric in metrics if metric not in PER_CASE_METRICS
    ]
    per_class, notes = _class_scores(table, class_metrics, classes, rules, intervals=intervals)
    per_case = {
        metric: _per_case_score(table, metric, labels, rules, intervals=intervals)
        for metric in metrics
        if metric in PER_CASE_METRICS
    }
    return {
        "rules": rules.to_dict(metrics),
        "rules_in_words": rules.describe(metrics),
        "metrics": {metric: rules.full_name(metric) for metric in metrics},
        "classes": per_class,
        **_means(table, class_metrics, classes, per_class, rules, intervals=intervals),
        "interval_notes": notes,
        **({"of_cases": per_case} if per_case else {}),
        "global": pooled(cases, labels, rules),
    }


def pooled(cases: pd.DataFrame, labels: Labels, rules: Rules = SEGKIT) -> dict[str, Any]:
    """Dice and IoU of the whole dataset: counts are summed over cases first, and the mean is taken over classes.

    For each class, `cases` is the number of cases that have the class in prediction or reference, and `missed` and
    `spurious` are the numbers of cases that have it in only one of the two. A class that is absent from all cases has
    the scores None with a reason, and is not part of the mean.
    """
    names = reported_classes(labels, rules)
    totals = _total_counts(cases, names)
    scores = {metric: raw_score(totals, metric) for metric in ("dice", "iou")}
    rows: Table = cases
    classes: dict[str, dict[str, Any]] = {
        name: {metric: to_json(scores[metric][column]) for metric in scores}
        | _case_numbers(rows[rows["class"] == name])
        for column, name in enumerate(names)
    }
    for score in classes.values():
        if score["dice"] is None:
            score["reason"] = ABSENT
    averaged = {metric: averaged_classes(labels, rules, metric) for metric in scores}
    columns = {metric: [names.index(name) for name in averaged[metric]] for metric in scores}
    means = {metric: to_json(nanmean(scores[metric][columns[metric]])) for metric in scores}
    result: dict[str, Any] = {
        "classes": classes,
        "mean": means,
        "mean_counts": {metric: _mean_counts([classes[name] for name in averaged[metric]]) for metric in scores},
    }
    return result if None not in means.values() else result | {"mean_reason": NO_COUNTED_CASE}


# --- the values of a metric -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ClassMetric:
    """A metric with one value per case and class.

    values: float64 [cases, classes], NaN where the rules do not count a case.
    averaged: names of the classes whose mean is reported; `columns` are their columns in `values`.
    """

    name: str
    values: np.ndarray
    averaged: list[str]
    columns: list[int]
    aggregation: Aggregation

    @property
    def is_pooled(self) -> bool:
        """Whether counts are summed over cases before the metric is computed."""
        return self.aggregation in POOLED_AGGREGATIONS

    @property
    def averaged_values(self) -> np.ndarray:
        """The values of the classes in the mean, [cases, averaged classes]."""
        return self.values[:, self.columns]


def _class_metric(table: Table, metric: str, classes: list[str], labels: Labels, rules: Rules) -> _ClassMetric:
    averaged = averaged_classes(labels, rules, metric)
    return _ClassMetric(
        name=metric,
        values=_values_by_case(table, metric, classes),
        averaged=averaged,
        columns=[classes.index(name) for name in averaged],
        aggregation=rules.aggregation_of(metric),
    )


def reported_classes(labels: Labels, rules: Rules) -> list[str]:
    """The classes of tables: all but those that the rules exclude."""
    return [name for name in labels.channel_names if name not in rules.exclude_classes]


def _values_by_case(table: Table, column: str, classes: Sequence[str]) -> np.ndarray:
    """A column of the table as float64 [cases, classes], with the cases sorted by name."""
    return table.pivot(index="case", columns="class", values=column).reindex(columns=list(classes)).to_numpy(float)


def _values_of_cases(table: Table, column: str) -> Table:
    """A column that has one value per case, in the order of `_values_by_case`."""
    return table.drop_duplicates("case").set_index("case").sort_index()[column]


def _groups(table: Table) -> np.ndarray:
    """The group of each case, in the order of `_values_by_case`."""
    return _values_of_cases(table, "group").to_numpy(str)


def _total_counts(table: Table, classes: Sequence[str]) -> Table:
    """The counts of each class, summed over cases: one row per class."""
    count_columns = {name for columns, _ in FROM_COUNTS.values() for name in columns}
    columns = [column for column in table.columns if column in count_columns]
    return table.groupby("class")[columns].sum().reindex(list(classes), fill_value=0).reset_index()


def _pooled_scores(table: Table, metric: str, classes: Sequence[str], rules: Rules) -> np.ndarray:
    """The metric computed from the total counts of each class, [classes]."""
    totals = _total_counts(table, classes)
    return apply_empty_class_rule(raw_score(totals, metric), totals, rules.empty_class_rule(metric))


def _case_numbers(rows: Table) -> dict[str, int]:
    """The number of cases that have a class in prediction or reference, and of those that have it in only one."""
    predicted, reference = rows["predicted"] > 0, rows["reference"] > 0
    masks = {"cases": predicted | reference, "missed": reference & ~predicted, "spurious": predicted & ~reference}
    return {name: int(mask.sum()) for name, mask in masks.items()}


# --- the scores of each class -----------------------------------------------------------------------------------------


def _class_scores(
    table: Table, metrics: Sequence[_ClassMetric], classes: Sequence[str], rules: Rules, *, intervals: bool
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
    """The scores by class and metric, and notes on the intervals."""
    interval_fields, notes = _class_intervals(table, metrics, classes, rules) if intervals and metrics else ({}, [])
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for column, name in enumerate(classes):
        rows = table[table["class"] == name]
        scores[name] = {
            metric.name: _class_score(rows, metric, column, rules) | interval_fields.get((metric.name, name), {})
            for metric in metrics
        }
    return scores, notes


def _class_score(rows: Table, metric: _ClassMetric, column: int, rules: Rules) -> dict[str, Any]:
    """Mean, median and numbers of cases of one class. rows: the rows of the table of this class."""
    values = metric.values[:, column]
    counted = values[~np.isnan(values)]
    mean = nanmean(values)
    if metric.is_pooled:
        name = rows["class"].iloc[0] if len(rows) else ""
        mean = float(_pooled_scores(rows, metric.name, [name], rules)[0])
    numbers = _case_numbers(rows)
    score: dict[str, Any] = {"mean": to_json(mean)}
    if score["mean"] is None:
        score["mean_reason"] = _missing_mean_reason(mean, numbers)
    if len(counted):
        score["median"] = to_json(float(np.median(counted)))
        score |= {"median_reason": INFINITE} if score["median"] is None else {}
    return score | {**numbers, "cases": len(counted)}


def _missing_mean_reason(mean: float, numbers: dict[str, int]) -> str:
    """Why the mean of a class is None."""
    if math.isinf(mean):
        return INFINITE
    return NOT_COUNTED if numbers["missed"] or numbers["spurious"] else ABSENT


def _class_intervals(
    table: Table, metrics: Sequence[_ClassMetric], classes: Sequence[str], rules: Rules
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """`ci95` and `median_ci95`, or the reasons for missing ones, by metric and class; and notes on the intervals.

    One bootstrap with common resamples serves all metrics and classes.
    """
    groups = _groups(table)
    values = torch.from_numpy(np.concatenate([metric.values for metric in metrics], 1))
    means = mean_intervals(values, groups, rules.bootstrap)
    medians = median_intervals(values, groups, rules.bootstrap)
    pairs = [(metric.name, name) for metric in metrics for name in classes]
    result = {
        pair: interval_fields(means, column, "ci95") | interval_fields(medians, column, "median_ci95")
        for column, pair in enumerate(pairs)
    }
    for metric in metrics:
        if metric.is_pooled and metric.name in ("dice", "iou"):
            ratios = ratio_intervals(*_pooled_ratio(table, metric.name, classes), groups, rules.bootstrap)
            for column, name in enumerate(classes):
                result[metric.name, name] |= interval_fields(ratios, column, "ci95")
    return result, means.notes


# --- means over classes -----------------------------------------------------------------------------------------------


def _means(
    table: Table,
    metrics: Sequence[_ClassMetric],
    classes: Sequence[str],
    scores: dict[str, dict[str, dict[str, Any]]],
    rules: Rules,
    *,
    intervals: bool,
) -> dict[str, Any]:
    """The parts of scores.json that concern means over classes, from the scores of the classes."""
    means = {metric.name: _mean(table, metric, classes, rules) for metric in metrics}
    counts, left_out, reasons = {}, {}, {}
    for metric in metrics:
        averaged_scores = {name: scores[name][metric.name] for name in metric.averaged}
        counts[metric.name] = _mean_counts(list(averaged_scores.values()))
        without_cases = [name for name, score in averaged_scores.items() if score["cases"] == 0]
        if without_cases:
            left_out[metric.name] = without_cases
        reason = _mean_reason(means[metric.name], without_cases, metric.averaged)
        if reason is not None:
            reasons[metric.name] = reason
    return {
        "mean": {name: to_json(mean) for name, mean in means.items()},
        "mean_counts": counts,
        "mean_intervals": {metric.name: _mean_interval(table, metric, rules) for metric in metrics}
        if intervals
        else {},
        "mean_left_out": left_out,
        "mean_reason": reasons,
    }


def _mean(table: Table, metric: _ClassMetric, classes: Sequence[str], rules: Rules) -> float:
    """The mean over classes and cases, by the aggregation of the metric; NaN if nothing is counted."""
    if metric.aggregation == "pairs":
        return nanmean(metric.averaged_values)
    if metric.aggregation == "case_class":
        return nanmean(np.array([nanmean(row) for row in metric.averaged_values]))
    if metric.aggregation == "micro":
        totals = _total_counts(table[table["class"].isin(metric.averaged)], metric.averaged)
        total = totals.drop(columns="class").sum().to_frame().T
        return float(
            apply_empty_class_rule(raw_score(total, metric.name), total, rules.empty_class_rule(metric.name))[0]
        )
    class_means = (
        _pooled_scores(table, metric.name, classes, rules)[metric.columns]
        if metric.aggregation == "global"
        else np.array([nanmean(values) for values in metric.averaged_values.T])
    )
    if rules.absent is not None:
        class_means = np.where(np.isnan(class_means), rules.absent, class_means)
        return float(class_means.mean()) if len(class_means) else math.nan
    return nanmean(class_means)


def _mean_counts(scores: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What a mean over classes is based on, from the scores of these classes."""
    sums = {name: sum(score[name] for score in scores) for name in ("cases", "missed", "spurious")}
    counted = sum(score["cases"] > 0 for score in scores)
    return {"classes": counted, "pairs": sums["cases"], "missed": sums["missed"], "spurious": sums["spurious"]}


def _mean_reason(mean: float, left_out: Sequence[str], averaged: Sequence[str]) -> str | None:
    """Why a mean over classes is None; None if it is a number."""
    if math.isinf(mean):
        return INFINITE
    if not math.isnan(mean):
        return None
    return NO_COUNTED_CASE if len(left_out) == len(averaged) else f"no case is counted for {', '.join(left_out)}"


def _mean_interval(table: Table, metric: _ClassMetric, rules: Rules) -> dict[str, Any]:
    """`ci95` of the mean over classes, by the aggregation of the metric, or None and the reason."""
    values = torch.from_numpy(metric.averaged_values)
    if not metric.averaged or bool(values.isnan().all()):
        return {"ci95": None, "ci95_reason": NO_COUNTED_CASE}
    if metric.is_pooled and metric.name not in ("dice", "iou"):
        return {"ci95": None, "ci95_reason": f"intervals of pooled {metric.name} are not supported"}
    return interval_fields(_intervals_of_mean(table, metric, values, rules), 0, "ci95")


def _intervals_of_mean(table: Table, metric: _ClassMetric, values: torch.Tensor, rules: Rules) -> Intervals:
    """The interval of the mean over classes, as one column. values: [cases, averaged classes]."""
    groups, bootstrap = _groups(table), rules.bootstrap
    if metric.aggregation == "micro":
        numerators, denominators = _pooled_ratio(table, metric.name, metric.averaged)
        return ratio_intervals(numerators.sum(1, True), denominators.sum(1, True), groups, bootstrap)
    if metric.aggregation == "global":
        numerators, denominators = _pooled_ratio(table, metric.name, metric.averaged)
        return average_intervals(numerators, denominators, range(len(metric.averaged)), groups, bootstrap)
    if metric.aggregation == "case_class":
        return mean_intervals(values.nanmean(1, keepdim=True), groups, bootstrap)
    if metric.aggregation == "pairs":
        counted = ~values.isnan()
        sums = torch.where(counted, values, 0).sum(1, keepdim=True)
        return ratio_intervals(sums, counted.sum(1, keepdim=True).to(sums.dtype), groups, bootstrap)
    return average_intervals(values, torch.ones_like(values), range(len(metric.averaged)), groups, bootstrap)


def _pooled_ratio(table: Table, metric: str, classes: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerators and denominators whose sums over cases have pooled Dice or IoU as their ratio, [cases, classes]."""
    tp, predicted, reference = (torch.tensor(_values_by_case(table, column, classes)) for column in COUNTS)
    return (2 * tp, predicted + reference) if metric == "dice" else (tp, predicted + reference - tp)


# --- metrics of a case as a whole -------------------------------------------------------------------------------------


def _per_case_score(table: Table, metric: str, labels: Labels, rules: Rules, *, intervals: bool) -> dict[str, Any]:
    """Mean, median and their intervals of a metric with one value per case, and the classes that it combines.

    `missed` and `spurious` are the numbers of cases that have pixels of these classes in only one of prediction and
    reference.
    """
    values = np.array(_values_of_cases(table, metric), dtype=float)
    counted = values[~np.isnan(values)]
    classes = averaged_classes(labels, rules, metric)
    sums = table[table["class"].isin(classes)].groupby("case")[["predicted", "reference"]].sum()
    numbers = _case_numbers(sums) | {"cases": len(counted)}
    score: dict[str, Any] = {
        "mean": to_json(nanmean(values)),
        "cases": numbers["cases"],
        "missed": numbers["missed"],
        "spurious": numbers["spurious"],
        "classes": classes,
    }
    if not len(counted):
        return score | {"mean_reason": NO_COUNTED_CASE}
    score["median"] = float(np.median(counted))
    if not intervals:
        return score
    groups, column = _groups(table), torch.from_numpy(values[:, None])
    means = interval_fields(mean_intervals(column, groups, rules.bootstrap), 0, "ci95")
    return score | means | interval_fields(median_intervals(column, groups, rules.bootstrap), 0, "median_ci95")


# --- numbers ----------------------------------------------------------------------------------------------------------


def interval_fields(intervals: Intervals, column: int, name: str) -> dict[str, Any]:
    """An interval as a field of scores.json: its bounds, or None and the reason."""
    reason = intervals.reasons[column]
    if reason is not None:
        return {name: None, f"{name}_reason": reason}
    return {name: [float(intervals.low[column]), float(intervals.high[column])]}


def nanmean(values: np.ndarray) -> float:
    """The mean of all values but NaN, with an exact sum; NaN if there are none."""
    counted = values[~np.isnan(values)]
    if not len(counted):
        return math.nan
    if not np.isfinite(counted).all():
        return float(counted.sum())  # infinite, or NaN for infinities of both signs
    return math.fsum(counted) / len(counted)


def to_json(value: float) -> float | None:
    """A number that JSON can represent: NaN and infinity become None."""
    return float(value) if math.isfinite(value) else None
