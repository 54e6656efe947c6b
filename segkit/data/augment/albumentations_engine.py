"""Albumentations for 2D images, whose usual intensities are 0 to 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

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
    UpToHalf,
    check_order,
)
from segkit.data.preprocess import Units

LARGEST_WARP = 2**21  # pixels of an image that is warped in memory that is used again, 34 MB


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise the library goes online to check for updates
    import albumentations

    return albumentations


# The library clips the result of these transforms to [0, 1]. An image that fills only a part of this range would then
# become constant, and pixels beyond it would lose their differences.


def _unclipped(transform: type, change: Callable[..., np.ndarray], **options: Any) -> Any:
    """A transform with the random numbers of the library, which `change(image, **numbers)` applies without clipping."""

    class Unclipped(transform):
        def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
            return change(img, **params)

    return Unclipped(**options)


def _within_range(transform: type, **options: Any) -> Any:
    """A transform that is defined on [0, 1] only: the part of a pixel beyond this range is kept and added again."""

    class WithinRange(transform):
        def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
            inside = np.clip(img, 0, 1)
            return super().apply(inside, *args, **params) + (img - inside)

    return WithinRange(**options)


def horizontal_flip(*, swap: Swap | None = None, p: Probability = 0.5) -> Any:
    """Flip left and right, and swap the classes of `swap_on_flip`."""
    library = _albumentations()
    if swap is None:
        return library.HorizontalFlip(p=p)

    class SwappingFlip(library.HorizontalFlip):
        def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
            flipped = super().apply_to_mask(mask, *args, **params)
            return flipped if mask.dtype.kind == "f" else swap(flipped, channel_axis=-1)  # weights are no classes

    return SwappingFlip(p=p)


def vertical_flip(*, p: Probability = 0.5) -> Any:
    """Flip top and bottom."""
    return _albumentations().VerticalFlip(p=p)


def rotate90(*, p: Probability = 0.5) -> Any:
    """Rotate by a random multiple of 90 degrees."""
    return _albumentations().RandomRotate90(p=p)


def affine(
    *,
    padding_value: int,
    rotate: Degrees = 15.0,
    scale: BelowOne = 0.15,
    shift: NonNegative = 0.05,
    shear: Degrees = 0.0,
    p: Probability = 0.5,
) -> Any:
    """Rotate by up to `rotate` degrees, scale by 1 +- `scale`, shift by up to a fraction `shift` of the sides, and
    shear by up to `shear` degrees."""
    return _in_four_channels(
        _albumentations().Affine,
        rotate=(-rotate, rotate),
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        shear=(-shear, shear),
        fill=0,
        fill_mask=padding_value,
        p=p,
    )


def _in_four_channels(affine: type, **options: Any) -> Any:
    """The affine transform, which warps a colour image with a fourth channel.

    OpenCV warps four channels of float32 in half the time of three (0.42 and 0.77 ms for 360 x 480 pixels, version
    5.0), to the same values. The arrays for it are used again, since new ones of this size cost more than the warp.
    """

    class InFourChannels(affine):
        def apply(
            self, img: np.ndarray, matrix: np.ndarray, output_shape: tuple[int, int], **params: Any
        ) -> np.ndarray:
            size = round(output_shape[0]), round(output_shape[1])
            is_small = max(img.size, 3 * size[0] * size[1]) <= 3 * LARGEST_WARP
            if img.shape[2:] != (3,) or img.dtype != np.float32 or not is_small or np.allclose(matrix, np.eye(3)):
                return super().apply(img, matrix=matrix, output_shape=output_shape, **params)
            return _warped(img, matrix[:2], size)

    return InFourChannels(**options)


def _warped(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A colour image [H, W, 3] warped linearly to another size, with 0 outside."""
    import cv2

    source = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA, dst=_scratch("source", image.shape[:2]))
    target = cv2.warpAffine(source, matrix, size[::-1], dst=_scratch("target", size), flags=cv2.INTER_LINEAR)
    return cv2.cvtColor(target, cv2.COLOR_BGRA2BGR)


def _scratch(use: str, size: tuple[int, ...]) -> np.ndarray:
    """An array [H, W, 4] that the next call overwrites. A process loads one sample at a time."""
    return _memory(use)[: 4 * size[0] * size[1]].reshape(*size, 4)


@cache
def _memory(_use: str) -> np.ndarray:
    """The system gives memory to this array only where it is written."""
    return np.empty(4 * LARGEST_WARP, np.float32)


def elastic(*, padding_value: int, alpha: NonNegative = 50.0, sigma: Sigma = 7.0, p: Probability = 0.3) -> Any:
    """Apply a smooth random displacement of strength `alpha` and smoothness `sigma`, in pixels (Simard et al. 2003)."""
    transform = _albumentations().ElasticTransform
    return transform(alpha=alpha, sigma=sigma, border_mode=0, fill=0, fill_mask=padding_value, p=p)


