"""Region losses: functions of the overlap and size of each class, averaged over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import Activation, activation_of
from segkit.losses.class_weights import ClassWeights, resolve_class_weights
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.shared_pass import MaskSums, RegionSums, Statistics

Per = Literal["batch", "image"]
Empty = Literal["present", "keep", "zero"]
Average = Literal["macro", "micro"]
Eps = tuple[float, float]


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, with a finite value and gradient for denominators of 0 or almost 0.

    With eps 0, they occur for a class that is absent from the reference and whose predicted probabilities are 0, or too
    small for normal numbers. That class is not counted, but its gradient must not be NaN.
    """
    return numerator / torch.where(denominator > torch.finfo(denominator.dtype).tiny, denominator, 1)


def mean_over_counted(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the groups' weighted means over the classes, and the number of groups in that sum.

    losses, weights: [B, K]. A class that is not counted has weight 0; a group without counted classes is left out.
    """
    total = weights.sum(1)
    counted = total > 0
    group_means = (weights * losses).sum(1) / torch.where(counted, total, 1)
    return group_means.sum(), counted.sum().to(losses.dtype)


def divided(total: Tensor, count: Tensor) -> Tensor:
    """total / count; 0 if the count is 0."""
    return total / torch.where(count > 0, count, 1)


class ClassPixels(Protocol):
    """What a mean over classes needs of a group: the weighted pixels of each class and the valid ones, [B, K] each."""

    @property
    def reference(self) -> Tensor: ...
    @property
    def pixels(self) -> Tensor: ...


class ClassMean(nn.Module):
    """The mean of region losses over classes and images. Region losses have the same options.

    per: `batch` pools the sums over the batch before the ratio is taken; `image` averages over the counted classes of
        each image, then over the images with counted classes.
    empty: what happens to a class that is absent from the reference: `present` leaves it out of the mean, `keep` treats
        it like any other class, `zero` counts it with loss 0. Where every pixel is ignored, no class is counted.
    background: false leaves out the background class.
    class_weights: one weight per channel, or a method; the mean is divided by the sum of the counted classes' weights.
    reduce: sums over processes: the pooled sums with `batch`, the means of images with `image`.
    average: `macro` is the mean of the classes' losses. `micro` takes one loss from the sums over all classes, each
        multiplied by its class weight; `empty` then concerns a batch or image without any class.
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
        average: Average = "macro",
    ) -> None:
        super().__init__()
        self.per, self.empty, self.reduce, self.average = per, empty, reduce, average
        self.class_weights: Tensor
        weights = _channel_weights(class_weights, labels, class_counts)
        if not background:
            weights[_background_channel(labels)] = 0
        if weights.sum() == 0:
            raise ValueError("no class is left: background is false and the class_weights of all other classes are 0")
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels with a weight above 0."""
        return tuple(self.class_weights.nonzero().flatten().tolist())

    def pool(self, statistics: Statistics) -> Statistics:
        """The statistics of each group: the whole batch as one group, or each image; with `micro` the same for every
        class."""
        statistics = Statistics(*self.pooled(*statistics.tensors))
        return self._over_classes(statistics) if self.average == "micro" else statistics

    def pooled(self, *sums: Tensor) -> list[Tensor]:
        """Sums of each image [B, K] as those of each group: [1, K] for the whole batch, or unchanged for each image."""
        if self.per == "image":
            return list(sums)
        return self.reduce(*(image_sums.sum(0, keepdim=True) for image_sums in sums))

    def _over_classes(self, statistics: Statistics) -> Statistics:
        """The weighted sums over the classes, repeated for every class, [B, K]."""
        weights = self.class_weights.to(statistics.tp.dtype)
        return Statistics(*((weights * sums).sum(1, keepdim=True).expand_as(sums) for sums in statistics.tensors))

    def weights(self, reference: Tensor, pixels: Tensor) -> Tensor:
        """The weight of each class of each group in the mean, [B, K]; 0 for a class that is not counted."""
        counted = reference > 0 if self.empty == "present" else pixels > 0
        return counted * self.class_weights.to(reference.dtype)

    def forward(self, losses: Tensor, statistics: ClassPixels, count: Tensor | None = None) -> Tensor:
        """The mean of the losses [B, K] of pooled statistics, a scalar; 0 with gradient 0 if no class is counted.

        count: with `per: image`, the divisor of the sum over images, instead of their number.
        """
        if self.empty == "zero":
            losses = torch.where(statistics.reference > 0, losses, 0)
        total, groups = mean_over_counted(losses, self.weights(statistics.reference, statistics.pixels))
        if self.per == "image":
            total, groups = self.reduce(total, groups)
        return divided(total, groups if count is None else count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """The number of images with counted classes, from the masks alone; None with `per: batch`."""
        if self.per == "batch":
            return None
        return (self.weights(mask.reference, mask.pixels).sum(1) > 0).sum().to(mask.pixels.dtype)


def _channel_weights(class_weights: ClassWeights, labels: Labels, class_counts: Any) -> Tensor:
    if labels.mode != "binary":
        return resolve_class_weights(class_weights, labels, class_counts)
    if class_weights is not None and class_weights != "none":
        raise ValueError(
            f"only {labels.names[1]!r} has a channel in binary mode, so class_weights have no effect; "
            "leave them out, or use them with cross_entropy"
        )
    return torch.ones(1, dtype=torch.float64)


def _background_channel(labels: Labels) -> int:
    if labels.background_channel is None:
        raise ValueError(
            f"background: false needs a channel for the background class {labels.background!r}, but the channels are "
            f"{', '.join(labels.channel_names)}; leave `background` out"
        )
    return labels.background_channel


def eps_pair(eps: float | Sequence[float], empty: Empty = "present") -> Eps:
    """The option `eps` as (numerator, denominator). Raises ValueError unless these are numbers from 0 to 1e12."""
    pair = (eps, eps) if isinstance(eps, (int, float)) else tuple(eps)
    if len(pair) != 2 or not all(0 <= number <= LARGEST_OPTION for number in pair):
        raise ValueError(
            f"expected eps as one number from 0 to {LARGEST_OPTION:g}, or [numerator, denominator], got {eps}"
        )
    if empty == "keep" and pair[1] == 0:
        raise ValueError(
            f"empty: keep with eps {eps} divides 0 by 0 for an absent class; set eps above 0, or use empty: present"
        )
    return float(pair[0]), float(pair[1])


class RegionLoss(nn.Module):
    """The base of losses that average a function of each class's sums over the classes.

    sums: the request to the shared pass. mean: how classes and images are averaged. eps: of numerator and denominator.
    """

    def __init__(self, sums: RegionSums, mean: ClassMean, eps: Eps) -> None:
        super().__init__()
        self.sums, self.mean, self.eps = sums, mean, eps

    def class_losses(self, statistics: Statistics) -> Tensor:
        """The loss of each group and class, [B, K], from pooled statistics."""
        raise NotImplementedError

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        statistics = self.mean.pool(statistics)
        return self.mean(self.class_losses(statistics), statistics, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """The number of images with counted classes, from the masks alone; None with `per: batch`."""
        return self.mean.count(mask)


def soft_dice(statistics: Statistics, eps: Eps) -> Tensor:
    """(2 tp + eps_n) / (predicted + reference + eps_d) for each group and class, [B, K]."""
    return ratio(2 * statistics.tp + eps[0], statistics.predicted + statistics.reference + eps[1])


class Dice(RegionLoss):
    """1 - (2 tp + eps_n) / (predicted + reference + eps_d), averaged over classes (Milletari et al. 2016).

    per, empty, background, class_weights, average: see `ClassMean`. With `average: micro`, classes count by
        their size; under a softmax with power 1, hard targets and eps 0 it is the mean of 1 - p(true class) over the
        pixels.
    power: 2 squares the probabilities, and the shares of soft targets, in `predicted` and `reference`; tp is then the
        overlap of that power, so that the loss of soft targets is least where probabilities equal shares.
    eps: one number, or [numerator, denominator].
    activation: `softmax`, the default in multiclass mode, or `sigmoid`, the default in the other modes. In multiclass
        mode `sigmoid` treats each class as a binary problem.

    Targets may be soft. Ignored pixels are left out of all sums; if all pixels are ignored, the loss is 0. Values lie
    in [0, 1] if both eps are equal. Raises ValueError at build for a negative eps, for `empty: keep` with eps 0, for
    `background: false` without a background channel, for class weights in binary mode, and for `softmax` outside
    multiclass mode.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        per: Per = "batch",
        power: Literal[1, 2] = 1,
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
        average: Average = "macro",
        activation: Activation | None = None,
    ) -> None:
        mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights, average)
        super().__init__(RegionSums(activation_of(labels, activation), power), mean, eps_pair(eps, empty))

    def class_losses(self, statistics: Statistics) -> Tensor:
        """1 - (2 tp + eps_n) / (predicted + reference + eps_d) for each group and class, [B, K]."""
        return 1 - soft_dice(statistics, self.eps)


class Jaccard(RegionLoss):
    """1 - (tp + eps_n) / (predicted + reference - tp + eps_d), averaged over classes (Rahman & Wang 2016).

    per, power, eps, empty, background, class_weights, average, activation: as for `dice`.

    Targets may be soft, which gives the Jaccard metric loss (Wang et al. 2023). Ignored pixels are left out of all
    sums; if all pixels are ignored, the loss is 0. Values lie in [0, 1] if both eps are equal. Raises ValueError at
    build in the same cases as `dice`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        per: Per = "batch",
        power: Literal[1, 2] = 1,
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
        average: Average = "macro",
        activation: Activation | None = None,
    ) -> None:
        mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights, average)
        super().__init__(RegionSums(activation_of(labels, activation), power), mean, eps_pair(eps, empty))

    def class_losses(self, statistics: Statistics) -> Tensor:
        """1 - (tp + eps_n) / (predicted + reference - tp + eps_d) for each group and class, [B, K]."""
        union = statistics.predicted + statistics.reference - statistics.tp
        return 1 - ratio(statistics.tp + self.eps[0], union + self.eps[1])
