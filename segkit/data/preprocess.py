"""From stored pixels to what a network sees: spacing and intensity, fitted on the training cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from segkit.data.cases import Case, RawCase, check_finite
from segkit.utils.errors import DataError
from segkit.utils.padding import Multiple

Intensity = Literal["zscore", "dataset", "percentile", "none"]
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Preprocess:
    """How every image is prepared, as plain data that a checkpoint can hold.

    channels, dims: C of the images [C, *S] and the number of their spatial axes.
    intensity: `zscore`, each channel of each case to mean 0 and deviation 1; `dataset`, the same with the mean and
        deviation of the training cases; `percentile`, the 0.5 and 99.5 percentiles of each channel and case to 0
        and 1, clipped; `none`.
    shift, scale: length C, the fitted numbers of `dataset`; empty otherwise.
    spacing: length D, what images are resampled to, in mm for volumes; None leaves them as they are.
    multiple: what the sides of a batch are padded to multiples of, all axes alike or one number for each.
    """

    channels: int
    dims: int
    intensity: Intensity
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    spacing: tuple[float, ...] | None
    multiple: Multiple

    @classmethod
    def fit(
        cls,
        cases: Iterable[tuple[Case, RawCase]],
        *,
        intensity: Intensity = "zscore",
        spacing: Sequence[float] | Literal["median"] | None = None,
        multiple: Multiple,
    ) -> Preprocess:
        """Fit on the training cases, each read once.

        spacing: a target for each axis, `median` of the training cases, or None.

        Raises DataError for cases that differ in channels or axes and for pixels that are not finite, ValueError
        for options that mean nothing.
        """
        if intensity not in get_args(Intensity):
            raise ValueError(f"expected intensity to be one of {', '.join(get_args(Intensity))}, got {intensity!r}")
        survey = Survey()
        for case, raw in cases:
            survey.add(case, raw, measure=intensity == "dataset")
        channels, dims = survey.shape()
        shift, scale = survey.moments() if intensity == "dataset" else ((), ())
        return cls(channels, dims, intensity, shift, scale, survey.target(spacing), multiple)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, texts and lists only."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocess:
        """What `to_dict` gave."""
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return cls(**options)

    def resample(self, raw: RawCase) -> RawCase:
        """The case on the target spacing: the image linearly, the mask by nearest neighbours."""
        if self.spacing is None:
            return raw
        if len(self.spacing) != len(raw.spacing):
            raise DataError(f"expected an image with {len(self.spacing)} axes, got {len(raw.spacing)}")
        old = raw.image.shape[1:]
        new = tuple(
            max(1, round(side * have / want)) for side, have, want in zip(old, raw.spacing, self.spacing, strict=True)
        )
        if new == old:
            return raw
        mask = None if raw.mask is None else nearest(raw.mask, new)
        return RawCase(linear(raw.image, new), mask, self.spacing)

    def intensity_map(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Measure an image [C, *S]: `shift` and `scale`, float32 [C], such that (image - shift) / scale is normal.

        Raises DataError for another number of channels or axes than the training cases had.
        """
        if image.shape[0] != self.channels or image.ndim != self.dims + 1:
            raise DataError(
                f"expected an image with {self.channels} channels and {self.dims} spatial axes, as in training, "
                f"got {image.shape[0]} and {image.ndim - 1}"
            )
        flat = image.reshape(self.channels, -1)
        if self.intensity == "none":
            shift, scale = np.zeros(self.channels), np.ones(self.channels)
        elif self.intensity == "dataset":
            shift, scale = np.array(self.shift), np.array(self.scale)
        elif self.intensity == "zscore":
            shift, scale = flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64)
        else:
            shift, high = np.percentile(flat, PERCENTILES, axis=1)
            scale = high - shift
        return shift.astype(np.float32), _no_zeros(scale).astype(np.float32)

    def normalise(self, image: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(image - shift) / scale for an image [C, *S], clipped to 0..1 for `percentile`: float32."""
        wide = (-1, *(1,) * (image.ndim - 1))
        normal = image - shift.reshape(wide)
        normal /= scale.reshape(wide)
        return np.clip(normal, 0, 1, out=normal) if self.intensity == "percentile" else normal


@dataclass
class Survey:
    """What is learnt from the training cases one by one; sums are kept in float64."""

    first: tuple[str, int, int] | None = None  # case name, channels, dims
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    pixels: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(1))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))  # summed squared distances from the mean

    def add(self, case: Case, raw: RawCase, *, measure: bool) -> None:
        check_finite(raw.image, f"case {case.name}, file {case.images[0] if case.images else None}")
        found = (case.name, raw.image.shape[0], raw.image.ndim - 1)
        self.first = self.first or found
        if found[1:] != self.first[1:]:
            raise DataError(
                f"expected images alike, but case {self.first[0]} has {self.first[1]} channels and {self.first[2]} "
                f"spatial axes, case {case.name} has {found[1]} and {found[2]}; convert one of them"
            )
        self.spacings.append(raw.spacing)
        if measure:
            self._measure(raw.image.reshape(len(raw.image), -1))

    def _measure(self, flat: np.ndarray) -> None:
        """Merge the mean and squared distances of one image into those of all before it (Chan et al. 1979)."""
        count = flat.shape[1]
        mean = flat.mean(1, dtype=np.float64)
        gap = mean - self.mean
        total = self.pixels + count
        squares = flat.var(1, dtype=np.float64) * count
        self.squares = self.squares + squares + gap**2 * self.pixels * count / total
        self.mean = self.mean + gap * count / total
        self.pixels = total

    def shape(self) -> tuple[int, int]:
        """Channels and number of spatial axes."""
        if self.first is None:
            raise DataError("expected training cases to fit the preprocessing on, got none")
        return self.first[1:]

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        deviation = _no_zeros(np.sqrt(self.squares / self.pixels))
        return tuple(self.mean.tolist()), tuple(deviation.tolist())

    def target(self, spacing: Sequence[float] | str | None) -> tuple[float, ...] | None:
        """The option `spacing` as numbers."""
        if spacing is None:
            return None
        if isinstance(spacing, str):
            if spacing != "median":
                raise ValueError(f"expected spacing to be a list of lengths, median or none, got {spacing!r}")
            return tuple(np.median(np.array(self.spacings), axis=0).tolist())
        dims = self.shape()[1]
        if len(spacing) != dims or not all(length > 0 for length in spacing):
            raise ValueError(f"expected spacing to be {dims} positive lengths, got {list(spacing)}")
        return tuple(float(length) for length in spacing)


def _no_zeros(scale: np.ndarray) -> np.ndarray:
    """A constant image is only shifted."""
    return np.where(scale > 0, scale, 1.0)


def linear(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """An image [C, *S] resized linearly, pixel borders and not pixel centres being aligned: float32."""
    mode = "trilinear" if len(size) == 3 else "bilinear"
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
    return torch.nn.functional.interpolate(tensor, size, mode=mode, align_corners=False)[0].numpy()


def nearest(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A mask [*S] or [K, *S] resized on the same grid as `linear`, each pixel that of the nearest centre."""
    lead = mask.ndim - len(size)
    for axis, side in enumerate(size):
        old = mask.shape[lead + axis]
        mask = np.take(mask, np.floor((np.arange(side) + 0.5) * old / side).astype(np.int64), axis=lead + axis)
    return np.ascontiguousarray(mask)
