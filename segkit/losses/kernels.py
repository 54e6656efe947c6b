"""The arithmetic on one chunk: the sums, and the gradient of the logits from the derivatives with respect to the sums.

Let p be the probabilities and L the loss as a function of the sums, with the derivatives a = dL/d tp,
b = dL/d predicted and, for each pixel function f, c = dL/d total. The gradient through a softmax is

    dL/dz_k = p_k (v_k - sum_j p_j v_j) + u_k - p_k sum_j u_j,    v = dL/dp,  u = dL/d log p

and the gradient through a sigmoid is p (1 - p) dL/dp + dL/d log p * d log p/dz. For hard targets v = b + a * share
and u = c f'(log p of the pixel's class) * share. These derivatives are called slopes below. The `sums` consist of plain
differentiable operations, so that the compiler can derive their gradient itself.
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
    bounded,
    keep_copy,
    log_softmax,
    precise_type,
    select,
    softmax,
    some_valid,
    weighted_sum,
)
from segkit.losses.pass_requests import GROUP_SUMS, GroupSums, MapSum, PixelSums, RequestedSums

Slopes = Mapping[tuple[Any, ...], Tensor]


def region_sums(p: Tensor, mask: MaskChunk, requested: RequestedSums, buffers: ScratchBuffers) -> list[Tensor]:
    """The sums `tp` and `predicted` for each power, [b, K] each; none if no region sums are requested.

    The overlap is the (sum p^q + sum g^q - sum |p - g|^q) / 2 of Wang et al. 2023 for the power q, without its
    cancellation: sum min(p, g) for 1 and sum p g for 2. Only with the same power as the sizes is a loss least, and 0,
    where the probabilities equal the shares. For hard targets both are sum p g.
    """
    tps = []
    for power in requested.powers:
        combine = torch.minimum if mask.soft and power == 1 else torch.mul
        tps.append(weighted_sum(combine(p, mask.share, out=buffers("product", p.shape, p, p.dtype)), mask.weight))
    return [*tps, *(weighted_sum(p if power == 1 else p.square(), mask.weight) for power in requested.powers)]


def probability_sums(p: Tensor, mask: MaskChunk, requested: RequestedSums, buffers: ScratchBuffers) -> list[Tensor]:
    """All sums of probabilities, [b, K] each, or [b, K J] with J groups, in the order of `requested.names`."""
    return [
        *region_sums(p, mask, requested, buffers),
        *(weighted_sum(_map_values(p, mask, one), mask.weight) for one in requested.maps),
        *(sums for request, groups in requested.groups for sums in _group_sums(p, mask, request, groups)),
    ]


def _map_factor(mask: MaskChunk, one: MapSum) -> Tensor:
    """f(m, g) of a sum with a map, [b, K, n], 0 at ignored pixels."""
    return select(one.factor(mask.maps[one.map].to(mask.share.dtype), mask.share), mask.valid)


def _map_values(p: Tensor, mask: MaskChunk, one: MapSum) -> Tensor:
    """|p - g|^power f(m, g), [b, K, n]."""
    values = _map_factor(mask, one)
    for _factor in range(one.power):
        values = values * (p - mask.share).abs()
    return values


def _group_sums(p: Tensor, mask: MaskChunk, request: GroupSums, groups: int) -> list[Tensor]:
    """The sums of `GROUP_SUMS` over the pixels of each group of each class, [b, K J] each.

    They are added in float64 where the device supports it: a group may have any number of pixels.
    """
    index, weight = mask.maps[request.map].to(torch.int64), mask.weight
    share = mask.share if weight is None else mask.share * weight
    sums = []
    for values in (p if weight is None else p * weight, p * share, share):
        precise = values.to(precise_type(p.device))
        zeros = torch.zeros((*p.shape[:2], groups), dtype=precise.dtype, device=p.device)
        sums.append(zeros.scatter_add(2, index, precise).flatten(1))
    return sums


def _probability_slope(
    p: Tensor, mask: MaskChunk, requested: RequestedSums, slopes: Slopes, buffers: ScratchBuffers
) -> Tensor:
    """dL/dp through the sums of probabilities, [b, K, n]; arbitrary finite values at ignored pixels."""
    memory = buffers.take("product", p.shape, p, p.dtype)
    slope: Tensor | None = None
    for power in requested.powers:
        tp_slope = _slope_of_sum(slopes, ("tp", power), p)
        overlap = _overlap_slope(p, mask, power)
        slope = torch.mul(overlap, tp_slope, out=memory) if slope is None else slope.addcmul_(overlap, tp_slope)
        predicted_slope = _slope_of_sum(slopes, ("predicted", power), p)
        slope.add_(predicted_slope if power == 1 else 2 * predicted_slope * p)
    if slope is None:
        slope = memory.zero_()
    for one in requested.maps:
        if one.power == 1:
            factor = _map_factor(mask, one).mul_(_slope_of_sum(slopes, ("map", one), p))
            slope.addcmul_(factor, 1 - 2 * mask.share)  # d|p - g| / dp is 1 outside of the class and -1 inside
        elif one.power == 2:
            factor = _map_factor(mask, one).mul_(_slope_of_sum(slopes, ("map", one), p))
            slope.addcmul_(factor, p - mask.share, value=2)
    for request, groups in requested.groups:
        slope.add_(_group_slope(p, mask, request, groups, slopes))
    return slope if mask.weight is None else slope.mul_(mask.weight)


def _group_slope(p: Tensor, mask: MaskChunk, request: GroupSums, groups: int, slopes: Slopes) -> Tensor:
    """dL/dp through the sums of groups, [b, K, n]."""
    index, shape = mask.maps[request.map].to(torch.int64), (*p.shape[:2], groups)
    predicted, tp = (slopes[name, request].to(p.dtype).reshape(shape).gather(2, index) for name in GROUP_SUMS[:2])
    return predicted.add_(tp.mul_(mask.share))


def _overlap_slope(p: Tensor, mask: MaskChunk, power: int) -> Tensor:
    """The derivative of each pixel's overlap with respect to its probability, [b, K, n]."""
    if not mask.soft or power == 2:
        return mask.share
    # at p = share, the mean of the slopes on both sides
    return (p < mask.share).to(p.dtype).add_((p == mask.share).to(p.dtype), alpha=0.5)


