"""Which sample comes when, and which part of it: pure functions of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segkit.labels import Labels

LOCATIONS = 10_000  # foreground pixels remembered a case: enough to choose from, little to keep


@dataclass(frozen=True)
class Key:
    """One draw of training: the `position`-th sample of an epoch is case number `case`."""

    epoch: int
    position: int
    case: int


class BatchSampler:
    """The micro-batches of a whole run, from step `start` on: lists of keys.

    batch: images of a micro-batch, of all processes together; share: the part of them that this process takes.
    accumulate: micro-batches a step.

    Every epoch visits the cases in an order of its own and leaves out what does not fill a batch; with fewer cases
    than `batch`, orders are strung together until it is full. The order depends on (seed, epoch) alone, so a run
    that is continued at a step sees what it would have seen.
    """

    def __init__(
        self,
        cases: int,
        batch: int,
        steps: int,
        seed: int,
        start: int = 0,
        *,
        accumulate: int = 1,
        share: slice = slice(None),
    ):
        self.cases, self.batch, self.steps, self.seed, self.start = cases, batch, steps, seed, start
        self.accumulate, self.share = accumulate, share
        self.steps_per_epoch = steps_per_epoch(cases, batch, accumulate)

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            order = self._order(epoch)
            for micro in range(within * self.accumulate, (within + 1) * self.accumulate):
                positions = range(micro * self.batch, (micro + 1) * self.batch)[self.share]
                yield [Key(epoch, position, int(order[position])) for position in positions]

    def _order(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        rounds = -(-self.batch * self.accumulate // self.cases)
        return np.concatenate([random.permutation(self.cases) for _ in range(rounds)])


def steps_per_epoch(cases: int, batch: int, accumulate: int = 1) -> int:
    """As many full steps as there are cases for, but at least one."""
    return max(1, cases // (batch * accumulate))


def sample_seeds(seed: int, key: Key) -> tuple[np.random.Generator, int]:
    """The generator that places the patch of a sample, and the seed of its augmentation."""
    sequence = np.random.SeedSequence([seed, key.epoch, key.position])
    placing, augmenting = sequence.spawn(2)
    return np.random.default_rng(placing), int(augmenting.generate_state(1)[0])


Balance = Literal["pixels", "classes"]


@dataclass(frozen=True)
class Locations:
    """Foreground pixels of a case to centre patches on. places: coordinates [N, D]. starts: [R + 1], where the runs of
    places begin among which one is drawn first: a single one, or one for each class."""

    places: np.ndarray
    starts: np.ndarray

    def draw(self, random: np.random.Generator) -> np.ndarray | None:
        """A place, of a run drawn before it; None where there is no foreground."""
        if not len(self.places):
            return None
        run = random.integers(len(self.starts) - 1) if len(self.starts) > 2 else 0
        return self.places[random.integers(self.starts[run], self.starts[run + 1])]


def find_locations(mask: np.ndarray, labels: Labels, dims: int, balance: Balance) -> Locations:
    """At most 10,000 foreground pixels, evenly spread: over all of them, or as many of each class.

    mask: [*S] of class numbers, or [K, *S] of 0, 1 and the padding value. Without a background class every pixel
    that is not the padding value
    is foreground.
    """
    background = 0 if labels.mode == "binary" else labels.background_channel
    if balance == "pixels" and labels.regions is not None and mask.ndim == dims:
        values = sorted({value for union in labels.regions.values() for value in union})
        runs = [_spread(np.isin(mask, values), LOCATIONS)]
    elif balance == "pixels":
        runs = [foreground_locations(mask, background, labels.padding_value, dims)]
    else:
        planes = list(_planes(mask, labels, background))
        runs = [_spread(plane, LOCATIONS // len(planes)) for plane in planes]
    runs = [run for run in runs if len(run)]
    places = np.concatenate(runs) if runs else np.zeros((0, dims), np.int64)
    return Locations(places, np.cumsum([0, *map(len, runs)]))


def _planes(mask: np.ndarray, labels: Labels, background: int | None) -> Iterator[np.ndarray]:
    """Where each foreground class is, bool [*S]."""
    if labels.has_mask_channels:
        yield from (plane == 1 for plane in mask)
    elif labels.regions is not None:
        yield from (np.isin(mask, list(union)) for union in labels.regions.values())
    else:
        yield from (mask == value for value in labels.values if value != background)


def foreground_locations(mask: np.ndarray, background: int | None, padding_value: int, dims: int) -> np.ndarray:
    """Coordinates [N, D] of at most 10,000 foreground pixels, evenly spread over all of them.

    mask: [*S] of class numbers, or [K, *S] of 0, 1 and the padding value. Without a background class, class 0 is
    not special
    and every pixel that is not the padding value is foreground.
    """
    if mask.ndim > dims:
        foreground = (mask == 1).any(0)
    else:
        foreground = (mask != padding_value) & (mask != background) if background is not None else mask != padding_value
    return _spread(foreground, LOCATIONS)


def _spread(there: np.ndarray, most: int) -> np.ndarray:
    flat = np.flatnonzero(there)
    chosen = flat[np.linspace(0, len(flat) - 1, min(most, len(flat))).astype(np.int64)]
    return np.stack(np.unravel_index(chosen, there.shape), axis=1)


@dataclass(frozen=True)
class Window:
    """A patch and the larger piece of the image that it is cut from, after augmentation.

    start, stop: the piece, [D], inside the image. offset: where the patch begins in the piece, [D], which is
    negative where the image is smaller than the patch.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    offset: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


def place_window(
    size: tuple[int, ...], patch: tuple[int, ...], margin: float, centre: np.ndarray | None, random: np.random.Generator
) -> Window:
    """Place a patch in an image of `size`: around `centre` as far as the image allows, or anywhere.

    The piece around it is `margin` times as large where the image allows, so that rotating and scaling has
    something to bring in. An image smaller than the patch is taken whole and placed anywhere in it.
    """
    start, stop, offset = [], [], []
    for axis, (side, length) in enumerate(zip(size, patch, strict=True)):
        low, high = min(0, side - length), max(0, side - length)
        first = int(random.integers(low, high, endpoint=True))
        if centre is not None and side > length:
            first = int(np.clip(centre[axis] - length // 2, 0, high))
        around = int(length * (margin - 1) / 2)
        start.append(max(0, first - around))
        stop.append(min(side, first + length + around))
        offset.append(first - start[-1])
    return Window(tuple(start), tuple(stop), tuple(offset))


def cut(array: np.ndarray, offset: tuple[int, ...], size: tuple[int, ...], fill: float) -> np.ndarray:
    """The piece of `size` that begins at `offset` of the last axes of `array`, `fill` where it reaches outside."""
    lead = array.ndim - len(size)
    slices, padding = [slice(None)] * lead, [(0, 0)] * lead
    for first, length, side in zip(offset, size, array.shape[lead:], strict=True):
        slices.append(slice(max(0, first), max(0, min(side, first + length))))
        padding.append((max(0, -first), max(0, first + length - side)))
    piece = array[tuple(slices)]
    return np.pad(piece, padding, constant_values=fill) if any(map(any, padding)) else piece
