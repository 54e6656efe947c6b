"""Bootstrap intervals of scores over cases, for all columns of a table (metrics, classes) at once.

Resampling draws whole groups of cases (patients), not single cases. A matrix [R, G], generated on the CPU from a seed,
states how often each group is drawn in each resample. One matrix product in float64 then gives the sums of all columns
in all resamples, so that intervals are the same on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Groups = Sequence[object] | np.ndarray | Tensor
FEW_GROUPS = 50
ROUNDING = 1e-12  # relative; upper limit of the differences between sums in another order, as on another device
MAX_ELEMENTS = 2**22  # largest number of elements in memory at a time when medians are computed
MAX_WEIGHTS = 2**23  # largest number of weights in memory at a time
NO_CASE = "some resamples contain no counted case"


@dataclass(frozen=True)
class Bootstrap:
    """Parameters of bootstrap intervals.

    confidence: nominal coverage of the intervals.
    resamples, seed: see `resampled_weights`.
    min_groups: the smallest number of groups with a counted case for which an interval is computed.

    Raises ValueError if the confidence is not between 0 and 1, or if there is less than one resample in each tail.
    """

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    min_groups: int = 10

    def __post_init__(self):
        if not 0 < self.confidence < 1 or self.resamples * (1 - self.confidence) < 2 - ROUNDING:
            expected = "a confidence between 0 and 1 and at least 2 / (1 - confidence) resamples"
            raise ValueError(f"expected {expected}, got {self.confidence} and {self.resamples}")


DEFAULT = Bootstrap()


@dataclass(frozen=True)
class Intervals:
    """The bounds of each column.

    low, high: float64 [C] on the host; both are NaN if there is no interval.
    reasons: for each column, why it has no interval, or None if it has one.
    notes: caveats for the reader of the intervals.
    """

    low: np.ndarray
    high: np.ndarray
    reasons: list[str | None]
    notes: list[str]


def mean_intervals(values: Tensor, groups: Groups, bootstrap: Bootstrap = DEFAULT) -> Intervals:
    """BCa interval of the mean over cases: sum of values / number of counted cases.

    values: [N, C], one row per case, on any device that supports float64. NaN is not counted.
    groups: group label of each case, [N]; labels must be sortable. Cases with the same label are drawn together.

    The mean of a resample is the mean over its counted cases. The order of the cases does not matter.

    A column has no interval but a reason if there are fewer than `min_groups` groups with a counted case, if a value is
    infinite, if a resample contains no counted case (likely only with few counted groups among many), if all groups
    have the same mean, or if the BCa correction is undefined.

    Raises ValueError if the shapes do not match or a label is missing. Source: Efron, 1987.
    """
    draws = _draw(values, groups, bootstrap)
    return _bca_intervals(_ratio(values, torch.ones_like(values), draws), bootstrap, "mean")


def ratio_intervals(
    numerators: Tensor, denominators: Tensor, groups: Groups, bootstrap: Bootstrap = DEFAULT
) -> Intervals:
    """BCa interval of sum of numerators / sum of denominators, such as pooled Dice: 2 tp / (predicted + reference).

    numerators, denominators: [N, C]; denominators must not be negative. A case with NaN in either is left out of both
    sums, and a group whose denominators are all 0 is not counted. Otherwise like `mean_intervals`.

    Raises ValueError also if a denominator is negative.
    """
    if numerators.shape != denominators.shape:
        raise ValueError(
            f"expected numerators and denominators of the same shape, got {list(numerators.shape)} and "
            f"{list(denominators.shape)}"
        )
    if bool((denominators < 0).any()):
        raise ValueError("expected denominators of at least 0, got negative ones")
    draws = _draw(numerators, groups, bootstrap)
    return _bca_intervals(_ratio(numerators, denominators, draws), bootstrap, "ratio")


def average_intervals(
    numerators: Tensor,
    denominators: Tensor,
    columns: Sequence[int],
    groups: Groups,
    bootstrap: Bootstrap = DEFAULT,
) -> Intervals:
    """BCa interval of the mean over columns of their ratios, such as a mean over classes of means over cases: [1].

    columns: the columns to average. A column without a counted case in a resample is left out of the mean of that
    resample, like a column without a counted case in the data. Otherwise like `ratio_intervals`.
    """
    draws = _draw(numerators, groups, bootstrap)
    selected = list(columns)
    ratio = _ratio(numerators[:, selected], denominators[:, selected], draws)
    return _bca_intervals(_mean_of_columns(ratio), bootstrap, "mean")


def median_intervals(values: Tensor, groups: Groups, bootstrap: Bootstrap = DEFAULT) -> Intervals:
    """Percentile interval of the median over cases, from the same resamples as the intervals of the mean.

    Arguments and errors are those of `mean_intervals`. NaN is not counted; infinite values are, and bounds can be
    infinite. For an even number of cases, the median is the mean of the two middle values.

    A column has no interval but a reason if there are fewer than `min_groups` groups with a counted case, if a resample
    contains no counted case, or if all resamples have the same median.

    The percentile interval is used because, unlike the basic interval, it has the nominal coverage for medians from 10
    cases on; BCa requires a smooth statistic. Source: Efron, 1979.
    """
    draws = _draw(values, groups, bootstrap)
    counts = _group_sums(~values.isnan(), draws)
    columns = [_sorted_column(column.to(torch.float64), draws.group) for column in values.unbind(1)]
    medians, drawn_counts = [], []
    for weights in draws.weights():
        medians.append(_medians(columns, weights))
        drawn_counts.append(weights @ counts)
    medians, drawn_counts = torch.cat(medians), torch.cat(drawn_counts)
    bounds = _quantiles(medians, _tails(bootstrap, medians).expand(-1, values.shape[1]))
    checks = {
        NO_CASE: (drawn_counts == 0).any(0),
        "all resamples have the same median": (medians == medians[0]).all(0),
        "a median or bound is between two infinite values": torch.cat([medians, bounds]).isnan().any(0),
    }
    return _intervals(bounds, (counts > 0).sum(0), bootstrap, checks)


def resampled_weights(groups: int, resamples: int, seed: int) -> Tensor:
    """How often each group is drawn in each resample: integers as float64 [resamples, groups], on the CPU.

    A row holds `groups` draws with replacement and sums to `groups`. The result depends only on the arguments. Without
    groups it is [R, 0].
    """
    return torch.cat(list(_weight_blocks(groups, resamples, seed)))


def _weight_blocks(groups: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """The rows of `resampled_weights` in blocks of at most `MAX_WEIGHTS` elements, of which one is in memory."""
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = max(1, MAX_WEIGHTS // max(groups, 1))
    for first in range(0, resamples, rows):
        shape = (min(rows, resamples - first), groups)
        drawn = torch.randint(max(groups, 1), shape, generator=generator, device="cpu")
        yield torch.zeros(shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(shape, dtype=torch.float64))


def coverage_notes(groups: int) -> list[str]:
    """Caveats for BCa intervals of a mean or ratio from this number of groups; none from 50 groups on."""
    few = f"{groups} groups of cases, fewer than {FEW_GROUPS}: the coverage of the intervals is below nominal"
    measured = "for skewed scores and a nominal 0.95 it is about 0.75 with 10 groups, 0.88 with 25 and 0.94 with 50"
    return [f"{few}; {measured}"] if groups < FEW_GROUPS else []


@dataclass(frozen=True)
class _Draws:
    """What is drawn: the groups, and how often each resample has them.

    group: the group index of each case, int64 [N]. groups: the number of groups.
    """

    group: Tensor
    groups: int
    bootstrap: Bootstrap

    def weights(self) -> Iterator[Tensor]:
        """The weights of all resamples in blocks of rows, float64 [r, G], on the device of the values."""
        for block in _weight_blocks(self.groups, self.bootstrap.resamples, self.bootstrap.seed):
            yield block.to(self.group.device)


def _draw(values: Tensor, groups: Groups, bootstrap: Bootstrap) -> _Draws:
    labels = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise ValueError(f"expected values [N, C] and groups [N], got {list(values.shape)} and {list(labels.shape)}")
    if any(label is None or label != label for label in labels.tolist()):
        raise ValueError(
            "expected a group label for every case, but some are missing; give each of these cases a label of its own"
        )
    names, group = np.unique(labels, return_inverse=True)  # sorted, so that the order of the cases does not matter
    return _Draws(torch.from_numpy(group).to(values.device), len(names), bootstrap)


def _group_sums(columns: Tensor, draws: _Draws) -> Tensor:
    """Sum columns [N, C] over the cases of each group, float64 [G, C]."""
    sums = torch.zeros(draws.groups, columns.shape[1], dtype=torch.float64, device=columns.device)
    return sums.index_add_(0, draws.group, columns.to(sums.dtype))


@dataclass(frozen=True)
class _Ratio:
    """A ratio of sums, in the data, in the bootstrap and in the jackknife.

    estimate: the ratio of the data, [C].
    resampled: the ratio of each resample, [R, C].
    jackknife: the ratio without each group, [G, C].
    margin: upper limit of rounding errors, [C].
    counted: whether each group has a counted case, [G, C].
    infinite: whether any value is infinite, [C].
    """

    estimate: Tensor
    resampled: Tensor
    jackknife: Tensor
    margin: Tensor
    counted: Tensor
    infinite: Tensor

    @property
    def groups(self) -> Tensor:
        """The number of counted groups, [C]."""
        return self.counted.sum(0)


def _mean_of_columns(ratio: _Ratio) -> _Ratio:
    """The mean over all columns, as a ratio with one column."""
    return _Ratio(
        estimate=ratio.estimate.nanmean(0, keepdim=True),
        resampled=ratio.resampled.nanmean(1, keepdim=True),
        jackknife=ratio.jackknife.nanmean(1, keepdim=True),
        margin=ratio.margin.nanmean(0, keepdim=True),
        counted=ratio.counted.any(1, keepdim=True),
        infinite=ratio.infinite.any(0, keepdim=True),
    )


def _ratio(numerators: Tensor, denominators: Tensor, draws: _Draws) -> _Ratio:
    counted = ~(numerators.isnan() | denominators.isnan())
    tops, bottoms = (torch.where(counted, part, 0).to(torch.float64) for part in (numerators, denominators))
    top, bottom = _group_sums(tops, draws), _group_sums(bottoms, draws)
    return _Ratio(
        estimate=top.sum(0) / bottom.sum(0),
        resampled=torch.cat([(weights @ top) / (weights @ bottom) for weights in draws.weights()]),
        jackknife=(top.sum(0) - top) / (bottom.sum(0) - bottom),
        margin=ROUNDING * tops.abs().sum(0) / bottom.sum(0),
        counted=bottom > 0,
        infinite=(tops.isinf() | bottoms.isinf()).any(0),
    )


def _bca_intervals(ratio: _Ratio, bootstrap: Bootstrap, statistic: str) -> Intervals:
    bounds = _bca(ratio, bootstrap)
    spread = ratio.resampled.amax(0) - ratio.resampled.amin(0)
    checks = {
        "a value is infinite": ratio.infinite,
        NO_CASE: ~ratio.resampled.isfinite().all(0),
        f"all groups of cases have the same {statistic}": spread <= ratio.margin,
        "the bootstrap is degenerate: its BCa correction is undefined": bounds.isnan().any(0),
    }
    intervals = _intervals(bounds, ratio.groups, bootstrap, checks)
    group_counts = [
        groups for groups, reason in zip(ratio.groups.tolist(), intervals.reasons, strict=True) if reason is None
    ]
    return replace(intervals, notes=coverage_notes(min(group_counts, default=FEW_GROUPS)))


def _bca(ratio: _Ratio, bootstrap: Bootstrap) -> Tensor:
    """The bounds [2, C]: quantiles of the resamples at levels corrected for bias and acceleration (Efron, 1987)."""
    below, above = ratio.resampled < ratio.estimate - ratio.margin, ratio.resampled > ratio.estimate + ratio.margin
    fraction_below = 0.5 + (below.sum(0) - above.sum(0)).to(torch.float64) / (2 * len(below))  # ties count half
    bias = torch.special.ndtri(fraction_below)
    influence = ratio.jackknife.mean(0) - ratio.jackknife
    acceleration = (influence**3).sum(0) / (6 * (influence**2).sum(0) ** 1.5)
    shifted = bias + torch.special.ndtri(_tails(bootstrap, bias))
    denominator = 1 - acceleration * shifted
    level = torch.special.ndtr(bias + shifted / denominator)
    # for a negative denominator the levels of the two bounds would be swapped
    return _quantiles(ratio.resampled, level.where(denominator > 0, torch.nan))


def _sorted_column(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """The counted values of a column [N] in increasing order, and the group of each."""
    counted = ~values.isnan()
    ordered, order = values[counted].sort()
    return ordered, group[counted][order]


def _medians(columns: Sequence[tuple[Tensor, Tensor]], weights: Tensor) -> Tensor:
    """The median of each column, from `_sorted_column`, in each resample: [R, C]."""
    medians = [_column_medians(ordered, group, weights) for ordered, group in columns]
    return torch.stack(medians, 1) if medians else weights.new_empty(len(weights), 0)


def _column_medians(ordered: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """The median of one column in each resample, [R]; NaN if a resample has no counted value.

    A case that is drawn k times occurs k times in the sorted values of a resample, so the cumulative sums of the
    weights give the value of each rank.
    """
    if len(ordered) == 0:
        return weights.new_full((len(weights),), torch.nan)
    medians = []
    for chunk in weights.to(torch.int64).split(max(1, MAX_ELEMENTS // len(ordered))):
        ends = chunk[:, group].cumsum(1)
        size = ends[:, -1:]
        ranks = torch.cat([(size - 1).clamp(min=0) // 2, size // 2], dim=1)
        indices = torch.searchsorted(ends, ranks, right=True).clamp(max=len(ordered) - 1)
        medians.append(ordered[indices].mean(1).where(size[:, 0] > 0, torch.nan))
    return torch.cat(medians)


def _tails(bootstrap: Bootstrap, like: Tensor) -> Tensor:
    """The levels of the lower and the upper bound, [2, 1]."""
    return like.new_tensor([[(1 - bootstrap.confidence) / 2], [(1 + bootstrap.confidence) / 2]])


def _quantiles(samples: Tensor, level: Tensor) -> Tensor:
    """Quantiles of [R, C] at levels [2, C] with linear interpolation, [2, C]; NaN for a level of NaN."""
    position = level.nan_to_num() * (len(samples) - 1)
    left, fraction = position.to(torch.int64), position.frac()
    ordered = samples.sort(dim=0).values
    before, after = ordered.gather(0, left), ordered.gather(0, (left + 1).clamp(max=len(samples) - 1))
    exact = (fraction == 0) | (before == after)  # interpolation would round, and turn infinite values into NaN
    return torch.where(exact, before, before * (1 - fraction) + after * fraction).where(~level.isnan(), torch.nan)


def _intervals(bounds: Tensor, groups: Tensor, bootstrap: Bootstrap, checks: dict[str, Tensor]) -> Intervals:
    """Intervals from bounds [2, C]; columns with too few groups or a failed check get a reason instead.

    checks: reason -> the columns that it applies to, bool [C]. If several apply, the first one is given.
    """
    minimum, counts = bootstrap.min_groups, groups.tolist()
    reasons: list[str | None] = [f"{n} groups of cases, fewer than {minimum}" if n < minimum else None for n in counts]
    for check, failed in checks.items():
        pairs = zip(reasons, failed.tolist(), strict=True)
        reasons = [check if reason is None and fails else reason for reason, fails in pairs]
    missing = torch.tensor([reason is not None for reason in reasons], dtype=torch.bool, device=bounds.device)
    low, high = bounds.where(~missing, torch.nan).cpu().numpy()
    return Intervals(low, high, reasons, [])
