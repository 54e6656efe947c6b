"""Losses with a hyperbolic cosine or a power of a logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import activation_of
from segkit.losses.class_weights import ClassWeights
from segkit.losses.compound import CompoundLoss
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.pixel import Normalize, PixelLoss, PixelMean
from segkit.losses.region import ClassMean, Empty, Eps, Per, RegionLoss, eps_pair, soft_dice
from segkit.losses.shared_pass import PixelSums, RegionSums, Statistics
from segkit.losses.tversky import focal_power

LARGEST_GAMMA = 5.0  # so that powers of logarithms stay within the range of float32
SMALLEST_EPS = 1e-12  # the slope of a logarithm at eps is finite also in float32
# Below this logarithm, a power with an exponent under 1 is replaced by a straight line. Its slope would be infinite at
# 0, and float32 probabilities near 1 do not determine smaller logarithms.
LINE_BELOW = 1e-4
# Above this logarithm, a power is continued by its tangent: the complement of a float32 sigmoid near 1 does not
# determine larger ones. Implementations that clip probabilities have gradient 0 there.
TANGENT_ABOVE = 10.0


class LogCoshDice(RegionLoss):
    """log cosh D, averaged over classes, with the Dice loss D = 1 - (2 tp + eps_n) / (predicted + reference + eps_d) of
    each class (Jadon 2020).

    Near 0 it is D^2 / 2, so its gradient vanishes as the overlap becomes complete; for small overlaps it is nearly
    linear. The paper has one class; here each class has its own logarithm.

    per, eps, empty, background, class_weights: as for `dice`.

    Targets may be soft. Ignored pixels are left out of all sums; if all pixels are ignored, the loss is 0. Values lie
    in [0, 0.434] if both eps are equal. Raises ValueError at build in the same cases as `dice`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights)
        super().__init__(RegionSums(activation_of(labels)), mean, eps_pair(eps, empty))

    def class_losses(self, statistics: Statistics) -> Tensor:
        """log cosh D for each group and class, [B, K]."""
        return log_cosh(1 - soft_dice(statistics, self.eps))


def log_cosh(values: Tensor) -> Tensor:
    """log(cosh(values)), accurate near 0 and without overflow."""
    size = values.abs()
    near = torch.log1p(2 * (values.clamp(-1, 1) / 2).sinh().square())
    return torch.where(size > 1, size + torch.log1p(torch.exp(-2 * size)) - math.log(2), near)


@dataclass(frozen=True)
class PowerOfLog:
    """(-log p)^gamma; a straight line below `LINE_BELOW` if gamma is less than 1, and above `TANGENT_ABOVE`."""

    gamma: float
    soft = True
    constant_slope = None

    def value(self, log_likelihood: Tensor) -> Tensor:
        powers = focal_power((-log_likelihood).clamp(max=TANGENT_ABOVE), self.gamma, LINE_BELOW)
        steepness = self.gamma * TANGENT_ABOVE ** (self.gamma - 1)
        return powers + steepness * (-log_likelihood - TANGENT_ABOVE).clamp(min=0)

    def slope(self, likelihood: Tensor, other: Tensor | None) -> Tensor:
        logs = -likelihood.clamp(min=torch.finfo(likelihood.dtype).tiny).log()
        if other is not None:
            logs = torch.where(other < 0.5, -torch.log1p(-other), logs)
        if self.gamma >= 1:
            return -self.gamma * logs.clamp(0, TANGENT_ABOVE) ** (self.gamma - 1)
        powers = self.gamma * logs.clamp(LINE_BELOW, TANGENT_ABOVE) ** (self.gamma - 1)
        return -torch.where(logs > LINE_BELOW, powers, LINE_BELOW ** (self.gamma - 1))


class ExponentialLog(CompoundLoss):
    """dice_weight (-log D)^gamma, averaged over classes, + cross_entropy_weight sum_i w_i (-log p_i)^gamma / Z, with
    the overlap D = (2 tp + eps_n) / (predicted + reference + eps_d) of each class (Wong et al. 2018).

    gamma: above 0, at most 5; the paper's 0.3 emphasises both what is nearly right and what is far from it, and 1 gives
        logarithmic Dice and the cross-entropy. With gamma below 1, the power of a logarithm below 1e-4 is replaced by a
        straight line, so that its slope stays finite. Where a pixel's -log p is above 10 (p below 4.5e-5), its power
        continues along the tangent.
    dice_weight, cross_entropy_weight: 0 or more.
    per, eps, empty, background: of D, as for `dice`.
    class_weights, normalize: of the cross-entropy, see `PixelMean`. The paper's weights are `sqrt_inverse` times the
        square root of the number of classes, with `normalize: valid`.

    Targets may be soft. Ignored pixels do not contribute, except to the divisor `numel`; if all pixels are ignored, the
    loss is 0. Raises ValueError at build for numbers out of range, for an eps below 1e-12, whose logarithm would not be
    finite, and in the same cases as `dice` and `cross_entropy`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        gamma: float = 0.3,
        dice_weight: float = 0.8,
        cross_entropy_weight: float = 0.2,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
        normalize: Normalize = "weights",
    ) -> None:
        if not 0 < gamma <= LARGEST_GAMMA:
            raise ValueError(f"expected gamma above 0 and at most {LARGEST_GAMMA:g}, got {gamma}")
        weights = (dice_weight, cross_entropy_weight)
        if not all(0 <= weight <= LARGEST_OPTION for weight in weights):
            raise ValueError(
                f"expected dice_weight and cross_entropy_weight from 0 to {LARGEST_OPTION:g}, got {list(weights)}"
            )
        class_mean = ClassMean(labels, None, reduce, per, empty, background, None)
        pixel_mean = PixelMean(labels, class_counts, reduce, activation_of(labels), class_weights, normalize)
        eps_of_dice = eps_pair(eps, empty)
        if min(eps_of_dice) < SMALLEST_EPS:
            raise ValueError(f"the logarithm of Dice needs eps of at least {SMALLEST_EPS:g}, got {eps}")
        parts = [_LogDice(labels, class_mean, eps_of_dice, gamma), _PowerCrossEntropy(pixel_mean, gamma)]
        super().__init__(parts, weights)


class _LogDice(RegionLoss):
    """(-log D)^gamma, averaged over classes, D being the overlap of a class."""

    def __init__(self, labels: Labels, mean: ClassMean, eps: Eps, gamma: float) -> None:
        super().__init__(RegionSums(activation_of(labels)), mean, eps)
        self.gamma = gamma

    def class_losses(self, statistics: Statistics) -> Tensor:
        """(-log D)^gamma for each group and class, [B, K]."""
        return focal_power(-soft_dice(statistics, self.eps).log(), self.gamma, LINE_BELOW)


class _PowerCrossEntropy(PixelLoss):
    """sum_i w_i (-log p_i)^gamma / Z."""

    def __init__(self, mean: PixelMean, gamma: float) -> None:
        super().__init__()
        self.mean, self.function = mean, PowerOfLog(gamma)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("exponential_log", self.mean.activation, self.function, self.mean.weights)
