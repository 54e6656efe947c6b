"""One pass over the logits that all terms of a loss share: sums over pixels for each image and class.

A differentiable formula in plain torch keeps several intermediate tensors of the size of the logits for its backward.
This pass keeps none: it goes through the batch in chunks, and its hand-written backward (see `kernels`) turns the
derivatives of the loss with respect to the sums into the gradient of the logits, again chunk by chunk. Between the two
only the logits, the target and the memory of the gradient exist. The pixel and region losses therefore compute value
and gradient in at most two logit sizes of extra memory, the gradient included, where most implementations in other
libraries take three to eight (measured in docs/benchmarks/losses.md). tests/losses/test_reference.py checks value and
gradient against tests/support/reference_losses.py, which has every loss in a few lines of plain torch.

A term states the sums that it needs (`RegionSums`, `PixelSums`). Terms with the same activation share one softmax or
sigmoid and one backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from segkit.losses.chunking import (
    Activation,
    Batch,
    MaskChunk,
    ScratchBuffers,
    Slice,
    chunk_slices,
    memory_for_gradient,
    precise_type,
    refuse_second_derivative,
    weighted_sum,
)
from segkit.losses.kernels import KERNELS
from segkit.losses.pass_requests import (
    GROUP_SUMS,
    GroupSums,
    MapSums,
    PixelSums,
    RegionSums,
    Request,
    RequestedSums,
)

__all__ = [
    "Activation",
    "GroupSums",
    "GroupTotals",
    "MapSums",
    "MapTotals",
    "MaskSums",
    "PixelSums",
    "PixelTotals",
    "RegionSums",
    "Statistics",
    "mask_sums",
    "run_pass",
    "sums_of_chunks",
]


@dataclass(frozen=True)
class Statistics:
    """The sums from which region terms are computed, each floating [B, K], or [1, K] when pooled with `per: batch`.

    tp: the probability on the pixels of the class; for soft targets the sum of min(probability, share), with `power` 2
        of probability * share.
    predicted: the sum of the probabilities, or of their squares with `power` 2.
    reference: the number of pixels of the class, for soft targets the sum of share^power; 0 for an absent class.
    pixels: the number of valid pixels; 0 where everything is ignored.

    All sums run over valid pixels only, each multiplied by its pixel weight.
    """

    tp: Tensor
    predicted: Tensor
    reference: Tensor
    pixels: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.tp, self.predicted, self.reference, self.pixels


@dataclass(frozen=True)
class PixelTotals:
    """The sums from which pixel terms are computed: the sum of the function, a scalar, and the sums over the mask."""

    total: Tensor
    mask: MaskSums


@dataclass(frozen=True)
class MapTotals:
    """The sums of a request with maps, floating [B, K] each, and the sums over the mask."""

    sums: tuple[Tensor, ...]
    mask: MaskSums


@dataclass(frozen=True)
class GroupTotals:
    """The sums of each group of each class, floating [B, K, J] each, and the sums over the mask.

    predicted: of the probability. tp: of the probability on the pixels of the class. reference: their number.
    """

    predicted: Tensor
    tp: Tensor
    reference: Tensor
    mask: MaskSums


Totals = Statistics | PixelTotals | MapTotals | GroupTotals


@dataclass(frozen=True)
class MaskSums:
    """Sums that depend on the target alone, each floating [B, K] and without gradient.

    reference: the weighted number of pixels of each class; for soft targets the sum of the shares.
    squared: for soft targets the sum of the squared shares, otherwise the same as `reference`.
    pixels: the weighted number of valid pixels. valid: their unweighted number. size: the pixels of an image.
    """

    reference: Tensor
    squared: Tensor
    pixels: Tensor
    valid: Tensor
    size: int


@torch.no_grad()
def mask_sums(batch: Batch) -> MaskSums:
    """The sums over the target of a batch."""
    buffers = ScratchBuffers()

    def sums_of(chunk_slice: Slice) -> list[Tensor]:
        return _sums_of_mask(batch.mask_chunk(chunk_slice, buffers))

    totals = sums_of_chunks(batch, 4 * batch.logits.shape[1], sums_of)
    return _as_mask_sums(totals.to(batch.work_type), batch)


def _sums_of_mask(mask: MaskChunk) -> list[Tensor]:
    """The four sums of `MaskSums` over a chunk, [b, K] each."""
    images, channels, pixels = mask.share.shape
    if mask.valid is None:
        valid = torch.full((images, channels), pixels, dtype=mask.share.dtype, device=mask.share.device)
    else:
        bits = mask.valid.view(torch.uint8)  # summing bytes takes a third of the time of summing booleans
        # while compiling, the chunk is the whole batch; otherwise it has at most 2^24 pixels, which float32 can count
        integer = torch.int64 if torch.compiler.is_compiling() else torch.int32
        valid = bits.sum(-1, dtype=integer).expand(images, channels)
    weighted = valid if mask.weight is None else mask.weight.sum(-1).expand(images, channels)
    if torch.compiler.is_compiling() and mask.weight is None and not mask.soft:  # one chunk with any number of pixels
        reference = mask.share.sum(-1, dtype=precise_type(mask.share.device))
    else:
        reference = weighted_sum(mask.share, mask.weight)
    squared = weighted_sum(mask.share.square(), mask.weight) if mask.soft else reference
    return [reference, squared, weighted, valid]


def _as_mask_sums(totals: Tensor, batch: Batch) -> MaskSums:
    reference, squared, pixels, valid = totals.chunk(4, 1)
    return MaskSums(reference, squared, pixels, valid, batch.size)


def run_pass(batch: Batch, requests: Sequence[Request]) -> list[Totals]:
    """The results of all requests, in their order, from one pass; equal sums of probabilities are computed once.

    All requests have the activation of the batch. Raises ValueError if a requested sum is not defined for the target.
    """
    requested = RequestedSums.of(requests, batch.target.maps)
    requested.check(batch)
    if torch.compiler.is_compiling():  # plain operations, which the compiler fuses into one pass
        buffers = ScratchBuffers()
        chunk = batch.chunk(next(chunk_slices(batch.logits)), buffers)
        sums = torch.cat(KERNELS[batch.activation].sums(chunk, requested, buffers, None), 1)
        of_mask = torch.cat([column.to(precise_type(batch.logits.device)) for column in _sums_of_mask(chunk.mask)], 1)
    else:
        sums, of_mask = cast(
            tuple[Tensor, Tensor], _SharedPass.apply(batch.logits, batch, requested, torch.is_grad_enabled())
        )
    if batch.target.index is not None and batch.labels.mode == "multiclass" and batch.plain:
        exact = _as_mask_sums(of_mask, batch)  # before rounding: float32 cannot represent all integers above 2^24
        batch.labels.assert_counted(exact.reference, exact.valid)
    mask = _as_mask_sums(of_mask.to(batch.work_type), batch)
    named = requested.named(sums, batch.logits.shape[1])
    pixel_sums = iter([sums for name, sums in named.items() if name[0] == "pixel"])  # in the order of the requests
    return [
        PixelTotals(next(pixel_sums).sum(), mask) if isinstance(request, PixelSums) else _result(request, named, mask)
        for request in requests
    ]


def _result(request: RegionSums | MapSums | GroupSums, named: dict[Any, Tensor], mask: MaskSums) -> Totals:
    if isinstance(request, MapSums):
        return MapTotals(tuple(named["map", one] for one in request.sums), mask)
    if isinstance(request, GroupSums):
        channels = mask.reference.shape[1]
        predicted, tp, reference = (named[name, request].unflatten(1, (channels, -1)) for name in GROUP_SUMS)
        return GroupTotals(predicted, tp, reference, mask)
    reference = mask.reference if request.power == 1 else mask.squared
    return Statistics(named["tp", request.power], named["predicted", request.power], reference, mask.pixels)


class _SharedPass(torch.autograd.Function):
    """(logits, batch, requested, training) -> the requested sums [B, their width], and the concatenated `MaskSums`.

    training: whether a backward may follow.

    The exponentials of a softmax are most of the work, so the probabilities of region sums are computed once: the
    forward keeps them in the memory that the backward turns into the gradient. This does not raise the peak, since the
    gradient needs that memory anyway. A second backward through the same graph computes the probabilities again.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, batch: Batch, requested: RequestedSums, training: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, *batch.target_tensors)
        ctx.without_tensors, ctx.requested = batch.without_tensors(), requested
        kernel, buffers, channels = KERNELS[batch.activation], ScratchBuffers(), logits.shape[1]
        keeps = training and logits.requires_grad and kernel.keeps(requested) and logits.dtype == batch.work_type
        ctx.kept = memory_for_gradient(logits) if keeps else None

        def sums_of(chunk_slice: Slice) -> list[Tensor]:
            chunk = batch.chunk(chunk_slice, buffers)
            kept = None if ctx.kept is None else chunk_slice.of(ctx.kept)
            return [*kernel.sums(chunk, requested, buffers, kept), *_sums_of_mask(chunk.mask)]

        width = requested.width(channels)
        totals = sums_of_chunks(batch, width + 4 * channels, sums_of, requested.shrink)
        sums, of_mask = totals[:, :width].to(batch.work_type), totals[:, width:].contiguous()
        ctx.mark_non_differentiable(of_mask)
        return sums, of_mask

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        batch, requested = ctx.without_tensors.with_tensors(*ctx.saved_tensors), ctx.requested
        logits, kernel, buffers = batch.logits, KERNELS[batch.activation], ScratchBuffers()
        kept, ctx.kept = ctx.kept, None  # this memory is returned as the gradient
        gradient = memory_for_gradient(logits) if kept is None else kept
        for chunk_slice in batch.chunk_slices(requested.shrink):
            gradient_chunk = chunk_slice.of(gradient)
            if kept is None:
                chunk = batch.chunk(chunk_slice, buffers)
                p, mask = kernel.probabilities(chunk, requested, buffers), chunk.mask
            else:
                mask = batch.mask_chunk(chunk_slice, buffers)
                p = kernel.kept_probabilities(gradient_chunk, mask, requested, buffers)
            same_type = gradient_chunk.dtype == p.dtype
            out = gradient_chunk if same_type else torch.empty_like(gradient_chunk, dtype=p.dtype)
            chunk_slopes = requested.named(slopes[0][chunk_slice.images], logits.shape[1])
            kernel.gradient(p, mask, requested, chunk_slopes, buffers, out)
            if out is not gradient_chunk:
                gradient_chunk.copy_(out)
        return gradient, None, None, None


def sums_of_chunks(batch: Batch, width: int, sums_of: Callable[[Slice], list[Tensor]], shrink: int = 1) -> Tensor:
    """The sums of all chunks, added up and concatenated, [B, width]; `sums_of` returns those of one chunk, [b, ...]
    each.

    They are added in float64 where the device supports it, so that the addition loses no digits.
    """
    if torch.compiler.is_compiling():
        totals = torch.cat(sums_of(next(chunk_slices(batch.logits))), 1)
    else:
        device = batch.logits.device
        totals = torch.zeros(batch.logits.shape[0], width, dtype=precise_type(device), device=device)
        for chunk_slice in batch.chunk_slices(shrink):
            totals[chunk_slice.images].add_(torch.cat(sums_of(chunk_slice), 1))
    return totals
