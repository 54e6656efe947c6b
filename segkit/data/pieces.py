"""Images that are read in pieces, because they, or their float32 numbers, may not fit into memory.

A source of pieces knows the size of the image and reads any box of it. Preprocessing in pieces gives the numbers that
preprocessing of the whole image gives: means and percentiles are exact, and resampling interpolates between the same
pixels.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from segkit.data.cases import check_finite
from segkit.data.preprocess import FIXED, PERCENTILES, Preprocess, check_unit_range, no_zeros

Box = tuple[slice, ...]  # spatial, with start and stop
BLOCK = 2**24  # numbers that are in memory at a time while statistics are computed
LARGE = 2**30  # bytes of float32 numbers above which an image is predicted in pieces


class Pieces(Protocol):
    """An image [C, *S] of which boxes are read as float32.

    shape: [C, *S]. slowest: the spatial axes, those first along which neighbours are furthest apart in the file.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def slowest(self) -> tuple[int, ...]: ...

    def read(self, box: Box) -> np.ndarray:
        """The pixels of a box, float32 [C, *box]."""
        ...


@dataclass(frozen=True)
class ArrayPieces:
    """Pieces of an array-like [C, *S] that reads what is indexed, such as a memory map.

    convert: from the stored numbers of a piece to float32, such as by the range of their type.
    """

    array: np.ndarray
    convert: Callable[[np.ndarray], np.ndarray]
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def slowest(self) -> tuple[int, ...]:
        steps = [abs(step) for step in self.array.strides[1:]]
        return tuple(sorted(range(len(steps)), key=lambda axis: -steps[axis]))

    def read(self, box: Box) -> np.ndarray:
        piece = np.ascontiguousarray(self.convert(np.asarray(self.array[(slice(None), *box)])), dtype=np.float32)
        release_pages(self.array)
        check_finite(piece, self.where)
        return piece


