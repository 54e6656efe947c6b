"""Region terms: functions of each class's overlap and size, averaged over the classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, keep
from segkit.losses.chunking import activation_of
from segkit.losses.class_weights import ClassWeights, resolve_class_weights
from segkit.losses.shared_pass import MaskSums, RegionSums, Statistics

Per = Literal["batch", "image"]
Empty = Literal["present", "keep", "zero"]
Eps = tuple[float, float]


def dice_losses(statistics: Statistics, eps: Eps) -> Tensor:
    """1 - (2 tp + eps_n) / (predicted + reference + eps_d) for each group and class, [B, K]."""
    size = statistics.predicted + statistics.reference
    return 1 - ratio(2 * statistics.tp + eps[0], size + eps[1])


def jaccard_losses(statistics: Statistics, eps: Eps) -> Tensor:
    """1 - (tp + eps_n) / (predicted + reference - tp + eps_d) for each group and class, [B, K]."""
    union = statistics.predicted + statistics.reference - statistics.tp
    return 1 - ratio(statistics.tp + eps[0], union + eps[1])


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    # a class that is nowhere, with eps 0, is 0 / 0; it is not counted, and its gradient must not be NaN
    return numerator / torch.where(denominator > 0, denominator, 1)


def mean_over_counted(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean over the classes of each group, summed over the groups with any weight, and their number.

    losses, weights: [B, K]; a class that is not counted has weight 0.
    """
    total = weights.sum(1)
    counted = total > 0
    of_group = (weights * losses).sum(1) / torch.where(counted, total, 1)
    return of_group.sum(), counted.sum().to(losses.dtype)


def divided(total: Tensor, count: Tensor) -> Tensor:
    """total / count; 0 over nothing."""
    return total / torch.where(count > 0, count, 1)


class ClassMean(nn.Module):
    """How region terms average over classes and images; its options are theirs.

    per: `batch` pools the sums over the batch first; `image` averages over the counted classes of each image,
        then over the images that have any.
    empty: a class that is absent from the reference is dropped from the mean (`present`), is nothing special
        (`keep`), or is counted with loss 0 (`zero`). Where everything is ignored, nothing is counted.
    background: false drops the background class.
    class_weights: one a channel, or a method; the mean divides by the sum of those that are counted.
    reduce: sums over processes; the sums themselves with `batch`, means of images with `image`.
    """

    def __init__(
        self,
        labels: Labels,
        class_counts: Any,
        reduce: Reduce,
        per: Per,
        empty: Empty,
        background: bool,
        class_weights: ClassWeights,
    ) -> None:
        super().__init__()
        self.per, self.empty, self.reduce = per, empty, reduce
        self.class_weights: Tensor
        weights = _channel_weights(class_weights, labels, class_counts)
        if not background:
            weights[_background_channel(labels)] = 0
        if weights.sum() == 0:
            raise ValueError("the background is left out and the class_weights of all other classes are 0")
        self.register_buffer("class_weights", weights, persistent=False)

    def pool(self, statistics: Statistics) -> Statistics:
        """The groups to score: the whole batch as one, or each image."""
        return Statistics(*self.reduce(*statistics.pooled().tensors)) if self.per == "batch" else statistics

    def weights(self, reference: Tensor, pixels: Tensor) -> Tensor:
        """What each class of each group counts in the mean, [B, K]."""
        counted = reference > 0 if self.empty == "present" else pixels > 0
        return counted * self.class_weights.to(reference.dtype)

    def forward(self, losses: Tensor, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The mean of losses [B, K] of pooled statistics, a scalar; 0 with gradient 0 if nothing is counted.

        count: what to divide the sum over images by instead of their number, with `per: image`.
        """
        if self.empty == "zero":
            losses = torch.where(statistics.reference > 0, losses, 0)
        total, groups = mean_over_counted(losses, self.weights(statistics.reference, statistics.pixels))
        if self.per == "image":
            total, groups = self.reduce(total, groups)
        return divided(total, groups if count is None else count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """How many images count, by their masks alone; None where the sums of the batch are pooled."""
        if self.per == "batch":
            return None
        return (self.weights(mask.reference, mask.pixels).sum(1) > 0).sum().to(mask.pixels.dtype)


def _channel_weights(class_weights: ClassWeights, labels: Labels, class_counts: Any) -> Tensor:
    if labels.mode != "binary":
        return resolve_class_weights(class_weights, labels, class_counts)
    if class_weights is not None and class_weights != "none":
        raise ValueError(
            f"only {labels.names[1]!r} has a channel, so there is no mean over classes for class_weights to change; "
            "leave them out, or give them to cross_entropy"
        )
    return torch.ones(1, dtype=torch.float64)


def _background_channel(labels: Labels) -> int:
    if labels.background_channel is None:
        raise ValueError(
            f"background: false drops the channel of {labels.background!r}, and there is none: "
            f"the channels are {', '.join(labels.channel_names)}; leave `background` out"
        )
    return labels.background_channel


def eps_pair(eps: float | Sequence[float], empty: Empty = "present") -> Eps:
    """[numerator, denominator] from the option `eps`. Raises ValueError for others than numbers of 0 or more."""
    pair = (eps, eps) if isinstance(eps, (int, float)) else tuple(eps)
    if len(pair) != 2 or not all(math.isfinite(part) and part >= 0 for part in pair):
        raise ValueError(f"expected eps as one number of 0 or more, or [numerator, denominator], got {eps}")
    if empty == "keep" and pair[1] == 0:
        raise ValueError(f"empty: keep divides 0 by 0 for an absent class with eps {eps}; raise eps, or use present")
    return float(pair[0]), float(pair[1])


class Dice(nn.Module):
    """1 - (2 tp + eps_n) / (predicted + reference + eps_d), averaged over classes (Milletari et al. 2016).

    per, empty, background, class_weights: see `ClassMean`.
    power: 2 squares the probabilities, and the shares of soft targets, in `predicted` and `reference`.
    eps: one number, or [numerator, denominator].

    Targets may be soft. Ignored pixels are in no sum; all ignored gives 0. In [0, 1] for equal eps.
    Raises ValueError at build for a negative eps, for `keep` with eps 0, without a background to drop, and for
    class weights in binary mode.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = keep,
        per: Per = "batch",
        power: Literal[1, 2] = 1,
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        self.eps = eps_pair(eps, empty)
        self.sums = RegionSums(activation_of(labels), power)
        self.mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights)

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        statistics = self.mean.pool(statistics)
        return self.mean(dice_losses(statistics, self.eps), statistics, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """How many images count, by their masks alone; None where the sums of the batch are pooled."""
        return self.mean.count(mask)


class Jaccard(nn.Module):
    """1 - (tp + eps_n) / (predicted + reference - tp + eps_d), averaged over classes (Rahman & Wang 2016).

    per, power, eps, empty, background, class_weights: as for `dice`.

    Targets may be soft, which makes it the Jaccard metric loss (Wang et al. 2023). Ignored pixels are in no sum; all
    ignored gives 0. In [0, 1] for equal eps. Raises ValueError at build where `dice` does.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = keep,
        per: Per = "batch",
        power: Literal[1, 2] = 1,
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        self.eps = eps_pair(eps, empty)
        self.sums = RegionSums(activation_of(labels), power)
        self.mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights)

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        statistics = self.mean.pool(statistics)
        return self.mean(jaccard_losses(statistics, self.eps), statistics, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """How many images count, by their masks alone; None where the sums of the batch are pooled."""
        return self.mean.count(mask)
