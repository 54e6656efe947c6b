"""Region losses that weigh false positives and false negatives, or classes, differently."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import Activation, activation_of
from segkit.losses.class_weights import ClassWeights
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.region import Average, ClassMean, Empty, Eps, Per, RegionLoss, eps_pair, ratio
from segkit.losses.shared_pass import RegionSums, Statistics

# Below this loss, a power with an exponent under 1 is replaced by a straight line: its slope would be infinite at 0.
SMALLEST = 1e-6


def tversky_losses(statistics: Statistics, eps: Eps, alpha: float, beta: float) -> Tensor:
    """1 - (tp + eps_n) / (tp + alpha fp + beta fn + eps_d) for each group and class, [B, K]."""
    false = alpha * (statistics.predicted - statistics.tp) + beta * (statistics.reference - statistics.tp)
    return 1 - ratio(statistics.tp + eps[0], statistics.tp + false + eps[1])


def focal_power(losses: Tensor, gamma: float, smallest: float = SMALLEST) -> Tensor:
    """losses ** gamma for losses of at least 0, with a finite slope at 0."""
    if gamma >= 1:
        return losses.clamp(min=0) ** gamma
    line = losses * smallest ** (gamma - 1)
    return torch.where(losses > smallest, losses.clamp(min=smallest) ** gamma, line)


def _check_not_negative(**numbers: float) -> None:
    invalid = {name: number for name, number in numbers.items() if not 0 <= number <= LARGEST_OPTION}
    if invalid:
        raise ValueError(f"expected {', '.join(numbers)} from 0 to {LARGEST_OPTION:g}, got {invalid}")


class Tversky(RegionLoss):
    """1 - (tp + eps_n) / (tp + alpha fp + beta fn + eps_d), averaged over classes (Salehi et al. 2017).

    fp = predicted - tp is the probability outside the class, fn = reference - tp is the part of the class that is
    missed.

    alpha: the weight of false positives. beta: the weight of false negatives. With both 0.5 the loss is `dice` with
        half its eps, with both 1 it is `jaccard`.
    per, eps, empty, background, class_weights, average, activation: as for `dice`.

    Targets may be soft. Ignored pixels are left out of all sums; if all pixels are ignored, the loss is 0. Values lie
    in [0, 1] if both eps are equal. Raises ValueError at build for negative alpha, beta or eps, and in the same cases
    as `dice`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        alpha: float = 0.3,
        beta: float = 0.7,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
        average: Average = "macro",
        activation: Activation | None = None,
    ) -> None:
        _check_not_negative(alpha=alpha, beta=beta)
        mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights, average)
        super().__init__(RegionSums(activation_of(labels, activation)), mean, eps_pair(eps, empty))
        self.alpha, self.beta = alpha, beta

    def class_losses(self, statistics: Statistics) -> Tensor:
        """1 - T for each group and class, [B, K], T being the Tversky index."""
        return tversky_losses(statistics, self.eps, self.alpha, self.beta)


