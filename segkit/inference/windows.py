"""Logits of an image in slabs, finished one after another: overlapping windows, and resampling to another grid.

A slab holds the logits of consecutive positions along one axis. Only the slabs that are being worked on are in memory,
so the memory of a prediction does not grow with the product of classes and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.inference.piecewise import PiecewiseBatch
from segkit.inference.storage import Storage
from segkit.labels import Labels

Network = Callable[[Tensor], Tensor]
# largest number of windows that go through the network together: on a CPU by the number of axes, measured with two
# cores. Several pictures do not fit into its caches; single volumes are computed by one core in some layers.
MOST_ON_CPU, MOST = {2: 1, 3: 2}, 4
PIXELS_PER_PASS = 2**21  # pixels of those windows, which bounds the memory of a pass; one window may have more
PIECE = 2**22  # logits that are decoded together, which bounds temporary copies
LINEAR = {1: "linear", 2: "bilinear"}  # interpolation of all axes but one


@dataclass(frozen=True)
class Slab:
    """Logits [1, K, *S] of the positions `start`, `start + 1`, ... along the axis `axis` of an image."""

    start: int
    logits: Tensor
    axis: int

    @property
    def stop(self) -> int:
        """The position after the last one."""
        return self.start + self.logits.shape[self.axis + 2]

    def pieces(self) -> Iterator[Slab]:
        """The same logits in thinner slabs of at most PIECE numbers, or of one position."""
        dim = self.axis + 2
        rows = max(1, PIECE * self.logits.shape[dim] // max(1, self.logits.numel()))
        for first in range(0, self.logits.shape[dim], rows):
            part = self.logits.narrow(dim, first, min(rows, self.logits.shape[dim] - first))
            yield Slab(self.start + first, part, self.axis)


def slab_axis(size: Sequence[int], window: Sequence[int]) -> int:
    """The axis along which the largest share of an image lies outside a window, so that its slabs are thinnest."""
    return max(range(len(size)), key=lambda axis: size[axis] / window[axis])


def windows_per_pass(window: Sequence[int], device: torch.device) -> int:
    """The number of windows that go through the network together."""
    most = MOST_ON_CPU.get(len(window), MOST) if device.type == "cpu" else MOST
    return max(1, min(most, PIXELS_PER_PASS // math.prod(window)))


def window_slabs(
    image: Tensor | PiecewiseBatch,
    network: Network,
    window: Sequence[int],
    overlap: float,
    storage: Storage,
    axis: int,
) -> Iterator[Slab]:
    """Yield the logits of one image [1, C, *S] in overlapping windows, blended with Gaussian weights.

    An image that is smaller than the window is padded with 0 on both sides.

    storage: where the windows are added up, in float32: with half precision, logits of 20 would be wrong by up to 0.02.
    axis: along which the slabs follow each other.
    """
    from monai.data.utils import dense_patch_slices

    size = image.shape[2:]
    before = [max(length - side, 0) // 2 for side, length in zip(size, window, strict=True)]
    after = [max(length - side, 0) - first for side, length, first in zip(size, window, before, strict=True)]
    if any(before) or any(after):
        image = _padded(image, before, after)
    padded_size = image.shape[2:]
    steps = [
        side if side == length else max(1, int(length * (1 - overlap)))
        for side, length in zip(padded_size, window, strict=True)
    ]
    windows = sorted(dense_patch_slices(padded_size, window, steps), key=lambda place: place[axis].start)
    inside = [slice(first, first + side) for first, side in zip(before, size, strict=True)]
    for slab in _blended(image, network, windows, storage, axis):
        yield from _cropped(slab, inside)


def _padded(image: Tensor | PiecewiseBatch, before: Sequence[int], after: Sequence[int]) -> Tensor | PiecewiseBatch:
    """An image with a border of zeros."""
    if isinstance(image, PiecewiseBatch):
        return image.padded(before, after)
    pairs = zip(reversed(before), reversed(after), strict=True)
    return F.pad(image, [number for pair in pairs for number in pair])


def _blended(
    image: Tensor | PiecewiseBatch,
    network: Network,
    windows: Sequence[tuple[slice, ...]],
    storage: Storage,
    axis: int,
) -> Iterator[Slab]:
    """Yield the weighted means of the windows, which are sorted by their start along the axis."""
    sums: Tensor | None = None  # [1, K + 1, *S], weighted sums of the logits, and of the weights
    first, dim = 0, axis + 2
    weights = _weights(tuple(place.stop - place.start for place in windows[0]), storage.device)
    # one by one where the memory of the device is short
    together = windows_per_pass(weights.shape, image.device) if storage.is_memory_of(image.device) else 1
    for number in range(0, len(windows), together):
        places = windows[number : number + together]
        logits = network(torch.cat([image[(..., *place)] for place in places]))
        for part, place in zip(logits, places, strict=True):
            if sums is None:
                sides = [*image.shape[2:]]
                sides[axis] = weights.shape[axis]
                sums = storage.zeros([1, len(part) + 1, *sides])
            if place[axis].start > first:
                yield Slab(first, _mean(sums, dim, place[axis].start - first), axis)
                _move_up(sums, dim, place[axis].start - first)
                first = place[axis].start
            where = [*place]
            where[axis] = slice(None)
            sums[(0, slice(-1), *where)] += part.to(storage.device).float() * weights
            sums[(0, -1, *where)] += weights
        del logits, part  # or they would stay until the next pass has its own
    assert sums is not None
    yield Slab(first, _mean(sums, dim, sums.shape[dim]), axis)


def _mean(sums: Tensor, dim: int, rows: int) -> Tensor:
    """The means of the first rows, computed in place."""
    finished = sums.narrow(dim, 0, rows)
    return finished[:, :-1].div_(finished[:, -1:])


def _move_up(sums: Tensor, dim: int, rows: int) -> None:
    """Remove the first rows and append empty ones, in place."""
    length = sums.shape[dim]
    for first in range(rows, length, rows):
        count = min(rows, length - first)
        sums.narrow(dim, first - rows, count).copy_(sums.narrow(dim, first, count))
    sums.narrow(dim, length - rows, rows).zero_()


def _cropped(slab: Slab, inside: Sequence[slice]) -> Iterator[Slab]:
    """The part of a slab that lies inside the image before padding, at its position in that image, if there is one."""
    along = inside[slab.axis]
    start, stop = max(slab.start, along.start), min(slab.stop, along.stop)
    if start < stop:
        where = [*inside]
        where[slab.axis] = slice(start - slab.start, stop - slab.start)
        yield Slab(start - along.start, slab.logits[(..., *where)], slab.axis)


@lru_cache(maxsize=8)
def _weights(window: tuple[int, ...], device: torch.device) -> Tensor:
    """The Gaussian weight of each pixel of a window."""
    from monai.data.utils import compute_importance_map

    with torch.inference_mode(False):  # the result is reused by later calls
        return compute_importance_map(window, mode="gaussian", device=device)


def resampled_slabs(
    slabs: Iterator[Slab], labels: Labels, size: Sequence[int], new_size: Sequence[int]
) -> Iterator[Slab]:
    """Resample the logits of an image to another size as `Labels.resample` does, slab by slab.

    slabs: the logits of the image of the given size, without gaps along one axis. Channels after those of the classes
        are interpolated as they are.
    """
    kept: Tensor | None = None  # probabilities from the position `first` on
    first = done = 0
    for slab in slabs:
        dim, axis = slab.axis + 2, slab.axis
        low, high, fraction = _neighbours(size[axis], new_size[axis])
        probabilities = _on_classes(labels.probabilities, slab.logits, labels)
        kept = probabilities if kept is None else torch.cat([kept, probabilities], dim)
        ready = int((high < slab.stop).sum())
        others = [side for number, side in enumerate(new_size) if number != axis]
        rows = max(1, PIECE // (kept.shape[1] * math.prod(others)))
        for start in range(done, ready, rows):
            chosen = slice(start, min(start + rows, ready))
            between = _between(kept, dim, low[chosen] - first, high[chosen] - first, fraction[chosen])
            yield Slab(start, _on_classes(labels.logits, _resize_others(between, dim, others), labels), axis)
        if ready < len(low):
            needed = min(int(low[ready]), slab.stop)  # an image that shrinks skips rows
            kept = kept.narrow(dim, needed - first, slab.stop - needed).clone()
            first = needed
        done = ready


def _on_classes(function: Network, channels: Tensor, labels: Labels) -> Tensor:
    """Apply a function to the channels of the classes, and leave those after them."""
    classes = function(channels[:, : labels.channels])
    others = channels[:, labels.channels :]
    return torch.cat([classes, others], 1) if others.shape[1] else classes


def _neighbours(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each new position along an axis, the old ones below and above, and the share of the latter.

    The borders of the outermost pixels are aligned, not their centres, as in `torch.nn.functional.interpolate`.
    """
    source = ((torch.arange(new, dtype=torch.float32) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    low = source.floor().long()
    return low, (low + 1).clamp(max=old - 1), source - low


def _between(rows: Tensor, dim: int, low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
    """Linear interpolation between rows of a tensor."""
    share = fraction.to(rows.device, non_blocking=True).view(-1, *[1] * (rows.ndim - dim - 1))
    below, above = (rows.index_select(dim, numbers.to(rows.device, non_blocking=True)) for numbers in (low, high))
    return below.mul_(1 - share).add_(above.mul_(share))


def _resize_others(probabilities: Tensor, dim: int, sides: Sequence[int]) -> Tensor:
    """Interpolate [1, K, *S] linearly along all spatial axes but one."""
    planes = probabilities.movedim(dim, 1)
    flat = planes.reshape(-1, 1, *planes.shape[3:])
    resized = F.interpolate(flat, size=tuple(sides), mode=LINEAR[len(sides)])
    return resized.view(*planes.shape[:3], *sides).movedim(1, dim)
