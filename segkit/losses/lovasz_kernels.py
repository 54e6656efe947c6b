"""The Lovász extension of the Jaccard loss, computed exactly by sorting errors, or by counting errors in bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import (
    LARGEST,
    Activation,
    Batch,
    Chunk,
    ScratchBuffers,
    Slice,
    aten,
    bounded,
    chunk_slices,
    memory_for_gradient,
    refuse_second_derivative,
    select,
    softmax,
)

MAX_BINS = 2**22  # for which losses are computed at a time


def jaccard_increments(foreground: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """The increase of the Jaccard loss with each pixel of a group that is added to the wrong pixels, [G, N] of `dtype`.

    foreground, valid: bool [G, N] in the order of decreasing errors, ignored pixels last.

    Let G be the number of foreground pixels. The first i pixels contain F_i foreground and B_i background pixels. With
    these i pixels wrong, the loss is 1 - I / U with I = G - F_i and U = G + B_i. The difference of two successive
    losses has a closed form in integers; subtracting the losses in float32 costs several digits of the gradient.
    """
    size = foreground.sum(1, keepdim=True)
    hits = foreground.cumsum(1)
    rank = torch.arange(1, foreground.shape[1] + 1, device=foreground.device)
    intersection, union = size - hits, size + rank - hits
    # without foreground, the first pixel raises the loss from 0 to 1, and U (U - 1) is 0 there
    first = (size == 0) & (rank == 1)
    numerator = torch.where(foreground | first, 1, intersection)
    denominator = torch.where(foreground, union, union * (union - 1)).clamp(min=1)
    return torch.where(valid, numerator.to(dtype) / denominator.to(dtype), 0)


def sorted_increments(errors: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """The increment of each pixel, in the original order of the pixels, [G, N]; 0 for pixels that are not valid.

    errors: at least 0, [G, N]. foreground, valid: bool [G, N]. Equal errors keep the order of the pixels.
    """
    # Floating numbers of at least 0 have the same order as their bits, and integers sort several times faster.
    # Subtracting from the maximum turns increasing into decreasing order; ignored pixels come last.
    integer = torch.int64 if errors.dtype == torch.float64 else torch.int32
    last = torch.iinfo(integer).max
    keys = torch.where(valid, last - errors.clamp(min=0).view(integer), last)
    # sorting is fast only for a single row
    order = torch.stack([row.sort(stable=True).indices for row in keys.unbind(0)])
    increments = jaccard_increments((foreground & valid).gather(1, order), valid.gather(1, order), errors.dtype)
    # `order` is a permutation, so the scatter writes every element once
    return torch.zeros_like(increments).scatter(1, order, increments)


class Bins(Protocol):
    """An assignment of errors to bins, ordered from small to large errors."""

    @property
    def number(self) -> int: ...

    def of(self, errors: Tensor) -> Tensor:
        """The bin of each error, int64; 0 for an error of 0."""
        ...

    def centres(self, like: Tensor) -> Tensor:
        """The error that represents each bin, [number]."""
        ...


@dataclass(frozen=True)
class EvenBins:
    """Bins of equal width over [0, 1]; they change the loss by at most half the width of a bin."""

    number: int

    def of(self, errors: Tensor) -> Tensor:
        return (errors * self.number).nan_to_num_(0).clamp_(max=self.number - 1).long()

    def centres(self, like: Tensor) -> Tensor:
        steps = torch.arange(self.number, dtype=like.dtype, device=like.device)
        return (steps + 0.5) / self.number


@dataclass(frozen=True)
class OctaveBins:
    """Bins for errors without an upper bound: each doubling from 2^-8 to 2^8 is divided into `number` / 16 equal parts.

    Smaller errors fall into the first bin, larger errors into the last. Errors in the first bin count as 0, which
    changes the loss by less than 2^-8 in total. The other bins change the loss by at most 8 / number of its value.
    """

    number: int

    def of(self, errors: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(errors)  # mantissa in [0.5, 1)
        octave = torch.where(errors > 0, exponent.to(errors.dtype) + 6 + 2 * mantissa, 0)
        return (octave * (self.number // 16)).clamp_(0, self.number - 1).long()

    def centres(self, like: Tensor) -> Tensor:
        steps = (torch.arange(self.number, dtype=like.dtype, device=like.device) + 0.5) / (self.number // 16)
        centres = torch.ldexp(1 + steps % 1, (steps // 1 - 8).to(torch.int32))
        return torch.cat([torch.zeros_like(centres[:1]), centres[1:]])


def histogram_losses(counts: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The losses [...], and the increment of a background and a foreground pixel of each bin, [..., 2, N].

    counts: the number of pixels in each bin, integers [..., 2, N] (background, foreground), errors increasing.
    centres: the error that represents each bin, [N].

    Bins are added to the wrong pixels one after the other, largest errors first. Adding all pixels of a bin increases
    the Jaccard loss 1 - I / U by an amount that follows exactly from the counts; the loss is the sum of these amounts,
    each times the error of its bin. The increments of single pixels are those halfway through the bin, scaled so that
    they add up to the exact amount.
    """
    dtype = centres.dtype
    background, foreground = counts.flip(-1).unbind(-2)  # errors decreasing
    reference = foreground.sum(-1, keepdim=True)
    # intersection I and union U of the prediction and the reference, before and after the pixels of each bin
    union_after = reference + background.cumsum(-1)
    intersection_after = reference - foreground.cumsum(-1)
    union_before = union_after - background
    intersection_before = intersection_after + foreground

    # I / U before the bin minus I / U after it; the numerator in integers, so that it is exact
    increase = (intersection_before * union_after - intersection_after * union_before).to(dtype)
    increase = increase / (union_before.clamp(min=1).to(dtype) * union_after.clamp(min=1).to(dtype))
    # without foreground, the first background pixels raise the loss from 0 to 1
    increase = torch.where(union_before > 0, increase, (union_after > 0).to(dtype))
    losses = (increase * centres.flip(-1)).sum(-1)

    # increments of single pixels halfway through the bin: 1 / U for foreground, I / U^2 for background
    union = (union_before + union_after).to(dtype) / 2
    intersection = (intersection_before + intersection_after).to(dtype) / 2
    per_foreground = 1 / union.clamp(min=0.5)
    per_background = intersection / union.clamp(min=0.5) ** 2
    total = foreground * per_foreground + background * per_background
    scale = torch.where(total > 0, increase / torch.where(total > 0, total, 1), 0)
    # without foreground, all increments are 0 and cannot be scaled: the pixels of the bin share the increase equally
    equal_share = increase / (foreground + background).clamp(min=1)
    per_background = torch.where(total > 0, per_background * scale, equal_share)
    increments = torch.stack([per_background, per_foreground * scale], -2)
    return losses, increments.flip(-1)