def _slope_of_sum(slopes: Slopes, name: tuple[Any, ...], like: Tensor) -> Tensor:
    """The derivative of the loss with respect to a sum, [b, K or 1, 1]."""
    return slopes[name].to(like.dtype).unsqueeze(-1)


class Softmax:
    """Mutually exclusive classes."""

    @staticmethod
    def keeps(requested: RequestedSums) -> bool:  # noqa: ARG004
        """Whether `sums` keeps anything for the backward."""
        return True

    @staticmethod
    def probabilities(chunk: Chunk, requested: RequestedSums, buffers: ScratchBuffers) -> Tensor:
        """The probabilities, [b, K, n], 0 at ignored pixels; they overwrite the logits where that is safe.

        On a CPU, a softmax and its backward read all classes of a pixel before they write them. For other devices this
        is not documented. For pixel functions alone they are computed like those that were kept, to the bit.
        """
        if not requested.of_probabilities:
            return select(log_softmax(chunk, buffers).exp_(), some_valid(chunk.mask))
        in_place = chunk.spare and chunk.logits.device.type == "cpu"
        return softmax(chunk, buffers, chunk.logits if in_place else None)

    @staticmethod
    def kept_probabilities(kept: Tensor, mask: MaskChunk, requested: RequestedSums, buffers: ScratchBuffers) -> Tensor:
        """The probabilities that `sums` kept, which `gradient` gets as `out`; a copy unless that is safe.

        For pixel functions alone, `sums` kept log-probabilities: an exponential takes less time than another softmax.
        """
        in_place = kept.is_contiguous() and kept.device.type == "cpu"
        p = kept if in_place else buffers.copy("p", kept, kept.dtype)
        return p if requested.of_probabilities else select(p.exp_(), some_valid(mask))

    @staticmethod
    def sums(chunk: Chunk, requested: RequestedSums, buffers: ScratchBuffers, kept: Tensor | None) -> list[Tensor]:
        """The sums of a chunk in the order of `requested.names`, [b, K] each, [b, 1] for pixel functions.

        kept: memory for what `kept_probabilities` turns into the probabilities later, [b, K, n]; None if it is not
            needed.
        """
        sums = []
        if requested.of_probabilities:
            sums = probability_sums(softmax(chunk, buffers, kept), chunk.mask, requested, buffers)
        if requested.pixel:
            log_p = log_softmax(chunk, buffers, None if requested.of_probabilities else kept)
            sums += [_softmax_total(log_p, chunk.mask, request, buffers) for request in requested.pixel]
        return sums

    @staticmethod
    def gradient(
        p: Tensor, mask: MaskChunk, requested: RequestedSums, slopes: Slopes, buffers: ScratchBuffers, out: Tensor
    ) -> None:
        """Write the gradient of a chunk's logits into `out` [b, K, n].

        p: the probabilities. slopes: the derivatives with respect to the sums, in the shapes of the sums.
        """
        if not requested.of_probabilities:
            _softmax_pixel_gradients(p, mask, requested, slopes, buffers, out)
            return
        # p may share memory with `out`, so the gradient through the pixel functions goes to a buffer first.
        pixel_gradient = None
        if requested.pixel:
            memory = buffers.take("pixel gradient", p.shape, p, p.dtype)
            pixel_gradient = _softmax_pixel_gradients(p, mask, requested, slopes, buffers, memory)
        region_gradient = _softmax_region_gradient(p, mask, requested, slopes, buffers, out)
        if pixel_gradient is not None:
            torch.add(region_gradient, pixel_gradient, out=out)
        elif region_gradient is not out:
            out.copy_(region_gradient)


