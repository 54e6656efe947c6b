"""Pixel terms: means over pixels of a function of the log-probability of what is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, keep
from segkit.losses.chunking import Activation, activation_of
from segkit.losses.class_weights import ClassWeights, resolve_class_weights
from segkit.losses.region import divided
from segkit.losses.shared_pass import MaskSums, PixelSums, PixelTotals

Normalize = Literal["weights", "valid", "numel"]


@dataclass(frozen=True)
class NegativeLog:
    """-log p, the cross-entropy of a pixel; p is the probability of what it shows."""

    soft = True
    constant_slope = -1.0

    def value(self, log_likelihood: Tensor) -> Tensor:
        return -log_likelihood

    def slope(self, likelihood: Tensor, other: Tensor | None) -> Tensor:  # noqa: ARG002
        return torch.full_like(likelihood, -1)


@dataclass(frozen=True)
class Polynomial:
    """-log p + epsilon (1 - p): the cross-entropy with the first term of its expansion in 1 - p raised by epsilon."""

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
        # Below gamma 1 the slope is infinite at p = 1, and infinity times log p = 0 would be NaN. At the smallest
        # normal number it is finite, and a pixel there has no gradient to give anyway.
        smallest = _smallest(likelihood)
        log_likelihood = likelihood.clamp(min=smallest).log_()
        if other is None:
            distance = (1 - likelihood).clamp_(min=smallest)
        else:
            distance = other.clamp(min=smallest)
            log_likelihood = torch.where(other < 0.5, torch.log1p(-other), log_likelihood)
        rising = log_likelihood.mul_(likelihood).mul_(self.gamma)
        return rising.sub_(distance).mul_(distance.pow_(self.gamma - 1))


def _one_minus_exp(values: Tensor) -> Tensor:
    """1 - exp of values up to 0, to the last digits where they are near 0; in float32 in a fraction of expm1's time."""
    if values.dtype == torch.float64:
        return -torch.expm1(values)
    series = -values * (1 + values / 2 * (1 + values / 3 * (1 + values / 4)))
    return torch.where(values > -0.05, series, 1 - values.exp())  # the series is off by 5e-8 of itself there


