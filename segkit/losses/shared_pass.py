"""The one pass over the logits that the terms of a loss share: sums over pixels for each image and class.

A term says what sums it needs (`RegionSums`, `PixelSums`); terms of one activation share its softmax or sigmoid and
their
backward. The backward is written out (see `kernels`): from the slope of the loss for each sum it makes the gradient of
the logits piece by piece, so that nothing is kept for it but the logits, the mask and the memory of the gradient.
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
    memory_for_gradient,
    pieces,
    refuse_second_derivative,
    weighted_sum,
)
from segkit.losses.kernels import KERNELS
from segkit.losses.pass_requests import TP, Needs, PixelSums, RegionSums

__all__ = ["Activation", "MaskSums", "PixelSums", "PixelTotals", "RegionSums", "Statistics", "mask_sums", "run_pass"]

Sums = RegionSums | PixelSums


@dataclass(frozen=True)
class Statistics:
    """What region terms are made of, each floating [B, K]; with `per: batch` pooled to [1, K].

    tp: the probability on the pixels of the class, for soft targets the sum of min(probability, share).
    predicted: the sum of the probabilities, or of their squares with `power` 2.
    reference: the pixels of the class, for soft targets the sum of share^power; 0 for a class that is absent.
    pixels: the valid pixels; 0 where everything is ignored.

    Only valid pixels are in the sums, each times its pixel weight.
    """

    tp: Tensor
    predicted: Tensor
    reference: Tensor
    pixels: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.tp, self.predicted, self.reference, self.pixels

    def pooled(self) -> Statistics:
        """The sums over the batch, [1, K]."""
        return Statistics(*(sums.sum(0, keepdim=True) for sums in self.tensors))


@dataclass(frozen=True)
class PixelTotals:
    """What pixel terms are made of: the sum of the function over the batch, a scalar, and the sums over the mask."""

    total: Tensor
    mask: MaskSums


@dataclass(frozen=True)
class MaskSums:
    """What the target alone says, each floating [B, K] and without gradient.

    reference, squared: the pixels of each class, times their weights; for soft targets the sums of the shares and of
    their squares. pixels: the valid pixels times their weights. valid: their number. size: all pixels of an image.
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
    totals = _totals(batch, 4 * batch.logits.shape[1], lambda piece: _of_mask(batch.mask_chunk(piece, buffers)))
    return _as_mask_sums(totals.to(batch.work_type), batch)


def _of_mask(mask: MaskChunk) -> list[Tensor]:
    """The four sums of `MaskSums` over a chunk, [b, K] each."""
    images, channels, pixels = mask.share.shape
    if mask.valid is None:
        valid = torch.full((images, channels), pixels, dtype=mask.share.dtype, device=mask.share.device)
    else:
        bits = mask.valid.view(torch.uint8)  # whose sum takes a third of the time
        valid = bits.sum(-1, dtype=torch.int32).expand(images, channels)
    counted = valid if mask.weight is None else mask.weight.sum(-1).expand(images, channels)
    if torch.compiler.is_compiling() and mask.weight is None and not mask.soft:  # in one piece of any number of pixels
        first = mask.share.sum(-1, dtype=precise_type(mask.share.device))
    else:
        first = weighted_sum(mask.share, mask.weight)
    return [first, weighted_sum(mask.share.square(), mask.weight) if mask.soft else first, counted, valid]


def _as_mask_sums(totals: Tensor, batch: Batch) -> MaskSums:
    reference, squared, pixels, valid = totals.chunk(4, 1)
    return MaskSums(reference, squared, pixels, valid, batch.size)


