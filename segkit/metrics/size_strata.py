"""Scores by the size of a class in the reference of a case: a mean hides that small structures are segmented worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch

from segkit.labels import Labels
from segkit.metrics.bootstrap import Bootstrap, mean_intervals
from segkit.metrics.rules import PER_CASE_METRICS, SEGKIT, Rules
from segkit.metrics.summary import interval_fields, nanmean, reported_classes, to_json

SIZES = {2: "reference_mm2", 3: "reference_ml"}  # columns of the table of cases, by the number of axes
MOST_STRATA = 20
NO_CASE = "no case is counted"


@dataclass(frozen=True)
class SizeStrata:
    """Strata of cases by the size of a class in the reference.

    number: of strata with equally many cases, separately for each class; None for fixed bounds.
    bounds: the upper bounds of all strata but the last, increasing, in ml for volumes and in mm² for 2D images, which
        are pixels where the spacing is 1. A size equal to a bound belongs to the stratum below it.

    Raises ValueError for less than 2 or more than MOST_STRATA strata, and for bounds that do not increase.
    """

    number: int | None = None
    bounds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        strata = len(self.bounds) + 1 if self.number is None else self.number
        increasing = all(low < high < math.inf for low, high in zip((0.0, *self.bounds), self.bounds, strict=False))
        if not 2 <= strata <= MOST_STRATA or not increasing:
            raise ValueError(
                f"expected size_strata to be a number from 2 to {MOST_STRATA}, or increasing bounds above 0, got "
                f"{self.number if self.number is not None else list(self.bounds)}"
            )

    @classmethod
    def of(cls, value: int | Sequence[float] | None) -> SizeStrata | None:
        """The strata of a number or of bounds; None without any."""
        if value is None:
            return None
        return cls(number=value) if isinstance(value, int) else cls(bounds=tuple(float(bound) for bound in value))

    def edges(self, sizes: np.ndarray) -> list[float]:
        """The lower bound of the first stratum, and the upper bound of each, for the sizes of one class, [n]."""
        if self.number is None:
            return [0.0, *self.bounds, math.inf]
        levels = np.arange(1, self.number) / self.number
        bounds = np.quantile(sizes, levels, method="inverted_cdf") if len(sizes) else np.zeros(0)
        return [0.0, *map(float, bounds), math.inf]


def pixel_size(spacing: Sequence[float]) -> float:
    """The size of a pixel: in mm² of 2D images, in ml of volumes. spacing: mm along each axis."""
    return math.prod(spacing) / (1000 if len(spacing) == 3 else 1)


def scores_by_size(
    cases: pd.DataFrame,
    labels: Labels,
    strata: SizeStrata,
    rules: Rules = SEGKIT,
    *,
    metrics: Sequence[str] = ("dice", "iou"),
) -> dict[str, Any]:
    """The contents of `by_size` in scores.json.

    cases: table from `cases_table` with a column of SIZES, made with the same rules.

    For each class, a list of strata: `above` and `up_to` (None for no bound), `cases` that have such a reference,
    `missed` ones among them, and for each metric the mean over them and `ci95`, as in `summarise`; resampled are the
    groups that have a case in the stratum. Cases whose reference lacks the class are in no stratum; `spurious` is the
    number of those that have the class in the prediction.
    """
    table: Any = cases
    column = next(column for column in SIZES.values() if column in table.columns)
    names = [metric for metric in metrics if metric not in PER_CASE_METRICS]
    return {
        "unit": column.removeprefix("reference_"),
        "strata": strata.number if strata.number is not None else list(strata.bounds),
        "classes": {
            name: _class_strata(
                table[table["class"] == name].sort_values("case"), column, strata, names, rules.bootstrap
            )
            for name in reported_classes(labels, rules)
        },
    }


def _class_strata(
    rows: Any, column: str, strata: SizeStrata, metrics: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """The strata of one class. rows: those of the class in the table of cases. column: of sizes."""
    has_class = rows["reference"] > 0
    present = rows[has_class]
    sizes = present[column].to_numpy(float)
    edges = strata.edges(sizes)
    spurious = int((~has_class & (rows["predicted"] > 0)).sum())
    return {
        "spurious": spurious,
        "strata": [
            _stratum(present[(sizes > low) & (sizes <= high)], low, high, metrics, bootstrap)
            for low, high in pairwise(edges)
        ],
    }


def _stratum(rows: Any, low: float, high: float, metrics: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    result: dict[str, Any] = {
        "above": low,
        "up_to": to_json(high),
        "cases": len(rows),
        "missed": int((rows["predicted"] == 0).sum()),
    }
    values = rows[list(metrics)].to_numpy(float)
    intervals = mean_intervals(torch.from_numpy(values), rows["group"].to_numpy(str), bootstrap) if len(rows) else None
    for column, metric in enumerate(metrics):
        counted = int((~np.isnan(values[:, column])).sum())
        fields = (
            {"ci95": None, "ci95_reason": NO_CASE} if intervals is None else interval_fields(intervals, column, "ci95")
        )
        result[metric] = {"mean": to_json(nanmean(values[:, column])), **fields, "cases": counted}
    return result
