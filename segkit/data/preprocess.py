"""Preprocessing: resampling and intensity normalisation, fitted on the training cases."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from segkit.data.cases import Case, RawCase, check_finite
from segkit.utils.errors import DataError
from segkit.utils.padding import Multiple

Intensity = Literal["zscore", "dataset", "percentile", "encoder", "none"]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel
# What augmentation sees. `range`: the range of the case is 0 to 1. `deviations`: a mean of 0 and a standard
# deviation of 1, or a range of the case of -2 to 2 where the normalisation is another one. `any`: it does not matter.
Units = Literal["range", "deviations", "any"]
MAX_PIXELS = 1 << 31  # of a resampled image; 8.6 GB per channel
PERCENTILES = (0.5, 99.5)
# pixels per case and channel from which percentiles are estimated: of all cases together, and of a single case
SAMPLED, SAMPLED_OF_CASE = 1000, 20_000
# bounds on restored numbers, above those of hyperspectral images and of networks with ten levels
CHANNELS, MULTIPLE = 10_000, 4096
FIXED = ("dataset", "encoder")  # intensities with the same numbers for all cases
UNIT_TOLERANCE = 1e-4  # of linear interpolation in float32


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of every image, as plain data that is stored in checkpoints.

    channels: number of channels C of the images [C, *S].
    dims: number of spatial axes D.
    intensity: `zscore` normalises each channel of each case to mean 0 and standard deviation 1. `dataset` does so with
        the mean and standard deviation of all training cases. `percentile` maps the 0.5th and 99.5th percentiles of
        each channel and case to 0 and 1; values beyond them stay distinct, below 0 and above 1. `encoder` uses the mean
        and standard deviation of the images in 0..1 on which a pretrained encoder was trained. `none` leaves
        intensities unchanged.
    shift, scale: length C, mean and standard deviation fitted by `dataset` or known for `encoder`; empty otherwise.
    low, high: length C, the usual range of normalised images: the 0.5th and 99.5th percentiles of all training cases
        together. It limits the strength of augmentation, see `case_range`.
    spacing: length D, the spacing to which images are resampled, in mm for volumes; None does not resample.
    multiple: the sides of a batch are padded to multiples of this number, or of one number per axis.
    """

    channels: int
    dims: int
    intensity: Intensity
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    spacing: tuple[float, ...] | None
    multiple: Multiple
    clips: bool = False  # `percentile` of version 0.1 clipped to 0..1, which its checkpoints need

    @classmethod
    def fit(
        cls,
        cases: Iterable[tuple[Case, RawCase]],
        *,
        intensity: Intensity = "zscore",
        spacing: Sequence[float] | Literal["median"] | None = None,
        multiple: Multiple,
        encoder: Callable[[int], Normalisation] | None = None,
    ) -> Preprocess:
        """Fit the preprocessing on the training cases. Each case is consumed once.

        spacing: the target spacing of each axis, `median` for the median of the training cases, or None.
        encoder: for the intensity `encoder`, mean and standard deviation for a number of channels.

        Raises DataError if cases differ in channels or axes, contain pixels that are not finite, or, for `encoder`,
        pixels outside 0..1; ValueError for invalid options.
        """
        if intensity not in get_args(Intensity):
            raise ValueError(f"expected intensity to be one of {', '.join(get_args(Intensity))}, got {intensity!r}")
        statistics = TrainingStatistics()
        for case, raw in cases:
            statistics.add(case, raw, measure=intensity == "dataset")
            if intensity == "encoder":
                check_unit_range(raw.image, _where(case), "write preprocess.intensity: zscore")
        channels, dims = statistics.shape()
        shift, scale = statistics.moments() if intensity == "dataset" else ((), ())
        if intensity == "encoder":
            if encoder is None:
                raise ValueError("preprocess.intensity: encoder needs a network that knows the mean of its images")
            shift, scale = encoder(channels)
        low, high = statistics.usual_range(intensity, shift, scale)
        return cls(channels, dims, intensity, shift, scale, low, high, statistics.target(spacing), multiple)

    def to_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocess:
        """Restore the preprocessing from the result of `to_dict`, or of an earlier version without a range.

        Raises ValueError that names a field which is missing, unknown, or has a value that `fit` does not make.
        """
        if "low" not in plain:
            channels = plain.get("channels")
            sides = channels if type(channels) is int and 0 < channels <= CHANNELS else 0
            unit = {"low": (0.0,) * sides, "high": (1.0,) * sides}
            plain = {**plain, **unit, "clips": plain.get("intensity") == "percentile"}
        unknown = [key for key in plain if key not in cls.__dataclass_fields__]
        if unknown:
            raise ValueError(f"expected {', '.join(cls.__dataclass_fields__)}, got {reprlib.repr(unknown[0])}")
        try:
            restored = _adapter().validate_json(json.dumps(plain), strict=True)  # JSON, where a list may become a tuple
        except ValidationError as error:
            first = error.errors()[0]
            problem = first["msg"].replace("Input should be", "expected").replace("Field required", "is missing")
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {problem}") from None
        except TypeError as error:
            raise ValueError(f"expected numbers, text and lists: {error}") from None
        restored._check()
        return restored

    def _check(self) -> None:
        """Raise ValueError for numbers and lengths that do not fit each other."""
        if not 0 < self.channels <= CHANNELS or self.dims not in (2, 3):
            raise ValueError(f"expected 1 to {CHANNELS} channels and 2 or 3 dims, got {self.channels} and {self.dims}")
        fitted = self.channels if self.intensity in FIXED else 0
        sides = self.multiple if isinstance(self.multiple, tuple) else (self.multiple,) * self.dims
        lengths = {"shift": fitted, "scale": fitted, "low": self.channels, "high": self.channels}
        wrong = [name for name, length in lengths.items() if len(getattr(self, name)) != length]
        if wrong or len(sides) != self.dims or len(self.spacing or sides) != self.dims:
            raise ValueError(
                f"expected one number per channel or axis in {wrong[0] if wrong else 'spacing and multiple'}"
            )
        if not all(number > 0 for number in (*self.scale, *(self.spacing or ()), *sides)) or max(sides) > MULTIPLE:
            raise ValueError(f"expected scale, spacing and multiple above 0, and multiple up to {MULTIPLE}")
        if not np.isfinite([*self.shift, *self.scale, *self.low, *self.high, *(self.spacing or ())]).all():
            raise ValueError("expected finite numbers")

    def resample(self, raw: RawCase) -> RawCase:
        """Resample a case to the target spacing, image and weights linearly and the mask by nearest neighbours.

        Raises DataError if the number of axes differs from that of the target spacing.
        """
        size = self.resampled_size(raw.image.shape[1:], raw.spacing)
        if self.spacing is None or size == raw.image.shape[1:]:
            return raw
        mask = None if raw.mask is None else resize_nearest(raw.mask, size)
        weight = None if raw.weight is None else resize_linear(raw.weight[None], size)[0]
        return RawCase(resize_linear(raw.image, size), mask, self.spacing, weight)

    def resampled_size(self, size: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
        """The size of an image [D] of a spacing [D] after resampling to the target spacing.

        Raises DataError if the number of axes differs from that of the target spacing, and for too many pixels.
        """
        if self.spacing is None:
            return size
        if len(self.spacing) != len(spacing):
            raise DataError(f"expected an image with {len(self.spacing)} axes, got {len(spacing)}")
        new_size = tuple(
            max(1, round(side * length / target))
            for side, length, target in zip(size, spacing, self.spacing, strict=True)
        )
        if new_size != size and math.prod(new_size) > MAX_PIXELS:
            raise DataError(
                f"expected at most {MAX_PIXELS:,} pixels after resampling to a spacing of {list(self.spacing)}, got "
                f"{math.prod(new_size):,} from {list(size)} with a spacing of {list(spacing)}; correct the spacing in "
                "the file, or choose a larger preprocess.spacing"
            )
        return new_size

    def intensity_map(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `shift` and `scale`, float32 [C], for which (image - shift) / scale normalises an image [C, *S].

        Raises DataError if the number of channels or axes differs from the training cases.
        """
        if image.shape[0] != self.channels or image.ndim != self.dims + 1:
            raise DataError(
                f"expected an image with {self.channels} channels and {self.dims} spatial axes, as in training, "
                f"got {image.shape[0]} and {image.ndim - 1}"
            )
        if self.intensity in FIXED:
            return np.asarray(self.shift, np.float32), np.asarray(self.scale, np.float32)
        shift, scale = _shift_and_scale(image.reshape(self.channels, -1), self.intensity)
        return shift.astype(np.float32), scale.astype(np.float32)

    def normalise(self, image: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return (image - shift) / scale, float32 [C, *S]."""
        normalised = linear(image, shift, scale)
        return np.clip(normalised, 0, 1, out=normalised) if self.clips else normalised

    def case_range(self, image: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lower end and the width of the range of a case [C, *S] after normalisation, float32 [C].

        The range lies between its 0.5th and 99.5th percentiles, but is no wider than the usual range of the training
        cases, so that neither an unusual image nor a few very bright pixels make augmentation strong.
        """
        pixels = linear(_sampled(image.reshape(self.channels, -1), SAMPLED_OF_CASE), shift, scale)
        low, high = np.percentile(pixels, PERCENTILES, axis=1)
        usual = np.subtract(self.high, self.low)
        width = np.where(high > low, np.minimum(high - low, usual), usual)
        return low.astype(np.float32), width.astype(np.float32)

    def augmentation_units(
        self, units: Units, low: np.ndarray, width: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The normalised intensities, float32 [C], that augmentation sees as 0 and as a difference of 1.

        low, width: the range of the case. Returns None if augmentation sees normalised images as they are.
        """
        if units == "range":
            return low, width
        if units == "deviations" and self.intensity in ("percentile", "encoder", "none"):
            return low + width / 2, width / 4
        return None


@cache
def _adapter() -> TypeAdapter[Preprocess]:
    return TypeAdapter(Preprocess)


@dataclass
class TrainingStatistics:
    """Statistics of the training cases, accumulated case by case in float64."""

    first: tuple[str, int, int] | None = None  # case name, channels, dims
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    pixels: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(1))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))  # sum of squared deviations from the mean
    sampled: list[np.ndarray] = field(default_factory=list)  # evenly spaced pixels [C, N] of each case

    def add(self, case: Case, raw: RawCase, *, measure: bool) -> None:
        """Add a case. measure: whether to update mean and standard deviation.

        Raises DataError for pixels that are not finite, and if the number of channels or axes differs from the first
        case.
        """
        check_finite(raw.image, _where(case))
        channels, dims = raw.image.shape[0], raw.image.ndim - 1
        self.first = self.first or (case.name, channels, dims)
        if (channels, dims) != self.first[1:]:
            raise DataError(
                "expected all images to have the same number of channels and axes, but "
                f"case {self.first[0]} has {self.first[1]} channels and {self.first[2]} spatial axes, "
                f"case {case.name} has {channels} and {dims}; convert one of them"
            )
        self.spacings.append(raw.spacing)
        flat = raw.image.reshape(channels, -1)
        self.sampled.append(_sampled(flat, SAMPLED))
        if measure:
            self._measure(flat)

    def _measure(self, flat: np.ndarray) -> None:
        """Merge the mean and squared deviations of an image into those of all previous ones (Chan et al. 1979)."""
        count = flat.shape[1]
        mean = flat.mean(1, dtype=np.float64)
        difference = mean - self.mean
        total = self.pixels + count
        squares = flat.var(1, dtype=np.float64) * count
        self.squares = self.squares + squares + difference**2 * self.pixels * count / total
        self.mean = self.mean + difference * count / total
        self.pixels = total

    def shape(self) -> tuple[int, int]:
        """Number of channels and of spatial axes. Raises DataError if there are no cases."""
        if self.first is None:
            raise DataError("expected training cases to fit the preprocessing, got none")
        return self.first[1:]

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        deviation = no_zeros(np.sqrt(self.squares / self.pixels))
        return tuple(self.mean.tolist()), tuple(deviation.tolist())

    def usual_range(
        self, intensity: Intensity, shift: Sequence[float], scale: Sequence[float]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lower and upper end of the usual range of each normalised channel; 1 apart for a constant channel."""
        if intensity in FIXED:
            maps = [(np.array(shift), np.array(scale))] * len(self.sampled)
        else:
            maps = [_shift_and_scale(pixels, intensity) for pixels in self.sampled]
        normalised = [linear(pixels, *numbers) for pixels, numbers in zip(self.sampled, maps, strict=True)]
        low, high = np.percentile(np.concatenate(normalised, axis=1), PERCENTILES, axis=1)
        return tuple(low.tolist()), tuple(np.where(high > low, high, low + 1).tolist())

    def target(self, spacing: Sequence[float] | str | None) -> tuple[float, ...] | None:
        """The target spacing as numbers; None if images are not resampled. Raises ValueError for an invalid option."""
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


def check_unit_range(image: np.ndarray, where: str, advice: str) -> None:
    """Raise DataError for pixels outside 0..1, for which the numbers of an encoder do not hold."""
    low, high = float(image.min()), float(image.max())
    if low < -UNIT_TOLERANCE or high > 1 + UNIT_TOLERANCE:
        raise DataError(
            f"{where}: preprocess.intensity: encoder expects intensities between 0 and 1, as those of image files are, "
            f"but they lie between {low:g} and {high:g}; {advice}"
        )


def _where(case: Case) -> str:
    return f"case {case.name}, file {case.images[0] if case.images else None}"


def _sampled(flat: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` evenly spaced pixels of [C, N]."""
    return flat[:, np.linspace(0, flat.shape[1] - 1, min(limit, flat.shape[1])).round().astype(np.int64)]


def _shift_and_scale(flat: np.ndarray, intensity: Intensity) -> tuple[np.ndarray, np.ndarray]:
    """The normalisation of a case by its own pixels [C, N]: shift and scale, float64 [C]."""
    if intensity == "none":
        return np.zeros(len(flat)), np.ones(len(flat))
    if intensity == "zscore":
        shift, scale = flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64)
    else:
        shift, high = np.percentile(flat, PERCENTILES, axis=1)
        scale = high - shift
    return shift, no_zeros(scale)


