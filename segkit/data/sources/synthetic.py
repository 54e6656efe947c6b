"""Phantoms: images with known masks, made from a seed, to try everything without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from segkit.data.cases import Case, RawCase, mask_dtype
from segkit.data.splits import PARTS
from segkit.labels import Labels

PART_OFFSET = 1_000_000  # case numbers begin here for each part, so that the size of one part changes no other
SPREAD = 0.4  # the foreground of a case is its mean share, 40 % more or less
CONTRAST, BIAS, TEXTURE = 0.3, 0.35, 0.1  # of an object's edge; deviations of what hides its level
EDGE_PX = 0.7  # blur


class SyntheticSource:
    """Ellipsoids of each class on an uneven background.

    The level of a class is told by the step at its edge, not by its brightness: a bias field as large as that step
    lies over the image, so that a threshold does not find the objects.

    size: the sides, two or three. train, validation, test: how many cases each part has.
    foreground: the mean share of pixels that are not background (class 0 where no class is called so; where
        classes overlap, the share in any of them), 0 to 0.9.
    noise: standard deviation of the noise; an object's edge is a step of 0.3.
    channels: image channels, each with less contrast than the one before and its own bias and noise.
    seed: a case depends on the seed and its own number alone.

    With an `ignore_index`, a small box of every mask is set to it.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        size: list[int] = [96, 96],  # noqa: B006  (the default is part of the schema, and is not changed)
        train: int = 64,
        validation: int = 16,
        test: int = 16,
        foreground: float = 0.1,
        noise: float = 0.1,
        channels: int = 1,
        seed: int = 0,
    ):
        if len(size) not in (2, 3) or min(size) < 8:
            raise ValueError(f"expected size with 2 or 3 sides of at least 8 pixels, got {list(size)}")
        if not 0 < foreground < 0.9:
            raise ValueError(f"expected foreground between 0 and 0.9, got {foreground}")
        if noise < 0 or channels < 1 or seed < 0 or train < 1 or min(validation, test) < 0:
            raise ValueError(
                "expected noise and seed of at least 0, channels and train of at least 1, got "
                f"noise {noise}, seed {seed}, channels {channels}, train {train}, validation {validation}, test {test}"
            )
        self.labels, self.size, self.seed = labels, tuple(size), seed
        self.foreground, self.noise, self.channels = foreground, noise, channels
        self._numbers = dict(_numbered({"train": train, "validation": validation, "test": test}))
        self.cases = tuple(Case(name, name, name.split("_")[0]) for name in sorted(self._numbers))

    def read(self, case: Case) -> RawCase:
        """Make the phantom of a case."""
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

    def _share(self, random: np.random.Generator) -> float:
        spread = min(SPREAD, 0.95 / self.foreground - 1)
        return self.foreground * (1 + spread * random.uniform(-1, 1))

    def _exclusive(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The objects of each class [N, *S], bool, and the mask [*S]; what is drawn earlier lies on top."""
        background = self.labels.background_channel or 0
        drawn = [value for value in self.labels.values if value != background]
        pixels = int(np.prod(self.size) * self._share(random) / len(drawn))
        mask = np.full(self.size, background, np.int64)
        for value in drawn:
            distance = np.where(mask == background, _ellipsoids(self.size, random), np.inf)
            mask[nearest_pixels(distance, pixels)] = value
        return np.stack([mask == value for value in drawn]), mask

    def _overlapping(self, random: np.random.Generator) -> np.ndarray:
        """The objects of each class [K, *S], bool, placed without regard to each other."""
        classes = len(self.labels.names)
        share = 1 - (1 - self._share(random)) ** (1 / classes)
        pixels = int(np.prod(self.size) * share)
        return np.stack([nearest_pixels(_ellipsoids(self.size, random), pixels) for _class in range(classes)])

    def _image(self, objects: np.ndarray, channel: int, random: np.random.Generator) -> np.ndarray:
        """One channel, float32 [*S]."""
        from scipy.ndimage import gaussian_filter

        steps = [CONTRAST * step for step in _steps(len(objects))]
        clean = np.tensordot(np.array(steps, np.float32), objects.astype(np.float32), 1)
        image = gaussian_filter(clean, EDGE_PX) * np.float32(0.8**channel)
        image += _smooth_field(self.size, 4, BIAS, random) + _smooth_field(self.size, 16, TEXTURE, random)
        return image + np.float32(self.noise) * random.standard_normal(self.size, np.float32)


def _numbered(counts: dict[str, int]) -> Iterator[tuple[str, int]]:
    for part, name in enumerate(PARTS):
        for number in range(counts[name]):
            yield f"{name}_{number:04d}", part * PART_OFFSET + number


def _steps(classes: int) -> list[int]:
    """1, -1, 2, -2, ...: how each class differs from the background."""
    return [(number // 2 + 1) * (-1) ** (number % 2) for number in range(classes)]


def _ellipsoids(size: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """The distance [*S] to the nearest of one to four ellipsoids, each in units of its own radii."""
    dims = len(size)
    axes = [np.arange(side, dtype=np.float32) for side in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(dims, -1)
    nearest = np.full(grid.shape[1], np.inf, np.float32)
    for _ellipsoid in range(random.integers(1, 5)):
        centre = random.uniform(0.1, 0.9, dims) * size
        turn = np.linalg.qr(random.standard_normal((dims, dims)))[0]
        stretch = (turn / random.uniform(0.5, 1.5, dims)[:, None]).astype(np.float32)
        moved = stretch @ (grid - centre.astype(np.float32)[:, None])
        np.minimum(nearest, np.einsum("dn,dn->n", moved, moved), out=nearest)
    return nearest.reshape(size)


def nearest_pixels(distance: np.ndarray, pixels: int) -> np.ndarray:
    """Where the `pixels` smallest distances are, bool [*S]: objects of a chosen volume, whatever their number."""
    chosen = np.zeros(distance.size, bool)
    chosen[np.argpartition(distance.reshape(-1), pixels)[: max(1, pixels)]] = True
    return chosen.reshape(distance.shape)


def _smooth_field(size: Sequence[int], waves: int, deviation: float, random: np.random.Generator) -> np.ndarray:
    """A random sum of slow cosines along each axis, float32 [*S], with the given standard deviation and mean 0."""
    field = random.standard_normal((waves,) * len(size)).astype(np.float32)
    for side in size:
        position = (np.arange(side, dtype=np.float32) + 0.5) / side
        basis = np.cos(np.pi * np.arange(waves, dtype=np.float32)[:, None] * position)
        field = np.tensordot(field, basis, ((0,), (0,)))  # takes the first axis off, puts the new one last
    field -= field.mean()
    return field * np.float32(deviation / max(float(field.std()), 1e-6))


def _small_box(size: Sequence[int], random: np.random.Generator) -> tuple[slice, ...]:
    """A box with an eighth of each side."""
    starts = [int(random.integers(0, side - side // 8)) for side in size]
    return tuple(slice(start, start + side // 8) for start, side in zip(starts, size, strict=True))
