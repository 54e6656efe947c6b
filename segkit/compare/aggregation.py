"""How the cases and classes of a run become its score, in several ways, all of weighted cases.

A function takes the scores and weights of the cases, [B, N], and returns the score of each run, [B, R]; a resample is a
row of weights, and so is what is left without a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from segkit.compare.score_table import Scores, counted_mean

POOLED_SCORES = ("dice", "iou")
COUNTED = (
    "a case counts for a class if the class is in the reference or in the prediction of any run, and a run that "
    "rightly has nothing there counts as perfect"
)


@dataclass(frozen=True)
class Aggregation:
    """score: see above. words: what it does. smooth: whether a score changes smoothly with the weight of a case; else
    it has no interval. pooled: whether it is made of counts, which only an overlap of areas is. filled: whether a run
    counts too where it has no value and others have. by_class: whether every class weighs the same."""

    score: Callable[[Scores, np.ndarray], np.ndarray]
    words: str
    smooth: bool = True
    pooled: bool = False
    filled: bool = False
    by_class: bool = True

    @property
    def in_full(self) -> str:
        """With what counts."""
        return f"{self.words}; {COUNTED}" if self.filled else self.words


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means over cases of [R, N], weighted by [B, N], leaving NaN out: [B, R]."""
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ np.where(counted, values, 0.0).T) / (weights @ counted.T.astype(float))


def _mean_of(parts: list[np.ndarray]) -> np.ndarray:
    """Over classes, leaving out those that no drawn case counts."""
    return counted_mean(np.stack(parts), 0)


