"""A Dice loss for each connected component, so that small lesions count as much as large ones."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from segkit.labels import Labels
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import activation_of
from segkit.losses.class_weights import ClassWeights
from segkit.losses.map_loss import Pixels, foreground_mean
from segkit.losses.pass_requests import GroupSums
from segkit.losses.region import Per, divided, eps_pair, ratio
from segkit.losses.shared_pass import GroupTotals, MaskSums
from segkit.losses.target_maps import ComponentMap


class ComponentDice(nn.Module):
    """The mean over the connected components of a class of 1 - (2 tp + eps_n) / (predicted + reference + eps_d).

    of: `component` compares the prediction with one component at a time, over all pixels except those of the others:
        the blob loss of Kofler et al. 2023 with Dice. A false positive counts for every component of the image.
        `region` divides the image into the pixels nearest to each component and takes the Dice of each region, as
        CC-Metrics do (Jaus et al. 2025). A false positive counts for the nearest component.
    per: `batch` averages over the components of the batch, `image` over those of each image, then over the images that
        have any.
    eps: one number, or [numerator, denominator].
    background, class_weights: see `ClassMean`.

    Pixels that share a corner are connected. The loader makes the components. A class that is absent has no components
    and is left out, so false positives in such images have no effect; use the loss beside `dice_ce`. Ignored pixels are
    left out of the sums, and divide a component that they cut; if all pixels are ignored, the loss is 0. Values lie in
    [0, 1] if both eps are equal. Exact over several processes. Raises ValueError for soft targets.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        of: Literal["component", "region"] = "component",
        eps: float | list[float] = 1e-5,
        per: Per = "batch",
        background: bool = False,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        self.mean = foreground_mean(labels, class_counts, reduce, per, background, class_weights)
        components = ComponentMap(of, self.mean.channels)
        self.maps = (components,)
        self.sums = GroupSums("component_dice", activation_of(labels), components.name, components.slots)
        self.of, self.eps = of, eps_pair(eps)

    def score(self, totals: GroupTotals, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        losses, exists = self._component_losses(totals)
        number = exists.sum(-1).to(losses.dtype)
        total, number, pixels = self.mean.pooled((losses * exists).sum(-1), number, totals.mask.pixels)
        return self.mean(divided(total, number), Pixels(number, pixels), count)

    def _component_losses(self, totals: GroupTotals) -> tuple[Tensor, Tensor]:
        """The loss of each component and whether it exists, [B, K, J]; the first slot is for no component."""
        tp, reference = totals.tp[..., 1:], totals.reference[..., 1:]
        if self.of == "component":
            predicted = totals.predicted[..., :1] + totals.predicted[..., 1:]
        else:
            predicted = totals.predicted[..., 1:]
        return 1 - ratio(2 * tp + self.eps[0], predicted + reference + self.eps[1]), reference > 0

    def count(self, mask: MaskSums) -> Tensor | None:
        """The number of images with counted classes, from the masks alone; None with `per: batch`."""
        return self.mean.count(mask)
