"""Losses that weigh errors by their distance to the boundary of the class.

All are sums of powers of the error e = |p - g| times powers of a distance, p being the probability and g the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segkit.labels import Labels, Target
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import activation_of
from segkit.losses.class_weights import ClassWeights
from segkit.losses.custom import valid_logits
from segkit.losses.map_loss import MapLoss, foreground_mean, inside
from segkit.losses.pass_requests import MapSum, MapSums
from segkit.losses.region import Empty, Per, divided, ratio
from segkit.losses.shared_pass import MapTotals, MaskSums
from segkit.losses.target_maps import DistanceMap, SpacingMap, TargetMap, Unit, maps_of_target

LARGEST_ALPHA = 4  # of distances of thousands of pixels, whose powers are summed in float32
PREDICTED = "predicted-"  # begins the names of maps of the prediction


@dataclass(frozen=True)
class AbsolutePower:
    """|m|^exponent of a map m."""

    exponent: float

    def __call__(self, m: Tensor, g: Tensor) -> Tensor:  # noqa: ARG002
        return m.abs() if self.exponent == 1 else m.abs() ** self.exponent


class Boundary(MapLoss):
    """sum_i d_i (p_i - g_i) / N, averaged over classes: the distance between two boundaries (Kervadec et al. 2019).

    d is the signed distance of a pixel to the boundary of the class in the reference: positive outside of the class,
    negative inside, 0 for the pixels of the class that are one smallest spacing away. p is the probability, g the
    reference, N the number of valid pixels.

    distance: `pixels` measures d in the smallest spacing of the image, `mm` in mm, and `diagonal` in diagonals of the
        image or patch without its ignored margins, so that the loss does not depend on their size but is small.
    offset: true subtracts sum_i d_i g_i / N, so that a perfect prediction has loss 0; false leaves it out, as the
        authors' code does, where the loss of a good prediction is negative. The gradient is the same.
    per: `batch` pools the sums over the batch, `image` averages over the images that contain a class.
    background: whether the background class counts; its boundary is that of all foreground together.
    empty, class_weights: see `ClassMean`.

    The authors use it beside a region loss, with a weight that grows during the training. Its gradient grows with the
    distances, so the weight depends on the size of the images; with `pixels`, the authors begin with 0.01. A class that
    is absent or fills the image has no boundary, and value and gradient 0. Ignored pixels are left out of the sum, and
    no boundary lies at them. Values lie in [0, 1] with `diagonal` and `offset`. Exact over several processes. Raises
    ValueError for soft targets.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        distance: Unit = "pixels",
        offset: bool = True,
        per: Per = "batch",
        empty: Empty = "present",
        background: bool = False,
        class_weights: ClassWeights = None,
    ) -> None:
        mean = foreground_mean(labels, class_counts, reduce, per, background, class_weights, empty)
        distances = DistanceMap("signed", distance, mean.channels)
        # d (p - g) is |d| e on both sides of the boundary
        sums = [MapSum(distances.name, 1, AbsolutePower(1))]
        sums += [] if offset else [MapSum(distances.name, 0, inside)]
        super().__init__(mean, [distances], MapSums("boundary", activation_of(labels), tuple(sums)))

    def class_losses(self, sums: Sequence[Tensor], pixels: Tensor) -> Tensor:
        """sum_i d_i (p_i - g_i) / N for each group and class, [B, K]."""
        return divided(torch.stack(list(sums)).sum(0), pixels)


class Surface(MapLoss):
    """1 - sum_i (d_i (1 - (g_i + p_i)))^2 / sum_i d_i^2, averaged over classes: the generalised surface loss (Celaya et
    al. 2023).

    d is the distance of a pixel to the boundary of the class in the reference, as for `boundary`. p is the probability,
    g the reference. The loss is 0 for a perfect prediction and 1 for its opposite.

    per: `batch` pools the sums over the batch, `image` averages over the images that contain a class.
    empty, background, class_weights: as for `boundary`. The paper weighs the classes inside of one ratio; here each
        class has a ratio, and `class_weights` weigh these.

    A class that is absent or fills the image has no boundary, and value and gradient 0. Ignored
    pixels are left out of the sums, and no boundary lies at them. Values lie in [0, 1]. Exact over several processes.
    Raises ValueError for soft targets.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        per: Per = "batch",
        empty: Empty = "present",
        background: bool = False,
        class_weights: ClassWeights = None,
    ) -> None:
        mean = foreground_mean(labels, class_counts, reduce, per, background, class_weights, empty)
        distances = DistanceMap("signed", "diagonal", mean.channels)
        sums = tuple(MapSum(distances.name, power, AbsolutePower(2)) for power in (0, 1, 2))
        super().__init__(mean, [distances], MapSums("surface", activation_of(labels), sums))

    def class_losses(self, sums: Sequence[Tensor], pixels: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of each group and class, [B, K]; 0 without a boundary."""
        total, error, squared = sums
        return ratio(2 * error - squared, total)  # 1 - (1 - (g + p))^2 is 2 e - e^2