def _over_classes(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean_of([_weighted(values[..., number], weights) for number in range(values.shape[2])])


def class_case(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _over_classes(scores.values, weights)


def case_class(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _weighted(counted_mean(scores.values, 2), weights)


def present(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _over_classes(scores.present, weights)


def groups(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """A group's mean for each class, then over groups, whose weight is that of those of their cases that have any."""
    of_group = np.eye(len(scores.groups))[scores.group].T  # [G, N]
    with np.errstate(invalid="ignore", divide="ignore"):
        of_groups = (weights @ of_group.T) / ((weights != 0) @ of_group.T)
    of_groups = np.where(np.isnan(of_groups), 0.0, of_groups)
    parts = [_weighted(scores.values[..., number], of_group).T for number in range(scores.values.shape[2])]
    return _mean_of([_weighted(part, of_groups) for part in parts])


def median(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _mean_of([_weighted_median(scores.values[..., number], weights) for number in range(scores.values.shape[2])])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[B, R] from [R, N] and [B, N]: of the values, each taken as often as its weight says."""
    columns = []
    for row in values:
        order = np.argsort(row)[: (~np.isnan(row)).sum()]
        if not len(order):
            columns.append(np.full(len(weights), np.nan))
            continue
        below = np.cumsum(weights[:, order], 1)
        half = below[:, -1:] / 2
        last = len(order) - 1
        upper, lower = (below > half).argmax(1), (below >= half).argmax(1)
        middle = (row[order][np.minimum(lower, last)] + row[order][np.minimum(upper, last)]) / 2
        columns.append(np.where(below[:, -1] > 0, middle, np.nan))
    return np.stack(columns, 1)


def pooled(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """A run that rightly has nothing of a class that others have something of counts as perfect."""
    assert scores.counts is not None
    parts = [_overlap(scores, weights, [number]) for number in range(scores.counts.shape[2])]
    return _mean_of([np.where(np.isnan(part) & ~np.isnan(part).all(1, keepdims=True), 1.0, part) for part in parts])


def micro(scores: Scores, weights: np.ndarray) -> np.ndarray:
    assert scores.counts is not None
    return _overlap(scores, weights, list(range(scores.counts.shape[2])))


def _overlap(scores: Scores, weights: np.ndarray, classes: list[int]) -> np.ndarray:
    """Of the counts of some classes, summed over cases: [B, R]."""
    assert scores.counts is not None
    sums = np.tensordot(weights, scores.counts[:, :, classes].sum(2), axes=(1, 1))
    hit, whole = sums[..., 0], sums[..., 1] + sums[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * hit / whole if scores.metric == "dice" else hit / (whole - hit)


AGGREGATIONS = {
    "class_case": Aggregation(class_case, "mean over cases for each class, then over classes", filled=True),
    "case_class": Aggregation(
        case_class, "mean over classes for each case, then over cases", filled=True, by_class=False
    ),
    "groups": Aggregation(groups, "as class_case, but the cases of a group are averaged before", filled=True),
    "present": Aggregation(
        present, "as class_case, but a run's case where class and prediction are both empty is left out"
    ),
    "median": Aggregation(
        median, "median over cases for each class, then mean over classes", smooth=False, filled=True
    ),
    "global": Aggregation(pooled, "counts summed over cases for each class, then mean over classes", pooled=True),
    "micro": Aggregation(micro, "counts summed over cases and classes", pooled=True, by_class=False),
}


def carrying_groups(scores: Scores, runs: np.ndarray, cases: np.ndarray) -> tuple[float, str | None]:
    """How many groups of cases carry the score, by the class that has the fewest, and which that is.

    A class counts as much as any other however few groups have it; of sums over cases, large groups make the most: as
    much as (sum of sizes)^2 / sum of squares equal ones (Kish 1965).
    """
    aggregation = AGGREGATIONS[scores.aggregation]
    group = np.unique(scores.group[cases], return_inverse=True)[1]
    if aggregation.pooled:
        assert scores.counts is not None
        sizes = scores.counts[np.ix_(runs, cases)][..., 1:].sum((0, 3))
    else:
        sizes = (~np.isnan(scores.values[np.ix_(runs, cases)])).any(0).astype(float)
    sizes = sizes if aggregation.by_class else sizes.sum(1, keepdims=True)
    of_group = np.stack([np.bincount(group, weights=column) for column in sizes.T])
    of_group = of_group if aggregation.pooled else (of_group > 0).astype(float)
    there = np.flatnonzero(of_group.sum(1))
    numbers = of_group[there].sum(1) ** 2 / (of_group[there] ** 2).sum(1)
    place = int(numbers.argmin())
    return float(numbers[place]), scores.classes[there[place]] if aggregation.by_class else None


def class_scores(scores: Scores) -> np.ndarray:
    """The score of each run for each class by itself, by the scores' own aggregation, [R, C]; NaN where it has none."""
    found = []
    for number in range(len(scores.classes)):
        kept = slice(number, number + 1)
        counts = None if scores.counts is None else scores.counts[:, :, kept]
        values, present = scores.values[..., kept], scores.present[..., kept]
        found.append(run_scores(replace(scores, values=values, present=present, counts=counts)))
    return np.stack(found, 1)


def check_aggregation(name: str, metric: str) -> None:
    """Raises ValueError for one that is none, or that no verdict on this metric can be made of."""
    found = AGGREGATIONS.get(name)
    if found is None or not found.smooth:
        able = ", ".join(name for name, one in AGGREGATIONS.items() if one.smooth)
        why = ": a median has no interval of the kind that the verdict is read from" if found else ""
        raise ValueError(f"expected the aggregation to be one of {able}, got {name}{why}")
    if found.pooled and metric not in POOLED_SCORES:
        able = " or ".join(POOLED_SCORES)
        raise ValueError(f"expected {able} for the aggregation {name}, which sums pixels, got {metric}")


def is_there(name: str, scores: Scores) -> bool:
    """Whether the table has what it is made of."""
    return not AGGREGATIONS[name].pooled or (scores.counts is not None and scores.metric in POOLED_SCORES)


def run_scores(scores: Scores, weights: np.ndarray | None = None) -> np.ndarray:
    """The score of each run by the scores' own aggregation, [B, R]; without weights of cases, [R]."""
    score = AGGREGATIONS[scores.aggregation].score
    return score(scores, np.ones((1, len(scores.cases))))[0] if weights is None else score(scores, weights)
