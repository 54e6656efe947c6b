"""The arithmetic of a pass over one chunk: the sums, and the gradient of the logits from the slope for each sum.

With p the probabilities and L a function of the sums, whose slopes are a = dL/d tp, b = dL/d predicted and, for each
pixel function f, c = dL/d total, the gradient of a softmax has the form

    dL/dz_k = p_k (v_k - sum_j p_j v_j) + u_k - p_k sum_j u_j,    v = dL/dp,  u = dL/d log p

and that of a sigmoid p (1 - p) dL/dp + dL/d log p * d log p/dz. For hard targets v = b + a * share and
u = c f'(log p of the pixel's class) * share. The `sums` are plain differentiable operations, for the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.losses.chunking import (
    Activation,
    Chunk,
    MaskChunk,
    ScratchBuffers,
    aten,
    leave,
    log_softmax,
    select,
    softmax,
    weighted_sum,
)
from segkit.losses.pass_requests import TP, Needs, PixelSums

Slopes = Mapping[tuple[Any, ...], Tensor]


def region_sums(p: Tensor, mask: MaskChunk, needs: Needs, buffers: ScratchBuffers) -> list[Tensor]:
    """tp, and predicted for each power, [b, K]."""
    if not needs.powers:
        return []
    # A product would be least at p = 1 whatever the share. sum(min(p, g)) is the (sum p + sum g - sum |p - g|) / 2
    # of Wang et al. 2023 without its cancellation; for hard targets both are the same.
    combine = torch.minimum if mask.soft else torch.mul
    tp = weighted_sum(combine(p, mask.share, out=buffers("product", p.shape, p, p.dtype)), mask.weight)
    return [tp, *(weighted_sum(p if power == 1 else p.square(), mask.weight) for power in needs.powers)]


def _probability_slope(p: Tensor, mask: MaskChunk, needs: Needs, slopes: Slopes, buffers: ScratchBuffers) -> Tensor:
    """dL/dp through the region sums, [b, K, n]; where nothing is valid, anything finite."""
    slope = buffers("product", p.shape, p, p.dtype)
    of_tp = _of_sum(slopes, TP, p)
    if mask.soft:  # where both are equal, the mean of the slopes on the two sides
        inside = (p < mask.share).to(p.dtype).add_((p == mask.share).to(p.dtype), alpha=0.5)
        slope = torch.mul(inside, of_tp, out=slope)
    else:
        slope = torch.mul(mask.share, of_tp, out=slope)
    for power in needs.powers:
        of_sum = _of_sum(slopes, ("predicted", power), p)
        slope.add_(of_sum if power == 1 else 2 * of_sum * p)
    return slope if mask.weight is None else slope.mul_(mask.weight)


def _of_sum(slopes: Slopes, name: tuple[Any, ...], like: Tensor) -> Tensor:
    """The slope for a sum, [b, K or 1, 1]."""
    return slopes[name].to(like.dtype).unsqueeze(-1)


class Softmax:
    """Classes that exclude each other."""

    @staticmethod
    def probabilities(chunk: Chunk, buffers: ScratchBuffers) -> Tensor:
        """The probabilities, [b, K, n], 0 where nothing counts; in place of the logits where that is safe.

        On a CPU a softmax and its backward read all classes of a pixel before they write them; elsewhere nobody says
        so.
        """
        in_place = chunk.spare and chunk.logits.device.type == "cpu"
        return softmax(chunk, buffers, chunk.logits if in_place else None)

    @staticmethod
    def kept_probabilities(kept: Tensor, buffers: ScratchBuffers) -> Tensor:
        """The probabilities that `sums` left in what `gradient` will get as `out`; in place where that is safe."""
        in_place = kept.is_contiguous() and kept.device.type == "cpu"
        return kept if in_place else buffers.copy("p", kept, kept.dtype)

    @staticmethod
    def sums(chunk: Chunk, needs: Needs, buffers: ScratchBuffers, kept: Tensor | None) -> list[Tensor]:
        """The sums of a chunk in the order of `needs.names`, [b, K] each, [b, 1] for pixel functions.

        kept: where to leave the probabilities, [b, K, n]; None to forget them.
        """
        sums = []
        if needs.powers:
            sums = region_sums(softmax(chunk, buffers, kept), chunk.mask, needs, buffers)
        if needs.pixel:
            log_p = log_softmax(chunk, buffers)
            sums += [_softmax_total(log_p, chunk.mask, one, buffers) for one in needs.pixel]
        return sums

    @staticmethod
    def gradient(
        p: Tensor, mask: MaskChunk, needs: Needs, slopes: Slopes, buffers: ScratchBuffers, out: Tensor
    ) -> None:
        """Write the gradient of a chunk's logits into `out` [b, K, n], from the slopes in the shapes of the sums."""
        # p may lie in `out`, so what else is made of it comes first
        of_pixels = buffers.take("of pixels", p.shape, p, p.dtype) if needs.powers else out
        for number, asked in enumerate(needs.pixel):
            slope = _of_sum(slopes, ("pixel", number), p)
            place = buffers.take("product", p.shape, p, p.dtype) if number else of_pixels
            one = _softmax_pixel_gradient(p, mask, asked, slope, buffers, place)
            if number:
                of_pixels.add_(one)
        if needs.powers:
            of_p = _probability_slope(p, mask, needs, slopes, buffers)
            # the operation takes its result to be contiguous; see `probabilities` for its being in place
            in_place = of_p if p.device.type == "cpu" else buffers.take("gradient", p.shape, p, p.dtype)
            place = out if out.is_contiguous() else in_place
            aten._softmax_backward_data.out(of_p, p, 1, p.dtype, grad_input=place)
            if needs.pixel:
                torch.add(place, of_pixels, out=out)
            elif place is not out:
                out.copy_(place)