def brightness_contrast(*, brightness: NonNegative = 0.2, contrast: NonNegative = 0.2, p: Probability = 0.5) -> Any:
    """Shift brightness by up to +- `brightness` of the usual range and scale contrast by 1 +- `contrast`."""
    limits = {"brightness_limit": (-brightness, brightness), "contrast_limit": (-contrast, contrast)}

    def change(image: np.ndarray, *, alpha: float, beta: float, **_others: Any) -> np.ndarray:
        changed = image * np.float32(alpha)
        changed += np.float32(beta)
        return changed

    return _unclipped(_albumentations().RandomBrightnessContrast, change, **limits, p=p)


def gamma(*, low: Positive = 0.8, high: Positive = 1.25, p: Probability = 0.3) -> Any:
    """Raise intensities, 0 to 1 in the usual range, to a random power between `low` and `high`."""
    check_order(low, high)
    return _within_range(_albumentations().RandomGamma, gamma_limit=(100 * low, 100 * high), p=p)


def hue_saturation(*, hue: UpToHalf = 0.05, saturation: BelowOne = 0.2, p: Probability = 0.3) -> Any:
    """Shift the hue of RGB images by up to a fraction `hue` of its range and scale saturation by 1 +- `saturation`."""
    limits = {"saturation": (1 - saturation, 1 + saturation), "hue": (-hue, hue)}
    return _within_range(_albumentations().ColorJitter, brightness=(1, 1), contrast=(1, 1), **limits, p=p)


def gaussian_noise(*, sd: NonNegative = 0.05, p: Probability = 0.3) -> Any:
    """Add Gaussian noise with a standard deviation of up to `sd` of the usual range."""

    def change(image: np.ndarray, *, noise_map: np.ndarray, **_others: Any) -> np.ndarray:
        return image + noise_map.astype(np.float32)

    return _unclipped(_albumentations().GaussNoise, change, std_range=(0.0, sd), p=p)


def gaussian_blur(*, sigma: Sigma = 1.5, p: Probability = 0.2) -> Any:
    """Blur with a Gaussian with a standard deviation of 0.3 to `sigma` pixels."""
    return _albumentations().GaussianBlur(sigma_limit=(0.3, sigma), blur_limit=0, p=p)


ALBUMENTATIONS: dict[str, Callable[..., Any]] = {
    "horizontal_flip": horizontal_flip,
    "vertical_flip": vertical_flip,
    "rotate90": rotate90,
    "affine": affine,
    "elastic": elastic,
    "brightness_contrast": brightness_contrast,
    "gamma": gamma,
    "hue_saturation": hue_saturation,
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
}


class AlbumentationsAugment(Augment):
    """Albumentations for 2D images: image float32 [C, H, W], mask [H, W] or [K, H, W].

    Raises AugmentError for volumes, and if a transform does not support the number of channels.
    """

    units: Units = "range"

    def __init__(self, transforms: Sequence[Any]):
        self.compose = _albumentations().Compose(list(transforms), additional_targets={"weight": "mask"})

    def arranged(self, image: np.ndarray) -> np.ndarray:
        return _channels_last(image).transpose(2, 0, 1) if image.ndim == 3 else image

    def apply(self, image: np.ndarray, mask: np.ndarray, weight: np.ndarray | None, seed: int) -> Augmented:
        if image.ndim != 3:
            raise AugmentError(
                f"albumentations supports 2D images [C, H, W], got {list(image.shape)}; use engine: monai"
            )
        self.compose.set_random_seed(seed)
        weights = {} if weight is None else {"weight": np.ascontiguousarray(weight)}
        try:
            transformed = self.compose(
                image=_channels_last(image),
                mask=np.ascontiguousarray(mask if mask.ndim == 2 else mask.transpose(1, 2, 0)),
                **weights,
            )
        except TypeError as error:  # raised for channels other than 1 or 3
            raise AugmentError(f"a transform does not support an image {list(image.shape)}: {error}") from error
        out_mask = transformed["mask"]
        out_mask = out_mask if out_mask.ndim == 2 else out_mask.transpose(2, 0, 1)
        image = _channels_first(transformed["image"].astype(np.float32, copy=False))
        return image, out_mask.astype(mask.dtype, copy=False), transformed.get("weight")


# OpenCV moves the channel axis five times faster than numpy does


def _channels_last(image: np.ndarray) -> np.ndarray:
    import cv2

    if image.strides[0] == image.itemsize:  # see `AlbumentationsAugment.arranged`
        return np.ascontiguousarray(image.transpose(1, 2, 0))
    merged = cv2.merge([np.ascontiguousarray(channel) for channel in image])
    return merged.reshape(*image.shape[1:], len(image))


def _channels_first(image: np.ndarray) -> np.ndarray:
    import cv2

    out: Any = np.empty((1 if image.ndim == 2 else image.shape[2], *image.shape[:2]), np.float32)
    cv2.split(np.ascontiguousarray(image), list(out))
    return out
