"""The fingerprint of a data set: the properties that planning is based on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segkit.data.cases import Source, spread
from segkit.data.class_counts import count_classes
from segkit.labels import Labels
from segkit.utils.errors import DataError, kept

MAX_READ = 50  # cases read for the fingerprint
PERCENTILES = (0.5, 50.0, 99.5)
ALIKE_SPACING = 1.05  # ratio of spacings up to which volumes are not resampled
THICK = 3  # times the other spacings, and as many times fewer slices: volumes of thick slices (nnU-Net)
FINE_PERCENTILE = 10  # of the distances between thick slices, to which they are resampled (nnU-Net)


@dataclass(frozen=True)
class Fingerprint:
    """The properties of a data set that planning is based on, from some of its cases.

    Attributes:
        cases: Number of cases in the data set.
        read: Number of cases that were read.
        unreadable: Number of cases that could not be read.
        groups: Number of groups in the data set.
        channels: Number of image channels.
        smallest: Smallest image side, one number per spatial axis.
        median: Median image side, likewise.
        largest: Largest image side, likewise.
        finest: Smallest spacing, likewise.
        spacing: Median spacing, likewise.
        coarsest: Largest spacing, likewise.
        target: Spacing that images are resampled to, likewise: the median; for thick slices, a finer one across them.
        resampled: Median image side if all images are resampled to it, likewise.
        extremes: Lowest and highest intensity.
        percentiles: PERCENTILES of the intensity, averaged over cases.
        between: Share of the variance of the intensity that lies between the means of cases, 0 to 1.
        with_foreground: Share of the cases that have foreground.
        shares: Share of each class in the labelled pixels.
        class_counts: Number of pixels of each class, for each case.
    """

    cases: int
    read: int
    unreadable: int
    groups: int
    channels: int
    smallest: tuple[int, ...]
    median: tuple[int, ...]
    largest: tuple[int, ...]
    finest: tuple[float, ...]
    spacing: tuple[float, ...]
    coarsest: tuple[float, ...]
    target: tuple[float, ...]
    resampled: tuple[int, ...]
    extremes: tuple[float, float]
    percentiles: tuple[float, ...]
    between: float
    with_foreground: float
    shares: tuple[float, ...]
    class_counts: tuple[tuple[int, ...], ...]

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.median)

    @property
    def spacing_ratio(self) -> float:
        """The largest ratio between the spacings of two images along an axis."""
        return max(coarse / fine for coarse, fine in zip(self.coarsest, self.finest, strict=True))

    @property
    def is_resampled(self) -> bool:
        """Whether the images are to be resampled to the target spacing."""
        return self.dims == 3 and self.spacing_ratio > ALIKE_SPACING

    @property
    def sides(self) -> tuple[int, ...]:
        """Median image side as the network receives the images, one number per spatial axis."""
        return self.resampled if self.is_resampled else self.median

    @property
    def spacing_of_network(self) -> tuple[float, ...]:
        """Spacing of the images as the network receives them."""
        return self.target if self.is_resampled else self.spacing


def extract_fingerprint(source: Source, labels: Labels) -> Fingerprint:
    """Read up to MAX_READ evenly spaced cases. Raises DataError if none of them can be read."""
    sides, spacings, intensities, extremes, means, variances = [], [], [], [], [], []
    class_counts, channels = [], 0
    errors: list[DataError] = []
    for case in spread(source.cases, MAX_READ):
        try:
            raw = source.read(case)
        except DataError as error:
            errors.append(kept(error))
            continue
        sides.append(raw.image.shape[1:])
        spacings.append(raw.spacing)
        intensities.append(np.percentile(raw.image, PERCENTILES))
        extremes.append((float(raw.image.min()), float(raw.image.max())))
        flat = raw.image.reshape(len(raw.image), -1)
        means.append(flat.mean(1, dtype=np.float64))
        variances.append(flat.var(1, dtype=np.float64))
        assert raw.mask is not None
        class_counts.append(count_classes(raw.mask, labels))
        channels = len(raw.image)
    if not sides:
        raise DataError(f"{errors[0]} (none of the {len(errors)} cases that were tried can be read)")
    counts = np.sum(class_counts, axis=0)
    target = target_spacing(np.array(sides), np.array(spacings))
    labelled = sum(map(math.prod, sides)) if labels.has_mask_channels else counts.sum()

    return Fingerprint(
        cases=len(source.cases),
        read=len(sides),
        unreadable=len(errors),
        groups=len({case.group for case in source.cases}),
        channels=channels,
        smallest=_integers(np.min(sides, axis=0)),
        median=_integers(np.median(sides, axis=0)),
        largest=_integers(np.max(sides, axis=0)),
        finest=_rounded(np.min(spacings, axis=0)),
        spacing=_rounded(np.median(spacings, axis=0)),
        coarsest=_rounded(np.max(spacings, axis=0)),
        target=_rounded(target),
        resampled=_resampled(np.array(sides), np.array(spacings), target),
        extremes=(min(low for low, _high in extremes), max(high for _low, high in extremes)),
        percentiles=_rounded(np.mean(intensities, axis=0)),
        between=_share_between(means, variances),
        with_foreground=float(np.mean([counts[foreground(labels)].sum() > 0 for counts in class_counts])),
        shares=tuple((counts / max(labelled, 1)).tolist()),
        class_counts=tuple(tuple(case.tolist()) for case in class_counts),
    )


def foreground(labels: Labels) -> list[int]:
    """The numbers of the foreground classes."""
    background = 0 if labels.mode == "binary" else labels.background_channel
    return [number for number in range(len(labels.names)) if number != background]


def _share_between(means: Sequence[np.ndarray], variances: Sequence[np.ndarray]) -> float:
    """The share of the variance of the intensities that lies between the cases, averaged over the channels."""
    channels = min(map(len, means))
    between = np.var([mean[:channels] for mean in means], axis=0)
    within = np.mean([variance[:channels] for variance in variances], axis=0)
    return float(np.mean(between / np.maximum(between + within, 1e-12)))


def target_spacing(sides: np.ndarray, spacings: np.ndarray) -> np.ndarray:
    """The spacing that volumes are resampled to, from their sides and spacings [N, D], by the rule of nnU-Net.

    The median, except across thick slices: there the median would lose slices of those volumes that have more of them,
    so that the 10th percentile is taken, but nothing finer than the other axes (Isensee et al., 2021).
    """
    target, size = np.median(spacings, axis=0), np.median(sides, axis=0)
    thick = int(np.argmax(target))
    others = np.delete(target, thick)
    if target[thick] > THICK * others.max() and size[thick] * THICK < np.delete(size, thick).min():
        target[thick] = max(np.percentile(spacings[:, thick], FINE_PERCENTILE), others.max())
    return target


def _resampled(sides: np.ndarray, spacings: np.ndarray, target: np.ndarray) -> tuple[int, ...]:
    """The median side on each axis at the target spacing."""
    return _integers(np.maximum(1, np.round(np.median(sides * spacings / target, axis=0))))


def _integers(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)