def _softmax_total(log_p: Tensor, mask: MaskChunk, asked: PixelSums, buffers: ScratchBuffers) -> Tensor:
    """The sum of a pixel function over a chunk, [b, 1]."""
    total = weighted_sum(_softmax_values(log_p, mask, asked, buffers), mask.weight)
    if total.shape[1] > 1 and asked.class_weights is not None:
        total = total * asked.class_weights.to(log_p.dtype)
    total = total.sum(1, keepdim=True) * (asked.function.constant_slope or 1)
    if asked.smoothing:
        spread = weighted_sum(asked.function.value(log_p), mask.weight)
        if asked.class_weights is not None:
            spread = spread * asked.class_weights.to(log_p.dtype)
        total = (1 - asked.smoothing) * total + asked.smoothing * spread.mean(1, keepdim=True)
    return total


def _softmax_values(log_p: Tensor, mask: MaskChunk, asked: PixelSums, buffers: ScratchBuffers) -> Tensor:
    """The pixel function times the share of each class, [b, K, n], without class weights; or, where it has to be taken
    of the pixel's class alone, with them, [b, 1, n]. Of a function that is a multiple of log p, the log p alone."""
    if asked.function.constant_slope is not None:
        return torch.mul(log_p, mask.share, out=buffers("product", log_p.shape, log_p, log_p.dtype))
    if mask.soft:
        return asked.function.value(log_p) * mask.share
    of_truth = torch.mul(log_p, mask.share, out=buffers("product", log_p.shape, log_p, log_p.dtype)).sum(
        1, keepdim=True
    )
    values = asked.function.value(of_truth)
    return values if asked.class_weights is None else values * _weight_of_pixel(mask, asked.class_weights)


def _weight_of_pixel(mask: MaskChunk, class_weights: Tensor) -> Tensor:
    """The class weight of each pixel of a hard mask, [b, 1, n]; 0 where ignored.

    Not by a matrix product, which autocast and TF32 would round.
    """
    return (class_weights.to(mask.share.dtype).view(1, -1, 1) * mask.share).sum(1, keepdim=True)


