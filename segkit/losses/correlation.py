"""The loss of the Matthews correlation coefficient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import activation_of
from segkit.losses.class_weights import ClassWeights
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.region import ClassMean, Empty, Per, RegionLoss
from segkit.losses.shared_pass import MaskSums, RegionSums, Statistics, precise_type

SMALLEST_EPS = 1e-12  # the slope of the square root at eps is finite also in float32


class MatthewsCorrelation(RegionLoss):
    """1 - (tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn)), averaged over classes: 1 minus the Matthews
    correlation coefficient of each class (Abhishek & Hamarneh 2021).

    fp = predicted - tp, fn = reference - tp, and tn is the rest of the valid pixels.

    eps: added to each of the four counts, in pixels.
    per, empty, background, class_weights: see `ClassMean`. With `empty: present` (`zero`), a class that covers all
        valid pixels is left out (counts as 0) as well: without a pixel outside of it there is no correlation.

    The counts are divided by their sum before they are multiplied, in float64 where the device has it, so that no
    number of pixels overflows. The sums over pixels are rounded to the precision of the loss: in float32, MCC has an
    error of up to about 1e-7 N / n for a class that covers all but n of N pixels. Targets may be soft. Ignored pixels
    are left out of all sums; if all pixels are ignored, the loss is 0. Values lie in [0, 2]; 1 is a prediction that is
    not related to the reference. Raises ValueError at build for an eps below 1e-12, and in the same cases as `dice`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        per: Per = "batch",
        eps: float = 0.01,
        empty: Empty = "present",
        background: bool = True,
        class_weights: ClassWeights = None,
    ) -> None:
        if not SMALLEST_EPS <= eps <= LARGEST_OPTION:
            raise ValueError(f"expected eps from {SMALLEST_EPS:g} to {LARGEST_OPTION:g}, got {eps}")
        mean = ClassMean(labels, class_counts, reduce, per, empty, background, class_weights)
        super().__init__(RegionSums(activation_of(labels)), mean, (eps, eps))

    def class_losses(self, statistics: Statistics) -> Tensor:
        """1 - MCC for each group and class, [B, K]."""
        eps, work_type = self.eps[0], statistics.tp.dtype
        precise = torch.promote_types(work_type, precise_type(statistics.tp.device))
        tp, predicted, reference, pixels = (sums.to(precise) for sums in statistics.tensors)
        total = pixels + 4 * eps
        hit, positive, present = (tp + eps) / total, (predicted + 2 * eps) / total, (reference + 2 * eps) / total
        # rounding may make the sum of the probabilities larger than the number of pixels
        negative = ((pixels - predicted).clamp(min=0) + 2 * eps) / total
        absent = ((pixels - reference).clamp(min=0) + 2 * eps) / total
        # tp tn - fp fn is the same as tp total - (tp + fp) (tp + fn)
        correlation = (hit - positive * present) / ((positive * present).sqrt() * (negative * absent).sqrt())
        return (1 - correlation).to(work_type)

    def score(self, statistics: Statistics, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        statistics = self.mean.pool(statistics)
        reference = _of_partial_classes(statistics.reference, statistics.pixels)
        return self.mean(self.class_losses(statistics), replace(statistics, reference=reference), count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """The number of images with counted classes, from the masks alone; None with `per: batch`."""
        return self.mean.count(replace(mask, reference=_of_partial_classes(mask.reference, mask.pixels)))


def _of_partial_classes(reference: Tensor, pixels: Tensor) -> Tensor:
    """The size of each class in the reference, 0 for a class that covers all valid pixels."""
    return torch.where(reference < pixels, reference, 0)