def release_pages(array: np.ndarray) -> None:
    """Give back the memory of what was read of a mapped file, which would otherwise grow to that of the file.

    The system still has the pages while it has memory to spare. Nothing happens to arrays that are not mapped, and on
    systems that cannot do this.
    """
    source: object = array
    while isinstance(source, np.ndarray):
        source = source.base
    if isinstance(source, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        source.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class ResampledPieces:
    """Pieces of an image on another grid, linear between pixel centres like `resize_linear`.

    size: [D], of the new grid.
    """

    source: Pieces
    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.source.shape[0], *self.size)

    @property
    def slowest(self) -> tuple[int, ...]:
        return self.source.slowest

    def read(self, box: Box) -> np.ndarray:
        lows, highs, shares = zip(*(self._neighbours(axis, part) for axis, part in enumerate(box)), strict=True)
        needed = tuple(slice(int(low[0]), int(high[-1]) + 1) for low, high in zip(lows, highs, strict=True))
        if self.shape[0] * math.prod(part.stop - part.start for part in needed) > BLOCK and _pixels(box) > 1:
            return self._read_in_halves(box)
        piece = self.source.read(needed)
        for axis, (low, high, share, part) in enumerate(zip(lows, highs, shares, needed, strict=True), 1):
            share = share.reshape(-1, *[1] * (piece.ndim - 1 - axis))
            below, above = (np.take(piece, numbers - part.start, axis) for numbers in (low, high))
            piece = below + (above - below) * share
        return np.ascontiguousarray(piece, dtype=np.float32)

    def _read_in_halves(self, box: Box) -> np.ndarray:
        """What is finely spaced in the file has many more pixels there than on the new grid."""
        axis = max(range(len(box)), key=lambda axis: box[axis].stop - box[axis].start)
        start, stop = box[axis].start, box[axis].stop
        halves = [slice(start, (start + stop) // 2), slice((start + stop) // 2, stop)]
        return np.concatenate([self.read((*box[:axis], half, *box[axis + 1 :])) for half in halves], axis + 1)

    def _neighbours(self, axis: int, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each position, the source positions below and above, and the share of the latter."""
        old, new = self.source.shape[axis + 1], self.size[axis]
        positions = (np.arange(part.start, part.stop, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new)
        places = np.clip(positions - np.float32(0.5), 0, old - 1)
        low = np.floor(places).astype(np.int64)
        return low, np.minimum(low + 1, old - 1), (places - low).astype(np.float32)


@dataclass(frozen=True)
class ProcessedPieces:
    """Pieces of which each is passed through a function that keeps its shape, such as a normalisation or a check."""

    source: Pieces
    process: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def slowest(self) -> tuple[int, ...]:
        return self.source.slowest

    def read(self, box: Box) -> np.ndarray:
        return self.process(self.source.read(box))


def network_pieces(source: Pieces, spacing: tuple[float, ...], preprocess: Preprocess, where: str) -> Pieces:
    """The image as a network receives it, in pieces: what `network_image` gives for the whole image.

    where: names the image in errors.
    """

    def checked(piece: np.ndarray) -> np.ndarray:
        check_unit_range(piece, where, "give images as those of the training")
        return piece

    if preprocess.intensity == "encoder":
        source = ProcessedPieces(source, checked)
    size = preprocess.resampled_size(source.shape[1:], spacing)
    resampled = source if size == source.shape[1:] else _resampled(source, size, where)
    shift, scale = intensity_map(resampled, preprocess)
    return ProcessedPieces(resampled, lambda piece: preprocess.normalise(piece, shift, scale))


def is_large(numbers: int) -> bool:
    """Whether an image of so many numbers is predicted in pieces."""
    return 4 * numbers > LARGE


def _resampled(source: Pieces, size: tuple[int, ...], where: str) -> Pieces:
    """An image on another grid. If it is small there, it is resampled once, and not for each window."""
    resampled = ResampledPieces(source, size)
    if is_large(math.prod(resampled.shape)):
        return resampled
    array = np.empty(resampled.shape, np.float32)
    for box in blocks(resampled):
        array[(slice(None), *box)] = resampled.read(box)
    return ArrayPieces(array, lambda piece: piece, where)


def thinned(source: Pieces) -> tuple[np.ndarray, int]:
    """Every n-th pixel of an image along each axis, so that it has at most BLOCK numbers, for a picture; and n."""
    channels, *sides = source.shape
    step = math.ceil((math.prod(source.shape) / BLOCK) ** (1 / len(sides)))
    thin = np.empty((channels, *(len(range(0, side, step)) for side in sides)), np.float32)
    for box in blocks(source):
        kept = tuple(slice(-part.start % step, None, step) for part in box)
        places = tuple(slice(-(-part.start // step), -(-part.stop // step)) for part in box)
        thin[(slice(None), *places)] = source.read(box)[(slice(None), *kept)]
    return thin, step


def blocks(source: Pieces) -> Iterator[Box]:
    """Boxes that cover an image, of at most BLOCK numbers each, thin along the axes that are slowest in the file."""
    channels, *sides = source.shape
    lengths = list(sides)
    for axis in source.slowest:
        others = channels * math.prod(lengths) // lengths[axis]
        lengths[axis] = min(lengths[axis], max(1, BLOCK // others))
    starts = [range(0, side, length) for side, length in zip(sides, lengths, strict=True)]
    for corner in product(*starts):
        corners = zip(corner, lengths, sides, strict=True)
        yield tuple(slice(start, min(start + length, side)) for start, length, side in corners)


def _pixels(box: Box) -> int:
    return math.prod(part.stop - part.start for part in box)


def intensity_map(source: Pieces, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale, float32 [C], see `Preprocess.intensity_map`."""
    channels = source.shape[0]
    if preprocess.intensity in FIXED:
        shift, scale = np.asarray(preprocess.shift), np.asarray(preprocess.scale)
    elif preprocess.intensity == "none":
        shift, scale = np.zeros(channels), np.ones(channels)
    elif preprocess.intensity == "zscore":
        shift, scale = moments(source)
    else:
        shift, high = percentiles(source)
        scale = high - shift
    return shift.astype(np.float32), no_zeros(scale).astype(np.float32)


def moments(source: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of each channel, float64 [C], in two passes."""
    mean = _mean(source, lambda piece: piece)
    return mean, np.sqrt(_mean(source, lambda piece: (piece - mean[:, None]) ** 2))


def _mean(source: Pieces, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The mean over all pixels of a function of them, float64 [C]."""
    total = np.zeros(source.shape[0])
    for box in blocks(source):
        piece = source.read(box)
        total += function(piece.reshape(len(piece), -1).astype(np.float64)).sum(1)
    return total / math.prod(source.shape[1:])


def percentiles(source: Pieces, levels: Sequence[float] = PERCENTILES) -> np.ndarray:
    """Percentiles of each channel, float64 [L, C], interpolated linearly as by `numpy.percentile`.

    They are exact without the numbers of all pixels in memory: the bits of float32, with the negative ones turned
    round, have the order of the numbers. A first pass counts their upper 16 bits, a second one the lower 16 bits of
    those among which the wanted ranks lie.
    """
    channels, number = source.shape[0], math.prod(source.shape[1:])
    ranks = sorted({rank for level in levels for rank in _ranks(level, number)})
    upper = np.zeros((channels, 2**16), np.int64)
    for keys in _keys(source):
        for channel, values in enumerate(keys):
            upper[channel] += np.bincount(values >> 16, minlength=2**16)
    cumulative = upper.cumsum(1)
    prefix = {
        (channel, rank): int(np.searchsorted(cumulative[channel], rank, "right"))
        for channel in range(channels)
        for rank in ranks
    }
    lower = {(channel, value): np.zeros(2**16, np.int64) for (channel, _rank), value in prefix.items()}
    for keys in _keys(source):
        for (channel, value), counts in lower.items():
            chosen = keys[channel][keys[channel] >> 16 == value] & 0xFFFF
            counts += np.bincount(chosen, minlength=2**16)
    found = {}
    for (channel, rank), value in prefix.items():
        before = int(cumulative[channel][value - 1]) if value else 0
        low = int(np.searchsorted(lower[channel, value].cumsum(), rank - before, "right"))
        found[channel, rank] = float(_number(np.array([(value << 16) | low], np.uint32))[0])
    return np.array([[_between(found, channel, level, number) for channel in range(channels)] for level in levels])


def _ranks(level: float, number: int) -> tuple[int, int]:
    place = level / 100 * (number - 1)
    return math.floor(place), min(math.floor(place) + 1, number - 1)


def _between(found: dict[tuple[int, int], float], channel: int, level: float, number: int) -> float:
    low, high = _ranks(level, number)
    share = level / 100 * (number - 1) - low
    below, above = found[channel, low], found[channel, high]
    return below + (above - below) * share


def _keys(source: Pieces) -> Iterator[np.ndarray]:
    """The pixels of each block as unsigned integers [C, N] in the order of the numbers."""
    for box in blocks(source):
        piece = source.read(box)
        bits = piece.reshape(len(piece), -1).view(np.uint32)
        yield np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)).astype(np.uint32)


def _number(keys: np.ndarray) -> np.ndarray:
    """The float32 numbers of keys."""
    bits = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys).astype(np.uint32)
    return bits.view(np.float32)