def _softmax_pixel_gradient(
    p: Tensor, mask: MaskChunk, asked: PixelSums, slope: Tensor, buffers: ScratchBuffers, out: Tensor
) -> Tensor:
    """The gradient of the logits through one pixel function, in `out` [b, K, n]; slope: for its sum, [b, 1, 1]."""
    if not mask.soft and not asked.smoothing:
        # u is s at the pixel's class and 0 elsewhere, so that the gradient is s (share - p); both are 0 where ignored
        of_pixel = _slope_of_pixel(p, mask, asked, slope, buffers)
        return torch.sub(mask.share, p, out=out).mul_(of_pixel)
    of_log_p = _shared_slope(p, mask, asked, slope)
    return torch.sub(of_log_p, p * of_log_p.sum(1, keepdim=True), out=out)


def _slope_of_pixel(p: Tensor, mask: MaskChunk, asked: PixelSums, slope: Tensor, buffers: ScratchBuffers) -> Tensor:
    """dL/d log p of the class of each pixel of a hard mask, [b, 1, 1 or n]."""
    constant = asked.function.constant_slope
    if constant is None:
        of_truth = torch.mul(p, mask.share, out=buffers("product", p.shape, p, p.dtype)).sum(1, keepdim=True)
        slope = slope * asked.function.slope(of_truth, None)
    else:
        slope = slope * constant
    if asked.class_weights is not None:
        slope = slope * _weight_of_pixel(mask, asked.class_weights)
    return slope if mask.weight is None else slope * mask.weight


def _shared_slope(p: Tensor, mask: MaskChunk, asked: PixelSums, slope: Tensor) -> Tensor:
    """dL/d log p of every class, [b, K, n], where a pixel has shares of several."""
    constant = asked.function.constant_slope
    of_log_p = mask.share * ((1 - asked.smoothing) * slope)
    of_log_p = of_log_p * (asked.function.slope(p, None) if constant is None else constant)
    if asked.smoothing:
        assert constant is not None
        even = (constant * asked.smoothing / p.shape[1] * slope).expand_as(p).contiguous()
        of_log_p = of_log_p + select(even, mask.valid)
    if asked.class_weights is not None:
        of_log_p = of_log_p * asked.class_weights.to(p.dtype).view(1, -1, 1)
    return of_log_p if mask.weight is None else of_log_p * mask.weight


def pixel_losses(chunk: Chunk, asked: PixelSums, buffers: ScratchBuffers) -> tuple[Tensor, Tensor]:
    """What each entry adds to the sum, and whether it is valid: [b, 1, n] with a softmax, [b, K, n] with a sigmoid.

    Class weights are not in it.
    """
    mask = chunk.mask
    if asked.activation == "softmax":
        values = _softmax_values(log_softmax(chunk, buffers), mask, asked, buffers).sum(1, keepdim=True)
        values = values * (asked.function.constant_slope or 1)
    else:
        values = select(_sigmoid_values(chunk.logits, mask, asked), mask.valid)
    return values, torch.ones_like(values, dtype=torch.bool) if mask.valid is None else mask.valid.expand_as(values)


