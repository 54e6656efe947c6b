"""Pixel losses: the mean over pixels of a function of the log-probability of the true class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import Activation, activation_of
from segkit.losses.class_weights import ClassWeights, resolve_class_weights
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.region import divided
from segkit.losses.shared_pass import MaskSums, PixelSums, PixelTotals

Normalize = Literal["weights", "valid", "numel"]


@dataclass(frozen=True)
class NegativeLog:
    """-log p, the cross-entropy of a pixel; p is the probability of its true class."""

    soft = True
    constant_slope = -1.0

    def value(self, log_likelihood: Tensor) -> Tensor:
        return -log_likelihood

    def slope(self, likelihood: Tensor, other: Tensor | None) -> Tensor:  # noqa: ARG002
        return torch.full_like(likelihood, -1)


@dataclass(frozen=True)
class Polynomial:
    """-log p + epsilon (1 - p): adds epsilon to the first coefficient of the cross-entropy's expansion in 1 - p."""

    epsilon: float
    soft = True
    constant_slope = None

    def value(self, log_likelihood: Tensor) -> Tensor:
        return -log_likelihood + self.epsilon * _one_minus_exp(log_likelihood)

    def slope(self, likelihood: Tensor, other: Tensor | None) -> Tensor:  # noqa: ARG002
        return -1 - self.epsilon * likelihood


@dataclass(frozen=True)
class FocalLog:
    """-(1 - p)^gamma log p."""

    gamma: float
    soft = False
    constant_slope = None

    def value(self, log_likelihood: Tensor) -> Tensor:
        distance = _one_minus_exp(log_likelihood).clamp(min=_smallest(log_likelihood))
        return -log_likelihood * distance**self.gamma

    def slope(self, likelihood: Tensor, other: Tensor | None) -> Tensor:
        # For gamma below 1 the slope is infinite at p = 1, and infinity times log p = 0 would be NaN. Clamped to the
        # smallest normal number it is finite, and the gradient of such a pixel is negligible anyway.
        smallest = _smallest(likelihood)
        log_likelihood = likelihood.clamp(min=smallest).log_()
        if other is None:
            distance = (1 - likelihood).clamp_(min=smallest)
        else:
            distance = other.clamp(min=smallest)
            log_likelihood = torch.where(other < 0.5, torch.log1p(-other), log_likelihood)
        scaled = log_likelihood.mul_(likelihood).mul_(self.gamma)
        return scaled.sub_(distance).mul_(distance.pow_(self.gamma - 1))


def _one_minus_exp(values: Tensor) -> Tensor:
    """1 - exp(values) for values of at most 0, accurate near 0; in float32 it takes a fraction of the time of expm1."""
    if values.dtype == torch.float64:
        return -torch.expm1(values)
    # the compiler derives the gradient of both branches, so the one that is not used must not overflow
    small = values.clamp(min=-1) if torch.compiler.is_compiling() else values
    series = -small * (1 + small / 2 * (1 + small / 3 * (1 + small / 4)))
    return torch.where(values > -0.05, series, 1 - values.exp())  # the relative error of the series is 5e-8 there


