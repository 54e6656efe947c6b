"""The table of cases: one row per case and class, with counts, measurements and the scores derived from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.metrics.measured import MEASURED_METRICS
from segkit.metrics.overlap import (
    accuracy,
    dice,
    generalized_dice,
    iou,
    mcc,
    precision,
    recall,
    specificity,
    volume_difference,
)
from segkit.metrics.rules import PER_CASE_METRICS, SEGKIT, EmptyClassRule, EmptyClassScore, Rules
from segkit.utils.metric_names import DESCRIBED_PATTERNS, is_measured
from segkit.utils.text import did_you_mean

KEYS = ["case", "group", "class"]
COUNTS = ["tp", "predicted", "reference"]
PIXELS = ["pixels", "ignored"]
BOUNDARY = ["boundary_tp", "boundary_predicted", "boundary_reference"]
DIAGONAL = "diagonal_mm"
Table = Any  # the type information of pandas is too incomplete for a type checker

# the columns that each score is computed from, and the formula; measured scores are columns of the table
FROM_COUNTS: dict[str, tuple[list[str], Callable[[Tensor], Tensor]]] = {
    "dice": (COUNTS, dice),
    "iou": (COUNTS, iou),
    "precision": (COUNTS, precision),
    "recall": (COUNTS, recall),
    "specificity": ([*COUNTS, "pixels"], lambda row: specificity(row[..., :3], row[..., 3])),
    "accuracy": ([*COUNTS, "pixels"], lambda row: accuracy(row[..., :3], row[..., 3])),
    "mcc": ([*COUNTS, "pixels"], lambda row: mcc(row[..., :3], row[..., 3])),
    "volume_difference": (COUNTS, volume_difference),
    "boundary_iou": (BOUNDARY, iou),
}
METRICS = (*FROM_COUNTS, *MEASURED_METRICS, *PER_CASE_METRICS)


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ValueError if a metric is unknown or named twice, or if there are none."""
    for metric in metrics:
        if metric not in METRICS and not is_measured(metric):
            expected = f"expected metrics among {', '.join((*METRICS, *DESCRIBED_PATTERNS))}"
            raise ValueError(f"{expected}, got {metric}{did_you_mean(metric, METRICS)}")
    if not metrics or len(set(metrics)) != len(metrics):
        raise ValueError(f"expected at least one metric, each named once, got {', '.join(metrics) or 'none'}")


def cases_table(
    names: Sequence[str],
    groups: Sequence[str],
    counts: np.ndarray,
    labels: Labels,
    *,
    columns: Mapping[str, np.ndarray] | None = None,
    metrics: Sequence[str] = ("dice", "iou"),
    rules: Rules = SEGKIT,
) -> pd.DataFrame:
    """Build the table of cases, with one row per case and class.

    Its columns are case, group, class, tp, predicted, reference, the metrics, and the other columns. A score that the
    rules do not count is NaN. The score of a case as a whole is repeated in each row of the case.

    names, groups: the name and the group of each case, [N].
    counts: int64 [N, K, 3], from `count`.
    columns: other counts and measurements, [N, K] each: `pixels` for specificity, accuracy and MCC, `boundary_*` for
        boundary IoU, and for measured metrics their values and `diagonal_mm`.

    Raises ValueError if the numbers of names, groups or classes do not match the counts, if a metric is unknown, or if
    a column that it needs is missing.
    """
    expected = (len(names), labels.channels, 3)
    if counts.shape != expected or len(groups) != len(names):
        raise ValueError(
            f"expected counts {list(expected)} and one group per case for {len(names)} cases, "
            f"got counts {list(counts.shape)} and {len(groups)} groups"
        )
    rows = {
        "case": np.repeat(np.asarray(names, dtype=object), labels.channels),
        "group": np.repeat(np.asarray(groups, dtype=object), labels.channels),
        "class": list(labels.channel_names) * len(names),
        **{column: counts[..., position].reshape(-1) for position, column in enumerate(COUNTS)},
        **{column: np.asarray(values).reshape(-1) for column, values in (columns or {}).items()},
    }
    averaged = averaged_classes(labels, rules, "generalized_dice")
    return add_scores(pd.DataFrame(rows), metrics, rules, averaged=averaged)