class Sigmoid:
    """Classes, or channels, that stand alone."""

    @staticmethod
    def probabilities(chunk: Chunk, buffers: ScratchBuffers, kept: Tensor | None = None) -> Tensor:
        """The probability of each channel, [b, K, n], 0 where it does not count; also left in `kept`, if given."""
        if torch.compiler.is_compiling():
            return select(select(chunk.logits, chunk.mask.valid).sigmoid(), chunk.mask.valid)
        p = torch.sigmoid(chunk.logits, out=buffers.for_kept("p", chunk.logits, kept))
        return leave(select(p, chunk.mask.valid), kept)

    @staticmethod
    def kept_probabilities(kept: Tensor, buffers: ScratchBuffers) -> Tensor:
        """The probabilities that `sums` left in what `gradient` will get as `out`, which is written last."""
        return kept if kept.is_contiguous() else buffers.copy("p", kept, kept.dtype)

    @staticmethod
    def sums(chunk: Chunk, needs: Needs, buffers: ScratchBuffers, kept: Tensor | None) -> list[Tensor]:
        """The sums of a chunk in the order of `needs.names`, [b, K] each, [b, 1] for pixel functions.

        kept: where to leave the probabilities, [b, K, n]; None to forget them.
        """
        mask, sums = chunk.mask, []
        logits = select(chunk.logits, mask.valid) if torch.compiler.is_compiling() else chunk.logits
        if needs.powers:
            sums = region_sums(Sigmoid.probabilities(chunk, buffers, kept), mask, needs, buffers)
        for one in needs.pixel:
            values = select(_sigmoid_values(logits, mask, one), mask.valid)
            sums.append(weighted_sum(values, mask.weight).sum(1, keepdim=True))
        return sums

    @staticmethod
    def gradient(
        p: Tensor, mask: MaskChunk, needs: Needs, slopes: Slopes, buffers: ScratchBuffers, out: Tensor
    ) -> None:
        """Write the gradient of a chunk's logits into `out` [b, K, n], from the slopes in the shapes of the sums."""
        gradient = buffers.take("gradient", p.shape, p, p.dtype)
        gradient.zero_()
        if needs.powers:
            gradient += _probability_slope(p, mask, needs, slopes, buffers).mul_(p).mul_(1 - p)
        for number, asked in enumerate(needs.pixel):
            of_pixel = _sigmoid_slope(p, mask, asked).mul_(_of_sum(slopes, ("pixel", number), p))
            gradient += of_pixel if mask.weight is None else of_pixel.mul_(mask.weight)
        out.copy_(select(gradient, mask.valid))


def _truths(mask: MaskChunk, asked: PixelSums) -> list[tuple[Tensor, Tensor, Tensor | float]]:
    """For each truth that a channel may have: its share [b, K, n], the sign of the logit for it, its class weight.

    A hard mask has one truth a pixel, of which the sign says whether it is presence; a soft one has both in shares.
    """
    share, weights = mask.share, asked.class_weights
    absent, present = (1.0, 1.0) if weights is None else weights.to(share.dtype).unsqueeze(-1).unbind(0)
    one = torch.ones_like(share[:1, :1, :1])
    if not mask.soft and not asked.smoothing:
        weight = 1.0 if weights is None else absent + share * (present - absent)
        return [(one, 2 * share - 1, weight)]
    share = share * (1 - asked.smoothing) + asked.smoothing / 2
    return [(share, one, present), (1 - share, -one, absent)]


def _sigmoid_values(logits: Tensor, mask: MaskChunk, asked: PixelSums) -> Tensor:
    """The pixel function, with class weights and shares, of each channel, [b, K, n]."""
    total = torch.zeros_like(logits)
    for share, sign, weight in _truths(mask, asked):
        total = total + asked.function.value(F.logsigmoid(sign * logits)) * share * weight
    return total


def _sigmoid_slope(p: Tensor, mask: MaskChunk, asked: PixelSums) -> Tensor:
    """The slope of a pixel function with respect to each logit, [b, K, n]."""
    total = torch.zeros_like(p)
    for share, sign, weight in _truths(mask, asked):
        present = sign > 0
        likelihood, other = torch.where(present, p, 1 - p), torch.where(present, 1 - p, p)
        constant = asked.function.constant_slope
        slope = asked.function.slope(likelihood, other) if constant is None else constant
        # d log sigmoid(sign z) / dz; 1 - (1 - p) would have lost the digits of a small p
        total = total + slope * other * sign * share * weight
    return total


KERNELS: dict[Activation, type[Softmax] | type[Sigmoid]] = {"softmax": Softmax, "sigmoid": Sigmoid}
