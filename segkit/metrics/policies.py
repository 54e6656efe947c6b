"""From counts to reported scores: what an empty class counts, how cases are averaged, and the intervals.

The rules are plain data and travel with every number that they made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from segkit.labels import Labels
from segkit.metrics.overlap import dice, iou

METRICS = ("dice", "iou")
Rows = Any  # a part of a table; pandas says too little about its types for a checker
COUNTS = ["tp", "predicted", "reference"]
NEVER = "the class is in neither prediction nor reference of any case"


@dataclass(frozen=True)
class Rules:
    """What the numbers of a score table mean. The first five say it in words, the last four are used.

    min_groups: with fewer groups of cases there is no interval. confidence, resamples, seed: of the bootstrap.
    """

    name: str = "segkit"
    overlap: str = "per case: one value a case and class"
    neither: str = "a class in neither prediction nor reference is not counted; missed and spurious count 0"
    mean: str = "mean over cases for each class, then over the foreground classes that have a counted case"
    interval: str = "BCa bootstrap of groups of cases"
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    min_groups: int = 10

    def to_dict(self) -> dict[str, Any]:
        """The rules as JSON takes them."""
        return asdict(self)


SEGKIT = Rules()


def cases_table(names: Sequence[str], groups: Sequence[str], counts: np.ndarray, labels: Labels) -> pd.DataFrame:
    """One row a case and class, from counts [N, K, 3]: case, group, class, tp, predicted, reference, dice, iou.

    Dice and IoU are NaN where the class is in neither. Raises ValueError if the numbers of names, groups or classes
    do not fit the counts.
    """
    expected = (len(names), labels.channels, 3)
    if counts.shape != expected or len(groups) != len(names):
        raise ValueError(
            f"expected counts {list(expected)} and {len(names)} groups for {len(names)} cases, "
            f"got {list(counts.shape)} and {len(groups)}"
        )
    flat = torch.from_numpy(np.ascontiguousarray(counts)).reshape(-1, 3)
    return pd.DataFrame(
        {
            "case": np.repeat(np.asarray(names, dtype=object), labels.channels),
            "group": np.repeat(np.asarray(groups, dtype=object), labels.channels),
            "class": list(labels.channel_names) * len(names),
            **{column: flat[:, place].numpy() for place, column in enumerate(COUNTS)},
            "dice": dice(flat).numpy(),
            "iou": iou(flat).numpy(),
        }
    )


def summarise(cases: pd.DataFrame, labels: Labels, rules: Rules = SEGKIT, *, intervals: bool = True) -> dict[str, Any]:
    """The rules, classes, mean and global parts of scores.json, from the table of cases.

    A class that no case counts has mean None with the reason beside it, and is not in the mean over classes but
    named in `mean_left_out`. Where there is no interval, `ci95` is None with the reason beside it. `intervals=False`
    leaves the intervals out, for speed.
    """
    table: Rows = cases
    rows = {name: table[table["class"] == name] for name in labels.channel_names}
    classes = {
        name: {metric: _class_score(of_class, metric, rules, intervals) for metric in METRICS}
        for name, of_class in rows.items()
    }
    foreground = _foreground_names(labels)
    means = {metric: _mean([classes[name][metric]["mean"] for name in foreground]) for metric in METRICS}
    left_out = [name for name in foreground if classes[name]["dice"]["mean"] is None]
    summary = {"rules": rules.to_dict(), "classes": classes, "mean": means, "mean_left_out": left_out}
    if means["dice"] is None:
        summary["mean_reason"] = "no case has a foreground class in its prediction or reference"
    return summary | {"global": pooled(cases, labels)}


def pooled(cases: pd.DataFrame, labels: Labels) -> dict[str, Any]:
    """Dice and IoU of the whole data set: counts are summed over cases first; then a mean over foreground classes.

    None, with the reason beside it, for a class that is in neither throughout; such a class is not in the mean.
    """
    table: Rows = cases
    totals = table.groupby("class")[COUNTS].sum().reindex(list(labels.channel_names), fill_value=0)
    counts = torch.from_numpy(totals.to_numpy(np.int64, copy=True))
    classes: dict[str, dict[str, Any]] = {
        name: {"dice": _plain(row_dice), "iou": _plain(row_iou)}
        for name, row_dice, row_iou in zip(totals.index, dice(counts).tolist(), iou(counts).tolist(), strict=True)
    }
    for score in classes.values():
        if score["dice"] is None:
            score["reason"] = NEVER
    foreground = [classes[name] for name in _foreground_names(labels)]
    return {"classes": classes, "mean": {metric: _mean([score[metric] for score in foreground]) for metric in METRICS}}


def _foreground_names(labels: Labels) -> list[str]:
    return [labels.channel_names[channel] for channel in labels.foreground]


def _class_score(rows: Rows, metric: str, rules: Rules, intervals: bool) -> dict[str, Any]:
    """Mean, interval and numbers of cases of one class and metric."""
    counted = rows[rows[metric].notna()]
    score: dict[str, Any] = {"mean": _plain(counted[metric].mean())}
    if counted.empty:
        score["mean_reason"] = NEVER
    if intervals:
        score |= _interval(counted[metric], counted["group"], rules)
    missed = (rows["reference"] > 0) & (rows["predicted"] == 0)
    spurious = (rows["reference"] == 0) & (rows["predicted"] > 0)
    return score | {"cases": len(counted), "missed": int(missed.sum()), "spurious": int(spurious.sum())}


def _interval(values: Rows, groups: Rows, rules: Rules) -> dict[str, Any]:
    """The bootstrap interval of the mean of `values`, groups of cases being drawn together; or why there is none."""
    by_group = values.groupby(groups).agg(["sum", "count"])
    if len(by_group) < rules.min_groups:
        return {"ci95": None, "ci95_reason": f"{len(by_group)} groups of cases, fewer than {rules.min_groups}"}
    sums, sizes = by_group["sum"].to_numpy(float), by_group["count"].to_numpy(float)
    if np.ptp(sums / sizes) == 0:
        return {"ci95": None, "ci95_reason": "all groups of cases have the same mean"}
    low, high = _bca(sums, sizes, rules)
    if not (math.isfinite(low) and math.isfinite(high)):
        return {"ci95": None, "ci95_reason": "the bootstrap is degenerate: almost all groups have the same mean"}
    return {"ci95": [low, high]}


def _bca(sums: np.ndarray, sizes: np.ndarray, rules: Rules) -> tuple[float, float]:
    """The BCa interval of sum(sums) / sum(sizes), the mean over cases, under resampling of groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (sums, sizes),
            lambda total, size, axis: total.sum(axis) / size.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=rules.resamples,
            confidence_level=rules.confidence,
            method="BCa",
            rng=np.random.default_rng(rules.seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _plain(value: float) -> float | None:
    """A number as JSON takes it: NaN is None."""
    return None if math.isnan(value) else float(value)