class Hausdorff(MapLoss):
    """sum_i (p_i - g_i)^2 (d_i^alpha + q_i^alpha) / N, averaged over classes: the loss with distance transforms of
    Karimi & Salcudean 2019.

    d is the distance of a pixel to the boundary of the class in the reference, q to the boundary of the pixels that are
    predicted with a probability above 0.5. p is the probability, g the reference, N the number of valid pixels.

    alpha: larger values punish distant errors more; the authors recommend 1 to 3.
    one_sided: true leaves out q, as in the one-sided form of the paper. The loader can make the distances d, whereas q
        depends on the prediction: it is computed on the host in every step, which waits for the device.
    log: take log(1 + loss), so that large distances do not dominate the sum with other terms.
    distance: the unit of the distances, see `boundary`.
    per: `batch` pools the sums over the batch, `image` averages over the images that contain a class.
    empty, background, class_weights: as for `boundary`.

    Where a class has no boundary, because it is absent or fills the image, its distances are 0. Ignored pixels are left
    out of the sum, and no boundary lies at them. Values lie in [0, inf). Exact over several processes. Raises
    ValueError for soft targets, and at build unless alpha is above 0.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        alpha: float = 2.0,
        one_sided: bool = True,
        log: bool = False,
        distance: Unit = "pixels",
        per: Per = "batch",
        empty: Empty = "present",
        background: bool = False,
        class_weights: ClassWeights = None,
    ) -> None:
        if not 0 < alpha <= LARGEST_ALPHA:
            raise ValueError(f"expected alpha above 0 and at most {LARGEST_ALPHA}, got {alpha}")
        mean = foreground_mean(labels, class_counts, reduce, per, background, class_weights, empty)
        distances = DistanceMap("unsigned", distance, mean.channels)
        names = [distances.name] if one_sided else [distances.name, PREDICTED + distances.name]
        sums = tuple(MapSum(name, 2, AbsolutePower(alpha)) for name in names)
        maps: list[TargetMap] = [distances] if one_sided else [distances, SpacingMap()]
        super().__init__(mean, maps, MapSums("hausdorff", activation_of(labels), sums))
        self.labels, self.log = labels, log
        self.predicted = None if one_sided else distances

    def class_losses(self, sums: Sequence[Tensor], pixels: Tensor) -> Tensor:
        """sum_i (p_i - g_i)^2 (d_i^alpha + q_i^alpha) / N for each group and class, [B, K]."""
        return divided(torch.stack(list(sums)).sum(0), pixels)

    def score(self, totals: MapTotals, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        loss = super().score(totals, count)
        return torch.log1p(loss) if self.log else loss

    def count(self, mask: MaskSums) -> Tensor | None:
        """See `MapLoss.count`; None with `log`, which is taken of the mean."""
        return None if self.log else super().count(mask)

    @torch.no_grad()
    def predicted_maps(self, logits: Tensor, target: Target) -> dict[str, Tensor]:
        """The distances to the boundary of the prediction, made on the host; none if they are not needed."""
        if self.predicted is None:
            return {}
        probabilities = self.labels.probabilities(valid_logits(logits, target))
        prediction = Target(onehot=probabilities > 0.5, valid=target.valid)
        spacing = target.maps[SpacingMap().name].tolist()
        dtype = target.maps[self.sums.sums[0].map].dtype
        made = maps_of_target([self.predicted], self.labels, prediction, spacing, dtype)
        return {PREDICTED + name: values for name, values in made.items()}
