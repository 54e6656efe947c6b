"""Cutting a batch into chunks, so that intermediate results never have the size of the logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from segkit.labels import Labels, Target

Activation = Literal["softmax", "sigmoid"]

# Maximum number of logits in a chunk. On a CPU a chunk should stay in the cache between operations, yet be large enough
# to be worth starting the threads; on other devices it should take longer to process than an operation takes to launch.
ELEMENTS = {"cpu": 2**20}
ELEMENTS_ELSEWHERE = 2**25
aten = torch.ops.aten  # operations that torch has, but not under a public name
ALIGNED = 64  # pixels; every row of a chunk begins at a multiple of this, which suits vector instructions
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
# The loss of a pixel counts as at most this, half of the range of exponents, so that sums over pixels and products with
# weights do not overflow. Gradients are not bounded by it: they are those of the loss itself.
LARGEST = {torch.float32: 2.0**64, torch.float64: 2.0**512}


def activation_of(labels: Labels, activation: Activation | None = None) -> Activation:
    """The given activation; without one, a softmax over mutually exclusive classes, otherwise a sigmoid per channel.

    Raises ValueError for a softmax outside multiclass mode.
    """
    if labels.mode == "multiclass":
        return activation or "softmax"
    if activation == "softmax" and labels.mode == "binary":
        raise ValueError(
            "activation softmax needs at least two channels, but binary mode has one; over two classes it equals the "
            "sigmoid of one channel: leave `activation` out"
        )
    if activation == "softmax":
        raise ValueError(
            "activation softmax makes classes mutually exclusive, but in multilabel mode they may overlap; "
            "use activation sigmoid"
        )
    return "sigmoid"


@dataclass(frozen=True)
class Slice:
    """The position of a chunk in a batch with flattened spatial axes: its images and its pixels."""

    images: slice
    pixels: slice

    def of(self, tensor: Tensor) -> Tensor:
        """This slice of a tensor [B, K, *S], as [b, K, n]; a view of the tensor if its layout allows."""
        return tensor.flatten(2)[self.images, :, self.pixels]


@dataclass(frozen=True)
class MaskChunk:
    """A chunk of the target: b images with n pixels each.

    share: floating [b, K, n], the one-hot form or the shares of a soft target, 0 at ignored pixels.
    soft: whether shares may lie between 0 and 1.
    valid: bool [b, 1 or K, n]; None if every pixel is valid.
    weight: floating [b, 1 or K, n], the weight of each pixel, 0 at ignored pixels; None if all valid pixels have
        weight 1 for every class.
    maps: the maps of the target that have a value for each pixel, [b, 1 or K, n] by name.
    """

    share: Tensor
    soft: bool
    valid: Tensor | None
    weight: Tensor | None
    maps: Mapping[str, Tensor]


@dataclass(frozen=True)
class Chunk:
    """A chunk of a batch: the target, and logits of at least float32 [b, K, n] with arbitrary values at ignored pixels.

    spare: whether the logits are a copy, which may be overwritten when they are no longer needed.
    """

    logits: Tensor
    mask: MaskChunk
    spare: bool


class ScratchBuffers:
    """Named buffers for the intermediate results of a chunk, reused for the next chunk.

    On a CPU, allocating fresh memory costs more than the arithmetic. While compiling, a call returns None, which as
    `out=` of an operation means a newly allocated tensor.
    """

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor | None:
        return None if torch.compiler.is_compiling() else self.take(name, shape, like, dtype)

    def take(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """The buffer with this name, with arbitrary contents, on the device of `like`."""
        key = (name, dtype, tuple(shape))
        if key not in self.views:
            size, held = math.prod(shape), self.held.get((name, dtype))
            if held is None or held.numel() < size:
                held = self.held[name, dtype] = torch.empty(size, dtype=dtype, device=like.device)
            self.views[key] = held[:size].view(shape)
        return self.views[key]

    def for_kept(self, name: str, like: Tensor, kept: Tensor | None) -> Tensor | None:
        """`kept` if an operation can write its result there directly, otherwise the buffer with this name."""
        return kept if kept is not None and kept.is_contiguous() else self(name, like.shape, like, like.dtype)

    def copy(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous copy of a tensor in the buffer with this name."""
        return self.take(name, tensor.shape, tensor, dtype).copy_(tensor)


