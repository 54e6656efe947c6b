"""Synthetic images with known masks, generated from a seed, for trying segkit without data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from segkit.data.cases import Case, RawCase, mask_dtype
from segkit.data.splits import PARTS
from segkit.labels import Labels

PART_OFFSET = 1_000_000  # offset between the case numbers of the parts, so that their sizes are independent
SPREAD = 0.4  # the foreground fraction of a case varies by +-40 % around its mean
CONTRAST, BIAS, TEXTURE = 0.3, 0.35, 0.1  # step at the edge of an object; standard deviations of the fields
MOST_NOISE = 1e6
MOST_CASES = 100_000  # of a part
MOST_VALUES = 2**27  # of an image: pixels times channels
EDGE_PX = 0.7  # standard deviation of the blur


class SyntheticSource:
    """Ellipsoids of each class on an uneven background.

    A class is recognisable by the intensity step at its edge, not by its brightness: a bias field as large as that step
    is added, so that thresholding does not find the objects.

    size: two or three side lengths, in pixels.
    train, validation, test: number of cases in each part, at most 100,000.
    foreground: mean fraction of pixels that are not background, 0 to 0.9. Without a class named background, class 0 is
        the background. If classes overlap, it is the fraction of pixels in at least one of them.
    noise: standard deviation of the noise. The step at the edge of an object is 0.3.
    channels: number of image channels. Each has less contrast than the previous one and its own bias and noise.
    seed: each case depends only on the seed and on its own number.

    With an `ignore_index`, a small box in every mask is set to it. Raises ValueError for options out of range.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        size: list[int] = [96, 96],  # noqa: B006  (part of the schema, never modified)
        train: int = 64,
        validation: int = 16,
        test: int = 16,
        foreground: float = 0.1,
        noise: float = 0.1,
        channels: int = 1,
        seed: int = 0,
    ):
        check_options(size, train, validation, test, foreground, noise, channels, seed)
        self.labels, self.size, self.seed = labels, tuple(size), seed
        self.foreground, self.noise, self.channels = foreground, noise, channels
        self._numbers = dict(_numbered({"train": train, "validation": validation, "test": test}))
        self.cases = tuple(Case(name, name, name.split("_")[0]) for name in sorted(self._numbers))

    def read(self, case: Case) -> RawCase:
        """Generate image and mask of a case."""
        random = np.random.default_rng([self.seed, self._numbers[case.name]])
        if self.labels.has_mask_channels:
            objects = self._overlapping(random)
            mask = objects.astype(np.uint8)
        else:
            objects, mask = self._exclusive(random)
        image = np.stack([self._image(objects, channel, random) for channel in range(self.channels)])
        if self.labels.ignore_index is not None:
            mask[(..., *_small_box(self.size, random))] = self.labels.ignore_index
        return RawCase(image, mask.astype(mask_dtype(self.labels)), (1.0,) * len(self.size))

    def _foreground_fraction(self, random: np.random.Generator) -> float:
        """Draw the foreground fraction of a case."""
        spread = min(SPREAD, 0.95 / self.foreground - 1)
        return self.foreground * (1 + spread * random.uniform(-1, 1))

    def _exclusive(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The objects of each class, bool [N, *S], and the mask [*S]. Objects drawn earlier are on top."""
        background = self.labels.background_channel or 0
        drawn = [value for value in self.labels.values if value != background]
        pixels = int(np.prod(self.size) * self._foreground_fraction(random) / len(drawn))
        mask = np.full(self.size, background, np.int64)
        for value in drawn:
            distance = np.where(mask == background, _ellipsoids(self.size, random), np.inf)
            mask[nearest_pixels(distance, pixels)] = value
        return np.stack([mask == value for value in drawn]), mask

    def _overlapping(self, random: np.random.Generator) -> np.ndarray:
        """The objects of each class, bool [K, *S], placed independently."""
        classes = len(self.labels.names)
        fraction = 1 - (1 - self._foreground_fraction(random)) ** (1 / classes)
        pixels = int(np.prod(self.size) * fraction)
        return np.stack([nearest_pixels(_ellipsoids(self.size, random), pixels) for _class in range(classes)])

    def _image(self, objects: np.ndarray, channel: int, random: np.random.Generator) -> np.ndarray:
        """One channel of the image, float32 [*S]."""
        from scipy.ndimage import gaussian_filter

        steps = [CONTRAST * step for step in _steps(len(objects))]
        clean = np.tensordot(np.array(steps, np.float32), objects.astype(np.float32), 1)
        image = gaussian_filter(clean, EDGE_PX) * np.float32(0.8**channel)
        image += _smooth_field(self.size, 4, BIAS, random) + _smooth_field(self.size, 16, TEXTURE, random)
        return image + np.float32(self.noise) * random.standard_normal(self.size, np.float32)


def check_options(
    size: Sequence[int],
    train: int,
    validation: int,
    test: int,
    foreground: float,
    noise: float,
    channels: int,
    seed: int,
) -> None:
    """Raise ValueError for options of `SyntheticSource` that are out of range."""
    if len(size) not in (2, 3) or min(size) < 8:
        raise ValueError(f"expected size to be 2 or 3 sides of at least 8 pixels, got {list(size)}")
    if not 0 < foreground < 0.9:
        raise ValueError(f"expected foreground between 0 and 0.9, got {foreground}")
    if not 0 <= noise <= MOST_NOISE or channels < 1 or seed < 0 or train < 1 or min(validation, test) < 0:
        raise ValueError(
            f"expected noise from 0 to {MOST_NOISE}, seed, validation and test of at least 0, channels and train of at "
            f"least 1, got noise {noise}, seed {seed}, channels {channels}, train {train}, validation {validation}, "
            f"test {test}"
        )
    if max(train, validation, test) > MOST_CASES:
        raise ValueError(
            f"expected train, validation and test of at most {MOST_CASES} cases, got {train}, {validation} and {test}"
        )
    if channels * math.prod(size) > MOST_VALUES:
        raise ValueError(
            f"expected at most 2^27 values in an image, channels times pixels, got {channels} times {list(size)}"
        )


def _numbered(counts: dict[str, int]) -> Iterator[tuple[str, int]]:
    """The name and number of every case."""
    for part, name in enumerate(PARTS):
        for number in range(counts[name]):
            yield f"{name}_{number:04d}", part * PART_OFFSET + number


def _steps(classes: int) -> list[int]:
    """The contrast of each class to the background: 1, -1, 2, -2, ..."""
    return [(number // 2 + 1) * (-1) ** (number % 2) for number in range(classes)]


def _ellipsoids(size: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """The squared distance [*S] to the nearest of one to four random ellipsoids, in units of its radii."""
    dims = len(size)
    axes = [np.arange(side, dtype=np.float32) for side in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(dims, -1)
    nearest = np.full(grid.shape[1], np.inf, np.float32)
    for _ellipsoid in range(random.integers(1, 5)):
        centre = random.uniform(0.1, 0.9, dims) * size
        rotation = np.linalg.qr(random.standard_normal((dims, dims)))[0]
        transform = (rotation / random.uniform(0.5, 1.5, dims)[:, None]).astype(np.float32)
        offset = transform @ (grid - centre.astype(np.float32)[:, None])
        np.minimum(nearest, np.einsum("dn,dn->n", offset, offset), out=nearest)
    return nearest.reshape(size)


def nearest_pixels(distance: np.ndarray, pixels: int) -> np.ndarray:
    """Select the `pixels` smallest distances, bool [*S], so that the objects have a given total volume."""
    chosen = np.zeros(distance.size, bool)
    chosen[np.argpartition(distance.reshape(-1), pixels)[: max(1, pixels)]] = True
    return chosen.reshape(distance.shape)


def _smooth_field(size: Sequence[int], waves: int, deviation: float, random: np.random.Generator) -> np.ndarray:
    """A random sum of low-frequency cosines, float32 [*S], with mean 0 and the given standard deviation."""
    field = random.standard_normal((waves,) * len(size)).astype(np.float32)
    for side in size:
        position = (np.arange(side, dtype=np.float32) + 0.5) / side
        basis = np.cos(np.pi * np.arange(waves, dtype=np.float32)[:, None] * position)
        field = np.tensordot(field, basis, ((0,), (0,)))  # replaces the first axis by a new last one
    field -= field.mean()
    return field * np.float32(deviation / max(float(field.std()), 1e-6))


def _small_box(size: Sequence[int], random: np.random.Generator) -> tuple[slice, ...]:
    """A randomly placed box with an eighth of each side length."""
    starts = [int(random.integers(0, side - side // 8)) for side in size]
    return tuple(slice(start, start + side // 8) for start, side in zip(starts, size, strict=True))