def run_pass(batch: Batch, asked: Sequence[Sums]) -> list[Statistics | PixelTotals]:
    """Everything that was asked for, in one pass; what is asked twice is summed once. `batch.activation` is that of
    all.

    Raises ValueError if a pixel function is asked for that is not defined for the target.
    """
    needs = Needs.of(asked)
    needs.check(batch)
    if torch.compiler.is_compiling():  # plain operations, of which the compiler makes a fused pass itself
        buffers = ScratchBuffers()
        chunk = batch.chunk(next(pieces(batch.logits)), buffers)
        sums = torch.cat(KERNELS[batch.activation].sums(chunk, needs, buffers, None), 1)
        of_mask = torch.cat([one.to(precise_type(batch.logits.device)) for one in _of_mask(chunk.mask)], 1)
    else:
        sums, of_mask = cast(
            tuple[Tensor, Tensor], _SharedPass.apply(batch.logits, batch, needs, torch.is_grad_enabled())
        )
    if batch.target.index is not None and batch.labels.mode == "multiclass" and batch.plain:
        counted = _as_mask_sums(of_mask, batch)  # before rounding: float32 does not tell numbers above 2^24 apart
        batch.labels.assert_counted(counted.reference, counted.valid)
    mask = _as_mask_sums(of_mask.to(batch.work_type), batch)
    found = needs.named(sums, batch.logits.shape[1])
    totals = iter([sums for name, sums in found.items() if name[0] == "pixel"])  # in the order they were asked for
    return [
        PixelTotals(next(totals).sum(), mask) if isinstance(one, PixelSums) else _statistics(one, found, mask)
        for one in asked
    ]


def _statistics(asked: RegionSums, found: dict[Any, Tensor], mask: MaskSums) -> Statistics:
    reference = mask.reference if asked.power == 1 else mask.squared
    return Statistics(found[TP], found["predicted", asked.power], reference, mask.pixels)


class _SharedPass(torch.autograd.Function):
    """(logits, batch, needs, training) -> the sums that `needs` names, [B, their channels], and those of `MaskSums`.

    training: whether a gradient may be asked for.

    The exponentials of a softmax are most of the work, so probabilities that the sums are made of are not made twice:
    they are kept in the memory that the backward turns into the gradient. The peak is that of making them again, since
    a gradient has to be somewhere. A second backward through the same graph does make them again.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: Batch, needs: Needs, training: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, *batch.target_tensors)
        ctx.without_tensors, ctx.needs = batch.without_tensors(), needs
        kernel, buffers, channels = KERNELS[batch.activation], ScratchBuffers(), logits.shape[1]
        keeps = training and logits.requires_grad and needs.powers and logits.dtype == batch.work_type
        ctx.kept = memory_for_gradient(logits) if keeps else None

        def of_piece(piece: Slice) -> list[Tensor]:
            chunk = batch.chunk(piece, buffers)
            place = None if ctx.kept is None else piece.of(ctx.kept)
            return [*kernel.sums(chunk, needs, buffers, place), *_of_mask(chunk.mask)]

        width = needs.width(channels)
        totals = _totals(batch, width + 4 * channels, of_piece, needs.smaller)
        sums, of_mask = totals[:, :width].to(batch.work_type), totals[:, width:].contiguous()
        ctx.mark_non_differentiable(of_mask)
        return sums, of_mask

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        batch, needs, buffers = ctx.without_tensors.with_tensors(*ctx.saved_tensors), ctx.needs, ScratchBuffers()
        logits, kernel = batch.logits, KERNELS[batch.activation]
        kept, ctx.kept = ctx.kept, None  # it goes out as the gradient
        gradient = memory_for_gradient(logits) if kept is None else kept
        for piece in batch.pieces(needs.smaller):
            place = piece.of(gradient)
            if kept is None:
                chunk = batch.chunk(piece, buffers)
                p, mask = kernel.probabilities(chunk, buffers), chunk.mask
            else:
                p, mask = kernel.kept_probabilities(place, buffers), batch.mask_chunk(piece, buffers)
            out = place if place.dtype == p.dtype else torch.empty_like(place, dtype=p.dtype)
            kernel.gradient(p, mask, needs, needs.named(slopes[0][piece.images], logits.shape[1]), buffers, out)
            if out is not place:
                place.copy_(out)
        return gradient, None, None, None


def _totals(batch: Batch, width: int, of_piece: Callable[[Slice], list[Tensor]], smaller: int = 1) -> Tensor:
    """What `of_piece` gives, [b, some of the width] each, side by side and added up over the pieces, [B, width].

    In float64 where the device has it, so that adding up pieces costs no digits.
    """
    if torch.compiler.is_compiling():
        totals = torch.cat(of_piece(next(pieces(batch.logits))), 1)
    else:
        device = batch.logits.device
        totals = torch.zeros(batch.logits.shape[0], width, dtype=precise_type(device), device=device)
        for piece in batch.pieces(smaller):
            totals[piece.images].add_(torch.cat(of_piece(piece), 1))
    return totals


def precise_type(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
