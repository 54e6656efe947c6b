"""Bootstrap intervals of scores over cases, for all columns of a table (metrics, classes) at once.

Groups of cases (patients) are drawn, never cases alone. How often each group is drawn in each resample is one matrix
[R, G], made on the CPU from a seed; the sums over all resamples of all columns are then one product in float64, so
that every device gives the same intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Groups = Sequence[object] | np.ndarray | Tensor
FEW_GROUPS = 50
ROUNDING = 1e-12  # relative; sums in another order, as on another device, differ by less
MAX_ELEMENTS = 2**22  # numbers that the medians hold at a time
NO_CASE = "in some resamples no case is counted"


@dataclass(frozen=True)
class Bootstrap:
    """confidence: the share that intervals are to cover. resamples, seed: what makes the `resampled_weights`.

    min_groups: the fewest groups with a counted case that make an interval. Raises ValueError if the confidence is
    not between 0 and 1, or if the resamples are too few to have one in each tail.
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
    """The bounds of each column, float64 [C] on the host; both NaN where there is no interval.

    reasons: for each column None, or why it has no interval. notes: what a reader should know of the intervals.
    """

    low: np.ndarray
    high: np.ndarray
    reasons: list[str | None]
    notes: list[str]


def mean_intervals(values: Tensor, groups: Groups, bootstrap: Bootstrap = DEFAULT) -> Intervals:
    """BCa interval of the mean over cases: sum of values / number of counted cases.

    values: [N, C], a row a case, on any device that has float64; NaN is not counted.
    groups: [N] labels that can be sorted; cases with the same label are drawn together.

    A resample counts the cases that it holds, so its mean is the nanmean. The order of the cases does not matter.
    There is no interval, but a reason, with fewer than `min_groups` groups (as where there are no cases), with an
    infinite value, where a resample holds no counted case (likely only with few counted groups among many), where
    all groups have the same mean, or where the correction is not defined. Raises ValueError if shapes do not fit or a
    label is blank. Source: Efron 1987.
    """
    drawn = _draw(values, groups, bootstrap)
    return _bca_intervals(_ratio(values, torch.ones_like(values), *drawn), bootstrap, "mean")


def ratio_intervals(
    numerators: Tensor, denominators: Tensor, groups: Groups, bootstrap: Bootstrap = DEFAULT
) -> Intervals:
    """BCa interval of sum of numerators / sum of denominators, as pooled Dice: 2 tp / (predicted + reference).

    numerators, denominators: both [N, C]; denominators at least 0, else ValueError. A case with NaN in either is in
    neither sum, and a group whose denominators are 0 is not counted. The rest is as in `mean_intervals`.
    """
    if numerators.shape != denominators.shape:
        raise ValueError(f"expected two of one shape, got {list(numerators.shape)} and {list(denominators.shape)}")
    if bool((denominators < 0).any()):
        raise ValueError("expected denominators of at least 0, got negative ones")
    drawn = _draw(numerators, groups, bootstrap)
    return _bca_intervals(_ratio(numerators, denominators, *drawn), bootstrap, "ratio")


def average_intervals(
    numerators: Tensor,
    denominators: Tensor,
    columns: Sequence[int],
    groups: Groups,
    bootstrap: Bootstrap = DEFAULT,
) -> Intervals:
    """BCa interval of the mean over some columns of their ratios, as a mean over classes of means over cases: one, [1].

    A resample leaves out a column of which it holds no counted case, as the mean over the data does. The rest is as in
    `ratio_intervals`.
    """
    drawn = _draw(numerators, groups, bootstrap)
    chosen = list(columns)
    return _bca_intervals(_averaged(_ratio(numerators[:, chosen], denominators[:, chosen], *drawn)), bootstrap, "mean")


def median_intervals(values: Tensor, groups: Groups, bootstrap: Bootstrap = DEFAULT) -> Intervals:
    """Percentile interval of the median over cases, from the same resamples as the intervals of the mean.

    Arguments and errors are those of `mean_intervals`. NaN is not counted; infinite values are, and bounds may be
    infinite. Of an even number of cases the median is the mean of the middle two. There is no interval, but a reason,
    with fewer than `min_groups` groups, where a resample holds no counted case, or where the medians are all the same.

    The percentile interval of a median covers what it says from 10 cases on and the basic one does not; BCa is for
    smooth statistics. Source: Efron 1979.
    """
    group, weights = _draw(values, groups, bootstrap)
    medians = weights.new_empty(len(weights), values.shape[1])
    for column in range(values.shape[1]):
        medians[:, column] = _medians(values[:, column].to(torch.float64), group, weights)
    bounds = _quantiles(medians, _tails(bootstrap, medians).expand(-1, values.shape[1]))
    counts = _group_sums(~values.isnan(), group, weights)
    checks = {
        NO_CASE: (weights @ counts == 0).any(0),
        "all resamples have the same median": (medians == medians[0]).all(0),
        "a median or bound lies between two infinities": torch.cat([medians, bounds]).isnan().any(0),
    }
    return _intervals(bounds, (counts > 0).sum(0), bootstrap, checks)


