"""Going through a batch piece by piece, so that what is made on the way never has the size of the logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segkit.labels import Labels, Target

Activation = Literal["softmax", "sigmoid"]

# Elements of the logits in a piece, at most: on a CPU it should stay in the cache between operations, but be large
# enough to be worth waking the threads; elsewhere it should keep the device busy for longer than it takes to start an
# operation.
ELEMENTS = {"cpu": 2**20}
ELEMENTS_ELSEWHERE = 2**25
aten = torch.ops.aten  # some operations that torch has, but not under a public name
ALIGNED = 64  # pixels, so that every row of a piece begins where vector instructions like it
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def activation_of(labels: Labels) -> Activation:
    """A softmax for classes that exclude each other, else a sigmoid a channel."""
    return "softmax" if labels.mode == "multiclass" else "sigmoid"


@dataclass(frozen=True)
class Slice:
    """Where a piece lies in a batch whose spatial axes are flattened: images and pixels."""

    images: slice
    pixels: slice

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of a tensor [B, K, *S], [b, K, n], in the tensor's own memory if its layout allows."""
        return tensor.flatten(2)[self.images, :, self.pixels]


@dataclass(frozen=True)
class MaskChunk:
    """A piece of the target, b images and n pixels of each.

    share: floating [b, K, n], the one-hot form or the shares of a soft target, 0 where ignored.
    soft: whether shares may lie between 0 and 1.
    valid: bool [b, 1 or K, n]; None if every pixel counts.
    weight: floating [b, 1 or K, n], what a pixel counts for beyond that, 0 where ignored; None if all valid ones count
        for 1 and for every class.
    """

    share: Tensor
    soft: bool
    valid: Tensor | None
    weight: Tensor | None


@dataclass(frozen=True)
class Chunk:
    """A piece of a batch: logits of at least float32 [b, K, n], anything under ignored pixels, and the mask.

    spare: whether the logits are a copy, so that who needs them no more may put something else in their place.
    """

    logits: Tensor
    mask: MaskChunk
    spare: bool


class ScratchBuffers:
    """Memory for what is made of a chunk, used again for the next one: on a CPU, fresh memory costs more than the
    arithmetic. None while compiling, which as `out=` of an operation means a tensor of its own."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor | None:
        return None if torch.compiler.is_compiling() else self.take(name, shape, like, dtype)

    def take(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """The memory of that name, with anything in it."""
        place = (name, dtype, tuple(shape))
        if place not in self.views:
            size, held = math.prod(shape), self.held.get((name, dtype))
            if held is None or held.numel() < size:
                held = self.held[name, dtype] = torch.empty(size, dtype=dtype, device=like.device)
            self.views[place] = held[:size].view(shape)
        return self.views[place]

    def for_kept(self, name: str, like: Tensor, kept: Tensor | None) -> Tensor | None:
        """Where to make what is also to be left in `kept`: right there if an operation can write to it, else here."""
        return kept if kept is not None and kept.is_contiguous() else self(name, like.shape, like, like.dtype)

    def copy(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous copy."""
        return self.take(name, tensor.shape, tensor, dtype).copy_(tensor)


