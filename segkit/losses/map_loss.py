"""The base of region losses that weigh probabilities by maps of the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce
from segkit.losses.class_weights import ClassWeights
from segkit.losses.region import ClassMean, Empty, Per
from segkit.losses.shared_pass import MapSums, MapTotals, MaskSums
from segkit.losses.target_maps import TargetMap


@dataclass(frozen=True)
class Pixels:
    """The weighted pixels of each class and the valid ones, [B, K] each; see `ClassMean`."""

    reference: Tensor
    pixels: Tensor


def foreground_mean(
    labels: Labels,
    class_counts: Any,
    reduce: Reduce,
    per: Per,
    background: bool,
    class_weights: ClassWeights,
    empty: Empty = "present",
) -> ClassMean:
    """The mean over the classes; see `ClassMean`.

    background: whether it includes the background class, if there is one. The losses of maps leave it out by default:
        its boundary is that of the foreground, and it has neither a centreline nor lesions.
    """
    included = background or labels.background_channel is None
    return ClassMean(labels, class_counts, reduce, per, empty, included, class_weights)


class MapLoss(nn.Module):
    """A mean over classes of a function of sums with maps. maps: those of the target. sums: the request."""

    def __init__(self, mean: ClassMean, maps: Sequence[TargetMap], sums: MapSums) -> None:
        super().__init__()
        self.mean, self.maps, self.sums = mean, tuple(maps), sums

    def class_losses(self, sums: Sequence[Tensor], pixels: Tensor) -> Tensor:
        """The loss of each group and class, [B, K], from the sums of the request and the number of valid pixels."""
        raise NotImplementedError

    def score(self, totals: MapTotals, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        reference, pixels, *sums = self.mean.pooled(totals.mask.reference, totals.mask.pixels, *totals.sums)
        return self.mean(self.class_losses(sums, pixels), Pixels(reference, pixels), count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """The number of images with counted classes, from the masks alone; None with `per: batch`."""
        return self.mean.count(mask)


def inside(m: Tensor, g: Tensor) -> Tensor:
    """m g, the values of a map on the pixels of the class."""
    return m * g
