"""The unified focal loss: focal Tversky and focal cross-entropy with the same parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import activation_of
from segkit.losses.compound import CompoundLoss
from segkit.losses.pass_requests import PixelFunction
from segkit.losses.pixel import FocalLog, NegativeLog, PixelLoss, PixelMean
from segkit.losses.region import ClassMean, Empty, Eps, Per, RegionLoss, eps_pair
from segkit.losses.shared_pass import MaskSums, PixelSums, RegionSums, Statistics
from segkit.losses.tversky import focal_power, tversky_losses

Variant = Literal["asymmetric", "symmetric"]
# Below this loss of a class, the power is replaced by a straight line: its slope would be infinite at 0, and sums in
# float32 do not determine smaller losses.
LINE_BELOW = 1e-4


class UnifiedFocal(CompoundLoss):
    """balance (1 - T)^(1 - gamma), averaged over classes, - (1 - balance) sum_i d_i (1 - p_i)^gamma log p_i / N, with
    the Tversky index T for alpha = 1 - delta and beta = delta, and d_i = delta for a foreground class, 1 - delta for
    the background (Yeung et al. 2022).

    In binary and multilabel mode, the absence of a class is its background: it has a Tversky index of its own and
    counts in the mean like a class, so that a binary loss equals that of two classes with a softmax.

    variant: `asymmetric` takes the focal factor for the background only and the power of 1 - T for the foreground only,
        which the authors intend for imbalanced classes; `symmetric` takes both for all classes.
    delta: in [0, 1], the weight of false negatives and of the foreground.
    gamma: in [0, 1); 0 gives Tversky and a weighted cross-entropy. Where 1 - T is below 1e-4, its power is replaced by
        a straight line, so that its slope stays finite.
    balance: in [0, 1], the weight of the Tversky part; the paper's lambda.
    per, eps, empty: as for `dice`. The authors' code is `per: image`, `empty: keep`, with eps 1e-7.

    Ignored pixels do not contribute; if all pixels are ignored, the loss is 0. Raises ValueError for soft targets, and
    at build for delta, gamma or balance out of range and in the same cases as `dice`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        reduce: Reduce = single_process,
        variant: Variant = "asymmetric",
        delta: float = 0.6,
        gamma: float = 0.5,
        balance: float = 0.5,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
    ) -> None:
        if not (0 <= delta <= 1 and 0 <= gamma < 1 and 0 <= balance <= 1):
            raise ValueError(
                "expected delta and balance between 0 and 1, and gamma of at least 0 and less than 1, got "
                f"delta {delta}, gamma {gamma}, balance {balance}"
            )
        tversky = _ModifiedTversky(labels, reduce, variant, delta, gamma, per, eps_pair(eps, empty), empty)
        pixel = _pixel_parts(labels, reduce, variant, delta, gamma)
        super().__init__([tversky, *pixel], [balance, *[1 - balance] * len(pixel)])


def _is_background(labels: Labels) -> Tensor:
    """Whether each outcome of a pixel is the background, bool: [K] under a softmax, otherwise [2, K] for absence and
    presence of each channel's class."""
    if labels.mode == "multiclass":
        return torch.arange(labels.channels) == (-1 if labels.background_channel is None else labels.background_channel)
    absent = torch.ones(labels.channels, dtype=torch.bool)
    return torch.stack([absent, ~absent])


def _pixel_parts(
    labels: Labels, reduce: Reduce, variant: Variant, delta: float, gamma: float
) -> list[_WeightedPixelLoss]:
    """The focal cross-entropy; with `asymmetric`, one part for the background and one for the foreground."""
    background = _is_background(labels)
    weights = torch.full(background.shape, delta, dtype=torch.float64).masked_fill(background, 1 - delta)
    focal, plain = FocalLog(gamma), NegativeLog()
    if variant == "symmetric":
        return [_WeightedPixelLoss(labels, reduce, focal, weights)]
    sides: list[tuple[PixelFunction, Tensor]] = [(focal, weights * background), (plain, weights * ~background)]
    return [_WeightedPixelLoss(labels, reduce, function, side) for function, side in sides]


class _WeightedPixelLoss(PixelLoss):
    """The mean over pixels of a function, multiplied by a weight for each class that the divisor does not include."""

    def __init__(self, labels: Labels, reduce: Reduce, function: PixelFunction, weights: Tensor) -> None:
        super().__init__()
        self.function = function
        self.mean = PixelMean(labels, None, reduce, activation_of(labels), None, "weights", weights)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("unified_focal", self.mean.activation, self.function, self.mean.weights)


class _ModifiedTversky(RegionLoss):
    """(1 - T)^(1 - gamma), averaged over classes; with `asymmetric`, 1 - T for the background."""

    def __init__(
        self,
        labels: Labels,
        reduce: Reduce,
        variant: Variant,
        delta: float,
        gamma: float,
        per: Per,
        eps: Eps,
        empty: Empty,
    ) -> None:
        mean = ClassMean(labels, None, reduce, per, empty, True, None)
        super().__init__(RegionSums(activation_of(labels)), mean, eps)
        background = _is_background(labels).flatten()
        mean.register_buffer("class_weights", torch.ones(len(background), dtype=torch.float64), persistent=False)
        self.has_absence, self.delta, self.exponent = labels.mode != "multiclass", delta, 1 - gamma
        self.linear: Tensor
        self.register_buffer("linear", background & (variant == "asymmetric"), persistent=False)

    def class_losses(self, statistics: Statistics) -> Tensor:
        """The loss of each group and class, [B, K] or [B, 2 K] with the absence of each class."""
        losses = tversky_losses(statistics, self.eps, 1 - self.delta, self.delta)
        return torch.where(self.linear, losses, focal_power(losses, self.exponent, LINE_BELOW))

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        statistics = self.mean.pool(statistics)
        statistics = _with_absence(statistics) if self.has_absence else statistics
        return self.mean(self.class_losses(statistics), statistics, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """The number of images with counted classes, from the masks alone; None with `per: batch`."""
        if self.has_absence:
            reference = torch.cat([mask.pixels - mask.reference, mask.reference], 1)
            mask = replace(mask, reference=reference, pixels=mask.pixels.repeat(1, 2))
        return self.mean.count(mask)


def _with_absence(statistics: Statistics) -> Statistics:
    """The sums of the absence of each class, followed by those of its presence, [B, 2 K]."""
    tp, predicted, reference, pixels = statistics.tensors
    # rounding may make these differences slightly negative
    tn = (pixels - predicted - reference + tp).clamp(min=0)
    absent = (tn, (pixels - predicted).clamp(min=0), pixels - reference, pixels)
    return Statistics(*(torch.cat(pair, 1) for pair in zip(absent, statistics.tensors, strict=True)))