def linear(image: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return (image - shift) / scale of each channel, [C, *S]."""
    per_channel = (-1, *(1,) * (image.ndim - 1))
    result = np.subtract(image, shift.reshape(per_channel))
    result /= scale.reshape(per_channel)
    return result


def unscaled(image: np.ndarray, shift: np.ndarray, scale: np.ndarray, *, in_place: bool = False) -> np.ndarray:
    """Return image * scale + shift of each channel, [C, *S], the inverse of `linear`; float32 of float32.

    in_place: whether the image may be overwritten. The result of a new image is contiguous.
    """
    result = image if in_place else np.empty(image.shape, image.dtype)
    for channel, values in enumerate(image):  # one channel fits into the second cache
        np.multiply(values, scale[channel], out=result[channel])
        result[channel] += shift[channel]
    return result


def no_zeros(scale: np.ndarray) -> np.ndarray:
    """Replace zeros by 1, so that a constant image is only shifted."""
    return np.where(scale > 0, scale, 1.0)


def resize_linear(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize an image [C, *S] linearly: float32. The borders of the outermost pixels are aligned, not their centres."""
    mode = "trilinear" if len(size) == 3 else "bilinear"
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
    return torch.nn.functional.interpolate(tensor, size, mode=mode, align_corners=False)[0].numpy()


def resize_nearest(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a mask [*S] or [K, *S] by nearest neighbours, on the same grid as `resize_linear`."""
    leading = mask.ndim - len(size)
    for axis, side in enumerate(size, leading):
        indices = np.floor((np.arange(side) + 0.5) * mask.shape[axis] / side).astype(np.int64)
        mask = np.take(mask, indices, axis=axis)
    return np.ascontiguousarray(mask)
