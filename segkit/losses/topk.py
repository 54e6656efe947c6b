"""The cross-entropy over the pixels with the largest loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.chunking import Batch, ScratchBuffers, activation_of, chunk_slices, precise_type
from segkit.losses.kernels import pixel_losses
from segkit.losses.pass_requests import PixelSums, RequestedSums
from segkit.losses.pixel import NegativeLog
from segkit.losses.region import divided
from segkit.losses.shared_pass import PixelTotals, run_pass


class RankedCrossEntropy(nn.Module):
    """The base of losses that are the mean of the cross-entropy over the pixels with the largest loss.

    name: the name of the loss, for error messages.
    """

    def __init__(self, name: str, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        self.request = PixelSums(name, activation_of(labels), NegativeLog())

    def number(self, losses: Tensor, valid: Tensor) -> Tensor:
        """The number of entries in the mean, a scalar, from the loss of each entry and whether it is valid."""
        raise NotImplementedError

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """The loss of logits [B, K, *S], a scalar."""
        if target.pixel_weight is not None:
            raise ValueError(
                f"{self.request.name} ranks pixels, so it does not support pixel_weight; use cross_entropy instead"
            )
        batch = Batch(logits, target, self.labels, self.request.activation)
        RequestedSums.of([self.request]).check(batch)
        with torch.no_grad():
            losses, valid = self._losses(batch)
            number = self.number(losses, valid)
            chosen = largest(losses, valid, number).to(batch.work_type).view(losses.shape[0], -1, *logits.shape[2:])
        weighted = replace(batch, target=replace(target, pixel_weight=chosen))
        (totals,) = run_pass(weighted, [self.request])
        assert isinstance(totals, PixelTotals)
        return divided(totals.total, number.to(totals.total.dtype))

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each entry and whether it is valid, [B, 1 or K, N]."""
        buffers = ScratchBuffers()
        if torch.compiler.is_compiling():
            return pixel_losses(batch.chunk(next(chunk_slices(batch.logits)), buffers), self.request, buffers)
        entries = 1 if batch.activation == "softmax" else batch.logits.shape[1]
        shape, device = (batch.logits.shape[0], entries, batch.size), batch.logits.device
        losses = torch.empty(shape, dtype=batch.work_type, device=device)
        valid = torch.empty(shape, dtype=torch.bool, device=device)
        for chunk_slice in batch.chunk_slices():
            position = (chunk_slice.images, slice(None), chunk_slice.pixels)
            losses[position], valid[position] = pixel_losses(batch.chunk(chunk_slice, buffers), self.request, buffers)
        return losses, valid


class TopkCrossEntropy(RankedCrossEntropy):
    """The mean of the cross-entropy over the `share` of valid pixels with the largest loss (Wu et al. 2016).

    share: in (0, 1], of the valid pixels of the batch. In binary and multilabel mode each pixel of each channel is one
        entry. Pixels that tie at the threshold share the remaining places equally, so the order of pixels has no
        effect.
    rounding: how the number of pixels is rounded, `up` or `down`; it is at least 1.

    The threshold is found by bisection of its bits, without sorting and without a host synchronisation. Targets may be
    soft. Ignored pixels do not contribute; if all pixels are ignored, the loss is 0. Values lie in [0, inf); a log p
    below -2^64 counts as that, as for `cross_entropy`. Raises ValueError for pixel weights, which would have to change
    the ranking, and at build for a share outside (0, 1].
    """

    def __init__(self, *, labels: Labels, share: float = 0.1, rounding: Literal["up", "down"] = "up") -> None:
        super().__init__("topk_cross_entropy", labels)
        if not 0 < share <= 1:
            raise ValueError(f"expected share above 0 and at most 1, got {share}")
        self.share, self.rounding = share, rounding

    def number(self, losses: Tensor, valid: Tensor) -> Tensor:  # noqa: ARG002
        """The number of entries in the mean."""
        total = valid.sum()
        number = total.to(precise_type(valid.device)) * self.share
        rounded = rounded_up(number) if self.rounding == "up" else rounded_down(number)
        return torch.where(total > 0, rounded.clamp(min=1), 0)


def rounded_up(number: Tensor) -> Tensor:
    """A share of a number of pixels, rounded up. In floating point, 0.1 * 30 is slightly more than 3, but is not
    rounded up to 4."""
    return (number - 4 * torch.finfo(number.dtype).eps * number).ceil()


def rounded_down(number: Tensor) -> Tensor:
    """A share of a number of pixels, rounded down. In floating point, 0.29 * 100 is slightly less than 29, but is not
    rounded down to 28."""
    return (number + 4 * torch.finfo(number.dtype).eps * number).floor()


def largest(values: Tensor, valid: Tensor, number: Tensor) -> Tensor:
    """Weights: 1 for the `number` largest of the valid values, 0 for the others; ties for the last places share them.

    values: floating, at least 0. number: a scalar on the same device. There is no host synchronisation.
    """
    # Floating numbers of at least 0 have the same order as their bits, so the threshold can be bisected as an integer.
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = torch.where(valid, values.clamp(min=0), 0).view(integer)
    bits = torch.where(valid, bits, -1)
    low = torch.zeros((), dtype=integer, device=values.device)
    high = torch.full_like(low, torch.iinfo(integer).max)
    for _bit in range(torch.iinfo(integer).bits - 1):
        middle = low + (high - low) // 2 + 1
        enough = (bits >= middle).sum() >= number
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    above, ties = bits > low, bits == low
    tie_weight = (number - above.sum()) / ties.sum().clamp(min=1)
    return torch.where(ties, tie_weight.to(values.dtype), 0).add_(above)
