"""Region terms that weigh what is predicted too much against what is missing."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, keep
from segkit.losses.chunking import activation_of
from segkit.losses.class_weights import ClassWeights
from segkit.losses.region import ClassMean, Empty, Eps, Per, eps_pair, ratio
from segkit.losses.shared_pass import MaskSums, RegionSums, Statistics

# Below this loss a power under 1 goes on as a straight line: its slope would be infinite at 0.
SMALLEST = 1e-6


def tversky_losses(statistics: Statistics, eps: Eps, alpha: float, beta: float) -> Tensor:
    """1 - (tp + eps_n) / (tp + alpha fp + beta fn + eps_d) for each group and class, [B, K]."""
    false = alpha * (statistics.predicted - statistics.tp) + beta * (statistics.reference - statistics.tp)
    return 1 - ratio(statistics.tp + eps[0], statistics.tp + false + eps[1])


def focal_power(losses: Tensor, gamma: float) -> Tensor:
    """losses ** gamma for losses of at least 0, with a finite slope at 0."""
    if gamma >= 1:
        return losses.clamp(min=0) ** gamma
    line = losses * SMALLEST ** (gamma - 1)
    return torch.where(losses > SMALLEST, losses.clamp(min=SMALLEST) ** gamma, line)


def _at_least_0(**numbers: float) -> None:
    wrong = {name: number for name, number in numbers.items() if not (math.isfinite(number) and number >= 0)}
    if wrong:
        raise ValueError(f"expected {', '.join(numbers)} of 0 or more, got {wrong}")


class Tversky(nn.Module):
    """1 - (tp + eps_n) / (tp + alpha fp + beta fn + eps_d), averaged over classes (Salehi et al. 2017).

    fp = predicted - tp is the probability outside the class, fn = reference - tp what is missing inside.
    alpha: the cost of false positives. beta: of false negatives. Both 0.5 are `dice` with its eps halved, both 1
        `jaccard`.
    per, eps, empty, background, class_weights: as for `dice`.

    Targets may be soft. Ignored pixels are in no sum; all ignored gives 0. In [0, 1] for equal eps.
    Raises ValueError at build for negative alpha, beta or eps, and where `dice` does.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = keep,
        alpha: float = 0.3,
        beta: float = 0.7,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        _at_least_0(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.eps = alpha, beta, eps_pair(eps, empty)
        self.sums = RegionSums(activation_of(labels))
        self.mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights)

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        statistics = self.mean.pool(statistics)
        return self.mean(tversky_losses(statistics, self.eps, self.alpha, self.beta), statistics, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """How many images count, by their masks alone; None where the sums of the batch are pooled."""
        return self.mean.count(mask)


class FocalTversky(nn.Module):
    """(1 - T) ** gamma, averaged over classes, T being the Tversky index (Abraham & Khan 2019).

    gamma: below 1 it stresses classes that are nearly right, above 1 those that are not; the paper's 4/3 stands in its
        formula as 1 / gamma, so that it is 0.75 here. Below 1e-6 the power is a straight line, for its slope's sake.
    of: `classes` takes the power of each class and then the mean, `mean` the power of the mean.
    alpha, beta, per, eps, empty, background, class_weights: as for `tversky`.

    Targets may be soft. Ignored pixels are in no sum; all ignored gives 0. In [0, 1] for equal eps.
    Raises ValueError at build for a gamma that is not above 0, and where `tversky` does.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = keep,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        of: Literal["classes", "mean"] = "classes",
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        _at_least_0(alpha=alpha, beta=beta)
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"expected gamma above 0, got {gamma}")
        if of == "mean" and per == "image":
            raise ValueError("of: mean takes the power of one mean over the batch, so it needs per: batch")
        self.alpha, self.beta, self.gamma, self.of = alpha, beta, gamma, of
        self.eps = eps_pair(eps, empty)
        self.sums = RegionSums(activation_of(labels))
        self.mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights)

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        statistics = self.mean.pool(statistics)
        losses = tversky_losses(statistics, self.eps, self.alpha, self.beta)
        if self.of == "mean":
            return focal_power(self.mean(losses, statistics, count), self.gamma)
        return self.mean(focal_power(losses, self.gamma), statistics, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """How many images count, by their masks alone; None where the sums of the batch are pooled."""
        return self.mean.count(mask)


class GeneralizedDice(nn.Module):
    """1 - (2 sum_c w_c tp_c + eps_n) / (sum_c w_c (predicted_c + reference_c) + eps_d), one ratio over all classes
    (Sudre et al. 2017), w falling with the size of the class in the reference.

    weight_by: `square` is 1 / reference^2, the paper's, `simple` 1 / reference, `uniform` 1.
    absent: a class that the reference lacks gets no weight (`zero`) or the largest of the others (`max`). A weight of
        1 / eps, as some implementations give it, makes the ratio 0 and kills the gradient of all classes.
    relative: divide the weights by the largest, so that eps means the same for small and large images.
    per: `batch` pools the sums over the batch, `image` averages over the images where a class is present.
    eps, background: as for `dice`.

    Targets may be soft. Ignored pixels are in no sum; all ignored gives 0. In [0, 1] for equal eps. Raises ValueError
    at build for a negative eps and without a background to drop.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        reduce: Reduce = keep,
        weight_by: Literal["square", "simple", "uniform"] = "square",
        absent: Literal["zero", "max"] = "zero",
        relative: bool = True,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        background: bool = True,
    ) -> None:
        super().__init__()
        self.exponent = {"square": 2, "simple": 1, "uniform": 0}[weight_by]
        self.absent, self.relative, self.eps = absent, relative, eps_pair(eps)
        self.sums = RegionSums(activation_of(labels))
        self.mean = ClassMean(labels, None, reduce, per, "present", background, None)

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        statistics = self.mean.pool(statistics)
        weights = self._weights(statistics)
        overlap = (weights * statistics.tp).sum(1, keepdim=True)
        size = (weights * (statistics.predicted + statistics.reference)).sum(1, keepdim=True)
        losses = 1 - ratio(2 * overlap + self.eps[0], size + self.eps[1])
        return self.mean(losses.expand_as(weights), statistics, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """How many images count, by their masks alone; None where the sums of the batch are pooled."""
        return self.mean.count(mask)

    def _weights(self, statistics: Statistics) -> Tensor:
        """[B, K]; no gradient goes through them."""
        reference = statistics.reference.detach()
        counted = self.mean.class_weights > 0
        present = (reference > 0) & counted
        weights = torch.where(present, torch.where(present, reference, 1) ** -self.exponent, 0)
        largest = weights.amax(1, keepdim=True)
        if self.absent == "max":
            weights = torch.where(~present & counted, largest, weights)
        return weights / torch.where(largest > 0, largest, 1) if self.relative else weights