def resampled_weights(groups: int, resamples: int, seed: int) -> Tensor:
    """How often each group is drawn in each resample: whole numbers, float64 [resamples, groups] on the CPU.

    A row is `groups` draws with replacement, and sums to `groups`; a seed always gives the same. No groups: [R, 0].
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(max(groups, 1), (resamples, groups), generator=generator, device="cpu")
    return torch.zeros_like(drawn).scatter_add_(1, drawn, torch.ones_like(drawn)).to(torch.float64)


def coverage_notes(groups: int) -> list[str]:
    """What to say of BCa intervals of a mean or ratio from so many groups of cases; nothing from 50 on."""
    few = f"{groups} groups of cases, fewer than {FEW_GROUPS}: intervals cover less than they say"
    known = "at a nominal 0.95 and skewed scores about 0.75 with 10 groups, 0.88 with 25 and 0.94 with 50"
    return [f"{few}; {known}"] if groups < FEW_GROUPS else []


def _draw(values: Tensor, groups: Groups, bootstrap: Bootstrap) -> tuple[Tensor, Tensor]:
    """The group of each case, int64 [N], and how often each group is drawn, float64 [R, G]; beside the values."""
    labels = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise ValueError(f"expected [N, C] and N groups, got {list(values.shape)} and groups {list(labels.shape)}")
    if any(label is None or label != label for label in labels.tolist()):
        raise ValueError("expected a label for every case, but some are blank; give such cases labels of their own")
    names, group = np.unique(labels, return_inverse=True)  # sorted, so that the order of the cases does not matter
    weights = resampled_weights(len(names), bootstrap.resamples, bootstrap.seed)
    return torch.from_numpy(group).to(values.device), weights.to(values.device)


def _group_sums(columns: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """Sums over the cases of each group, float64 [G, C] of [N, C]."""
    sums = weights.new_zeros(weights.shape[1], columns.shape[1])
    return sums.index_add_(0, group, columns.to(sums.dtype))


@dataclass(frozen=True)
class _Ratio:
    """A ratio of sums: of the data [C], of each resample [R, C], and without each group [G, C].

    margin: what is rounding of it [C]. counted: whether a group has any [G, C]. infinite: whether a value is [C].
    """

    estimate: Tensor
    resampled: Tensor
    jackknife: Tensor
    margin: Tensor
    counted: Tensor
    infinite: Tensor

    @property
    def groups(self) -> Tensor:
        """How many are counted [C]."""
        return self.counted.sum(0)


def _averaged(ratio: _Ratio) -> _Ratio:
    """The mean over all columns, as one."""
    return _Ratio(
        estimate=ratio.estimate.nanmean(0, keepdim=True),
        resampled=ratio.resampled.nanmean(1, keepdim=True),
        jackknife=ratio.jackknife.nanmean(1, keepdim=True),
        margin=ratio.margin.nanmean(0, keepdim=True),
        counted=ratio.counted.any(1, keepdim=True),
        infinite=ratio.infinite.any(0, keepdim=True),
    )


def _ratio(numerators: Tensor, denominators: Tensor, group: Tensor, weights: Tensor) -> _Ratio:
    counted = ~(numerators.isnan() | denominators.isnan())
    above, below = (torch.where(counted, part, 0).to(torch.float64) for part in (numerators, denominators))
    top, bottom = _group_sums(above, group, weights), _group_sums(below, group, weights)
    return _Ratio(
        estimate=top.sum(0) / bottom.sum(0),
        resampled=(weights @ top) / (weights @ bottom),
        jackknife=(top.sum(0) - top) / (bottom.sum(0) - bottom),
        margin=ROUNDING * above.abs().sum(0) / bottom.sum(0),
        counted=bottom > 0,
        infinite=(above.isinf() | below.isinf()).any(0),
    )


def _bca_intervals(ratio: _Ratio, bootstrap: Bootstrap, statistic: str) -> Intervals:
    bounds = _bca(ratio, bootstrap)
    spread = ratio.resampled.amax(0) - ratio.resampled.amin(0)
    checks = {
        "a value is infinite": ratio.infinite,
        NO_CASE: ~ratio.resampled.isfinite().all(0),
        f"all groups of cases have the same {statistic}": spread <= ratio.margin,
        "the bootstrap is degenerate: its BCa correction is not defined": bounds.isnan().any(0),
    }
    intervals = _intervals(bounds, ratio.groups, bootstrap, checks)
    used = [groups for groups, reason in zip(ratio.groups.tolist(), intervals.reasons, strict=True) if reason is None]
    return replace(intervals, notes=coverage_notes(min(used, default=FEW_GROUPS)))


def _bca(ratio: _Ratio, bootstrap: Bootstrap) -> Tensor:
    """The bounds [2, C]: quantiles of the resamples, at levels corrected for bias and acceleration (Efron 1987)."""
    below, above = ratio.resampled < ratio.estimate - ratio.margin, ratio.resampled > ratio.estimate + ratio.margin
    share = 0.5 + (below.sum(0) - above.sum(0)).to(torch.float64) / (2 * len(below))  # what is equal counts half
    bias = torch.special.ndtri(share)
    change = ratio.jackknife.mean(0) - ratio.jackknife
    acceleration = (change**3).sum(0) / (6 * (change**2).sum(0) ** 1.5)
    shifted = bias + torch.special.ndtri(_tails(bootstrap, bias))
    room = 1 - acceleration * shifted
    level = torch.special.ndtr(bias + shifted / room)
    return _quantiles(ratio.resampled, level.where(room > 0, torch.nan))  # past 0 the levels change places


def _medians(values: Tensor, group: Tensor, weights: Tensor) -> Tensor:
    """The median of each resample [R] of the values [N] of one column; NaN where it holds none.

    A case that is drawn k times stands k times in a row among the sorted values; the running sums of the weights say
    which value has a given rank.
    """
    counted = ~values.isnan()
    ordered, order = values[counted].sort()
    if len(ordered) == 0:
        return weights.new_full((len(weights),), torch.nan)
    group, medians = group[counted][order], []
    for part in weights.to(torch.int64).split(max(1, MAX_ELEMENTS // len(ordered))):
        ends = part[:, group].cumsum(1)
        size = ends[:, -1:]
        ranks = torch.cat([(size - 1).clamp(min=0) // 2, size // 2], dim=1)
        places = torch.searchsorted(ends, ranks, right=True).clamp(max=len(ordered) - 1)
        medians.append(ordered[places].mean(1).where(size[:, 0] > 0, torch.nan))
    return torch.cat(medians)


def _tails(bootstrap: Bootstrap, like: Tensor) -> Tensor:
    return like.new_tensor([[(1 - bootstrap.confidence) / 2], [(1 + bootstrap.confidence) / 2]])


def _quantiles(samples: Tensor, level: Tensor) -> Tensor:
    """Quantiles of [R, C] at levels [2, C] with linear interpolation, [2, C]; NaN at a level of NaN."""
    place = level.nan_to_num() * (len(samples) - 1)
    left, part = place.to(torch.int64), place.frac()
    ordered = samples.sort(dim=0).values
    before, after = ordered.gather(0, left), ordered.gather(0, (left + 1).clamp(max=len(samples) - 1))
    exact = (part == 0) | (before == after)  # mixing would round, or make NaN of infinite values
    return torch.where(exact, before, before * (1 - part) + after * part).where(~level.isnan(), torch.nan)


def _intervals(bounds: Tensor, groups: Tensor, bootstrap: Bootstrap, checks: dict[str, Tensor]) -> Intervals:
    """Bounds [2, C] as a result. Of what tells against a column, too few groups, then the checks, the first is told."""
    least, counts = bootstrap.min_groups, groups.tolist()
    reasons: list[str | None] = [f"{n} groups of cases, fewer than {least}" if n < least else None for n in counts]
    for words, holds in checks.items():
        pairs = zip(reasons, holds.tolist(), strict=True)
        reasons = [words if reason is None and held else reason for reason, held in pairs]
    missing = torch.tensor([reason is not None for reason in reasons], dtype=torch.bool, device=bounds.device)
    low, high = bounds.where(~missing, torch.nan).cpu().numpy()
    return Intervals(low, high, reasons, [])