def chunk_slices(logits: Tensor, shrink: int = 1) -> Iterator[Slice]:
    """Slices that cover a batch [B, K, *S] exactly; a single one while compiling, where fusion has the same effect.

    shrink: the factor by which chunks are smaller than usual, for computations that need as many times more memory for
        each element of a chunk.
    """
    images, channels, pixels = logits.shape[0], logits.shape[1], logits[0, 0].numel()
    if torch.compiler.is_compiling():
        yield Slice(slice(None), slice(None))
        return
    elements = ELEMENTS.get(logits.device.type, ELEMENTS_ELSEWHERE) // shrink
    chunks_per_image = max(1, math.ceil(channels * pixels / elements))
    chunk_pixels = max(ALIGNED, math.ceil(pixels / chunks_per_image / ALIGNED) * ALIGNED)
    chunk_images = max(1, elements // max(1, channels * pixels))
    for first in range(0, images, chunk_images):
        for start in range(0, pixels, chunk_pixels):
            yield Slice(slice(first, first + chunk_images), slice(start, start + chunk_pixels))


def memory_for_gradient(logits: Tensor) -> Tensor:
    """Memory with the shape of the logits [B, K, *S]; it has their layout if `Slice.of` is a view of it."""
    return torch.empty_like(logits.flatten(2)).view(logits.shape)


@dataclass(frozen=True)
class Batch:
    """Logits [B, K, *S] and their target, from which chunks are cut.

    activation: softmax if the classes are mutually exclusive, otherwise sigmoid.
    """

    logits: Tensor
    target: Target
    labels: Labels
    activation: Activation

    @property
    def work_type(self) -> torch.dtype:
        """The dtype of the arithmetic, at least float32."""
        return torch.promote_types(self.logits.dtype, torch.float32)

    @property
    def size(self) -> int:
        """The number of pixels of an image."""
        return self.logits[0, 0].numel()

    @property
    def plain(self) -> bool:
        """Whether every pixel that the mask does not ignore has weight 1 for every class."""
        return self.target.pixel_weight is None and not self.target.valid_per_class

    @property
    def soft(self) -> bool:
        """Whether the target has shares between 0 and 1."""
        onehot = self.target.onehot
        return onehot is not None and onehot.is_floating_point()

    def chunk_slices(self, shrink: int = 1) -> Iterator[Slice]:
        """The slices of the batch's chunks; smaller ones where some operations cannot use the scratch buffers."""
        index = self.target.index
        is_plain = self.logits.is_contiguous() and self.logits.dtype == self.work_type
        low_memory = is_plain and self.activation == "softmax" and index is not None and index.dtype == torch.uint8
        return chunk_slices(self.logits, shrink if low_memory else 4 * shrink)

    @property
    def target_tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that autograd has to save in addition to the logits, and to watch for in-place changes."""
        target = self.target
        return target.index, target.onehot, target.valid, target.pixel_weight, *target.maps.values()

    def images(self, images: slice) -> Target:
        """The target of some images, without maps."""
        target = self.target
        parts = (target.index, target.onehot, target.valid, target.pixel_weight)
        return Target(*(None if tensor is None else tensor[images] for tensor in parts))  # pyright: ignore

    def without_tensors(self) -> BatchForm:
        """The rest of the batch when autograd saves its tensors."""
        return BatchForm(self.labels, self.activation, tuple(self.target.maps))

    def chunk(self, chunk_slice: Slice, buffers: ScratchBuffers) -> Chunk:
        """One chunk; its contents are valid until the next chunk is made with the same buffers."""
        logits, mask = chunk_slice.of(self.logits), self.mask_chunk(chunk_slice, buffers)
        if torch.compiler.is_compiling():
            return Chunk(logits.to(self.work_type), mask, spare=False)
        if logits.is_contiguous() and logits.dtype == self.work_type:
            return Chunk(logits, mask, spare=False)
        return Chunk(buffers.copy("logits", logits, self.work_type), mask, spare=True)

    def mask_chunk(self, chunk_slice: Slice, buffers: ScratchBuffers) -> MaskChunk:
        """One chunk of the target, valid until the next chunk is made with the same buffers."""
        target = self._target(chunk_slice)
        weight = weight_map(target, self.work_type)
        return MaskChunk(self._share(target, buffers), self.soft, target.valid_channels, weight, target.maps)

    def _share(self, target: Target, buffers: ScratchBuffers) -> Tensor:
        if target.index is None:
            return self.labels.onehot(target).to(self.work_type)
        # The ignore value matches no class, so ignored pixels become 0. On a CPU, a comparison that writes its result
        # as floating numbers takes a fraction of the time of a bool result and its conversion.
        index = target.index.unsqueeze(1)
        numbers = self.labels.channel_numbers(index.dtype, index.device).view(1, -1, 1)
        if torch.compiler.is_compiling():
            share = (index == numbers).to(self.work_type)
        else:
            shape = (len(index), numbers.shape[1], index.shape[2])
            share = torch.eq(index, numbers, out=buffers("share", shape, index, self.work_type))
        valid = target.valid_channels if target.valid_per_class else None
        return share if valid is None else share * valid

    def _target(self, chunk_slice: Slice) -> Target:
        """A slice of the target, with unchanged values at ignored pixels."""
        target = self.target
        return Target(
            index=_cut(target.index, chunk_slice, 1),
            onehot=_cut(target.onehot, chunk_slice, 2),
            valid=_cut(target.valid, chunk_slice, 2 if target.valid_per_class else 1),
            pixel_weight=_cut(target.pixel_weight, chunk_slice, 2 if target.weight_per_class else 1),
            maps={name: _cut(values, chunk_slice, 2) for name, values in self._maps_of_pixels()},
        )

    def _maps_of_pixels(self) -> Iterator[tuple[str, Tensor]]:
        """The maps with a value for each pixel."""
        return ((name, values) for name, values in self.target.maps.items() if values.ndim == self.logits.ndim)


@dataclass(frozen=True)
class BatchForm:
    """A batch without its tensors, which then live no longer than autograd keeps them."""

    labels: Labels
    activation: Activation
    maps: tuple[str, ...]

    def with_tensors(self, logits: Tensor, *target: Tensor | None) -> Batch:
        """The batch, from its logits and its `target_tensors`."""
        maps = dict(zip(self.maps, target[4:], strict=True))
        return Batch(logits, Target(*target[:4], maps=maps), self.labels, self.activation)  # pyright: ignore


@overload
def _cut(tensor: Tensor, chunk_slice: Slice, spatial: int) -> Tensor: ...
@overload
def _cut(tensor: None, chunk_slice: Slice, spatial: int) -> None: ...
@overload
def _cut(tensor: Tensor | None, chunk_slice: Slice, spatial: int) -> Tensor | None: ...
def _cut(tensor: Tensor | None, chunk_slice: Slice, spatial: int) -> Tensor | None:
    """A slice of a tensor whose spatial axes begin at axis `spatial`."""
    return None if tensor is None else tensor.flatten(spatial)[chunk_slice.images][..., chunk_slice.pixels]


def select(values: Tensor, valid: Tensor | None) -> Tensor:
    """Values [b, K, n], set to 0 where `valid` [b, 1 or K, n] is false, even if they are NaN.

    On a CPU this masks the bits in place, with the result of `torch.where` in a tenth of its time.
    """
    if valid is None:
        return values
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return torch.where(valid, values, 0)
    bits = values.view(BITS[values.dtype])
    torch.bitwise_and(bits, valid.to(bits.dtype).neg_(), out=bits)
    return values


def refuse_second_derivative() -> None:
    """Raise RuntimeError if a hand-written backward runs with `create_graph=True`.

    The result of such a backward has no graph, so a second derivative would silently be 0.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("losses have no second derivative; leave create_graph=True out")


def keep_copy(values: Tensor, kept: Tensor | None) -> Tensor:
    """The values, which are also written to `kept` if it is given."""
    if kept is not None and kept is not values:
        kept.copy_(values)
    return values


def softmax(chunk: Chunk, buffers: ScratchBuffers, kept: Tensor | None = None) -> Tensor:
    """The softmax over the classes, [b, K, n], 0 at ignored pixels; also written to `kept` if it is given."""
    if torch.compiler.is_compiling():
        return select(_selected_logits(chunk).softmax(1), some_valid(chunk.mask))
    p = aten._softmax.out(chunk.logits, 1, False, out=buffers.for_kept("p", chunk.logits, kept))
    return keep_copy(select(p, some_valid(chunk.mask)), kept)


def log_softmax(chunk: Chunk, buffers: ScratchBuffers, kept: Tensor | None = None) -> Tensor:
    """The logarithm of the softmax, [b, K, n], 0 at ignored pixels; at least -`LARGEST`, so that its product with 0 is
    0. It is also written to `kept` if it is given."""
    if torch.compiler.is_compiling():
        logits = _selected_logits(chunk)
        # the differences of large logits overflow, but not their halves
        halves = logits / 2 - logits.detach().amax(1, keepdim=True) / 2
        log_p = 2 * bounded(halves - torch.logsumexp(2 * halves, 1, keepdim=True) / 2, 0.5)
    else:
        log_p = bounded(aten._log_softmax.out(chunk.logits, 1, False, out=buffers.for_kept("p", chunk.logits, kept)))
    return keep_copy(select(log_p, some_valid(chunk.mask)), kept)


def bounded(values: Tensor, scale: float = 1.0) -> Tensor:
    """The values between -scale and scale times `LARGEST`; outside of the compiler they are overwritten. NaN stays NaN.

    While compiling, the gradient is that of the values themselves, as in the hand-written backward; a clamp has none.
    """
    largest = scale * LARGEST[values.dtype]
    if not torch.compiler.is_compiling():
        return values.clamp_(-largest, largest)
    limits = torch.finfo(values.dtype)
    finite = values.clamp(limits.min, limits.max)
    clamped = values.detach().clamp(-largest, largest) + (finite - finite.detach())
    return torch.where(values.abs() > largest, clamped, values)


def _selected_logits(chunk: Chunk) -> Tensor:
    """The logits, 0 at ignored pixels, so that the gradient there is not 0 times NaN, which is NaN."""
    return select(chunk.logits, some_valid(chunk.mask))


def some_valid(mask: MaskChunk) -> Tensor | None:
    """The pixels that are valid for at least one class, bool [b, 1, n]; None if all are."""
    valid = mask.valid
    return valid if valid is None or valid.shape[1] == 1 else valid.any(1, keepdim=True)


def weight_map(target: Target, dtype: torch.dtype) -> Tensor | None:
    """The weight of each pixel, [B, 1 or K, *S], 0 at ignored pixels; None if all valid pixels have weight 1.

    Weights at ignored pixels are replaced by 0, not multiplied by 0, so that NaN there has no effect.
    """
    valid = target.valid_channels
    if target.pixel_weight is None:
        return valid.to(dtype) if valid is not None and target.valid_per_class else None
    weight = target.pixel_weight.to(dtype)
    weight = weight if target.weight_per_class else weight.unsqueeze(1)
    return weight if valid is None else torch.where(valid, weight, 0)


def weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted sum of [b, K, n] over pixels, [b, K]."""
    return (values if weight is None else values * weight).sum(-1)


def precise_type(device: torch.device) -> torch.dtype:
    """float64 where the device supports it, otherwise float32."""
    return torch.float32 if device.type == "mps" else torch.float64