def _softmax_region_gradient(
    p: Tensor, mask: MaskChunk, requested: RequestedSums, slopes: Slopes, buffers: ScratchBuffers, out: Tensor
) -> Tensor:
    """The gradient of the logits through the sums of probabilities, [b, K, n]; in `out` if contiguous."""
    slope = _probability_slope(p, mask, requested, slopes, buffers)
    if out.is_contiguous():  # the operation requires a contiguous result
        result = out
    elif p.device.type == "cpu":  # in place; `Softmax.probabilities` says why only on a CPU
        result = slope
    else:
        result = buffers.take("gradient", p.shape, p, p.dtype)
    aten._softmax_backward_data.out(slope, p, 1, p.dtype, grad_input=result)
    return result


def _softmax_pixel_gradients(
    p: Tensor, mask: MaskChunk, requested: RequestedSums, slopes: Slopes, buffers: ScratchBuffers, out: Tensor
) -> Tensor:
    """The gradient of the logits through all pixel functions, in `out` [b, K, n]."""
    for number, request in enumerate(requested.pixel):
        slope = _slope_of_sum(slopes, ("pixel", number), p)
        memory = out if number == 0 else buffers.take("product", p.shape, p, p.dtype)
        gradient = _softmax_pixel_gradient(p, mask, request, slope, buffers, memory)
        if number > 0:
            out.add_(gradient)
    return out


def _softmax_total(log_p: Tensor, mask: MaskChunk, request: PixelSums, buffers: ScratchBuffers) -> Tensor:
    """The sum of a pixel function over a chunk, [b, 1]."""
    total = weighted_sum(_softmax_values(log_p, mask, request, buffers), mask.weight)
    if total.shape[1] > 1 and request.class_weights is not None:
        total = total * request.class_weights.to(log_p.dtype)
    total = total.sum(1, keepdim=True) * (request.function.constant_slope or 1)
    if request.smoothing:
        spread = weighted_sum(request.function.value(log_p), mask.weight)
        if request.class_weights is not None:
            spread = spread * request.class_weights.to(log_p.dtype)
        total = (1 - request.smoothing) * total + request.smoothing * spread.mean(1, keepdim=True)
    return total


def _softmax_values(log_p: Tensor, mask: MaskChunk, request: PixelSums, buffers: ScratchBuffers) -> Tensor:
    """The terms whose sum is the total of a pixel function, apart from smoothing.

    Functions with a constant slope, which are multiples of log p: log p times the share of each class, [b, K, n].
    Soft targets: the function times the share of each class, [b, K, n]. Both are without class weights.
    Otherwise: the function at the pixel's class, [b, 1, n], with its class weight.
    """
    if request.function.constant_slope is not None:
        return torch.mul(log_p, mask.share, out=buffers("product", log_p.shape, log_p, log_p.dtype))
    if mask.soft:
        return request.function.value(log_p) * mask.share
    product = torch.mul(log_p, mask.share, out=buffers("product", log_p.shape, log_p, log_p.dtype))
    values = request.function.value(product.sum(1, keepdim=True))
    return values if request.class_weights is None else values * _weight_of_pixel(mask, request.class_weights)


