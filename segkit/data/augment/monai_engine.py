"""MONAI for 2D images and volumes, with normalised intensities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from segkit.data.augment.base import (
    Augment,
    Augmented,
    AugmentError,
    BelowOne,
    Degrees,
    NonNegative,
    Positive,
    Probability,
    Sigma,
    Swap,
    Zoom,
    check_order,
)
from segkit.data.preprocess import PERCENTILES, SAMPLED_OF_CASE, Units


class _RandomTransform:
    """The interface by which the engine sets the random state of a transform, as in MONAI's own random transforms."""

    random: np.random.RandomState

    def set_random_state(self, state: np.random.RandomState) -> None:
        self.random = state


class _Flip(_RandomTransform):
    """Flips each axis with probability `p`.

    Left to right is the first axis of a volume and the last axis of a 2D image.
    """

    def __init__(self, axes: Sequence[int] | Literal["all"], p: float, padding_value: int, swap: Swap | None):
        self.axes, self.p, self.padding_value, self.swap = axes, p, padding_value, swap

    def __call__(self, sample: dict[Any, Any]) -> dict[Any, Any]:
        image, mask = sample["image"], sample["mask"]
        dims = image.ndim - 1
        axes: Sequence[int] = range(dims) if isinstance(self.axes, str) else self.axes
        for axis in axes:
            if not -dims <= axis < dims:
                raise IndexError(f"flip: expected an axis from {-dims} to {dims - 1}, got {axis}; use `axes: all`")
            if self.random.random_sample() >= self.p:
                continue
            image, mask = image.flip(1 + axis % dims), mask.flip(1 + axis % dims)
            if "weight" in sample:
                sample = {**sample, "weight": sample["weight"].flip(1 + axis % dims)}
            if self.swap is not None and axis % dims == (0 if dims == 3 else 1):
                mask = self.swap(mask, shift=-self.padding_value)
        return {**sample, "image": image, "mask": mask}


def flip(
    *, padding_value: int, swap: Swap | None = None, axes: list[int] | Literal["all"], p: Probability = 0.5
) -> Any:
    """Flip each of the spatial `axes` (0 is the first) with probability `p`, and swap the classes of `swap_on_flip`
    whenever left and right are flipped."""
    return _Flip(axes, p, padding_value, swap)


def affine(
    *,
    rotate: Degrees = 15.0,
    scale: BelowOne = 0.15,
    shift: NonNegative = 0.05,
    shear: Degrees = 0.0,
    axis: Literal[0, 1, 2] | None = None,
    p: Probability = 0.5,
) -> Any:
    """Rotate about each axis by up to `rotate` degrees, scale by 1 +- `scale`, shift by up to a fraction `shift` of the
    sides, and shear by up to `shear` degrees.

    axis: for volumes, the only axis to rotate about; 2 rotates thick slices within their plane.
    """
    return _LazyAffine(np.deg2rad(rotate), scale, shift, np.deg2rad(shear), axis, p)


class _LazyAffine(_RandomTransform):
    """RandAffine with shifts as fractions of the sides. The MONAI transform is built for the size of each sample."""

    def __init__(self, rotate: float, scale: float, shift: float, shear: float, axis: int | None, p: float):
        self.rotate, self.scale, self.shift, self.shear, self.axis, self.p = rotate, scale, shift, shear, axis, p

    def __call__(self, sample: dict[Any, Any]) -> dict[Any, Any]:
        from monai.transforms.spatial.dictionary import RandAffined

        size = sample["image"].shape[1:]
        dims = len(size)
        if self.axis is not None and dims != 3:
            raise ValueError(f"affine: axis {self.axis} is for volumes only, but the images have {dims} axes")
        angles = [self.rotate if self.axis in (None, axis) else 0.0 for axis in range(dims if dims == 3 else 1)]
        transform = RandAffined(
            ["image", "mask", *(["weight"] if "weight" in sample else [])],
            prob=self.p,
            rotate_range=[(-angle, angle) for angle in angles],
            scale_range=[(-self.scale, self.scale)] * dims,
            translate_range=[(-self.shift * side, self.shift * side) for side in size],
            shear_range=[(-self.shear, self.shear)] * (6 if dims == 3 else 2),
            mode=["bilinear", "nearest", "nearest"][: 3 if "weight" in sample else 2],
            padding_mode=["border", "zeros", "zeros"][: 3 if "weight" in sample else 2],
        )
        transform.set_random_state(state=self.random)
        return transform(sample)


def gaussian_noise(*, sd: NonNegative = 0.1, p: Probability = 0.2) -> Any:
    """Add Gaussian noise with a standard deviation of up to `sd`, in units of the normalised image."""
    from monai.transforms.intensity.dictionary import RandGaussianNoised

    return RandGaussianNoised(["image"], prob=p, std=sd)


def gaussian_smooth(*, sigma: Sigma = 1.0, p: Probability = 0.1) -> Any:
    """Blur with a Gaussian with a standard deviation of 0.25 to `sigma` voxels."""
    from monai.transforms.intensity.dictionary import RandGaussianSmoothd

    return RandGaussianSmoothd(["image"], (0.25, sigma), (0.25, sigma), (0.25, sigma), prob=p)


