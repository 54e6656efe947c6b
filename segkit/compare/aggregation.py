"""Aggregations: how the scores of cases and classes become the score of a run.

Each aggregation is a function of the scores and of case weights [B, N], and returns the score of each run, [B, R]. A
bootstrap resample is one row of weights. The weights of `PerturbedGroups` give derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from segkit.compare.score_table import COUNTED, Scores, counted_mean

POOLED_METRICS = ("dice", "iou")
RENAMED = {"present": ", which is now the same as class_case"}
STEP = 1e-20  # imaginary, for complex-step derivatives, whose imaginary part has no cancellation error
CHUNK = 2**17  # weights of cases that are sorted at a time, which stay in the processor's cache


@dataclass(frozen=True)
class PerturbedGroups:
    """Case weights [G, N], of which row g has an infinitesimally larger weight of the cases of group g.

    Multiplied with numbers per case, they give the sum over the cases as real part and, times `STEP`, the sum over the
    cases of each group as imaginary part. The matrix itself would need memory for N numbers per group.

    Args:
        base: The weights 0 or 1 without perturbation, [N].
        row: The row that perturbs each case, [N]; -1 for a case with weight 0.
        rows: The number of rows, G.
    """

    base: np.ndarray
    row: np.ndarray
    rows: int

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        """The sums of values [N, K] as complex numbers [G, K]."""
        total = (self.base[:, None] * values).sum(0)  # the same for equal columns, unlike the sums of a matrix product
        return total + 1j * STEP * (membership(self.row, self.rows) @ values)

    def of_groups(self, group: np.ndarray, groups: int) -> PerturbedGroups:
        """The weights of the groups themselves, [G, groups], from the number of the group of each case, [N]."""
        row = np.full(groups, -1)
        row[group[self.row >= 0]] = self.row[self.row >= 0]
        return PerturbedGroups((row >= 0).astype(float), row, self.rows)


Weights = np.ndarray | PerturbedGroups


def membership(group: np.ndarray, groups: int) -> sparse.csr_array:
    """A matrix [groups, N] with a 1 for the group of each case, and zeros only for a case of group -1."""
    cases = np.flatnonzero(group >= 0)
    return sparse.csr_array((np.ones(len(cases)), (group[cases], cases)), shape=(groups, len(group)))


@dataclass(frozen=True)
class Aggregation:
    """An aggregation and its properties.

    Args:
        score: The function described above.
        description: What it computes, in words.
        smooth: Whether a score changes smoothly with the weight of a case; otherwise it has no interval.
        pooled: Whether it is computed from pixel counts, which is possible for overlap metrics only.
        filled: Whether it takes the filled values of a table, which depend on what other runs predict.
        by_class: Whether every class has equal weight.
    """

    score: Callable[[Scores, Any], np.ndarray]
    description: str
    smooth: bool = True
    pooled: bool = False
    filled: bool = False
    by_class: bool = True


def _weighted_mean(values: np.ndarray, weights: Weights | sparse.csr_array) -> np.ndarray:
    """Means over cases of [R, N], weighted by [B, N] and ignoring NaN: [B, R]."""
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ np.where(counted, values, 0.0).T) / (weights @ counted.T.astype(float))


def _class_mean(class_scores: Iterable[np.ndarray]) -> np.ndarray:
    """Mean over classes, ignoring classes without a counted case among those with a weight.

    Scores are added up class by class, because 1000 classes would not fit into memory together.
    """
    total: np.ndarray | float = 0.0
    number: np.ndarray | int = 0
    for values in class_scores:
        counted = ~np.isnan(values)
        total, number = total + np.where(counted, values, 0.0), number + counted
    with np.errstate(invalid="ignore"):
        return total / np.where(np.equal(number, 0), np.nan, number)


def _mean_of_class_means(values: np.ndarray, weights: Weights) -> np.ndarray:
    return _class_mean(_weighted_mean(values[..., number], weights) for number in range(values.shape[2]))


def class_case(scores: Scores, weights: Weights) -> np.ndarray:
    """Mean over cases for each class, then over classes.

    As in an evaluation of the run alone, a case does not count for a class that is in neither prediction nor reference.
    """
    return _mean_of_class_means(scores.values, weights)


def case_class(scores: Scores, weights: Weights) -> np.ndarray:
    """Mean over classes for each case, then over cases."""
    return _weighted_mean(counted_mean(scores.values, 2), weights)


def absent_perfect(scores: Scores, weights: Weights) -> np.ndarray:
    """As `class_case`, with a perfect score where a run correctly predicts nothing and another run has a value."""
    return _mean_of_class_means(scores.filled, weights)


def groups(scores: Scores, weights: Weights) -> np.ndarray:
    """For each class the mean within each group of cases, then over groups, then over classes.

    The weight of a group is the mean weight of its cases with a nonzero weight.
    """
    matrix = membership(scores.group, len(scores.groups))
    group_weights = _group_weights(weights, scores, matrix)
    group_means = (_weighted_mean(scores.values[..., number], matrix).T for number in range(scores.values.shape[2]))
    return _class_mean(_weighted_mean(means, group_weights) for means in group_means)


def _group_weights(weights: Weights, scores: Scores, matrix: sparse.csr_array) -> Weights:
    if isinstance(weights, PerturbedGroups):
        return weights.of_groups(scores.group, len(scores.groups))
    with np.errstate(invalid="ignore", divide="ignore"):
        group_weights = (matrix @ weights.T).T / (matrix @ (weights != 0).astype(float).T).T
    return np.where(np.isnan(group_weights), 0.0, group_weights)


def median(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """Median over cases for each class, then mean over classes."""
    chunks = [np.ascontiguousarray(part.T) for part in np.array_split(weights, max(1, -(-weights.size // CHUNK)))]
    return _class_mean(_weighted_median(scores.values[..., number], chunks) for number in range(scores.values.shape[2]))


def _weighted_median(values: np.ndarray, chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Medians of [R, N], [B, R], in which each case is repeated according to its weight, in chunks of [N, B]."""
    columns = []
    for row in values:
        order = np.argsort(row)[: (~np.isnan(row)).sum()]
        columns.append(np.concatenate([_median_of_sorted(row[order], weights, order) for weights in chunks]))
    return np.stack(columns, 1)


