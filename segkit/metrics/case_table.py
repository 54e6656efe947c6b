"""The table of cases: a row a case and class, with everything that was counted and the scores that rules make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.metrics.overlap import dice, generalized_dice, iou, precision, recall, specificity, volume_difference
from segkit.metrics.rules import OF_CASES, SEGKIT, Cell, Empty, Rules
from segkit.metrics.surface import SURFACE_METRICS

KEYS = ["case", "group", "class"]
COUNTS = ["tp", "predicted", "reference"]
PIXELS = ["pixels", "ignored"]
BOUNDARY = ["boundary_tp", "boundary_predicted", "boundary_reference"]
DIAGONAL = "diagonal_mm"
Table = Any  # pandas says too little about its types for a checker

# what of a table each score is made of, and how; surface scores are in the table as they were measured
FROM_COUNTS: dict[str, tuple[list[str], Callable[[Tensor], Tensor]]] = {
    "dice": (COUNTS, dice),
    "iou": (COUNTS, iou),
    "precision": (COUNTS, precision),
    "recall": (COUNTS, recall),
    "specificity": ([*COUNTS, "pixels"], lambda row: specificity(row[..., :3], row[..., 3])),
    "volume_difference": (COUNTS, volume_difference),
    "boundary_iou": (BOUNDARY, iou),
}
METRICS = (*FROM_COUNTS, *SURFACE_METRICS, *OF_CASES)


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ValueError for a metric that is none, for none at all, and for one named twice."""
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics or len(set(metrics)) != len(metrics):
        raise ValueError(f"expected metrics to be different ones of {', '.join(METRICS)}, got {', '.join(metrics)}")


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
    """One row a case and class: case, group, class, tp, predicted, reference, the other columns, and the metrics.

    counts: int64 [N, K, 3]. columns: what else was counted or measured, [N, K] each: `pixels` for specificity,
    `boundary_*` for boundary IoU, `hd` and the like in mm as measured, and `diagonal_mm` for them.
    A score that the rules do not count is NaN; one of a case as a whole is in each of its rows.

    Raises ValueError if the numbers of names, groups or classes do not fit the counts, if a name comes twice, or a
    column is missing that a metric is made of.
    """
    expected = (len(names), labels.channels, 3)
    if counts.shape != expected or len(groups) != len(names):
        raise ValueError(
            f"expected counts {list(expected)} and {len(groups)} groups for {len(names)} cases, "
            f"got {list(counts.shape)} and {len(groups)}"
        )
    rows = {
        "case": np.repeat(np.asarray(names, dtype=object), labels.channels),
        "group": np.repeat(np.asarray(groups, dtype=object), labels.channels),
        "class": list(labels.channel_names) * len(names),
        **{column: counts[..., place].reshape(-1) for place, column in enumerate(COUNTS)},
        **{column: np.asarray(values).reshape(-1) for column, values in (columns or {}).items()},
    }
    return scored(pd.DataFrame(rows), metrics, rules, averaged=averaged_classes(labels, rules, "generalized_dice"))


def averaged_classes(labels: Labels, rules: Rules, metric: str) -> list[str]:
    """The classes that the mean of a metric is over."""
    channels = range(labels.channels) if metric in rules.background else labels.foreground
    names = [labels.channel_names[channel] for channel in channels]
    return [name for name in names if name not in rules.exclude_classes]


def scored(table: Table, metrics: Sequence[str], rules: Rules, averaged: Sequence[str] = ()) -> pd.DataFrame:
    """The table with each metric as the rules have it, after the counts.

    averaged: the classes that a score of a case as a whole is of.
    """
    check_metrics(metrics)
    table = table.copy()
    for metric in metrics:
        if metric in OF_CASES:
            if not averaged:
                raise ValueError(f"{metric} is of several classes together, and there are none to be averaged")
            table[metric] = table["case"].map(_of_case(table[table["class"].isin(list(averaged))]))
            continue
        needed = [*(FROM_COUNTS[metric][0] if metric in FROM_COUNTS else [metric, DIAGONAL]), *COUNTS]
        missing = [column for column in needed if column not in table.columns]
        if missing:
            raise ValueError(f"{metric} is made of {', '.join(needed)}; the table has no {', '.join(missing)}")
        table[metric] = ruled(raw_score(table, metric), table, rules.empty.get(metric))
    first = [column for column in table.columns if column in KEYS + COUNTS]
    return table[[*first, *metrics, *(column for column in table.columns if column not in {*first, *metrics})]]


def _of_case(rows: Table) -> dict[str, float]:
    """The generalised Dice score of each case over its rows; NaN where there is none of their classes."""
    if not len(rows):  # as of a process without cases
        return {}
    by_case = rows.pivot(index="case", columns="class", values=COUNTS)
    counts = torch.from_numpy(by_case.to_numpy(np.float64, copy=True)).unflatten(1, (len(COUNTS), -1)).mT
    return dict(zip(by_case.index, generalized_dice(counts).tolist(), strict=True))


def raw_score(table: Table, metric: str) -> np.ndarray:
    """What the formula says, float64 [rows]; NaN where it says nothing."""
    if metric not in FROM_COUNTS:
        return table[metric].to_numpy(float)
    columns, formula = FROM_COUNTS[metric]
    return formula(torch.from_numpy(table[columns].to_numpy(np.float64, copy=True))).numpy()


def ruled(values: np.ndarray, table: Table, row: Empty | None) -> np.ndarray:
    """The values, with what the rules say where a class is in neither prediction nor reference, spurious or missed."""
    if row is None:
        return values
    predicted, reference = table["predicted"].to_numpy() > 0, table["reference"].to_numpy() > 0
    cells: list[tuple[Cell, np.ndarray]] = [
        (row.neither, ~predicted & ~reference),
        (row.spurious, predicted & ~reference),
        (row.missed, ~predicted & reference),
    ]
    for cell, where in cells:
        values = np.where(where, _worth(cell, table), values)
    return values


def _worth(cell: Cell, table: Table) -> np.ndarray | float:
    if cell == "worst":
        return table[DIAGONAL].to_numpy(float)
    return np.nan if cell is None else float(cell)