class FocalTversky(RegionLoss):
    """(1 - T) ** gamma, averaged over classes, T being the Tversky index (Abraham & Khan 2019).

    gamma: below 1 it emphasises classes that are nearly right, above 1 classes that are not. The paper writes the
        exponent as 1 / gamma, so its gamma of 4/3 is 0.75 here. For losses below 1e-6 the power is replaced by a
        straight line, so that its slope stays finite.
    of: `classes` takes the power of each class's loss and then the mean, `mean` takes the power of the mean.
    alpha, beta, per, eps, empty, background, class_weights, average, activation: as for `tversky`.

    Targets may be soft. Ignored pixels are left out of all sums; if all pixels are ignored, the loss is 0. Values lie
    in [0, 1] if both eps are equal. Raises ValueError at build unless gamma is above 0, for `of: mean` with `per:
    image`, and in the same cases as `tversky`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        of: Literal["classes", "mean"] = "classes",
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
        average: Average = "macro",
        activation: Activation | None = None,
    ) -> None:
        _check_not_negative(alpha=alpha, beta=beta)
        if not 0 < gamma <= LARGEST_OPTION:
            raise ValueError(f"expected gamma above 0 and at most {LARGEST_OPTION:g}, got {gamma}")
        if of == "mean" and per == "image":
            raise ValueError("of: mean takes the power of a single mean over the batch, so it requires per: batch")
        mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights, average)
        super().__init__(RegionSums(activation_of(labels, activation)), mean, eps_pair(eps, empty))
        self.alpha, self.beta, self.gamma, self.of = alpha, beta, gamma, of

    def class_losses(self, statistics: Statistics) -> Tensor:
        """(1 - T) ** gamma for each group and class, [B, K]; 1 - T with `of: mean`."""
        losses = tversky_losses(statistics, self.eps, self.alpha, self.beta)
        return losses if self.of == "mean" else focal_power(losses, self.gamma)

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        mean = super().score(statistics, count)
        return focal_power(mean, self.gamma) if self.of == "mean" else mean


class GeneralizedDice(RegionLoss):
    """1 - (2 sum_c w_c tp_c + eps_n) / (sum_c w_c (predicted_c + reference_c) + eps_d), one ratio over all classes with
    weights w_c that decrease with the size of the class in the reference (Sudre et al. 2017).

    weight_by: `square` is 1 / reference^2 as in the paper, `simple` is 1 / reference, `uniform` is 1. `uniform` with
        `absent: max` is `dice` with `average: micro`.
    absent: the weight of a class that is absent from the reference: 0 (`zero`), or the largest weight of the other
        classes (`max`). A weight of 1 / eps, which some implementations use, makes the ratio 0 and removes the gradient
        of all classes.
    relative: divide the weights by the largest, so that eps has the same effect for small and large images.
    per: `batch` pools the sums over the batch, `image` averages over the images that contain a class.
    eps, background, power, activation: as for `dice`.

    Targets may be soft. Ignored pixels are left out of all sums; if all pixels are ignored, the loss is 0. Values lie
    in [0, 1] if both eps are equal. Raises ValueError at build for a negative eps, for `background: false` without a
    background channel, and for `softmax` outside multiclass mode.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        reduce: Reduce = single_process,
        weight_by: Literal["square", "simple", "uniform"] = "square",
        absent: Literal["zero", "max"] = "zero",
        relative: bool = True,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        background: bool = True,
        power: Literal[1, 2] = 1,
        activation: Activation | None = None,
    ) -> None:
        mean = ClassMean(labels, None, reduce, per, "present", background, None)
        super().__init__(RegionSums(activation_of(labels, activation), power), mean, eps_pair(eps))
        self.exponent = {"square": 2, "simple": 1, "uniform": 0}[weight_by]
        self.absent, self.relative = absent, relative

    def class_losses(self, statistics: Statistics) -> Tensor:
        """The one loss of each group, repeated for every class, [B, K]."""
        weights = self._weights(statistics)
        overlap = (weights * statistics.tp).sum(1, keepdim=True)
        size = (weights * (statistics.predicted + statistics.reference)).sum(1, keepdim=True)
        losses = 1 - ratio(2 * overlap + self.eps[0], size + self.eps[1])
        return losses.expand_as(weights)

    def _weights(self, statistics: Statistics) -> Tensor:
        """The weight of each class, [B, K], without gradient."""
        reference = statistics.reference.detach()
        counted = self.mean.class_weights > 0
        present = (reference > 0) & counted
        weights = torch.where(present, torch.where(present, reference, 1) ** -self.exponent, 0)
        largest = weights.amax(1, keepdim=True)
        if self.absent == "max":
            weights = torch.where(~present & counted, largest, weights)
        return weights / torch.where(largest > 0, largest, 1) if self.relative else weights
