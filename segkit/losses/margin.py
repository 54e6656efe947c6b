"""Margin-based label smoothing: the cross-entropy with a penalty of large distances between logits."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import (
    Activation,
    Batch,
    Chunk,
    ScratchBuffers,
    Slice,
    activation_of,
    bounded,
    memory_for_gradient,
    refuse_second_derivative,
    select,
    some_valid,
    weighted_sum,
)
from segkit.losses.kernels import KERNELS
from segkit.losses.limits import LARGEST_OPTION
from segkit.losses.pass_requests import PixelSums, RequestedSums
from segkit.losses.pixel import NegativeLog, PixelMean
from segkit.losses.shared_pass import MaskSums, PixelTotals, mask_sums, sums_of_chunks

SHRINK = 4  # chunks are smaller by this factor, to keep intermediate results within the size of the logits


class MarginLabelSmoothing(nn.Module):
    """-sum_i log p_i(class of i) / N + penalty mean_k max(0, max_j z_j - z_k - margin): the cross-entropy and a penalty
    of logits z that lie further than a margin below the largest of their pixel, averaged over pixels and classes (Liu
    et al. 2022).

    In binary and multilabel mode, absence and presence of a class are two classes with the logits 0 and z, so the
    penalty of an entry is max(0, |z| - margin) / 2.

    margin: 0 or more, a distance of logits; 0 penalises every distance, which is close to label smoothing.
    penalty: 0 or more, the weight of the penalty. The defaults, 10 and 0.1, are those of the authors' code.

    Targets may be soft. Both parts are divided by the number of valid pixels (entries in binary and multilabel mode),
    each counted with its pixel weight, as in the authors' code. Ignored pixels do not contribute; if all pixels are
    ignored, the loss is 0. A log p or a distance beyond 2^64 counts as that, as for `cross_entropy`. Raises ValueError
    at build for a negative margin or penalty.
    """

    def __init__(
        self, *, labels: Labels, reduce: Reduce = single_process, margin: float = 10.0, penalty: float = 0.1
    ) -> None:
        super().__init__()
        if not (0 <= margin <= LARGEST_OPTION and 0 <= penalty <= LARGEST_OPTION):
            raise ValueError(
                f"expected margin and penalty from 0 to {LARGEST_OPTION:g}, got margin {margin}, penalty {penalty}"
            )
        self.labels, self.margin, self.penalty = labels, margin, penalty
        self.activation: Activation = activation_of(labels)
        self.requested = RequestedSums.of([PixelSums("margin_label_smoothing", self.activation, NegativeLog())])
        self.mean = PixelMean(labels, None, reduce, self.activation, None, "weights")

    def forward(self, logits: Tensor, target: Target, count: Tensor | None = None) -> Tensor:
        """The loss of logits [B, K, *S], a scalar. count: a divisor to use instead of that of this batch."""
        batch = Batch(logits, target, self.labels, self.activation)
        self.requested.check(batch)
        if torch.compiler.is_compiling():
            totals = sums_of_chunks(batch, 1, lambda slice_: [self.chunk_total(batch.chunk(slice_, ScratchBuffers()))])
        else:
            totals = cast("Tensor", _MarginPass.apply(logits, batch, self))
        return self.mean(PixelTotals(totals.sum(), mask_sums(batch)), count)

    def count(self, mask: MaskSums) -> Tensor:
        """The divisor, a scalar, from the masks alone."""
        return self.mean.count(mask)

    def chunk_total(self, chunk: Chunk, buffers: ScratchBuffers | None = None) -> Tensor:
        """The sum of the loss over a chunk, [b, 1]."""
        excess = weighted_sum(_distances(chunk, self.activation).sub(self.margin).relu(), chunk.mask.weight)
        (cross_entropy,) = KERNELS[self.activation].sums(chunk, self.requested, buffers or ScratchBuffers(), None)
        return cross_entropy + self.penalty / self._classes(chunk) * excess.sum(1, keepdim=True)

    def penalty_slope(self, chunk: Chunk) -> Tensor:
        """The derivative of the sum of the penalty with respect to each logit of a chunk, [b, K, n]."""
        logits, mask = chunk.logits, chunk.mask
        exceeds = (_distances(chunk, self.activation) > self.margin).to(logits.dtype)
        if self.activation == "sigmoid":
            slope = exceeds * logits.sign()
        else:
            is_largest = (logits == logits.amax(1, keepdim=True)).to(logits.dtype)
            share = is_largest / is_largest.sum(1, keepdim=True)
            slope = share * exceeds.sum(1, keepdim=True) - exceeds
        slope = select(slope, mask.valid) * (self.penalty / self._classes(chunk))
        return slope if mask.weight is None else slope * mask.weight

    def _classes(self, chunk: Chunk) -> int:
        """The number of classes in the mean; two outcomes for each channel with a sigmoid."""
        return chunk.logits.shape[1] if self.activation == "softmax" else 2


def _distances(chunk: Chunk, activation: Activation) -> Tensor:
    """The distance of each logit to the largest of its pixel, with a sigmoid to 0, [b, K, n]; 0 at ignored pixels."""
    valid = some_valid(chunk.mask) if activation == "softmax" else chunk.mask.valid
    # for the compiler, the gradient at ignored pixels must not be 0 times NaN
    logits = select(chunk.logits, valid) if torch.compiler.is_compiling() else chunk.logits
    if activation == "sigmoid":
        return select(bounded(logits.abs()), valid)
    halves = logits / 2  # the differences of large logits overflow, but not their halves
    return select(2 * bounded(halves.amax(1, keepdim=True) - halves, 0.5), valid)


class _MarginPass(torch.autograd.Function):
    """(logits, batch, loss) -> the sum of the loss over each image, [B, 1]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: Batch, loss: MarginLabelSmoothing) -> Tensor:
        ctx.save_for_backward(logits, *batch.target_tensors)
        ctx.without_tensors, ctx.loss = batch.without_tensors(), loss
        buffers = ScratchBuffers()

        def sums_of(chunk_slice: Slice) -> list[Tensor]:
            return [loss.chunk_total(batch.chunk(chunk_slice, buffers), buffers)]

        return sums_of_chunks(batch, 1, sums_of, shrink=SHRINK).to(batch.work_type)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        loss: MarginLabelSmoothing = ctx.loss
        batch = ctx.without_tensors.with_tensors(*ctx.saved_tensors)
        kernel, buffers, requested = KERNELS[batch.activation], ScratchBuffers(), loss.requested
        gradient = memory_for_gradient(batch.logits)
        for chunk_slice in batch.chunk_slices(SHRINK):
            chunk, gradient_chunk = batch.chunk(chunk_slice, buffers), chunk_slice.of(gradient)
            slope = slopes[0][chunk_slice.images]
            of_penalty = loss.penalty_slope(chunk).mul_(slope.unsqueeze(-1))  # before the logits are overwritten
            p = kernel.probabilities(chunk, requested, buffers)
            out = torch.empty_like(p)
            kernel.gradient(p, chunk.mask, requested, requested.named(slope, p.shape[1]), buffers, out)
            gradient_chunk.copy_(out.add_(of_penalty))
        return gradient, None, None