def _weight_of_pixel(mask: MaskChunk, class_weights: Tensor) -> Tensor:
    """The class weight of each pixel of a hard mask, [b, 1, n]; 0 at ignored pixels.

    A matrix product would be rounded by autocast and TF32.
    """
    return (class_weights.to(mask.share.dtype).view(1, -1, 1) * mask.share).sum(1, keepdim=True)


def _softmax_pixel_gradient(
    p: Tensor, mask: MaskChunk, request: PixelSums, slope: Tensor, buffers: ScratchBuffers, out: Tensor
) -> Tensor:
    """The gradient of the logits through one pixel function, in `out` [b, K, n].

    slope: the derivative with respect to its sum, [b, 1, 1].
    """
    if not mask.soft and not request.smoothing:
        # u is s at the pixel's class and 0 elsewhere, so the gradient is s (share - p), which is 0 at ignored pixels
        pixel_slope = _slope_of_pixel(p, mask, request, slope, buffers)
        return torch.sub(mask.share, p, out=out).mul_(pixel_slope)
    class_slopes = _slope_of_classes(p, mask, request, slope)
    return torch.sub(class_slopes, p * class_slopes.sum(1, keepdim=True), out=out)


def _slope_of_pixel(p: Tensor, mask: MaskChunk, request: PixelSums, slope: Tensor, buffers: ScratchBuffers) -> Tensor:
    """dL/d log p for the class of each pixel of a hard mask, [b, 1, 1 or n]."""
    constant = request.function.constant_slope
    if constant is None:
        product = torch.mul(p, mask.share, out=buffers("product", p.shape, p, p.dtype))
        slope = slope * request.function.slope(product.sum(1, keepdim=True), None)
    else:
        slope = slope * constant
    if request.class_weights is not None:
        slope = slope * _weight_of_pixel(mask, request.class_weights)
    return slope if mask.weight is None else slope * mask.weight


def _slope_of_classes(p: Tensor, mask: MaskChunk, request: PixelSums, slope: Tensor) -> Tensor:
    """dL/d log p for every class, [b, K, n], where a pixel has shares of several classes."""
    constant = request.function.constant_slope
    class_slopes = mask.share * ((1 - request.smoothing) * slope)
    class_slopes = class_slopes * (request.function.slope(p, None) if constant is None else constant)
    if request.smoothing:
        assert constant is not None
        uniform = (constant * request.smoothing / p.shape[1] * slope).expand_as(p).contiguous()
        class_slopes = class_slopes + select(uniform, mask.valid)
    if request.class_weights is not None:
        class_slopes = class_slopes * request.class_weights.to(p.dtype).view(1, -1, 1)
    return class_slopes if mask.weight is None else class_slopes * mask.weight


def pixel_losses(chunk: Chunk, request: PixelSums, buffers: ScratchBuffers) -> tuple[Tensor, Tensor]:
    """The loss of each entry and whether it is valid, [b, 1, n] each with a softmax, [b, K, n] with a sigmoid.

    Class weights are left out.
    """
    mask = chunk.mask
    if request.activation == "softmax":
        values = _softmax_values(log_softmax(chunk, buffers), mask, request, buffers).sum(1, keepdim=True)
        values = values * (request.function.constant_slope or 1)
    else:
        values = select(_sigmoid_values(chunk.logits, mask, request), mask.valid)
    return values, torch.ones_like(values, dtype=torch.bool) if mask.valid is None else mask.valid.expand_as(values)


