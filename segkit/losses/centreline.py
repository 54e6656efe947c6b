"""Losses of the centrelines of tubular structures, such as vessels, which a break costs more than a thin rim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import (
    Activation,
    Batch,
    activation_of,
    precise_type,
    refuse_second_derivative,
    weight_map,
)
from segkit.losses.class_weights import ClassWeights
from segkit.losses.custom import valid_logits
from segkit.losses.map_loss import MapLoss, Pixels, foreground_mean, inside
from segkit.losses.pass_requests import MapSum, MapSums
from segkit.losses.region import Per, eps_pair, ratio
from segkit.losses.shared_pass import MaskSums, mask_sums
from segkit.losses.soft_skeleton import skeleton_gradient, soft_skeleton
from segkit.losses.target_maps import SkeletonMap

MOST_ITERATIONS = 1000
Iterations = int | Literal["measured"]


class ClDice(nn.Module):
    """1 - 2 precision sensitivity / (precision + sensitivity) of the centrelines, averaged over classes (Shit et al.
    2021).

    precision = (sum S(p) g + eps_n) / (sum S(p) + eps_d) is the share of the predicted centreline in the reference g,
    sensitivity = (sum S(g) p + eps_n) / (sum S(g) + eps_d) the share of its centreline in the prediction p. S is the
    soft skeleton: 1 - prod_j (1 - max(0, e_j - open(e_j))) over the erosions e_0 to e_n of the probabilities by direct
    neighbours; open is an erosion followed by a dilation with all neighbours.

    iterations: n; a structure that is wider than 2 n + 1 pixels everywhere loses its whole centreline. `measured` takes
        the largest radius of the counted classes in the training masks, in steps along the axes, minus 1; without class
        counts it raises an error. Augmentation by scaling may make structures wider, and a few wide places may make the
        number larger than necessary; then set it.
    eps: one number, or [numerator, denominator].
    per: `batch` pools the sums over the batch, `image` averages over the images that contain a class.
    background, class_weights: see `ClassMean`. The background is left out by default, since it has no centreline; give
        classes that are not tubular the weight 0.

    A class that is absent is left out. Ignored pixels are left out of the sums and neither erode nor dilate others; if
    all pixels are ignored, the loss is 0. Values lie in [0, 1] if both eps are equal. Exact over several processes.
    The memory grows with the root of the iterations, and is that of one channel of one image after the other. Raises
    ValueError for soft targets, and at build for iterations below 0 and for a negative eps.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        iterations: Iterations = "measured",
        eps: float | list[float] = 1e-5,
        per: Per = "batch",
        background: bool = False,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        self.mean = foreground_mean(labels, class_counts, reduce, per, background, class_weights)
        self.channels = self.mean.channels
        self.iterations = resolve_iterations(iterations, labels, class_counts, self.channels)
        self.labels, self.eps = labels, eps_pair(eps)
        self.activation: Activation = activation_of(labels)

    def forward(self, logits: Tensor, target: Target, count: Tensor | None = None) -> Tensor:
        """The loss of logits [B, K, *S], a scalar. count: the divisor of the mean over images; see `ClassMean`."""
        batch = Batch(logits, target, self.labels, self.activation)
        if batch.soft:
            raise ValueError("cldice is defined for hard targets, got a floating one; use dice or jaccard instead")
        mask = mask_sums(batch)
        sums = _centreline_sums(batch, self.channels, self.iterations).to(batch.work_type)
        reference, pixels, *pooled = self.mean.pooled(mask.reference, mask.pixels, *sums.unbind(-1))
        return self.mean(self._class_losses(*pooled), Pixels(reference, pixels), count)

    def count(self, mask: MaskSums) -> Tensor | None:
        """The number of images with counted classes, from the masks alone; None with `per: batch`."""
        return self.mean.count(mask)

    def _class_losses(self, on_g: Tensor, predicted: Tensor, on_p: Tensor, reference: Tensor) -> Tensor:
        precision = ratio(on_g + self.eps[0], predicted + self.eps[1])
        sensitivity = ratio(on_p + self.eps[0], reference + self.eps[1])
        return 1 - ratio(2 * precision * sensitivity, precision + sensitivity)