def _median_of_sorted(row: np.ndarray, weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The median of sorted values, [B], in which each is repeated by the weight of its case, from weights [N, B].

    The place of the median is found among sums over blocks of cases first, and then within one block.
    """
    if not len(row):
        return np.full(weights.shape[1], np.nan)
    size = math.isqrt(len(row)) + 1
    blocks = np.zeros((-(-len(row) // size), size, weights.shape[1]))
    np.take(weights, order, axis=0, out=blocks.reshape(-1, weights.shape[1])[: len(row)])
    ends = np.cumsum(blocks.sum(1), 0)
    half = ends[-1] / 2
    lower, upper = (np.minimum(_place(blocks, ends, half, below), len(row) - 1) for below in (np.less, np.less_equal))
    return np.where(ends[-1] > 0, (row[lower] + row[upper]) / 2, np.nan)


def _place(blocks: np.ndarray, ends: np.ndarray, half: np.ndarray, below: np.ufunc) -> np.ndarray:
    """The number of cases up to which the cumulative weight is below half of all, [B].

    Args:
        blocks: The weights of the sorted cases, [blocks, size, B].
        ends: The cumulative weight at the end of each block, [blocks, B].
        half: Half of the weight of all cases, [B].
        below: The comparison, < or <=.
    """
    number, size, columns = blocks.shape
    block = np.minimum(below(ends, half).sum(0), number - 1)
    column = np.arange(columns)
    within = blocks[block, :, column]  # [B, size]
    before = np.where(block > 0, ends[block - 1, column], 0.0)
    cumulative = before[:, None] + np.cumsum(within, 1)
    return block * size + below(cumulative, half[:, None]).sum(1)


def pooled(scores: Scores, weights: Weights) -> np.ndarray:
    """Overlap of the counts summed over cases for each class, then mean over classes."""
    return _class_mean(_overlap(scores, weights, slice(number, number + 1)) for number in range(len(scores.classes)))


def micro(scores: Scores, weights: Weights) -> np.ndarray:
    """Overlap of the counts summed over cases and classes."""
    assert scores.counts is not None
    return _overlap(scores, weights, slice(None))


def _overlap(scores: Scores, weights: Weights, classes: slice) -> np.ndarray:
    """Dice or IoU of the weighted counts of some classes, summed over cases: [B, R]."""
    assert scores.counts is not None
    counts = scores.counts[:, :, classes].sum(2)
    runs, cases, _ = counts.shape
    sums = weights @ counts.transpose(1, 0, 2).reshape(cases, -1)
    sums = sums.reshape(len(sums), runs, -1)
    intersection, total = sums[..., 0], sums[..., 1] + sums[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * intersection / total if scores.metric == "dice" else intersection / (total - intersection)


AGGREGATIONS = {
    "class_case": Aggregation(class_case, "mean over cases for each class, then over classes"),
    "case_class": Aggregation(
        case_class, "mean over classes for each case, then over cases", by_class=False
    ),
    "groups": Aggregation(groups, "as class_case, with the cases of a group averaged first"),
    "absent_perfect": Aggregation(
        absent_perfect,
        "as class_case, but a run that correctly predicts nothing of a class in a case counts as perfect there if "
        "another run predicts some",
        filled=True,
    ),
    "median": Aggregation(median, "median over cases for each class, then mean over classes", smooth=False),
    "global": Aggregation(pooled, "overlap of the counts summed over cases for each class, then mean over classes",
                          pooled=True),
    "micro": Aggregation(micro, "overlap of the counts summed over cases and classes", pooled=True, by_class=False),
}  # fmt: skip


def effective_groups(scores: Scores, runs: np.ndarray, cases: np.ndarray) -> tuple[float, str | None]:
    """The effective number of groups of cases behind the score, for the class with the fewest, and that class.

    If classes have equal weight, a class counts as much as any other however few groups contain it. A run that predicts
    a class in many cases without it has more groups than the others, so the run with the fewest decides. In pooled
    aggregations, large groups dominate: the effective number is (sum of sizes)^2 / sum of squared sizes (Kish 1965).
    The class is None for an aggregation that pools classes.
    """
    aggregation = AGGREGATIONS[scores.aggregation]
    unique_groups, group = np.unique(scores.group[cases], return_inverse=True)
    matrix = membership(group, len(unique_groups))
    if aggregation.pooled:
        assert scores.counts is not None
        sizes = scores.counts[np.ix_(runs, cases)][..., 1:].sum((0, 3))
        numbers = _effective_number(matrix @ (sizes if aggregation.by_class else sizes.sum(1, keepdims=True)))
    else:
        values = scores.filled if aggregation.filled else scores.values
        numbers = np.full(len(scores.classes) if aggregation.by_class else 1, np.inf)
        for run in runs:
            counted = ~np.isnan(values[run, cases])
            counted = counted if aggregation.by_class else counted.any(1, keepdims=True)
            numbers = np.minimum(numbers, _effective_number((matrix @ counted.astype(float) > 0).astype(float)))
    smallest = int(numbers.argmin())
    return float(numbers[smallest]), scores.classes[smallest] if aggregation.by_class else None


def _effective_number(sizes: np.ndarray) -> np.ndarray:
    """The effective number of groups for each class, from their sizes [G, C]; infinite if no group counts."""
    squares = (sizes**2).sum(0)
    return np.divide(sizes.sum(0) ** 2, squares, out=np.full(sizes.shape[1], np.inf), where=squares > 0)


def class_scores(scores: Scores) -> np.ndarray:
    """The score of each run for each class alone, [R, C]; NaN if no case is counted for the class."""
    columns = []
    for number in range(len(scores.classes)):
        class_slice = slice(number, number + 1)
        counts = None if scores.counts is None else scores.counts[:, :, class_slice]
        values, filled = scores.values[..., class_slice], scores.filled[..., class_slice]
        columns.append(run_scores(replace(scores, values=values, filled=filled, counts=counts)))
    return np.stack(columns, 1)


def score_in_words(scores: Scores) -> str:
    """How the score of a run is computed, and which cases count."""
    aggregation = AGGREGATIONS[scores.aggregation]
    if aggregation.pooled or aggregation.filled:  # their descriptions say which cases count
        return aggregation.description
    return f"{aggregation.description}; {COUNTED[scores.missing]}"


def check_aggregation(name: str, metric: str) -> None:
    """Raise ValueError if an aggregation is unknown, or if it cannot give verdicts for this metric."""
    aggregation = AGGREGATIONS.get(name)
    if aggregation is None or not aggregation.smooth:
        supported = ", ".join(name for name, aggregation in AGGREGATIONS.items() if aggregation.smooth)
        reason = ", because a median has no interval from which a verdict could be read" if aggregation else ""
        reason = RENAMED.get(name, reason)
        raise ValueError(f"expected the aggregation to be one of {supported}, got {name}{reason}")
    if aggregation.pooled and metric not in POOLED_METRICS:
        supported = " or ".join(POOLED_METRICS)
        raise ValueError(f"expected {supported} for the aggregation {name}, which sums pixel counts, got {metric}")


def is_available(name: str, scores: Scores) -> bool:
    """Whether the table has the columns that an aggregation needs."""
    return not AGGREGATIONS[name].pooled or (scores.counts is not None and scores.metric in POOLED_METRICS)


def run_scores(scores: Scores, weights: Weights | None = None) -> np.ndarray:
    """The score of each run by the aggregation of the table: [R], or [B, R] with case weights [B, N]."""
    score = AGGREGATIONS[scores.aggregation].score
    return score(scores, np.ones((1, len(scores.cases))))[0] if weights is None else score(scores, weights)
