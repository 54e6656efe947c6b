"""The one pass over the logits that the terms of a loss share: sums over pixels for each image and class.

A term says what sums it needs (`RegionSums`, `PixelSums`); terms of one link share its softmax or sigmoid and their
backward. The backward is written out (see `kernels`): from the slope of the loss for each sum it makes the gradient of
the logits piece by piece, so that nothing is kept for it but the logits and the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segkit.losses.chunks import Batch, Link, MaskChunk, Piece, Room, pieces, refuse_second_derivative, weighted_sum
from segkit.losses.kernels import KERNELS, TP, Needs, PixelSums, RegionSums

__all__ = ["Link", "MaskSums", "PixelSums", "PixelTotals", "RegionSums", "Statistics", "mask_sums", "run_pass"]

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
    totals, room = [_accumulator(batch, batch.logits.shape[1]) for _ in range(4)], Room()
    for piece in pieces(batch.logits):
        totals = _added(totals, piece, _of_mask(batch.mask_chunk(piece, room)))
    first, second, counted, valid = (total.to(batch.work_type) for total in totals)
    return MaskSums(first, second, counted, valid, batch.size)


def _of_mask(mask: MaskChunk) -> list[Tensor]:
    """The four sums of `MaskSums` over a chunk, [b, K] each."""
    images, channels, pixels = mask.share.shape
    everything = torch.full((images, channels), pixels, dtype=mask.share.dtype, device=mask.share.device)
    valid = everything if mask.valid is None else mask.valid.sum(-1).expand_as(everything)
    counted = valid if mask.weight is None else mask.weight.sum(-1).expand_as(everything)
    first = weighted_sum(mask.share, mask.weight)
    return [first, weighted_sum(mask.share.square(), mask.weight) if mask.soft else first, counted, valid]


def run_pass(batch: Batch, asked: Sequence[Sums]) -> list[Statistics | PixelTotals]:
    """Everything that was asked for, in one pass; what is asked twice is summed once. `batch.link` is that of all.

    Raises ValueError if a pixel function is asked for that is not defined for the target.
    """
    needs = Needs.of(asked)
    needs.check(batch)
    if torch.compiler.is_compiling():  # plain operations, of which the compiler makes a fused pass itself
        room = Room()
        chunk = batch.chunk(next(pieces(batch.logits)), room)
        sums = [
            *KERNELS[batch.link].sums(chunk, needs, room),
            *(one.to(batch.work_type) for one in _of_mask(chunk.mask)),
        ]
    else:
        sums = _SharedPass.apply(batch.logits, batch, needs)
        assert isinstance(sums, tuple)
    reference, squared, pixels, valid = sums[-4:]
    mask = MaskSums(reference, squared, pixels, valid, batch.size)
    if batch.target.index is not None and batch.labels.mode == "multiclass" and batch.plain:
        batch.labels.assert_counted(mask.reference, mask.valid)
    found = dict(zip(needs.names, sums[:-4], strict=True))
    totals = iter([sums for name, sums in found.items() if name[0] == "pixel"])  # in the order they were asked for
    return [
        PixelTotals(next(totals).sum(), mask) if isinstance(one, PixelSums) else _statistics(one, found, mask)
        for one in asked
    ]


def _statistics(asked: RegionSums, found: dict[Any, Tensor], mask: MaskSums) -> Statistics:
    reference = mask.reference if asked.power == 1 else mask.squared
    return Statistics(found[TP], found["predicted", asked.power], reference, mask.pixels)


class _SharedPass(torch.autograd.Function):
    """(logits, batch, needs) -> the sums that `needs` names, [B, K] or [B, 1] each, and the four of `MaskSums`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: Batch, needs: Needs) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits)
        ctx.batch, ctx.needs = batch, needs
        channels = [1 if name[0] == "pixel" else logits.shape[1] for name in needs.names] + 4 * [logits.shape[1]]
        totals, room = [_accumulator(batch, number) for number in channels], Room()
        for piece in pieces(logits):
            chunk = batch.chunk(piece, room)
            of_mask = _of_mask(chunk.mask)
            totals = _added(totals, piece, [*KERNELS[batch.link].sums(chunk, needs, room), *of_mask])
        sums = tuple(total.to(batch.work_type) for total in totals)
        ctx.mark_non_differentiable(*sums[-4:])
        return sums

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        (logits,) = ctx.saved_tensors
        batch, needs, room = ctx.batch, ctx.needs, Room()
        gradient = torch.empty_like(logits)
        flat = gradient.flatten(2)
        for piece in pieces(logits):
            here = dict(zip(needs.names, (slope[piece.images] for slope in slopes[:-4]), strict=True))
            place = flat[piece.images, :, piece.pixels]
            out = place if place.dtype == batch.work_type else torch.empty_like(place, dtype=batch.work_type)
            KERNELS[batch.link].gradient(batch.chunk(piece, room), needs, here, room, out)
            if out is not place:
                place.copy_(out)
        return gradient, None, None


def _accumulator(batch: Batch, channels: int) -> Tensor:
    """Zeros [B, channels] in float64 where the device has it, so that adding up pieces costs no digits."""
    device = batch.logits.device
    return torch.zeros(
        batch.logits.shape[0], channels, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
    )


def _added(totals: Sequence[Tensor], piece: Piece, sums: Sequence[Tensor]) -> list[Tensor]:
    if torch.compiler.is_compiling():
        return [total + one for total, one in zip(totals, sums, strict=True)]
    for total, one in zip(totals, sums, strict=True):
        total[piece.images] += one
    return list(totals)
