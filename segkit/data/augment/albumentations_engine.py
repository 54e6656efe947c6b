"""Albumentations, for pictures: values in [0, 1], before the intensities are normalised."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segkit.data.augment.base import Above0, AugmentError, Below1, Degrees, Half, Positive, Share, Swap, check_order


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # the library asks the network for a newer version otherwise
    import albumentations

    return albumentations


def horizontal_flip(*, swap: Swap | None = None, p: Share = 0.5) -> Any:
    """Mirror left and right, and exchange the classes of `swap_on_flip`."""
    library = _albumentations()
    if swap is None:
        return library.HorizontalFlip(p=p)

    class SwappingFlip(library.HorizontalFlip):
        def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
            return swap(super().apply_to_mask(mask, *args, **params), channel_axis=-1)

    return SwappingFlip(p=p)


def vertical_flip(*, p: Share = 0.5) -> Any:
    """Mirror top and bottom."""
    return _albumentations().VerticalFlip(p=p)


def rotate90(*, p: Share = 0.5) -> Any:
    """Turn by a random multiple of 90 degrees."""
    return _albumentations().RandomRotate90(p=p)


def affine(
    *,
    padding_value: int,
    rotate: Degrees = 15.0,
    scale: Below1 = 0.15,
    shift: Positive = 0.05,
    shear: Degrees = 0.0,
    p: Share = 0.5,
) -> Any:
    """Rotate by up to `rotate` degrees, scale by 1 +- `scale`, shift by a share of the sides, shear by degrees."""
    return _albumentations().Affine(
        rotate=(-rotate, rotate),
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        shear=(-shear, shear),
        fill=0,
        fill_mask=padding_value,
        p=p,
    )


def elastic(*, padding_value: int, alpha: Positive = 50.0, sigma: Positive = 7.0, p: Share = 0.3) -> Any:
    """Smooth random displacement (Simard et al. 2003) of strength `alpha` and smoothness `sigma` pixels."""
    transform = _albumentations().ElasticTransform
    return transform(alpha=alpha, sigma=sigma, border_mode=0, fill=0, fill_mask=padding_value, p=p)


def brightness_contrast(*, brightness: Positive = 0.2, contrast: Positive = 0.2, p: Share = 0.5) -> Any:
    """Add up to `brightness` of the value range, scale contrast by 1 +- `contrast`."""
    limits = {"brightness_limit": (-brightness, brightness), "contrast_limit": (-contrast, contrast)}
    return _albumentations().RandomBrightnessContrast(**limits, p=p)


def gamma(*, low: Above0 = 0.8, high: Above0 = 1.25, p: Share = 0.3) -> Any:
    """Raise values in [0, 1] to a random power between `low` and `high`."""
    check_order(low, high)
    return _albumentations().RandomGamma(gamma_limit=(100 * low, 100 * high), p=p)


def hue_saturation(*, hue: Half = 0.05, saturation: Below1 = 0.2, p: Share = 0.3) -> Any:
    """Shift hue and saturation of RGB images by shares of their ranges."""
    return _albumentations().ColorJitter(
        brightness=(1, 1), contrast=(1, 1), saturation=(1 - saturation, 1 + saturation), hue=(-hue, hue), p=p
    )


def gaussian_noise(*, sd: Positive = 0.05, p: Share = 0.3) -> Any:
    """Add Gaussian noise with a standard deviation of up to `sd` of the value range."""
    return _albumentations().GaussNoise(std_range=(0.0, sd), p=p)


def gaussian_blur(*, sigma: Positive = 1.5, p: Share = 0.2) -> Any:
    """Blur with a Gaussian of up to `sigma` pixels."""
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


class AlbumentationsAugment:
    """Albumentations on pictures in [0, 1]: image float32 [C, H, W], mask [H, W] or [K, H, W].

    Transforms of brightness and colour clip what lies outside. Raises AugmentError for volumes, and where a transform
    needs other channels.
    """

    before_normalisation = True

    def __init__(self, transforms: Sequence[Any]):
        self.compose = _albumentations().Compose(list(transforms))

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if image.ndim != 3:
            raise AugmentError(f"albumentations takes pictures [C, H, W], got {list(image.shape)}; use engine: monai")
        self.compose.set_random_seed(seed)
        try:
            moved = self.compose(
                image=_channels_last(image),
                mask=np.ascontiguousarray(mask if mask.ndim == 2 else mask.transpose(1, 2, 0)),
            )
        except TypeError as error:  # what it says of channels that are not 1 or 3
            raise AugmentError(f"a transform does not fit an image {list(image.shape)}: {error}") from error
        out_mask = moved["mask"]
        out_mask = out_mask if out_mask.ndim == 2 else out_mask.transpose(2, 0, 1)
        return _channels_first(moved["image"].astype(np.float32, copy=False)), out_mask.astype(mask.dtype, copy=False)


# OpenCV turns the axes round five times faster than numpy does


def _channels_last(image: np.ndarray) -> np.ndarray:
    import cv2

    merged = cv2.merge([np.ascontiguousarray(channel) for channel in image])
    return merged.reshape(*image.shape[1:], len(image))


def _channels_first(image: np.ndarray) -> np.ndarray:
    import cv2

    out: Any = np.empty((1 if image.ndim == 2 else image.shape[2], *image.shape[:2]), np.float32)
    cv2.split(np.ascontiguousarray(image), list(out))
    return out