def pieces(logits: Tensor, smaller: int = 1) -> Iterator[Slice]:
    """Pieces that cover a batch [B, K, *S] exactly; one piece while compiling, where fusion does the same.

    smaller: how many times smaller than usual, for what needs so many times more memory for each element of a piece.
    """
    images, channels, pixels = logits.shape[0], logits.shape[1], logits[0, 0].numel()
    if torch.compiler.is_compiling():
        yield Slice(slice(None), slice(None))
        return
    elements = ELEMENTS.get(logits.device.type, ELEMENTS_ELSEWHERE) // smaller
    number = max(1, math.ceil(channels * pixels / elements))  # of pieces of equal size in an image
    at_once = max(ALIGNED, math.ceil(pixels / number / ALIGNED) * ALIGNED)  # pixels
    together = max(1, elements // max(1, channels * pixels))  # images
    for first in range(0, images, together):
        for start in range(0, pixels, at_once):
            yield Slice(slice(first, first + together), slice(start, start + at_once))


def memory_for_gradient(logits: Tensor) -> Tensor:
    """Memory shaped as logits [B, K, *S], in their layout if `Slice.of` is a view of it, else contiguous."""
    return torch.empty_like(logits.flatten(2)).view(logits.shape)


@dataclass(frozen=True)
class Batch:
    """Logits [B, K, *S] and their target, from which chunks are cut. `activation` says whether the classes are
    exclusive."""

    logits: Tensor
    target: Target
    labels: Labels
    activation: Activation

    @property
    def work_type(self) -> torch.dtype:
        return torch.promote_types(self.logits.dtype, torch.float32)

    @property
    def size(self) -> int:
        """The number of pixels of an image."""
        return self.logits[0, 0].numel()

    @property
    def plain(self) -> bool:
        """Whether every pixel that the mask does not ignore counts for 1."""
        return self.target.pixel_weight is None and not self.target.valid_per_class

    @property
    def soft(self) -> bool:
        """Whether the target has shares between 0 and 1."""
        onehot = self.target.onehot
        return onehot is not None and onehot.is_floating_point()

    def pieces(self, smaller: int = 1) -> Iterator[Slice]:
        """The pieces of the batch; smaller ones where not everything is done in memory that is used again."""
        index = self.target.index
        simple = self.logits.is_contiguous() and self.logits.dtype == self.work_type
        lean = simple and self.activation == "softmax" and index is not None and index.dtype == torch.uint8
        return pieces(self.logits, smaller if lean else 4 * smaller)

    @property
    def target_tensors(self) -> tuple[Tensor | None, ...]:
        """What autograd has to keep beside the logits, and to watch for changes in place."""
        return self.target.index, self.target.onehot, self.target.valid, self.target.pixel_weight

    def without_tensors(self) -> BatchForm:
        """What is left of the batch once autograd keeps its tensors."""
        return BatchForm(self.labels, self.activation)

    def chunk(self, piece: Slice, buffers: ScratchBuffers) -> Chunk:
        """One piece; what it holds is good until the next one is made with the same buffers."""
        logits, mask = piece.of(self.logits), self.mask_chunk(piece, buffers)
        if torch.compiler.is_compiling():
            return Chunk(logits.to(self.work_type), mask, spare=False)
        if logits.is_contiguous() and logits.dtype == self.work_type:
            return Chunk(logits, mask, spare=False)
        return Chunk(buffers.copy("logits", logits, self.work_type), mask, spare=True)

    def mask_chunk(self, piece: Slice, buffers: ScratchBuffers) -> MaskChunk:
        """One piece of the target, good until the next one is made with the same buffers."""
        target = self._target(piece)
        weight = weight_map(target, self.work_type)
        return MaskChunk(self._share(target, buffers), self.soft, target.valid_channels, weight)

    def _share(self, target: Target, buffers: ScratchBuffers) -> Tensor:
        if target.index is None:
            return self.labels.onehot(target).to(self.work_type)
        # The ignore value is no class, so ignored pixels come out as 0 by themselves. On a CPU, comparing right into a
        # floating result takes a fraction of the time of a bool result and its conversion.
        index = target.index.unsqueeze(1)
        numbers = self.labels.channel_numbers(index.dtype, index.device).view(1, -1, 1)
        if torch.compiler.is_compiling():
            share = (index == numbers).to(self.work_type)
        else:
            shape = (len(index), numbers.shape[1], index.shape[2])
            share = torch.eq(index, numbers, out=buffers("share", shape, index, self.work_type))
        valid = target.valid_channels if target.valid_per_class else None
        return share if valid is None else share * valid

    def _target(self, piece: Slice) -> Target:
        """The piece of the target, with the values under ignored pixels that it came with."""
        given = self.target
        return Target(
            index=_cut(given.index, piece, 1),
            onehot=_cut(given.onehot, piece, 2),
            valid=_cut(given.valid, piece, 2 if given.valid_per_class else 1),
            pixel_weight=_cut(given.pixel_weight, piece, 2 if given.weight_per_class else 1),
        )


@dataclass(frozen=True)
class BatchForm:
    """A batch without its tensors, so that these live no longer than autograd keeps them."""

    labels: Labels
    activation: Activation

    def with_tensors(self, logits: Tensor, *target: Tensor | None) -> Batch:
        """The batch, from its logits and its `target_tensors`."""
        return Batch(logits, Target(*target), self.labels, self.activation)


def _cut(tensor: Tensor | None, piece: Slice, spatial: int) -> Tensor | None:
    """The piece of a tensor whose spatial axes begin at `spatial`."""
    return None if tensor is None else tensor.flatten(spatial)[piece.images][..., piece.pixels]


def select(values: Tensor, valid: Tensor | None) -> Tensor:
    """Values [b, K, n] with 0 where `valid` [b, 1 or K, n] is false, whatever was there, NaN included.

    On a CPU the bits are masked, in place and in a tenth of the time of `torch.where`, which is what it means.
    """
    if valid is None:
        return values
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return torch.where(valid, values, 0)
    bits = values.view(BITS[values.dtype])
    torch.bitwise_and(bits, valid.to(bits.dtype).neg_(), out=bits)
    return values


def refuse_second_derivative() -> None:
    """To be called in a backward that is written out: its result has no graph, so a second derivative would be 0."""
    if torch.is_grad_enabled():
        raise RuntimeError("losses have no second derivative; leave create_graph=True out")


def leave(values: Tensor, kept: Tensor | None) -> Tensor:
    """The values, which are also left in `kept`, if given."""
    if kept is not None and kept is not values:
        kept.copy_(values)
    return values


def softmax(chunk: Chunk, buffers: ScratchBuffers, kept: Tensor | None = None) -> Tensor:
    """The probabilities of exclusive classes, [b, K, n], 0 where nothing counts; also left in `kept`, if given."""
    if torch.compiler.is_compiling():
        return select(_selected_logits(chunk).softmax(1), some_valid(chunk.mask))
    p = aten._softmax.out(chunk.logits, 1, False, out=buffers.for_kept("p", chunk.logits, kept))
    return leave(select(p, some_valid(chunk.mask)), kept)


def log_softmax(chunk: Chunk, buffers: ScratchBuffers) -> Tensor:
    """Their logarithms, [b, K, n], 0 where nothing counts, and finite, so that 0 times one is 0."""
    lowest = torch.finfo(chunk.logits.dtype).min
    if torch.compiler.is_compiling():
        return select(_selected_logits(chunk).log_softmax(1).clamp(min=lowest), some_valid(chunk.mask))
    log_p = aten._log_softmax.out(chunk.logits, 1, False, out=buffers.for_kept("p", chunk.logits, None))
    return select(log_p.clamp_(min=lowest), some_valid(chunk.mask))


def _selected_logits(chunk: Chunk) -> Tensor:
    """For a gradient that goes through the selection, where 0 times NaN would be NaN."""
    return select(chunk.logits, some_valid(chunk.mask))


def some_valid(mask: MaskChunk) -> Tensor | None:
    """The pixels that count for at least one class, bool [b, 1, n]; None for all."""
    valid = mask.valid
    return valid if valid is None or valid.shape[1] == 1 else valid.any(1, keepdim=True)


def weight_map(target: Target, dtype: torch.dtype) -> Tensor | None:
    """What pixels count for beyond being valid, [B, 1 or K, *S], 0 where ignored; None if all valid ones are alike.

    Weights under ignored pixels are selected out, not multiplied, so that NaN there does no harm.
    """
    valid = target.valid_channels
    if target.pixel_weight is None:
        return valid.to(dtype) if valid is not None and target.valid_per_class else None
    weight = target.pixel_weight.to(dtype)
    weight = weight if target.weight_per_class else weight.unsqueeze(1)
    return weight if valid is None else torch.where(valid, weight, 0)


def weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    """Sum [b, K, n] over pixels, [b, K]."""
    return (values if weight is None else values * weight).sum(-1)