def averaged_classes(labels: Labels, rules: Rules, metric: str) -> list[str]:
    """The classes that the mean of a metric includes."""
    channels = range(labels.channels) if metric in rules.background else labels.foreground
    names = [labels.channel_names[channel] for channel in channels]
    return [name for name in names if name not in rules.exclude_classes]


def add_scores(table: Table, metrics: Sequence[str], rules: Rules, averaged: Sequence[str] = ()) -> pd.DataFrame:
    """The table with one column per metric, computed by the rules and placed after the counts.

    averaged: the classes that the score of a case as a whole combines.

    Raises ValueError if a metric is unknown, or if a column that it needs is missing.
    """
    check_metrics(metrics)
    table = table.copy()
    for metric in metrics:
        if metric in PER_CASE_METRICS:
            if not averaged:
                raise ValueError(f"{metric} combines several classes, but the rules leave no class to average")
            scores = _generalized_dice_by_case(table[table["class"].isin(list(averaged))])
            table[metric] = table["case"].map(scores)
            continue
        needed = [*(FROM_COUNTS[metric][0] if metric in FROM_COUNTS else [metric, DIAGONAL]), *COUNTS]
        missing = [column for column in needed if column not in table.columns]
        if missing:
            raise ValueError(f"{metric} needs the columns {', '.join(needed)}; the table has no {', '.join(missing)}")
        table[metric] = apply_empty_class_rule(raw_score(table, metric), table, rules.empty_class_rule(metric))
    first = [column for column in table.columns if column in KEYS + COUNTS]
    return table[[*first, *metrics, *(column for column in table.columns if column not in {*first, *metrics})]]


def _generalized_dice_by_case(rows: Table) -> dict[str, float]:
    """The generalised Dice of each case over its rows; NaN if all classes are absent from prediction and reference."""
    if not len(rows):  # for instance in a process without cases
        return {}
    by_case = rows.pivot(index="case", columns="class", values=COUNTS)
    counts = torch.from_numpy(by_case.to_numpy(np.float64, copy=True)).unflatten(1, (len(COUNTS), -1)).mT
    return dict(zip(by_case.index, generalized_dice(counts).tolist(), strict=True))


def raw_score(table: Table, metric: str) -> np.ndarray:
    """The value of the formula for each row, float64 [rows]; NaN where the formula is undefined."""
    if metric not in FROM_COUNTS:
        return table[metric].to_numpy(float)
    columns, formula = FROM_COUNTS[metric]
    return formula(torch.from_numpy(table[columns].to_numpy(np.float64, copy=True))).numpy()


def apply_empty_class_rule(values: np.ndarray, table: Table, rule: EmptyClassRule | None) -> np.ndarray:
    """Replace the values of the rows where the class is absent, spurious or missed by what the rule defines for them.

    values: float64 [rows]. A rule of None leaves them unchanged.
    """
    if rule is None:
        return values
    predicted, reference = table["predicted"].to_numpy() > 0, table["reference"].to_numpy() > 0
    replacements: list[tuple[EmptyClassScore, np.ndarray]] = [
        (rule.neither, ~predicted & ~reference),
        (rule.spurious, predicted & ~reference),
        (rule.missed, ~predicted & reference),
    ]
    for score, where in replacements:
        if score != "formula":
            values = np.where(where, _replacement(score, table), values)
    return values


def _replacement(score: EmptyClassScore, table: Table) -> np.ndarray | float:
    if score == "worst":
        return table[DIAGONAL].to_numpy(float)
    return np.nan if score is None else float(score)
