"""Online hard example mining by a threshold on the probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segkit.labels import Labels
from segkit.losses.shared_pass import precise_type
from segkit.losses.topk import RankedCrossEntropy, rounded_up


class OhemCrossEntropy(RankedCrossEntropy):
    """The mean of the cross-entropy over the valid pixels whose true class has a probability below `threshold`, and at
    least over a minimum number of pixels with the largest loss (Shrivastava et al. 2016).

    threshold: in (0, 1], of the probability; for soft targets, of the exponential of minus the cross-entropy.
    min_share: in [0, 1], the minimum as a share of the valid pixels of the batch. In binary and multilabel mode each
        pixel of each channel is one entry. Pixels that tie for the last places of the minimum share them equally.
    min_pixels: 0 or more, the minimum as a number; the larger of both minima holds. Without a minimum, the loss is 0 if
        no pixel is below the threshold.

    Other implementations sort the probabilities; here the minimum is found by bisection of its bits, without sorting
    and without a host synchronisation. The mean is over the selected pixels, as in PIDNet and mmseg's OhemCrossEntropy.
    Targets may be soft. Ignored pixels do not contribute; if all pixels are ignored, the loss is 0. A log p below -2^64
    counts as that, as for `cross_entropy`. Raises ValueError for pixel weights, which would have to change the ranking,
    and at build for numbers out of range.
    """

    def __init__(self, *, labels: Labels, threshold: float = 0.7, min_share: float = 0.1, min_pixels: int = 0) -> None:
        super().__init__("ohem_cross_entropy", labels)
        if not 0 < threshold <= 1:
            raise ValueError(f"expected threshold above 0 and at most 1, got {threshold}")
        if not 0 <= min_share <= 1 or min_pixels < 0:
            raise ValueError(
                f"expected min_share between 0 and 1 and min_pixels of 0 or more, got {min_share} and {min_pixels}"
            )
        self.smallest_loss, self.min_share, self.min_pixels = -math.log(threshold), min_share, min_pixels

    def number(self, losses: Tensor, valid: Tensor) -> Tensor:
        """The number of entries in the mean."""
        # the pixels below the threshold are those with the largest losses, so their number determines them
        hard = ((losses > self.smallest_loss) & valid).sum()
        total = valid.sum().to(precise_type(valid.device))
        minimum = rounded_up(total * self.min_share).clamp(min=self.min_pixels).minimum(total)
        return torch.maximum(hard.to(total.dtype), minimum)