def _smallest(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny


class PixelMean(nn.Module):
    """The mean over pixels. Pixel losses have the same options.

    class_weights: w, one weight per class; in binary mode [negative, positive], in multilabel mode one per channel; or
        a method of `segkit.losses.class_weights`.
    normalize: the divisor of the sum: the sum of w over the valid pixels (`weights`), their number (`valid`) or the
        number of all pixels (`numel`). With sigmoid, each pixel of each channel is one entry. Pixel weights multiply w,
        so only `weights` includes them.
    reduce: sums over processes.
    factors: further weights with the shape of `PixelSums.class_weights`, which multiply the sum but not the divisor.
    """

    def __init__(
        self,
        labels: Labels,
        class_counts: Any,
        reduce: Reduce,
        activation: Activation,
        class_weights: ClassWeights,
        normalize: Normalize,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.normalize, self.reduce = normalize, reduce
        self.class_weights: Tensor
        self.factors: Tensor
        weights = resolve_class_weights(class_weights, labels, class_counts)
        weights = weights if activation == "softmax" else _sides(weights, labels)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("factors", torch.ones_like(weights) if factors is None else factors, persistent=False)
        self.weighted = bool((self.class_weights * self.factors != 1).any())

    @property
    def weights(self) -> Tensor | None:
        """The weight of each class in the shared pass; None if all are 1."""
        return self.class_weights * self.factors if self.weighted else None

    def forward(self, totals: PixelTotals, count: Tensor | None = None) -> Tensor:
        """The mean, a scalar; 0 if the divisor is 0. count: a divisor to use instead of that of this batch."""
        total, batch_count = self.reduce(totals.total, self.count(totals.mask))
        return divided(total, batch_count if count is None else count)

    def count(self, mask: MaskSums) -> Tensor:
        """The divisor, a scalar, from the masks alone."""
        if self.normalize == "weights":
            weights = self.class_weights.to(mask.pixels.dtype)
            if self.activation == "softmax":
                return (mask.reference * weights).sum()
            return (mask.reference * weights[1] + (mask.pixels - mask.reference) * weights[0]).sum()
        entries = mask.valid if self.normalize == "valid" else torch.full_like(mask.valid, mask.size)
        return (entries[:, :1] if self.activation == "softmax" else entries).sum()


def _sides(weights: Tensor, labels: Labels) -> Tensor:
    """One weight per class as [2, K]: the weights of absence and presence of each channel's class."""
    return weights.view(2, 1) if labels.mode == "binary" else torch.stack([weights, weights])


class PixelLoss(nn.Module):
    """The base of losses that are the mean of a pixel function over pixels."""

    mean: PixelMean

    def score(self, totals: PixelTotals, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: a divisor to use instead of that of this batch."""
        return self.mean(totals, count)

    def count(self, mask: MaskSums) -> Tensor:
        """The divisor Z, a scalar, from the masks alone."""
        return self.mean.count(mask)


class CrossEntropy(PixelLoss):
    """-sum_i w_i log p_i(class of i) / Z; softmax in multiclass mode, otherwise binary cross-entropy per channel.

    class_weights, normalize: see `PixelMean`.
    label_smoothing: s in [0, 1). The target becomes 1 - s for the true class plus s / K for every class (Szegedy et al.
        2016); in binary and multilabel mode, s / 2 each for presence and absence.
    positive_weights: in binary and multilabel mode, a factor of the loss where a class is present, one number or one
        per channel; Z does not include it, so that the loss equals torch's BCEWithLogitsLoss(pos_weight=...). A class
        weight in binary mode is a factor that Z includes.

    Targets may be soft. Ignored pixels do not contribute, except to the divisor `numel`; if all pixels are ignored, the
    loss is 0. Values lie in [0, inf); a log p below -2^64 (-2^512 in float64) counts as that, with the gradient of log
    p itself. Raises ValueError at build for class weights that do not match the classes, for a label_smoothing outside
    [0, 1), and for positive_weights in multiclass mode or of the wrong length.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        class_weights: ClassWeights = None,
        normalize: Normalize = "weights",
        label_smoothing: float = 0.0,
        positive_weights: float | list[float] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected label_smoothing of at least 0 and less than 1, got {label_smoothing}")
        self.smoothing = label_smoothing
        factors = None if positive_weights is None else _positive_factors(positive_weights, labels)
        self.mean = PixelMean(labels, class_counts, reduce, activation_of(labels), class_weights, normalize, factors)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("cross_entropy", self.mean.activation, NegativeLog(), self.mean.weights, self.smoothing)


def _positive_factors(positive_weights: float | Sequence[float], labels: Labels) -> Tensor:
    """The factors of absence, which are 1, and presence of each channel's class, [2, K]."""
    if labels.mode == "multiclass":
        raise ValueError(
            "positive_weights weigh the presence of a class against its absence, in binary and multilabel mode; for "
            "mutually exclusive classes use class_weights"
        )
    is_list = isinstance(positive_weights, Sequence)
    numbers = [float(number) for number in (positive_weights if is_list else [positive_weights] * labels.channels)]
    if len(numbers) != labels.channels or not all(0 <= number <= LARGEST_OPTION for number in numbers):
        raise ValueError(
            f"expected positive_weights of 0 or more, at most {LARGEST_OPTION:g}, one number or a list for "
            f"{', '.join(labels.channel_names)}, got {positive_weights}"
        )
    present = torch.tensor(numbers, dtype=torch.float64)
    return torch.stack([torch.ones_like(present), present])


class PolyCrossEntropy(PixelLoss):
    """sum_i w_i (-log p_i + epsilon (1 - p_i)) / Z, Poly-1 (Leng et al. 2022).

    epsilon: -1 or more; 0 gives the cross-entropy. The paper's value for images, 1, emphasises pixels that are nearly
        right.
    class_weights, normalize: see `PixelMean`. The class weight multiplies both terms.

    Targets may be soft. Ignored pixels do not contribute, except to the divisor `numel`; if all pixels are ignored, the
    loss is 0. A log p below -2^64 counts as that, as for `cross_entropy`. Raises ValueError at build for an epsilon
    below -1, with which a wrong pixel could lower the loss.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        epsilon: float = 1.0,
        class_weights: ClassWeights = None,
        normalize: Normalize = "weights",
    ) -> None:
        super().__init__()
        if not -1 <= epsilon <= LARGEST_OPTION:
            raise ValueError(f"expected epsilon of -1 or more, at most {LARGEST_OPTION:g}, got {epsilon}")
        self.function = Polynomial(epsilon)
        self.mean = PixelMean(labels, class_counts, reduce, activation_of(labels), class_weights, normalize)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("poly_cross_entropy", self.mean.activation, self.function, self.mean.weights)


class Focal(PixelLoss):
    """-sum_i w_i alpha_i (1 - p_i)^gamma log p_i / Z, p_i being the probability of the true class (Lin et al. 2017).

    gamma: 0 or more; 0 gives the cross-entropy.
    activation: `softmax`, the default in multiclass mode, or `sigmoid`, the default in the other modes. In multiclass
        mode `sigmoid` treats each class as a binary problem: a mean over valid pixels times classes, with one class
        weight per channel.
    alpha: a factor that Z does not include. A number between 0 and 1 is the factor of the foreground classes
        (`softmax`) or of the presence of each class (`sigmoid`); the background or absence gets 1 - alpha. A list has
        one factor for each class (`softmax`) or for the presence of each channel's class (`sigmoid`).
    class_weights, normalize: see `PixelMean`.

    Ignored pixels do not contribute, except to the divisor `numel`; if all pixels are ignored, the loss is 0. Values
    lie in [0, inf); a log p below -2^64 counts as that, as for `cross_entropy`. Raises ValueError for soft targets, and
    at build for `softmax` outside multiclass mode and for an alpha out of range or of the wrong length.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        gamma: float = 2.0,
        activation: Activation | None = None,
        alpha: float | list[float] | None = None,
        class_weights: ClassWeights = None,
        normalize: Normalize = "weights",
    ) -> None:
        super().__init__()
        if not 0 <= gamma <= LARGEST_OPTION:
            raise ValueError(f"expected gamma of 0 or more, at most {LARGEST_OPTION:g}, got {gamma}")
        self.function = FocalLog(gamma)
        resolved = activation_of(labels, activation)
        factors = None if alpha is None else _alpha_factors(alpha, resolved, labels)
        self.mean = PixelMean(labels, class_counts, reduce, resolved, class_weights, normalize, factors)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("focal", self.mean.activation, self.function, self.mean.weights)


def _alpha_factors(alpha: float | Sequence[float], activation: Activation, labels: Labels) -> Tensor:
    """The factors of alpha, with the shape of `PixelSums.class_weights`."""
    numbers = [float(number) for number in (alpha if isinstance(alpha, Sequence) else [alpha])]
    if not all(0 <= number <= 1 for number in numbers) or (
        isinstance(alpha, Sequence) and len(numbers) != labels.channels
    ):
        raise ValueError(
            f"expected alpha between 0 and 1, one number or a list for {', '.join(labels.channel_names)}, got {alpha}"
        )
    if activation == "sigmoid":
        present = torch.tensor(numbers, dtype=torch.float64).expand(labels.channels)
        return torch.stack([1 - present, present])
    if isinstance(alpha, Sequence):
        return torch.tensor(numbers, dtype=torch.float64)
    if labels.background_channel is None:
        raise ValueError(
            f"a single alpha, here {alpha}, weighs foreground against the background class {labels.background!r}, but "
            "no class has that name; give alpha as a list"
        )
    factors = torch.full((labels.channels,), numbers[0], dtype=torch.float64)
    factors[labels.background_channel] = 1 - numbers[0]
    return factors
