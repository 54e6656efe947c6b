"""How the Lovász extension of the Jaccard loss is found: exactly by sorting, or by counting errors in bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from segkit.losses.all_reduce import Reduce, keep
from segkit.losses.chunking import (
    Activation,
    Batch,
    Chunk,
    ScratchBuffers,
    aten,
    memory_for_gradient,
    pieces,
    refuse_second_derivative,
    select,
    softmax,
)


def jaccard_increments(foreground: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """What the Jaccard loss grows by as the pixels of a group join the errors one by one, [G, N] of `dtype`.

    foreground, valid: bool [G, N] in the order of falling errors, ignored pixels last.

    After i pixels, F_i of them foreground and B_i background, of G foreground ones in all, the loss is
    1 - I / U with I = G - F_i and U = G + B_i. The difference of two of these has a closed form in whole numbers;
    subtracting the losses themselves in float32 costs several digits of the gradient.
    """
    size = foreground.sum(1, keepdim=True)
    hits = foreground.cumsum(1)
    rank = torch.arange(1, foreground.shape[1] + 1, device=foreground.device)
    intersection, union = size - hits, size + rank - hits
    # without foreground the first pixel takes the loss from 0 to 1, and there U (U - 1) is 0
    first = (size == 0) & (rank == 1)
    numerator = torch.where(foreground | first, 1, intersection)
    denominator = torch.where(foreground, union, union * (union - 1)).clamp(min=1)
    return torch.where(valid, numerator.to(dtype) / denominator.to(dtype), 0)


def sorted_increments(errors: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """The increment of each pixel in the order of the pixels, [G, N], 0 where not valid.

    errors: at least 0, [G, N]. foreground, valid: bool [G, N]. Equal errors count in the order of the pixels.
    """
    # Numbers of at least 0 are ordered as their bits are, and whole numbers sort several times faster. Complements
    # make rising order falling; ignored pixels come last.
    whole = torch.int64 if errors.dtype == torch.float64 else torch.int32
    last = torch.iinfo(whole).max
    keys = torch.where(valid, last - errors.clamp(min=0).view(whole), last)
    # the fast sort is that of a single row
    order = torch.stack([row.sort(stable=True).indices for row in keys.unbind(0)])
    increments = jaccard_increments((foreground & valid).gather(1, order), valid.gather(1, order), errors.dtype)
    # `order` is a permutation, so the scatter writes every place once
    return torch.zeros_like(increments).scatter(1, order, increments)


class Bins(Protocol):
    """How errors fall into bins, from the smallest to the largest."""

    @property
    def number(self) -> int: ...

    def of(self, errors: Tensor) -> Tensor:
        """The bin of each error, int64; 0 for an error of 0."""
        ...

    def centres(self, like: Tensor) -> Tensor:
        """The error that stands for each bin, [number]."""
        ...


@dataclass(frozen=True)
class EvenBins:
    """Bins of equal width over [0, 1]; the loss changes by at most half of a width."""

    number: int

    def of(self, errors: Tensor) -> Tensor:
        return (errors * self.number).nan_to_num_(0).clamp_(max=self.number - 1).long()

    def centres(self, like: Tensor) -> Tensor:
        steps = torch.arange(self.number, dtype=like.dtype, device=like.device)
        return (steps + 0.5) / self.number


@dataclass(frozen=True)
class OctaveBins:
    """Bins for errors without an upper bound: each doubling from 2^-8 to 2^8 in `number` / 16 equal parts.

    Below and above lie in the first and the last bin; errors in the first count as 0, and change the loss by less than
    2^-8 even together. In between the loss changes by at most 8 / number of itself.
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
    """From the pixels in each bin, whole numbers [..., 2, N] (background, foreground; errors rising), to the losses
    [...] and what a background and a foreground pixel of each bin increases them by, [..., 2, N].

    The increments of a bin are those of its middle, scaled so that a bin adds to the loss what it adds exactly.
    """
    background, foreground = counts.flip(-1).unbind(-2)
    size = foreground.sum(-1, keepdim=True)
    union = size + background.cumsum(-1)  # after each bin
    intersection = size - foreground.cumsum(-1)
    curve = 1 - intersection.to(centres.dtype) / union.clamp(min=1).to(centres.dtype)
    curve = torch.where(union > 0, curve, 0)
    before_union, before_intersection = union - background, intersection + foreground
    # I / U - I' / U' with a common denominator, in whole numbers as far as they are exact
    grown = (before_intersection * union - intersection * before_union).to(centres.dtype)
    grown = grown / (before_union.clamp(min=1).to(centres.dtype) * union.clamp(min=1).to(centres.dtype))
    grown = torch.where(before_union > 0, grown, (union > 0).to(centres.dtype))  # without foreground: from 0 to 1
    middle_union = (before_union + union).to(centres.dtype) / 2
    middle_intersection = (before_intersection + intersection).to(centres.dtype) / 2
    of_foreground = 1 / middle_union.clamp(min=0.5)
    of_background = middle_intersection / middle_union.clamp(min=0.5) ** 2
    added = foreground * of_foreground + background * of_background
    # a bin of background alone where there is no foreground shares the one step from 0 to 1
    even = grown / (foreground + background).clamp(min=1)
    scale = torch.where(added > 0, grown / torch.where(added > 0, added, 1), 0)
    increments = torch.stack([torch.where(added > 0, of_background * scale, even), of_foreground * scale], -2)
    losses = (grown * centres.flip(-1)).sum(-1)
    return losses, increments.flip(-1)