def resolve_iterations(iterations: Iterations, labels: Labels, class_counts: Any, channels: Sequence[int]) -> int:
    """The number of iterations: given, or one less than the largest radius of the classes in the training masks.

    class_counts: see `build_loss`; a mapping with the radii under `radius`.

    Raises ValueError for a number out of range, and for `measured` without radii.
    """
    if iterations != "measured":
        if isinstance(iterations, bool) or not 0 <= iterations <= MOST_ITERATIONS:
            raise ValueError(f"expected iterations from 0 to {MOST_ITERATIONS}, or measured, got {iterations}")
        return iterations
    radii = class_counts.get("radius") if isinstance(class_counts, Mapping) else None
    if radii is None:
        raise ValueError(
            "iterations: measured needs the radii of the classes in the training masks; give a number, one less than "
            "the largest radius in pixels, or pass class_counts to build_loss as a mapping with `radius`, the radius "
            "of each class in each case, from segkit.data.class_counts.class_radii"
        )
    first = 1 if labels.mode == "binary" else 0
    largest = torch.as_tensor(radii).amax(0)[[channel + first for channel in channels]].max()
    return min(MOST_ITERATIONS, max(0, int(largest) - 1))


def _centreline_sums(batch: Batch, channels: Sequence[int], iterations: int) -> Tensor:
    """sum S(p) g, sum S(p), sum S(g) p and sum S(g) of each image and class, [B, K, 4]; 0 for other classes."""
    if torch.compiler.is_compiling():
        return _planes(batch, slice(None)).sums(iterations)
    sums: Any = _CentrelineSums.apply(batch.logits, batch, tuple(channels), iterations)
    return sums


@dataclass(frozen=True)
class Planes:
    """Some images of a batch. probabilities: [b, K, *S]; p, g: probabilities and reference, 0 where ignored; valid,
    weight: of pixels, [b, 1 or K, *S]."""

    probabilities: Tensor
    p: Tensor
    g: Tensor
    valid: Tensor | None
    weight: Tensor | None

    def of(self, channel: int) -> Planes:
        """One channel."""
        valid, weight = _channel(self.valid, channel), _channel(self.weight, channel)
        one = slice(channel, channel + 1)
        return Planes(self.probabilities[:, one], self.p[:, one], self.g[:, one], valid, weight)

    def sums(self, iterations: int) -> Tensor:
        """sum S(p) g, sum S(p), sum S(g) p and sum S(g) of each image and channel, [b, k, 4]."""
        of_p, of_g = (soft_skeleton(x, iterations, self.valid) for x in (self.p, self.g))
        values = (of_p * self.g, of_p, of_g * self.p, of_g)
        weighted = [value if self.weight is None else value * self.weight for value in values]
        return torch.stack([value.flatten(2).sum(-1, dtype=precise_type(value.device)) for value in weighted], -1)


def _planes(batch: Batch, images: slice) -> Planes:
    part = batch.images(images)
    valid = part.valid_channels
    probabilities = batch.labels.probabilities(valid_logits(batch.logits[images], part))
    p = probabilities if valid is None else torch.where(valid, probabilities, 0)
    return Planes(probabilities, p, batch.labels.onehot(part).to(p.dtype), valid, weight_map(part, p.dtype))


