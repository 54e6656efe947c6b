"""Dice and Jaccard losses for soft labels, in both forms of their papers."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import activation_of
from segkit.losses.class_weights import ClassWeights
from segkit.losses.region import ClassMean, Empty, Per, RegionLoss, eps_pair, ratio
from segkit.losses.shared_pass import RegionSums, Statistics

Variant = Literal[1, 2]


class SoftLabelLoss(RegionLoss):
    """The base of losses of two variants, which differ in the overlap of soft labels.

    Variant 2 needs the sum of probability * share beside that of min(probability, share), which is the overlap of the
    power 2.
    """

    def __init__(
        self,
        labels: Labels,
        class_counts: Any,
        reduce: Reduce,
        variant: Variant,
        per: Per,
        eps: float | list[float],
        empty: Empty,
        background: bool,
        class_weights: ClassWeights,
    ) -> None:
        mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights)
        super().__init__(RegionSums(activation_of(labels)), mean, eps_pair(eps, empty))
        self.sums = (self.sums, RegionSums(activation_of(labels), 2))[:variant]

    def losses(self, statistics: Statistics, overlap: Tensor) -> Tensor:
        """The loss of each group and class, [B, K]. overlap: that of the variant; `tp` is that of variant 1."""
        raise NotImplementedError

    def score(self, results: tuple[Statistics, ...], count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        pooled = [self.mean.pool(statistics) for statistics in results]
        return self.mean(self.losses(pooled[0], pooled[-1].tp), pooled[0], count)


class JaccardMetric(SoftLabelLoss):
    """1 - (I + eps_n) / (I + D + eps_d), D = sum |p - g|, averaged over classes: the Jaccard metric losses, which are
    metrics also between soft labels (Wang et al. 2023, NeurIPS).

    variant: 1 has the overlap I = sum min(p, g) and is the same as `jaccard`; 2 has I = sum p g. For hard targets,
        where p g = min(p, g), both have the value and gradient of `jaccard`. For soft targets both are 0 exactly where
        the probabilities equal the shares; variant 2 is never smaller, and its gradient differs.
    per, eps, empty, background, class_weights: as for `dice`.

    Targets may be soft. Ignored pixels are left out of all sums; if all pixels are ignored, the loss is 0. Values lie
    in [0, 1] if both eps are equal. Raises ValueError at build in the same cases as `dice`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        variant: Variant = 1,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(labels, class_counts, reduce, variant, per, eps, empty, background, class_weights)

    def losses(self, statistics: Statistics, overlap: Tensor) -> Tensor:
        """1 - (I + eps_n) / (I + D + eps_d) for each group and class, [B, K]."""
        difference = statistics.predicted + statistics.reference - 2 * statistics.tp
        return 1 - ratio(overlap + self.eps[0], overlap + difference + self.eps[1])


class DiceSemimetric(SoftLabelLoss):
    """1 - (2 I + eps_n) / (2 I + D + eps_d), D = sum |p - g|, averaged over classes: the Dice semimetric losses, which
    are semimetrics also between soft labels (Wang et al. 2023, MICCAI).

    variant: 1 has the overlap I = sum min(p, g) and is the same as `dice`; 2 has I = sum p g. For hard targets, where
        p g = min(p, g), both have the value and gradient of `dice`. For soft targets both are 0 exactly where the
        probabilities equal the shares; variant 2 is never smaller, and its gradient differs.
    per, eps, empty, background, class_weights: as for `dice`.

    Targets may be soft. Ignored pixels are left out of all sums; if all pixels are ignored, the loss is 0. Values lie
    in [0, 1] if both eps are equal. Raises ValueError at build in the same cases as `dice`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        variant: Variant = 1,
        per: Per = "batch",
        eps: float | list[float] = 1e-5,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__(labels, class_counts, reduce, variant, per, eps, empty, background, class_weights)

    def losses(self, statistics: Statistics, overlap: Tensor) -> Tensor:
        """1 - (2 I + eps_n) / (2 I + D + eps_d) for each group and class, [B, K]."""
        difference = statistics.predicted + statistics.reference - 2 * statistics.tp
        return 1 - ratio(2 * overlap + self.eps[0], 2 * overlap + difference + self.eps[1])
