"""The cross-entropy of the hardest pixels alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.chunking import Batch, ScratchBuffers, activation_of, pieces
from segkit.losses.kernels import pixel_losses
from segkit.losses.pass_requests import Needs, PixelSums
from segkit.losses.pixel import NegativeLog
from segkit.losses.region import divided
from segkit.losses.shared_pass import PixelTotals, precise_type, run_pass


class TopkCrossEntropy(nn.Module):
    """The mean of the cross-entropy over the `share` of valid pixels where it is largest (Wu et al. 2016).

    share: in (0, 1], of the batch. Where channels stand alone, an entry is a pixel of a channel. Pixels at the
        threshold share what is left of that number, so that order does not matter.
    rounding: of the number of pixels, `up` or `down`, but to no less than one.

    The threshold is found by bisection of its bits, without sorting and without reading anything back. Targets may be
    soft. Ignored pixels are not among those counted; all ignored gives 0. In [0, inf). Raises ValueError for pixel
    weights, which would have to change the ranking, and at build for another share.
    """

    def __init__(self, *, labels: Labels, share: float = 0.1, rounding: Literal["up", "down"] = "up") -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"expected share above 0 and up to 1, got {share}")
        self.labels, self.share, self.rounding = labels, share, rounding
        self.asked = PixelSums("topk_cross_entropy", activation_of(labels), NegativeLog())

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """The loss of logits [B, K, *S], a scalar."""
        if target.pixel_weight is not None:
            raise ValueError("topk_cross_entropy ranks pixels, so it knows no pixel_weight; use cross_entropy with one")
        batch = Batch(logits, target, self.labels, self.asked.activation)
        Needs.of([self.asked]).check(batch)
        with torch.no_grad():
            losses, valid = self._losses(batch)
            number = self._number(valid.sum())
            chosen = largest(losses, valid, number).to(batch.work_type).view(losses.shape[0], -1, *logits.shape[2:])
        weighted = replace(batch, target=replace(target, pixel_weight=chosen))
        (totals,) = run_pass(weighted, [self.asked])
        assert isinstance(totals, PixelTotals)
        return divided(totals.total, number.to(totals.total.dtype))

    def _number(self, valid: Tensor) -> Tensor:
        """How many of so many valid entries count."""
        # 0.1 * 30 is a little more than 3, which is not meant to round up to 4; 0.29 * 100 a little less than 29
        number = valid.to(precise_type(valid.device)) * self.share
        slack = 4 * torch.finfo(number.dtype).eps * number
        rounded = (number - slack).ceil() if self.rounding == "up" else (number + slack).floor()
        return torch.where(valid > 0, rounded.clamp(min=1), 0)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each entry and whether it is valid, [B, 1 or K, N]."""
        buffers = ScratchBuffers()
        if torch.compiler.is_compiling():
            return pixel_losses(batch.chunk(next(pieces(batch.logits)), buffers), self.asked, buffers)
        entries = 1 if batch.activation == "softmax" else batch.logits.shape[1]
        shape, device = (batch.logits.shape[0], entries, batch.size), batch.logits.device
        losses = torch.empty(shape, dtype=batch.work_type, device=device)
        valid = torch.empty(shape, dtype=torch.bool, device=device)
        for piece in batch.pieces():
            place = (piece.images, slice(None), piece.pixels)
            losses[place], valid[place] = pixel_losses(batch.chunk(piece, buffers), self.asked, buffers)
        return losses, valid


def largest(values: Tensor, valid: Tensor, number: Tensor) -> Tensor:
    """1 for the `number` largest of the valid values, 0 for the others; those that tie for the last places share them.

    values: floating, at least 0. number: a scalar on their device. Nothing is read back.
    """
    # Floating numbers of at least 0 are ordered as their bits are, so the threshold is a whole number to be bisected.
    whole = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = torch.where(valid, values.clamp(min=0), 0).view(whole)
    bits = torch.where(valid, bits, -1)
    low = torch.zeros((), dtype=whole, device=values.device)
    high = torch.full_like(low, torch.iinfo(whole).max)
    for _bit in range(torch.iinfo(whole).bits - 1):
        middle = low + (high - low) // 2 + 1
        enough = (bits >= middle).sum() >= number
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    above, ties = bits > low, bits == low
    rest = (number - above.sum()) / ties.sum().clamp(min=1)
    return torch.where(ties, rest.to(values.dtype), 0).add_(above)