def _smallest(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny


class PixelMean(nn.Module):
    """The mean over pixels that pixel terms have in common; its options are theirs.

    class_weights: w, one a class; binary [negative, positive]; multilabel one a channel; or a method of
        `segkit.losses.class_weights`.
    normalize: the sum is divided by the sum of w over the valid pixels (`weights`), their number (`valid`) or the
        number of all pixels (`numel`). Where classes stand alone, a pixel of a channel is an entry. Pixel weights
        multiply w, so they are in the divisor with `weights` only.
    reduce: sums over processes.
    factors: further weights, shaped as `PixelSums.class_weights`, that are in the sum and never in the divisor.
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
        """What the pass multiplies each entry with; None for 1."""
        return self.class_weights * self.factors if self.weighted else None

    def forward(self, totals: PixelTotals, count: Tensor | None = None) -> Tensor:
        """The mean, a scalar; 0 over nothing. count: what to divide by instead of this batch's own divisor."""
        total, own = self.reduce(totals.total, self.count(totals.mask))
        return divided(total, own if count is None else count)

    def count(self, mask: MaskSums) -> Tensor:
        """The divisor, by the masks alone, a scalar."""
        if self.normalize == "weights":
            weights = self.class_weights.to(mask.pixels.dtype)
            if self.activation == "softmax":
                return (mask.reference * weights).sum()
            return (mask.reference * weights[1] + (mask.pixels - mask.reference) * weights[0]).sum()
        entries = mask.valid if self.normalize == "valid" else torch.full_like(mask.valid, mask.size)
        return (entries[:, :1] if self.activation == "softmax" else entries).sum()


def _sides(weights: Tensor, labels: Labels) -> Tensor:
    """One weight a class as [2, K]: of the absence and the presence of what each channel stands for."""
    return weights.view(2, 1) if labels.mode == "binary" else torch.stack([weights, weights])


class CrossEntropy(nn.Module):
    """-sum_i w_i log p_i(class of i) / Z; softmax for exclusive classes, else binary cross-entropy a channel.

    class_weights, normalize: see `PixelMean`.
    label_smoothing: s in [0, 1): each pixel shows its class with share 1 - s, and all classes with s / K more each
        (Szegedy et al. 2016); where channels stand alone, presence and absence with s / 2 more each.

    Targets may be soft. Ignored pixels count for nothing, apart from `numel`; all ignored gives 0. In [0, inf).
    Raises ValueError at build for class weights that do not fit the classes, and for another label_smoothing.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = keep,
        class_weights: ClassWeights = None,
        normalize: Normalize = "weights",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected label_smoothing of at least 0 and less than 1, got {label_smoothing}")
        self.smoothing = label_smoothing
        self.mean = PixelMean(labels, class_counts, reduce, activation_of(labels), class_weights, normalize)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("cross_entropy", self.mean.activation, NegativeLog(), self.mean.weights, self.smoothing)

    def score(self, totals: PixelTotals, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        return self.mean(totals, count)

    def count(self, mask: MaskSums) -> Tensor:
        """The divisor Z."""
        return self.mean.count(mask)


class PolyCrossEntropy(nn.Module):
    """sum_i w_i (-log p_i + epsilon (1 - p_i)) / Z, Poly-1 (Leng et al. 2022).

    epsilon: -1 or more; 0 is the cross-entropy, the paper's 1 for pictures stresses pixels that are nearly right.
    class_weights, normalize: see `PixelMean`. The class weight multiplies both parts.

    Targets may be soft. Ignored pixels count for nothing, apart from `numel`; all ignored gives 0. Raises ValueError at
    build for a smaller epsilon, with which a wrong pixel could lower the loss.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = keep,
        epsilon: float = 1.0,
        class_weights: ClassWeights = None,
        normalize: Normalize = "weights",
    ) -> None:
        super().__init__()
        if not (math.isfinite(epsilon) and epsilon >= -1):
            raise ValueError(f"expected epsilon of -1 or more, got {epsilon}")
        self.function = Polynomial(epsilon)
        self.mean = PixelMean(labels, class_counts, reduce, activation_of(labels), class_weights, normalize)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("poly_cross_entropy", self.mean.activation, self.function, self.mean.weights)

    def score(self, totals: PixelTotals, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        return self.mean(totals, count)

    def count(self, mask: MaskSums) -> Tensor:
        """The divisor Z."""
        return self.mean.count(mask)


class Focal(nn.Module):
    """-sum_i w_i alpha_i (1 - p_i)^gamma log p_i / Z, p_i being the probability of the truth (Lin et al. 2017).

    gamma: 0 or more; 0 is the cross-entropy.
    activation: `softmax`, the default in multiclass, or `sigmoid`, the default elsewhere. In multiclass `sigmoid` sets
        each class against the rest, a mean over valid pixels times classes, with one class weight a channel.
    alpha: a factor that is not in Z. A number between 0 and 1 is that of the foreground (`activation: softmax`) or
    of the
        presence of each class (`sigmoid`), and 1 - alpha that of the background or of absence; a list has one for
        each class (`softmax`) or for the presence of each channel (`sigmoid`).
    class_weights, normalize: see `PixelMean`.

    Ignored pixels count for nothing, apart from `numel`; all ignored gives 0. In [0, inf). Raises ValueError for soft
    targets, and at build for `softmax` outside multiclass and an alpha that does not fit.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = keep,
        gamma: float = 2.0,
        activation: Activation | None = None,
        alpha: float | list[float] | None = None,
        class_weights: ClassWeights = None,
        normalize: Normalize = "weights",
    ) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"expected gamma of 0 or more, got {gamma}")
        self.function = FocalLog(gamma)
        chosen = _focal_activation(activation, labels)
        factors = None if alpha is None else _alpha_factors(alpha, chosen, labels)
        self.mean = PixelMean(labels, class_counts, reduce, chosen, class_weights, normalize, factors)

    @property
    def sums(self) -> PixelSums:
        return PixelSums("focal", self.mean.activation, self.function, self.mean.weights)

    def score(self, totals: PixelTotals, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        return self.mean(totals, count)

    def count(self, mask: MaskSums) -> Tensor:
        """The divisor Z."""
        return self.mean.count(mask)


def _focal_activation(activation: Activation | None, labels: Labels) -> Activation:
    if labels.mode == "multiclass":
        return activation or "softmax"
    if activation == "softmax" and labels.mode == "binary":
        raise ValueError(
            "activation softmax needs two channels; over two classes it is the sigmoid: leave `activation` out"
        )
    if activation == "softmax":
        raise ValueError(
            "activation softmax makes classes exclude each other, and these may overlap; use activation sigmoid"
        )
    return "sigmoid"


def _alpha_factors(alpha: float | Sequence[float], activation: Activation, labels: Labels) -> Tensor:
    """In the shape of `PixelSums.class_weights`."""
    numbers = [float(one) for one in (alpha if isinstance(alpha, Sequence) else [alpha])]
    if not all(0 <= one <= 1 for one in numbers) or (isinstance(alpha, Sequence) and len(numbers) != labels.channels):
        raise ValueError(
            f"expected alpha from 0 to 1, as one number or as a list for {', '.join(labels.channel_names)}, got {alpha}"
        )
    if activation == "sigmoid":
        present = torch.tensor(numbers, dtype=torch.float64).expand(labels.channels)
        return torch.stack([1 - present, present])
    if isinstance(alpha, Sequence):
        return torch.tensor(numbers, dtype=torch.float64)
    if labels.background_channel is None:
        raise ValueError(
            f"alpha {alpha} sets foreground against {labels.background!r}, and no class is called so; give a list"
        )
    factors = torch.full((labels.channels,), numbers[0], dtype=torch.float64)
    factors[labels.background_channel] = 1 - numbers[0]
    return factors
