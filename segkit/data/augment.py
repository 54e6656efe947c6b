"""Augmentation of one sample by albumentations (pictures) or MONAI (volumes), named and chosen in the configuration.

Both engines move image and mask together, masks by nearest neighbour, and fill what comes in from outside with
`labels.void`, which counts in neither loss nor score. Every draw is a function of the seed that is passed in.
Albumentations works on values in [0, 1] and therefore runs before the intensities are normalised; MONAI runs after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentError(ValueError):
    """A transform that does not fit the images."""

    exit_code = 2


class Augment(Protocol):
    """image [C, *S] and mask [*S] or [K, *S] -> the same, transformed by the draws that belong to `seed`.

    before_normalisation: whether it takes images in [0, 1], with outliers outside, or else normalised ones.
    """

    before_normalisation: bool

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]: ...


class NoAugment:
    """Image and mask as they are."""

    before_normalisation = True

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        return image, mask


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # the library asks the network for a newer version otherwise
    import albumentations

    return albumentations


def horizontal_flip(*, p: Share = 0.5) -> Any:
    """Mirror left and right."""
    return _albumentations().HorizontalFlip(p=p)


def vertical_flip(*, p: Share = 0.5) -> Any:
    """Mirror top and bottom."""
    return _albumentations().VerticalFlip(p=p)


def rotate90(*, p: Share = 0.5) -> Any:
    """Turn by a random multiple of 90 degrees."""
    return _albumentations().RandomRotate90(p=p)


def affine(
    *, void: int, rotate: float = 15.0, scale: float = 0.15, shift: float = 0.05, shear: float = 0.0, p: Share = 0.5
) -> Any:
    """Rotate by up to `rotate` degrees, scale by 1 +- `scale`, shift by a share of the sides, shear by degrees."""
    return _albumentations().Affine(
        rotate=(-rotate, rotate),
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        shear=(-shear, shear),
        fill=0,
        fill_mask=void,
        p=p,
    )


def elastic(*, void: int, alpha: float = 50.0, sigma: float = 7.0, p: Share = 0.3) -> Any:
    """Smooth random displacement (Simard et al. 2003) of strength `alpha` and smoothness `sigma` pixels."""
    transform = _albumentations().ElasticTransform
    return transform(alpha=alpha, sigma=sigma, border_mode=0, fill=0, fill_mask=void, p=p)


def brightness_contrast(*, brightness: float = 0.2, contrast: float = 0.2, p: Share = 0.5) -> Any:
    """Add up to `brightness` of the value range, scale contrast by 1 +- `contrast`."""
    limits = {"brightness_limit": (-brightness, brightness), "contrast_limit": (-contrast, contrast)}
    return _albumentations().RandomBrightnessContrast(**limits, p=p)


def gamma(*, low: float = 0.8, high: float = 1.25, p: Share = 0.3) -> Any:
    """Raise values in [0, 1] to a random power between `low` and `high`."""
    return _albumentations().RandomGamma(gamma_limit=(100 * low, 100 * high), p=p)


def hue_saturation(*, hue: float = 0.05, saturation: float = 0.2, p: Share = 0.3) -> Any:
    """Shift hue and saturation of RGB images by shares of their ranges."""
    return _albumentations().ColorJitter(
        brightness=(1, 1), contrast=(1, 1), saturation=(1 - saturation, 1 + saturation), hue=(-hue, hue), p=p
    )


def gaussian_noise(*, sd: float = 0.05, p: Share = 0.3) -> Any:
    """Add Gaussian noise with a standard deviation of up to `sd` of the value range."""
    return _albumentations().GaussNoise(std_range=(0.0, sd), p=p)


def gaussian_blur(*, sigma: float = 1.5, p: Share = 0.2) -> Any:
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
                image=np.ascontiguousarray(image.transpose(1, 2, 0)),
                mask=np.ascontiguousarray(mask if mask.ndim == 2 else mask.transpose(1, 2, 0)),
            )
        except TypeError as error:  # what it says of channels that are not 1 or 3
            raise AugmentError(f"a transform does not fit an image {list(image.shape)}: {error}") from error
        out, out_mask = moved["image"], moved["mask"]
        out = out[..., None] if out.ndim == 2 else out
        out_mask = out_mask if out_mask.ndim == 2 else out_mask.transpose(2, 0, 1)
        return out.transpose(2, 0, 1).astype(np.float32), out_mask.astype(mask.dtype)


def monai_flip(*, axes: list[int], p: Share = 0.5) -> Any:
    """Mirror each of the spatial `axes` (0 is the first) with probability `p`."""
    from monai.transforms.compose import Compose
    from monai.transforms.spatial.dictionary import RandFlipd

    return Compose([RandFlipd(["image", "mask"], prob=p, spatial_axis=axis) for axis in axes])


def monai_affine(
    *, rotate: float = 15.0, scale: float = 0.15, shift: float = 0.05, shear: float = 0.0, p: Share = 0.5
) -> Any:
    """Rotate about every axis by up to `rotate` degrees, scale by 1 +- `scale`, shift by a share of the sides."""
    return _LazyAffine(np.deg2rad(rotate), scale, shift, np.deg2rad(shear), p)


class _LazyAffine:
    """RandAffine in share-of-side units; the transform itself is made for the size of the sample."""

    def __init__(self, rotate: float, scale: float, shift: float, shear: float, p: float):
        self.rotate, self.scale, self.shift, self.shear, self.p = rotate, scale, shift, shear, p
        self.random = np.random.RandomState()

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Any:
        self.random = state if state is not None else np.random.RandomState(seed)
        return self

    def __call__(self, sample: dict[Any, Any]) -> dict[Any, Any]:
        from monai.transforms.spatial.dictionary import RandAffined

        size = sample["image"].shape[1:]
        dims = len(size)
        transform = RandAffined(
            ["image", "mask"],
            prob=self.p,
            rotate_range=[(-self.rotate, self.rotate)] * (dims if dims == 3 else 1),
            scale_range=[(-self.scale, self.scale)] * dims,
            translate_range=[(-self.shift * side, self.shift * side) for side in size],
            shear_range=[(-self.shear, self.shear)] * (6 if dims == 3 else 2),
            mode=["bilinear", "nearest"],
            padding_mode=["border", "zeros"],
        )
        transform.set_random_state(state=self.random)
        return transform(sample)


def monai_gaussian_noise(*, sd: float = 0.1, p: Share = 0.2) -> Any:
    """Add Gaussian noise with a standard deviation of up to `sd` (of the normalised image)."""
    from monai.transforms.intensity.dictionary import RandGaussianNoised

    return RandGaussianNoised(["image"], prob=p, std=sd)


def monai_gaussian_smooth(*, sigma: float = 1.0, p: Share = 0.1) -> Any:
    """Blur with a Gaussian of 0.25 to `sigma` voxels."""
    from monai.transforms.intensity.dictionary import RandGaussianSmoothd

    return RandGaussianSmoothd(["image"], (0.25, sigma), (0.25, sigma), (0.25, sigma), prob=p)


def monai_scale_intensity(*, factor: float = 0.25, p: Share = 0.3) -> Any:
    """Multiply the image by 1 +- `factor`."""
    from monai.transforms.intensity.dictionary import RandScaleIntensityd

    return RandScaleIntensityd(["image"], factor, prob=p)


def monai_shift_intensity(*, offset: float = 0.1, p: Share = 0.3) -> Any:
    """Add up to +- `offset` (standard deviations of the image, after zscore) to the image."""
    from monai.transforms.intensity.dictionary import RandShiftIntensityd

    return RandShiftIntensityd(["image"], offset, prob=p)


def monai_gamma(*, low: float = 0.7, high: float = 1.5, p: Share = 0.3) -> Any:
    """Raise the image, scaled to its own range, to a random power between `low` and `high`."""
    from monai.transforms.intensity.dictionary import RandAdjustContrastd

    return RandAdjustContrastd(["image"], prob=p, gamma=(low, high), retain_stats=True)


MONAI: dict[str, Callable[..., Any]] = {
    "flip": monai_flip,
    "affine": monai_affine,
    "gaussian_noise": monai_gaussian_noise,
    "gaussian_smooth": monai_gaussian_smooth,
    "scale_intensity": monai_scale_intensity,
    "shift_intensity": monai_shift_intensity,
    "gamma": monai_gamma,
}


class MonaiAugment:
    """MONAI's random transforms on pictures or volumes: image float32 [C, *S], mask [*S] or [K, *S]."""

    before_normalisation = False

    def __init__(self, transforms: Sequence[Any], void: int):
        from monai.data.meta_obj import set_track_meta

        set_track_meta(False)  # plain tensors in, plain tensors out: the affine of the file is not needed here
        self.transforms = list(transforms)
        self.void = void

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        dims = image.ndim - 1
        # resampling fills with 0 from outside; with void as the origin of the mask, that is void
        shifted = mask.astype(np.float32) - self.void
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "mask": torch.from_numpy(shifted if mask.ndim > dims else shifted[None]),
        }
        random = np.random.RandomState(seed % 2**32)
        for transform in self.transforms:
            transform.set_random_state(state=random)
            try:
                sample = transform(sample)
            except (RuntimeError, IndexError) as error:
                raise AugmentError(f"a transform does not fit an image {list(image.shape)}: {error}") from error
        moved = (np.asarray(sample["mask"]) + self.void).round().astype(mask.dtype)
        return np.asarray(sample["image"], dtype=np.float32), moved if mask.ndim > dims else moved[0]


ENGINES = ("none", "albumentations", "monai")


def build_augment(engine: str, transforms: Sequence[Any], void: int) -> Augment:
    """The engine `none`, `albumentations` or `monai` around built transforms."""
    if engine == "none" or not transforms:
        return NoAugment()
    return AlbumentationsAugment(transforms) if engine == "albumentations" else MonaiAugment(transforms, void)