def _losses_of_tables(counts: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """`histogram_losses` of counts [G, K, 2, N], a few classes at a time: it needs ten times the memory of its result.

    While compiling, all classes at once, which the compiler fuses.
    """
    classes = max(1, MAX_BINS // counts[:, :1].numel())
    if torch.compiler.is_compiling() or classes >= counts.shape[1]:
        return histogram_losses(counts.long(), centres)
    losses = torch.empty(counts.shape[:2], dtype=centres.dtype, device=counts.device)
    increments = torch.empty(counts.shape, dtype=centres.dtype, device=counts.device)
    for first in range(0, counts.shape[1], classes):
        chosen = slice(first, first + classes)
        losses[:, chosen], increments[:, chosen] = histogram_losses(counts[:, chosen].long(), centres)
    return losses, increments


class Errors(Protocol):
    """The error of each pixel for each class, and its derivative with respect to the logits."""

    @property
    def activation(self) -> Activation: ...

    def of(self, chunk: Chunk) -> Tensor:
        """The errors, at least 0, [b, K, n]."""
        ...

    def gradient(self, chunk: Chunk, slopes: Tensor) -> Tensor:
        """The gradient of the logits from the derivatives with respect to the errors, [b, K, n] both."""
        ...


@dataclass(frozen=True)
class ProbabilityErrors:
    """|onehot - probability|, from 0 to 1."""

    activation: Activation

    def _probabilities(self, chunk: Chunk) -> Tensor:
        if self.activation == "softmax":
            return softmax(chunk, ScratchBuffers())
        logits = select(chunk.logits, chunk.mask.valid) if torch.compiler.is_compiling() else chunk.logits
        return select(logits.sigmoid(), chunk.mask.valid)

    def of(self, chunk: Chunk) -> Tensor:
        # 1 - p on the pixels of the class, p on all others
        return (chunk.mask.share - self._probabilities(chunk)).abs_()

    def gradient(self, chunk: Chunk, slopes: Tensor) -> Tensor:
        p = self._probabilities(chunk)
        slopes = slopes * (1 - 2 * chunk.mask.share)
        if self.activation == "softmax":
            return aten._softmax_backward_data(slopes, p, 1, p.dtype)
        return slopes.mul_(p).mul_(1 - p)


@dataclass(frozen=True)
class HingeErrors:
    """max(0, 1 - z) on the pixels of the class, max(0, 1 + z) on all others, for each logit z."""

    activation: Activation = "sigmoid"

    def of(self, chunk: Chunk) -> Tensor:
        sign = 1 - 2 * chunk.mask.share
        if torch.compiler.is_compiling():
            errors = bounded(1 + select(chunk.logits, chunk.mask.valid) * sign).clamp(min=0)
            return select(errors, chunk.mask.valid)
        return select(1 + chunk.logits * sign, chunk.mask.valid).clamp_(0, LARGEST[chunk.logits.dtype])

    def gradient(self, chunk: Chunk, slopes: Tensor) -> Tensor:
        return slopes * (1 - 2 * chunk.mask.share) * (self.of(chunk) > 0)


def _valid(chunk: Chunk) -> Tensor:
    valid, share = chunk.mask.valid, chunk.mask.share
    return torch.ones_like(share, dtype=torch.bool) if valid is None else valid.expand_as(share)


class Method(Protocol):
    """A way to compute the losses of all classes and the increments of all pixels."""

    @property
    def errors(self) -> Errors: ...

    @property
    def reduce(self) -> Reduce: ...

    def prepare(self, batch: Batch, groups: int) -> tuple[Tensor, Tensor]:
        """The losses [G, K], and a tensor that `increments` needs; both without gradient."""
        ...

    def increments(self, chunk: Chunk, chunk_slice: Slice, prepared: Tensor) -> Tensor:
        """The derivative of the loss with respect to each error of a chunk, [b, K, n]; 0 at ignored pixels."""
        ...


@dataclass(frozen=True)
class Sorting:
    """Exact, by sorting the errors of each class; each process computes its own loss."""

    errors: Errors
    reduce: Reduce = single_process

    def prepare(self, batch: Batch, groups: int) -> tuple[Tensor, Tensor]:
        images, channels = batch.logits.shape[:2]
        errors = torch.empty(images, channels, batch.size, dtype=batch.work_type, device=batch.logits.device)
        foreground = torch.empty_like(errors, dtype=torch.bool)
        valid = torch.empty_like(foreground)
        buffers = ScratchBuffers()
        for chunk_slice in batch.chunk_slices():
            chunk = batch.chunk(chunk_slice, buffers)
            position = (chunk_slice.images, slice(None), chunk_slice.pixels)
            errors[position] = self.errors.of(chunk)
            foreground[position] = chunk.mask.share > 0
            valid[position] = _valid(chunk)
        losses = []
        increments = errors  # the increments of a channel overwrite its errors
        for channel in range(channels):
            channel_errors = errors[:, channel].reshape(groups, -1)
            channel_increments = sorted_increments(
                channel_errors, foreground[:, channel].reshape(groups, -1), valid[:, channel].reshape(groups, -1)
            )
            losses.append((channel_errors * channel_increments).sum(1))
            increments[:, channel] = channel_increments.view(images, -1)
        return torch.stack(losses, 1), increments

    def increments(self, chunk: Chunk, chunk_slice: Slice, prepared: Tensor) -> Tensor:  # noqa: ARG002
        return prepared[chunk_slice.images, :, chunk_slice.pixels]


@dataclass(frozen=True)
class Counting:
    """Without sorting: counts the background and foreground pixels of each class with an error in each bin."""

    errors: Errors
    bins: Bins
    reduce: Reduce = single_process

    def prepare(self, batch: Batch, groups: int) -> tuple[Tensor, Tensor]:
        channels, number = batch.logits.shape[1], self.bins.number
        # 32 bits can count the pixels of most batches, and more of the table fits in the cache than with 64
        wide = batch.logits.shape[0] * batch.size > torch.iinfo(torch.int32).max
        dtype = torch.int64 if wide else torch.int32
        counts = torch.zeros(groups * channels * 2 * number, dtype=dtype, device=batch.logits.device)
        buffers = ScratchBuffers()
        zero_or_nan = torch.zeros((), dtype=batch.work_type, device=batch.logits.device)
        for chunk_slice in batch.chunk_slices():
            chunk = batch.chunk(chunk_slice, buffers)
            errors = self.errors.of(chunk)
            zero_or_nan = zero_or_nan + 0 * errors.amax()  # bins cannot represent NaN errors
            bin_index = self._bin_index(errors, chunk, chunk_slice, groups)
            counts.scatter_add_(0, bin_index.flatten(), _valid(chunk).flatten().to(dtype))
        if self.reduce.processes > 1:
            (counts,) = self.reduce(counts.long())
        centres = self.bins.centres(batch.logits.new_empty(0, dtype=batch.work_type))
        losses, increments = _losses_of_tables(counts.view(groups, channels, 2, number), centres)
        return losses + zero_or_nan, increments.add_(zero_or_nan)

    def increments(self, chunk: Chunk, chunk_slice: Slice, prepared: Tensor) -> Tensor:
        bin_index = self._bin_index(self.errors.of(chunk), chunk, chunk_slice, prepared.shape[0])
        return prepared.take(bin_index).mul_(_valid(chunk))

    def _bin_index(self, errors: Tensor, chunk: Chunk, chunk_slice: Slice, groups: int) -> Tensor:
        """The index of each pixel's bin in the flattened counts [G, K, 2, N], int64 [b, K, n]."""
        share = chunk.mask.share
        images, channels, _ = share.shape
        first = chunk_slice.images.start or 0
        group = torch.arange(first, first + images, device=share.device).clamp(max=groups - 1).view(-1, 1, 1)
        channel = torch.arange(channels, device=share.device).view(1, -1, 1)
        rows = (group * channels + channel) * 2 + share.long()
        return rows.mul_(self.bins.number).add_(self.bins.of(errors))


class _Lovasz(torch.autograd.Function):
    """(logits, batch, method, groups) -> the losses [G, K]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: Batch, method: Method, groups: int) -> Tensor:
        losses, prepared = method.prepare(batch, groups)
        ctx.save_for_backward(prepared, logits, *batch.target_tensors)
        ctx.without_tensors, ctx.method = batch.without_tensors(), method
        return losses

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        prepared, *tensors = ctx.saved_tensors
        batch: Batch = ctx.without_tensors.with_tensors(*tensors)
        logits = batch.logits
        gradient, buffers = memory_for_gradient(logits), ScratchBuffers()
        for chunk_slice in batch.chunk_slices():
            chunk = batch.chunk(chunk_slice, buffers)
            increments = ctx.method.increments(chunk, chunk_slice, prepared)
            chunk_slopes = slopes[chunk_slice.images] if len(slopes) > 1 else slopes
            chunk_slopes = chunk_slopes.unsqueeze(-1).to(increments.dtype)
            chunk_slopes = chunk_slopes * ctx.method.reduce.processes  # see GlobalSum
            chunk_slice.of(gradient).copy_(ctx.method.errors.gradient(chunk, increments * chunk_slopes))
        return gradient, None, None, None


def lovasz_losses(batch: Batch, method: Method, groups: int) -> Tensor:
    """The Lovász extension of the Jaccard loss of each group and class, [G, K]; G is 1, or the number of images."""
    if not torch.compiler.is_compiling():
        losses = _Lovasz.apply(batch.logits, batch, method, groups)
        assert isinstance(losses, Tensor)
        return losses
    with torch.no_grad():
        losses, prepared = method.prepare(batch, groups)
    # The loss is linear in the errors as long as their order does not change, so this expression has the same gradient,
    # and the compiler can derive it.
    chunk_slice = next(chunk_slices(batch.logits))
    chunk = batch.chunk(chunk_slice, ScratchBuffers())
    linear = (method.errors.of(chunk) * method.increments(chunk, chunk_slice, prepared).detach()).sum(-1)
    linear = method.reduce.processes * (linear.sum(0, keepdim=True) if groups == 1 else linear)
    return losses + (linear - linear.detach())  # the difference first: a large linear part would absorb the losses