class _CentrelineSums(torch.autograd.Function):
    """(logits, batch, channels, iterations) -> the sums of `_centreline_sums`; one channel of one image at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: Batch, channels: tuple[int, ...], iterations: int) -> Tensor:
        ctx.save_for_backward(logits, *batch.target_tensors)
        ctx.without_tensors, ctx.channels, ctx.iterations = batch.without_tensors(), channels, iterations
        sums = torch.zeros(*logits.shape[:2], 4, dtype=precise_type(logits.device), device=logits.device)
        for image in range(len(logits)):
            planes = _planes(batch, slice(image, image + 1))
            for channel in channels:
                sums[image, channel] = planes.of(channel).sums(iterations)[0, 0]
        return sums

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        batch: Batch = ctx.without_tensors.with_tensors(*ctx.saved_tensors)
        gradient = torch.zeros_like(batch.logits)
        for image in range(len(gradient)):
            gradient[image] = _image_gradient(batch, image, slopes[0][image], ctx.channels, ctx.iterations)
        return gradient, None, None, None


def _image_gradient(batch: Batch, image: int, slopes: Tensor, channels: Sequence[int], iterations: int) -> Tensor:
    """The gradient of the logits of one image, [K, *S]. slopes: with respect to its sums, [K, 4]."""
    planes = _planes(batch, slice(image, image + 1))
    p_slope = torch.zeros_like(planes.p)
    for channel in channels:
        plane = planes.of(channel)
        on_g, predicted, on_p, _ = slopes[channel].to(p_slope.dtype).unbind()
        slope, direct = on_g * plane.g + predicted, on_p * soft_skeleton(plane.g, iterations, plane.valid)
        if plane.weight is not None:
            slope, direct = slope * plane.weight, direct * plane.weight
        p_slope[:, channel : channel + 1] = skeleton_gradient(plane.p, iterations, plane.valid, slope) + direct
    if planes.valid is not None:
        p_slope = torch.where(planes.valid, p_slope, 0)
    probabilities = planes.probabilities
    if batch.activation == "sigmoid":
        return (p_slope * probabilities * (1 - probabilities))[0]
    return (probabilities * (p_slope - (probabilities * p_slope).sum(1, keepdim=True)))[0]


def _channel(tensor: Tensor | None, channel: int) -> Tensor | None:
    """One channel of [b, 1 or K, *S], which broadcasts if there is one for all."""
    return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, channel : channel + 1]


class SkeletonRecall(MapLoss):
    """1 - (sum_i s_i p_i + eps_n) / (sum_i s_i + eps_d), averaged over classes (Kirchhoff et al. 2024).

    s is 1 on the skeleton of the class in the reference, widened by `radius` pixels within the class, and 0 elsewhere;
    p is the probability. The loss says nothing of false positives, so it is used beside `dice_ce`.

    radius: how often the skeleton is dilated by all neighbours, corners included; the authors dilate it twice. Each
        class has its own skeleton.
    eps: one number, or [numerator, denominator].
    per: `batch` pools the sums over the batch, `image` averages over the images that contain a class.
    background, class_weights: as for `cldice`.

    The loader makes the skeletons; they need the extra `topology`. A class that is absent is left out. Ignored pixels
    are left out of the sums; if all pixels are ignored, the loss is 0. Values lie in [0, 1] if both eps are equal.
    Exact over several processes. Raises ValueError for soft targets, and at build for a radius out of range.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        class_counts: Any = None,
        reduce: Reduce = single_process,
        radius: int = 2,
        eps: float | list[float] = 1e-5,
        per: Per = "batch",
        background: bool = False,
        class_weights: ClassWeights = None,
    ) -> None:
        if not 0 <= radius <= MOST_ITERATIONS:
            raise ValueError(f"expected radius from 0 to {MOST_ITERATIONS}, got {radius}")
        mean = foreground_mean(labels, class_counts, reduce, per, background, class_weights)
        skeletons = SkeletonMap(radius, mean.channels)
        # The error is 1 - p on the class, in which the skeleton lies. In the masks of coarser heads of deep supervision
        # some of its pixels are outside of the class; they do not count.
        sums = (MapSum(skeletons.name, 1, inside), MapSum(skeletons.name, 0, inside))
        super().__init__(mean, [skeletons], MapSums("skeleton_recall", activation_of(labels), sums))
        self.eps = eps_pair(eps)

    def class_losses(self, sums: Sequence[Tensor], pixels: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of each group and class, [B, K]."""
        missed, skeleton = sums
        return ratio(missed + self.eps[1] - self.eps[0], skeleton + self.eps[1])