class Errors(Protocol):
    """How wrong a pixel is about a class, and how that depends on the logits."""

    @property
    def activation(self) -> Activation: ...

    def of(self, chunk: Chunk) -> Tensor:
        """At least 0, [b, K, n]."""
        ...

    def gradient(self, chunk: Chunk, slopes: Tensor) -> Tensor:
        """The gradient of the logits, from the slopes for each error, [b, K, n] both."""
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
        # 1 - p where the class is, p elsewhere
        return (chunk.mask.share - self._probabilities(chunk)).abs_()

    def gradient(self, chunk: Chunk, slopes: Tensor) -> Tensor:
        p = self._probabilities(chunk)
        slopes = slopes * (1 - 2 * chunk.mask.share)
        if self.activation == "softmax":
            return aten._softmax_backward_data(slopes, p, 1, p.dtype)
        return slopes.mul_(p).mul_(1 - p)


@dataclass(frozen=True)
class HingeErrors:
    """max(0, 1 - z) where the class is, max(0, 1 + z) elsewhere, of each logit z."""

    activation: Activation = "sigmoid"

    def of(self, chunk: Chunk) -> Tensor:
        logits = select(chunk.logits, chunk.mask.valid) if torch.compiler.is_compiling() else chunk.logits
        return select(1 + logits * (1 - 2 * chunk.mask.share), chunk.mask.valid).clamp_(min=0)

    def gradient(self, chunk: Chunk, slopes: Tensor) -> Tensor:
        return slopes * (1 - 2 * chunk.mask.share) * (self.of(chunk) > 0)


def _valid(chunk: Chunk) -> Tensor:
    valid, share = chunk.mask.valid, chunk.mask.share
    return torch.ones_like(share, dtype=torch.bool) if valid is None else valid.expand_as(share)


class Method(Protocol):
    """How the losses of all classes and the increments of all pixels are found."""

    @property
    def errors(self) -> Errors: ...

    @property
    def reduce(self) -> Reduce: ...

    def prepare(self, batch: Batch, groups: int) -> tuple[Tensor, Tensor]:
        """The losses [G, K], and what `increments` needs to know again; both without gradient."""
        ...

    def increments(self, chunk: Chunk, piece: Any, known: Tensor) -> Tensor:
        """What each pixel of a chunk adds to the loss for each unit of its error, [b, K, n]; 0 where not valid."""
        ...


@dataclass(frozen=True)
class Sorting:
    """Exact, by sorting the errors of each class; in each process alone."""

    errors: Errors
    reduce: Reduce = keep

    def prepare(self, batch: Batch, groups: int) -> tuple[Tensor, Tensor]:
        images, channels = batch.logits.shape[:2]
        known = torch.empty(images, channels, batch.size, dtype=batch.work_type, device=batch.logits.device)
        share = torch.empty_like(known, dtype=torch.bool)
        valid = torch.empty_like(share)
        buffers = ScratchBuffers()
        for piece in batch.pieces():
            chunk = batch.chunk(piece, buffers)
            known[piece.images, :, piece.pixels] = self.errors.of(chunk)
            share[piece.images, :, piece.pixels] = chunk.mask.share > 0
            valid[piece.images, :, piece.pixels] = _valid(chunk)
        losses = []
        for channel in range(channels):  # the increments take the place of the errors
            errors, *rest = (full[:, channel].reshape(groups, -1) for full in (known, share, valid))
            increments = sorted_increments(errors, *rest)
            losses.append((errors * increments).sum(1))
            known[:, channel] = increments.view(images, -1)
        return torch.stack(losses, 1), known

    def increments(self, chunk: Chunk, piece: Any, known: Tensor) -> Tensor:  # noqa: ARG002
        return known[piece.images, :, piece.pixels]


