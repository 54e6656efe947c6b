"""The cross-entropy of the first U-Net, which emphasises narrow gaps between objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import Activation, Batch, activation_of, weight_map
from segkit.losses.class_weights import ClassWeights, resolve_class_weights
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.pass_requests import PixelSums
from segkit.losses.pixel import NegativeLog, Normalize, PixelMean
from segkit.losses.shared_pass import MaskSums, PixelTotals, run_pass
from segkit.losses.target_maps import BorderMap


class BorderCrossEntropy(nn.Module):
    """-sum_i w_i log p_i / Z with w = w_class + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) (Ronneberger et al. 2015).

    d1 and d2 are the distances of a pixel between objects to the nearest and to the second nearest object, in mm, or in
    pixels where the spacing is 1; on the objects, the second term is 0. Objects are the connected components of the
    foreground, and pixels that share only a corner are not connected. p_i is the probability of the true class.

    w0, sigma: height and width of the additional weight; the paper has 10 and about 5 pixels.
    class_weights: w_class, one weight per class, as for `cross_entropy`.
    normalize: Z is the number of valid pixels (`valid`), the sum of w (`weights`) or the number of all pixels
        (`numel`). In binary and multilabel mode each pixel of each channel is one entry.

    The loader makes the weights. Without two objects they are w_class. Ignored pixels do not contribute, except to the
    divisor `numel`; if all pixels are ignored, the loss is 0. Exact over several processes. Raises ValueError for soft
    targets, and at build for a sigma of 0, a negative w0, and classes without a background, which have no gaps.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        w0: float = 10.0,
        sigma: float = 5.0,
        class_weights: ClassWeights = None,
        normalize: Normalize = "valid",
    ) -> None:
        super().__init__()
        if not 0 <= w0 <= LARGEST_OPTION or not 0 < sigma <= LARGEST_OPTION:
            raise ValueError(f"expected w0 of 0 or more and sigma above 0, got {w0} and {sigma}")
        if labels.mode == "multiclass" and labels.background_channel is None:
            raise ValueError(
                f"objects lie on the background class {labels.background!r}, but no class has that name; rename the "
                "class or use cross_entropy"
            )
        self.labels, border = labels, BorderMap(w0, sigma, labels.foreground)
        self.maps, self.map_name = (border,), border.name
        self.class_weights: Tensor
        self.register_buffer("class_weights", resolve_class_weights(class_weights, labels, class_counts), False)
        self.activation: Activation = activation_of(labels)
        self.mean = PixelMean(labels, class_counts, reduce, self.activation, None, normalize)
        self.request = PixelSums("border_cross_entropy", self.activation, NegativeLog())

    def forward(self, logits: Tensor, target: Target, count: Tensor | None = None) -> Tensor:
        """The loss of logits [B, K, *S], a scalar. count: a divisor to use instead of that of this batch."""
        batch = Batch(logits, target, self.labels, self.activation)
        weight = self._class_weight(batch) + target.maps[self.map_name].to(batch.work_type)
        given = weight_map(target, batch.work_type)
        weight = weight if given is None else weight * given
        (totals,) = run_pass(replace(batch, target=replace(target, pixel_weight=weight)), [self.request])
        assert isinstance(totals, PixelTotals)
        return self.mean(totals, count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """The divisor Z, a scalar, from the masks alone; None with `normalize: weights`, which needs the maps."""
        return None if self.mean.normalize == "weights" else self.mean.count(mask)

    def _class_weight(self, batch: Batch) -> Tensor:
        """The weight of the class of each pixel, [B, 1 or K, *S]."""
        weights = self.class_weights.to(batch.work_type)
        shares = self.labels.onehot(batch.target).to(batch.work_type)
        spread = (1, -1) + (1,) * (shares.ndim - 2)
        if self.labels.mode == "multiclass":
            return (shares * weights.view(spread)).sum(1, keepdim=True)
        if self.labels.mode == "binary":
            return torch.where(shares > 0, weights[1], weights[0])
        return weights.view(spread).expand_as(shares)
