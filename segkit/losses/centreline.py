"""Losses of the centrelines of tubular structures, such as vessels, which a break costs more than a thin rim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        if target.onehot is not None and target.onehot.is_floating_point():
            raise ValueError("cldice is defined for hard targets, got a floating one; use dice or jaccard instead")
        batch = Batch(logits, target, self.labels, self.activation)
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
        p, g, valid, weight = _planes(batch, slice(None))
        return _sums(p, g, soft_skeleton(p, iterations, valid), soft_skeleton(g, iterations, valid), weight)
    sums: Any = _CentrelineSums.apply(batch.logits, batch, tuple(channels), iterations)
    return sums


def _planes(batch: Batch, images: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Probabilities and reference of some images, 0 where ignored, [b, K, *S] each, validity and weight of pixels."""
    part = batch.images(images)
    valid, weight = part.valid_channels, weight_map(part, batch.work_type)
    logits = batch.logits[images].to(batch.work_type)
    logits = logits if valid is None else torch.where(valid, logits, 0)
    p = logits.softmax(1) if batch.activation == "softmax" else logits.sigmoid()
    p = p if valid is None else torch.where(valid, p, 0)
    return p, batch.labels.onehot(part).to(batch.work_type), valid, weight


def _sums(p: Tensor, g: Tensor, of_p: Tensor, of_g: Tensor, weight: Tensor | None) -> Tensor:
    """The sums over pixels, [b, k, 4]. of_p, of_g: the soft skeletons."""
    values = (of_p * g, of_p, of_g * p, of_g)
    weighted = [value if weight is None else value * weight for value in values]
    return torch.stack([value.flatten(2).sum(-1, dtype=precise_type(p.device)) for value in weighted], -1)


class _CentrelineSums(torch.autograd.Function):
    """(logits, batch, channels, iterations) -> the sums of `_centreline_sums`; one channel of one image at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: Batch, channels: tuple[int, ...], iterations: int) -> Tensor:
        ctx.save_for_backward(logits, *batch.target_tensors)
        ctx.without_tensors, ctx.channels, ctx.iterations = batch.without_tensors(), channels, iterations
        sums = torch.zeros(*logits.shape[:2], 4, dtype=precise_type(logits.device), device=logits.device)
        for image in range(len(logits)):
            p, g, valid, weight = _planes(batch, slice(image, image + 1))
            for channel in channels:
                one, ok, w = slice(channel, channel + 1), _channel(valid, channel), _channel(weight, channel)
                of_p, of_g = (soft_skeleton(x[:, one], iterations, ok) for x in (p, g))
                sums[image, channel] = _sums(p[:, one], g[:, one], of_p, of_g, w)[0, 0]
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
    p, g, valid, weight = _planes(batch, slice(image, image + 1))
    p_slope = torch.zeros_like(p)
    for channel in channels:
        one, ok, w = slice(channel, channel + 1), _channel(valid, channel), _channel(weight, channel)
        on_g, predicted, on_p, _ = slopes[channel].to(p.dtype).unbind()
        slope, direct = on_g * g[:, one] + predicted, on_p * soft_skeleton(g[:, one], iterations, ok)
        slope, direct = (slope, direct) if w is None else (slope * w, direct * w)
        p_slope[:, one] = skeleton_gradient(p[:, one], iterations, ok, slope) + direct
    if valid is not None:
        p_slope = torch.where(valid, p_slope, 0)
    if batch.activation == "sigmoid":
        return (p_slope * p * (1 - p))[0]
    logits = batch.logits[image : image + 1].to(batch.work_type)
    logits = logits if valid is None else torch.where(valid, logits, 0)
    p = logits.softmax(1)
    return (p * (p_slope - (p * p_slope).sum(1, keepdim=True)))[0]


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