def scale_intensity(*, factor: BelowOne = 0.25, p: Probability = 0.3) -> Any:
    """Multiply the image by 1 +- `factor`."""
    from monai.transforms.intensity.dictionary import RandScaleIntensityd

    return RandScaleIntensityd(["image"], factor, prob=p)


def shift_intensity(*, offset: NonNegative = 0.1, p: Probability = 0.3) -> Any:
    """Shift intensities by up to +- `offset`, in standard deviations of the image after zscore."""
    from monai.transforms.intensity.dictionary import RandShiftIntensityd

    return RandShiftIntensityd(["image"], offset, prob=p)


def contrast(*, factor: BelowOne = 0.25, p: Probability = 0.3) -> Any:
    """Scale deviations from the mean by 1 +- `factor`."""
    from monai.transforms.intensity.dictionary import RandScaleIntensityFixedMeand

    return RandScaleIntensityFixedMeand(["image"], prob=p, factors=factor, preserve_range=False)


def low_resolution(*, zoom: Zoom = 0.5, p: Probability = 0.25) -> Any:
    """Downsample the image by a random factor from `zoom` to 1 and upsample it to its original size."""
    return _LowResolution(zoom, p)


class _LowResolution(_RandomTransform):
    """RandSimulateLowResolution, built for the dimension of each sample, on which its interpolation mode depends."""

    def __init__(self, zoom: float, p: float):
        self.zoom, self.p = zoom, p

    def __call__(self, sample: dict[Any, Any]) -> dict[Any, Any]:
        from monai.transforms.spatial.dictionary import RandSimulateLowResolutiond

        upsample = "trilinear" if sample["image"].ndim == 4 else "bilinear"
        transform = RandSimulateLowResolutiond(
            ["image"], prob=self.p, zoom_range=(self.zoom, 1.0), upsample_mode=upsample
        )
        transform.set_random_state(state=self.random)
        return transform(sample)


def gamma(*, low: Positive = 0.7, high: Positive = 1.5, invert: bool = False, p: Probability = 0.3) -> Any:
    """Raise the image, whose 0.5th and 99.5th percentiles are scaled to 0 and 1, to a random power between `low` and
    `high`. Values beyond these percentiles keep their distance to them.

    With `invert` this applies to the negative image. Mean and standard deviation are preserved.
    """
    check_order(low, high)
    return _Gamma(low, high, invert, p)


class _Gamma(_RandomTransform):
    """MONAI's AdjustContrast between percentiles: between the extremes, one bright pixel would make it too strong."""

    def __init__(self, low: float, high: float, invert: bool, p: float):
        self.low, self.high, self.invert, self.p = low, high, invert, p

    def __call__(self, sample: dict[Any, Any]) -> dict[Any, Any]:
        from monai.transforms.intensity.array import AdjustContrast

        if self.random.random_sample() >= self.p:
            return sample
        image = sample["image"]
        some = image.reshape(-1)[:: max(1, image.numel() // SAMPLED_OF_CASE)].numpy()
        inside = image.clamp(*(float(end) for end in np.percentile(some, PERCENTILES)))
        gamma = self.random.uniform(self.low, self.high)
        changed = AdjustContrast(gamma, invert_image=self.invert, retain_stats=True)(inside)
        return {**sample, "image": changed + (image - inside)}


MONAI: dict[str, Callable[..., Any]] = {
    "flip": flip,
    "affine": affine,
    "gaussian_noise": gaussian_noise,
    "gaussian_smooth": gaussian_smooth,
    "scale_intensity": scale_intensity,
    "shift_intensity": shift_intensity,
    "contrast": contrast,
    "low_resolution": low_resolution,
    "gamma": gamma,
}


class MonaiAugment(Augment):
    """MONAI's random transforms for 2D images and volumes: image float32 [C, *S], mask [*S] or [K, *S].

    Raises AugmentError if a transform does not support the shape of the image.
    """

    units: Units = "deviations"

    def __init__(self, transforms: Sequence[Any], padding_value: int):
        from monai.data.meta_obj import set_track_meta

        set_track_meta(False)  # use plain tensors, since the affine of the file is not needed
        self.transforms = list(transforms)
        self.padding_value = padding_value

    def apply(self, image: np.ndarray, mask: np.ndarray, weight: np.ndarray | None, seed: int) -> Augmented:
        import torch

        dims = image.ndim - 1
        # resampling fills pixels from outside with 0; shifted by the padding value, 0 stands for the padding value
        shifted = mask.astype(np.float32) - self.padding_value
        sample = {
            "image": torch.from_numpy(np.array(image, order="C")),  # some transforms work in place
            "mask": torch.from_numpy(shifted if mask.ndim > dims else shifted[None]),
        }
        if weight is not None:
            sample["weight"] = torch.from_numpy(np.ascontiguousarray(weight))[None]
        random = np.random.RandomState(seed % 2**32)
        for transform in self.transforms:
            transform.set_random_state(state=random)
            try:
                sample = transform(sample)
            except (RuntimeError, IndexError, ValueError) as error:
                raise AugmentError(f"a transform does not support an image {list(image.shape)}: {error}") from error
        out_mask = (np.asarray(sample["mask"]) + self.padding_value).round().astype(mask.dtype)
        out_weight = None if weight is None else np.asarray(sample["weight"], dtype=np.float32)[0]
        return (
            np.asarray(sample["image"], dtype=np.float32),
            out_mask if mask.ndim > dims else out_mask[0],
            out_weight,
        )
