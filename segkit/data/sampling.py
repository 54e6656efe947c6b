"""Order of training samples and placement of patches, as pure functions of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segkit.labels import Labels

LOCATIONS = 10_000  # foreground pixels kept per case: enough to choose from, and small in memory


@dataclass(frozen=True)
class Key:
    """One training sample: the sample at `position` of an epoch shows case number `case`."""

    epoch: int
    position: int
    case: int


class BatchSampler:
    """The micro-batches of a run, from step `start` on, as lists of keys.

    cases: number of cases.
    batch: images per micro-batch, summed over all processes.
    steps: number of steps of the whole run.
    accumulate: micro-batches per step.
    share: the slice of each micro-batch that this process loads.
    frequent, frequent_share: numbers of the cases that are drawn more often, such as those with foreground, and the
        share of the samples that are drawn from them alone.

    Each epoch visits the cases in a new random order and drops the last incomplete step. If there are fewer cases than
    a step needs, several random orders are concatenated. The order depends on (seed, epoch) only, so a resumed run
    continues with the same samples.
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
        frequent: Sequence[int] = (),
        frequent_share: float = 0.0,
    ):
        self.cases, self.batch, self.steps, self.seed, self.start = cases, batch, steps, seed, start
        self.accumulate, self.share = accumulate, share
        self.frequent, self.frequent_share = np.array(frequent, dtype=np.int64), frequent_share
        self.steps_per_epoch = steps_per_epoch(cases, batch, accumulate)

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.steps):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            order = self._order(epoch)
            for micro in range(step_in_epoch * self.accumulate, (step_in_epoch + 1) * self.accumulate):
                positions = range(micro * self.batch, (micro + 1) * self.batch)[self.share]
                yield [Key(epoch, position, int(order[position])) for position in positions]

    def _order(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        rounds = -(-self.batch * self.accumulate // self.cases)
        order = np.concatenate([random.permutation(self.cases) for _ in range(rounds)])
        if not self.frequent_share or not len(self.frequent):
            return order
        replaced = random.random(len(order)) < self.frequent_share
        repeats = -(-int(replaced.sum()) // len(self.frequent))
        drawn = [random.permutation(self.frequent) for _ in range(repeats)]
        order[replaced] = np.concatenate([*drawn, np.zeros(0, np.int64)])[: replaced.sum()]
        return order


def steps_per_epoch(cases: int, batch: int, accumulate: int = 1) -> int:
    """The number of complete steps per epoch, at least 1."""
    return max(1, cases // (batch * accumulate))


def sample_seeds(seed: int, key: Key) -> tuple[np.random.Generator, int]:
    """Return the generator that places the patch of a sample and the seed of its augmentation."""
    sequence = np.random.SeedSequence([seed, key.epoch, key.position])
    placing, augmenting = sequence.spawn(2)
    return np.random.default_rng(placing), int(augmenting.generate_state(1)[0])


Balance = Literal["pixels", "classes"]


@dataclass(frozen=True)
class Locations:
    """Foreground pixels of a case on which patches may be centred, in one or several runs.

    places: coordinates [N, D].
    starts: [R + 1], the boundaries of the R runs in `places`. There is a single run, or one per class that is present.
    """

    places: np.ndarray
    starts: np.ndarray

    def draw(self, random: np.random.Generator) -> np.ndarray | None:
        """Draw a run and then a pixel [D] of that run. Returns None if there is no foreground."""
        if not len(self.places):
            return None
        run = random.integers(len(self.starts) - 1) if len(self.starts) > 2 else 0
        return self.places[random.integers(self.starts[run], self.starts[run + 1])]


def find_locations(mask: np.ndarray, labels: Labels, dims: int, balance: Balance) -> Locations:
    """Select at most 10,000 foreground pixels, evenly spaced among all of them or equally many per class.

    mask: [*S] of class numbers, or [K, *S] of 0, 1 and the padding value.
    dims: number of spatial axes D.
    balance: `pixels` selects from all foreground pixels, `classes` equally many from each class.

    Without a background class, all pixels are foreground except those with the padding value.
    """
    background = 0 if labels.mode == "binary" else labels.background_channel
    if balance == "pixels" and labels.regions is not None and mask.ndim == dims:
        values = sorted({value for union in labels.regions.values() for value in union})
        runs = [_spread(np.isin(mask, values), LOCATIONS)]
    elif balance == "pixels":
        runs = [foreground_locations(mask, background, labels.padding_value, dims)]
    else:
        planes = [plane for number, plane in enumerate(labels.class_planes(mask)) if number != background]
        runs = [_spread(plane, LOCATIONS // len(planes)) for plane in planes]
    runs = [run for run in runs if len(run)]
    places = np.concatenate(runs) if runs else np.zeros((0, dims), np.int64)
    return Locations(places, np.cumsum([0, *map(len, runs)]))


def foreground_locations(mask: np.ndarray, background: int | None, padding_value: int, dims: int) -> np.ndarray:
    """Coordinates [N, D] of at most 10,000 foreground pixels, evenly spaced among all of them.

    mask: [*S] of class numbers, or [K, *S] of 0, 1 and the padding value.
    background: class number of the background. If it is None, all pixels are foreground except those with the padding
        value.
    dims: number of spatial axes D.
    """
    if mask.ndim > dims:
        foreground = (mask == 1).any(0)
    else:
        foreground = (mask != padding_value) & (mask != background) if background is not None else mask != padding_value
    return _spread(foreground, LOCATIONS)


def _spread(foreground: np.ndarray, limit: int) -> np.ndarray:
    """Coordinates [N, D] of at most `limit` true pixels, evenly spaced among all true pixels."""
    flat = np.flatnonzero(foreground)
    chosen = flat[np.linspace(0, len(flat) - 1, min(limit, len(flat))).astype(np.int64)]
    return np.stack(np.unravel_index(chosen, foreground.shape), axis=1)


@dataclass(frozen=True)
class Window:
    """The location of a patch and of the region of the image that is augmented before the patch is cut from it.

    start, stop: the region, [D], inside the image.
    offset: the start of the patch relative to the region, [D]. It is negative if the image is smaller than the patch.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    offset: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The region as an index of the spatial axes."""
        return tuple(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))


def place_window(
    size: tuple[int, ...], patch: tuple[int, ...], margin: float, centre: np.ndarray | None, random: np.random.Generator
) -> Window:
    """Place a patch in an image of `size`, randomly or as close to `centre` as the image allows.

    The region is `margin` times as large as the patch as far as the image allows, so that rotation and scaling bring in
    image content. An image smaller than the patch is used whole, at a random position in the patch.
    """
    start, stop, offset = [], [], []
    for axis, (side, length) in enumerate(zip(size, patch, strict=True)):
        low, high = min(0, side - length), max(0, side - length)
        first = int(random.integers(low, high, endpoint=True))
        if centre is not None and side > length:
            first = int(np.clip(centre[axis] - length // 2, 0, high))
        border = int(length * (margin - 1) / 2)
        start.append(max(0, first - border))
        stop.append(min(side, first + length + border))
        offset.append(first - start[-1])
    return Window(tuple(start), tuple(stop), tuple(offset))


def cut(array: np.ndarray, offset: tuple[int, ...], size: tuple[int, ...], fill: float) -> np.ndarray:
    """Cut a region of `size` at `offset` from the last axes of an array. Pixels outside the array are set to `fill`."""
    leading = array.ndim - len(size)
    slices, padding = [slice(None)] * leading, [(0, 0)] * leading
    for first, length, side in zip(offset, size, array.shape[leading:], strict=True):
        slices.append(slice(max(0, first), max(0, min(side, first + length))))
        padding.append((max(0, -first), max(0, first + length - side)))
    region = array[tuple(slices)]
    return np.pad(region, padding, constant_values=fill) if any(map(any, padding)) else region