class Sigmoid:
    """Independent channels: one binary class, or overlapping classes."""

    @staticmethod
    def probabilities(
        chunk: Chunk,
        requested: RequestedSums,  # noqa: ARG004
        buffers: ScratchBuffers,
        kept: Tensor | None = None,
    ) -> Tensor:
        """The probability of each channel, [b, K, n], 0 where ignored; also written to `kept` if it is given."""
        if torch.compiler.is_compiling():
            return select(select(chunk.logits, chunk.mask.valid).sigmoid(), chunk.mask.valid)
        p = torch.sigmoid(chunk.logits, out=buffers.for_kept("p", chunk.logits, kept))
        return keep_copy(select(p, chunk.mask.valid), kept)

    @staticmethod
    def kept_probabilities(
        kept: Tensor,
        mask: MaskChunk,  # noqa: ARG004
        requested: RequestedSums,  # noqa: ARG004
        buffers: ScratchBuffers,
    ) -> Tensor:
        """The probabilities that `sums` wrote to the memory that `gradient` gets as `out`, which it writes last."""
        return kept if kept.is_contiguous() else buffers.copy("p", kept, kept.dtype)

    @staticmethod
    def keeps(requested: RequestedSums) -> bool:
        """Whether `sums` keeps anything for the backward."""
        return requested.of_probabilities

    @staticmethod
    def sums(chunk: Chunk, requested: RequestedSums, buffers: ScratchBuffers, kept: Tensor | None) -> list[Tensor]:
        """The sums of a chunk in the order of `requested.names`, [b, K] each, [b, 1] for pixel functions.

        kept: memory for the probabilities, [b, K, n], that `gradient` uses later; None if it does not.
        """
        mask, sums = chunk.mask, []
        logits = select(chunk.logits, mask.valid) if torch.compiler.is_compiling() else chunk.logits
        if requested.of_probabilities:
            sums = probability_sums(Sigmoid.probabilities(chunk, requested, buffers, kept), mask, requested, buffers)
        for request in requested.pixel:
            values = select(_sigmoid_values(logits, mask, request), mask.valid)
            sums.append(weighted_sum(values, mask.weight).sum(1, keepdim=True))
        return sums

    @staticmethod
    def gradient(
        p: Tensor, mask: MaskChunk, requested: RequestedSums, slopes: Slopes, buffers: ScratchBuffers, out: Tensor
    ) -> None:
        """Write the gradient of a chunk's logits into `out` [b, K, n].

        p: the probabilities. slopes: the derivatives with respect to the sums, in the shapes of the sums.
        """
        gradient = buffers.take("gradient", p.shape, p, p.dtype)
        gradient.zero_()
        if requested.of_probabilities:
            gradient += _probability_slope(p, mask, requested, slopes, buffers).mul_(p).mul_(1 - p)
        for number, request in enumerate(requested.pixel):
            pixel_gradient = _sigmoid_slope(p, mask, request).mul_(_slope_of_sum(slopes, ("pixel", number), p))
            gradient += pixel_gradient if mask.weight is None else pixel_gradient.mul_(mask.weight)
        out.copy_(select(gradient, mask.valid))


def _outcomes(mask: MaskChunk, request: PixelSums) -> list[tuple[Tensor, Tensor, Tensor | float]]:
    """The possible outcomes of a channel, each as its share [b, K, n], the sign of the logit, and its class weight.

    A hard mask has one outcome per pixel, with sign 1 for presence and -1 for absence; a soft mask has shares of both.
    """
    share, weights = mask.share, request.class_weights
    absent, present = (1.0, 1.0) if weights is None else weights.to(share.dtype).unsqueeze(-1).unbind(0)
    positive = torch.ones_like(share[:1, :1, :1])
    if not mask.soft and not request.smoothing:
        weight = 1.0 if weights is None else absent + share * (present - absent)
        return [(positive, 2 * share - 1, weight)]
    share = share * (1 - request.smoothing) + request.smoothing / 2
    return [(share, positive, present), (1 - share, -positive, absent)]


def _sigmoid_values(logits: Tensor, mask: MaskChunk, request: PixelSums) -> Tensor:
    """The pixel function of each channel, multiplied by class weights and shares, [b, K, n]."""
    total = torch.zeros_like(logits)
    for share, sign, weight in _outcomes(mask, request):
        total = total + request.function.value(bounded(F.logsigmoid(sign * logits))) * share * weight
    return total


def _sigmoid_slope(p: Tensor, mask: MaskChunk, request: PixelSums) -> Tensor:
    """The derivative of a pixel function with respect to each logit, [b, K, n]."""
    total = torch.zeros_like(p)
    for share, sign, weight in _outcomes(mask, request):
        present = sign > 0
        likelihood, other = torch.where(present, p, 1 - p), torch.where(present, 1 - p, p)
        constant = request.function.constant_slope
        slope = request.function.slope(likelihood, other) if constant is None else constant
        # d log sigmoid(sign z) / dz = sign * other; 1 - likelihood would lose the digits of a small `other`
        total = total + slope * other * sign * share * weight
    return total


KERNELS: dict[Activation, type[Softmax] | type[Sigmoid]] = {"softmax": Softmax, "sigmoid": Sigmoid}