@dataclass(frozen=True)
class Counting:
    """Without sorting: by how many background and foreground pixels of each class have an error in each bin."""

    errors: Errors
    bins: Bins
    reduce: Reduce = keep

    def prepare(self, batch: Batch, groups: int) -> tuple[Tensor, Tensor]:
        channels, number = batch.logits.shape[1], self.bins.number
        # 32 bits hold the pixels of a batch, and more of the table stays in the cache
        counts = torch.zeros(groups * channels * 2 * number, dtype=torch.int32, device=batch.logits.device)
        buffers, nothing = ScratchBuffers(), torch.zeros((), dtype=batch.work_type, device=batch.logits.device)
        for piece in batch.pieces():
            chunk = batch.chunk(piece, buffers)
            errors = self.errors.of(chunk)
            nothing = nothing + 0 * errors.sum()  # NaN is in no bin, so it is carried beside them
            places = self._places(errors, chunk, piece, groups)
            counts.scatter_add_(0, places.flatten(), _valid(chunk).flatten().int())
        (counts,) = self.reduce(counts.long())
        centres = self.bins.centres(batch.logits.new_empty(0, dtype=batch.work_type))
        losses, known = histogram_losses(counts.view(groups, channels, 2, number), centres)
        return losses + nothing, known + nothing

    def increments(self, chunk: Chunk, piece: Any, known: Tensor) -> Tensor:
        places = self._places(self.errors.of(chunk), chunk, piece, known.shape[0])
        return known.take(places).mul_(_valid(chunk))

    def _places(self, errors: Tensor, chunk: Chunk, piece: Any, groups: int) -> Tensor:
        """Where each pixel is counted in a flat [G, K, 2, N], int64 [b, K, n]."""
        share = chunk.mask.share
        images, channels, _ = share.shape
        first = piece.images.start or 0
        group = torch.arange(first, first + images, device=share.device).clamp(max=groups - 1).view(-1, 1, 1)
        channel = torch.arange(channels, device=share.device).view(1, -1, 1)
        rows = (group * channels + channel) * 2 + share.long()
        return rows.mul_(self.bins.number).add_(self.bins.of(errors))


class _Lovasz(torch.autograd.Function):
    """(logits, batch, method, groups) -> the losses [G, K]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: Batch, method: Method, groups: int) -> Tensor:
        losses, known = method.prepare(batch, groups)
        ctx.save_for_backward(known, logits, *batch.target_tensors)
        ctx.without_tensors, ctx.method = batch.without_tensors(), method
        return losses

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative()
        known, *tensors = ctx.saved_tensors
        batch: Batch = ctx.without_tensors.with_tensors(*tensors)
        logits = batch.logits
        gradient, buffers = memory_for_gradient(logits), ScratchBuffers()
        for piece in batch.pieces():
            chunk = batch.chunk(piece, buffers)
            of_error = ctx.method.increments(chunk, piece, known)
            of_loss = (slopes[piece.images] if len(slopes) > 1 else slopes).unsqueeze(-1).to(of_error.dtype)
            of_loss = of_loss * ctx.method.reduce.processes  # see GlobalSum
            piece.of(gradient).copy_(ctx.method.errors.gradient(chunk, of_error * of_loss))
        return gradient, None, None, None


def lovasz_losses(batch: Batch, method: Method, groups: int) -> Tensor:
    """The Lovász extension of the Jaccard loss of each group and class, [G, K]; G is 1, or the number of images."""
    if not torch.compiler.is_compiling():
        losses = _Lovasz.apply(batch.logits, batch, method, groups)
        assert isinstance(losses, Tensor)
        return losses
    with torch.no_grad():
        losses, known = method.prepare(batch, groups)
    # the loss is linear in the errors as long as their order stays: the same slopes, for the compiler to find
    piece = next(pieces(batch.logits))
    chunk = batch.chunk(piece, ScratchBuffers())
    linear = (method.errors.of(chunk) * method.increments(chunk, piece, known).detach()).sum(-1)
    linear = method.reduce.processes * (linear.sum(0, keepdim=True) if groups == 1 else linear)
    return losses + linear - linear.detach()
