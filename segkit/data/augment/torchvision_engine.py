"""torchvision's transforms v2, for pictures: values in [0, 1], before the intensities are normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segkit.data.augment.base import AugmentError, Below1, Degrees, Half, Positive, Share, Swap


def _v2() -> Any:
    """Imported late, since it takes a second."""
    from torchvision.transforms import v2

    return v2


def horizontal_flip(*, swap: Swap | None = None, p: Share = 0.5) -> Any:
    """Mirror left and right, and exchange the classes of `swap_on_flip`."""
    library = _v2()
    if swap is None:
        return library.RandomHorizontalFlip(p=p)

    class SwappingFlip(library.RandomHorizontalFlip):
        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            from torchvision.tv_tensors import Mask

            moved = super().transform(inpt, params)
            return Mask(swap(moved)) if isinstance(inpt, Mask) else moved

    return SwappingFlip(p=p)


def vertical_flip(*, p: Share = 0.5) -> Any:
    """Mirror top and bottom."""
    return _v2().RandomVerticalFlip(p=p)


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
    from torchvision import tv_tensors

    library = _v2()
    moving = library.RandomAffine(
        degrees=(-rotate, rotate),
        translate=(shift, shift),
        scale=(1 - scale, 1 + scale),
        shear=(-shear, shear) if shear else None,
        interpolation=library.InterpolationMode.BILINEAR,
        fill={tv_tensors.Image: 0, tv_tensors.Mask: padding_value},
    )
    return library.RandomApply([moving], p=p)


def elastic(*, padding_value: int, alpha: Positive = 50.0, sigma: Positive = 7.0, p: Share = 0.3) -> Any:
    """Smooth random displacement of strength `alpha` and smoothness `sigma` pixels."""
    from torchvision import tv_tensors

    library = _v2()
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: padding_value}
    return library.RandomApply([library.ElasticTransform(alpha=alpha, sigma=sigma, fill=fill)], p=p)


def brightness_contrast(*, brightness: Positive = 0.2, contrast: Positive = 0.2, p: Share = 0.5) -> Any:
    """Scale brightness by 1 +- `brightness` and contrast by 1 +- `contrast`; 1 or 3 channels."""
    library = _v2()
    return library.RandomApply([library.ColorJitter(brightness=brightness, contrast=contrast)], p=p)


def hue_saturation(*, hue: Half = 0.05, saturation: Below1 = 0.2, p: Share = 0.3) -> Any:
    """Shift hue and saturation of RGB images by shares of their ranges."""
    library = _v2()
    return library.RandomApply([library.ColorJitter(hue=hue, saturation=saturation)], p=p)


def gaussian_noise(*, sd: Positive = 0.05, p: Share = 0.3) -> Any:
    """Add Gaussian noise with a standard deviation of `sd` of the value range."""
    library = _v2()
    return library.RandomApply([library.GaussianNoise(sigma=sd)], p=p)


def gaussian_blur(*, sigma: Positive = 1.5, p: Share = 0.2) -> Any:
    """Blur with a Gaussian of up to `sigma` pixels."""
    library = _v2()
    return library.RandomApply([library.GaussianBlur(2 * round(3 * sigma) + 1, sigma=(0.3, sigma))], p=p)


TORCHVISION: dict[str, Callable[..., Any]] = {
    "horizontal_flip": horizontal_flip,
    "vertical_flip": vertical_flip,
    "affine": affine,
    "elastic": elastic,
    "brightness_contrast": brightness_contrast,
    "hue_saturation": hue_saturation,
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
}


class TorchvisionAugment:
    """Transforms v2 on pictures in [0, 1]: image float32 [C, H, W], mask [H, W] or [K, H, W].

    Raises AugmentError for volumes, and where a transform needs other channels.
    """

    before_normalisation = True

    def __init__(self, transforms: Sequence[Any]):
        self.transforms = list(transforms)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        import torch
        from torchvision import tv_tensors

        if image.ndim != 3:
            raise AugmentError(f"torchvision takes pictures [C, H, W], got {list(image.shape)}; use engine: monai")
        picture = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image)))
        planes = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask if mask.ndim == 3 else mask[None])))
        # the library draws from torch's own generator, which belongs to the training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for transform in self.transforms:
                try:
                    picture, planes = transform(picture, planes)
                except (TypeError, RuntimeError, ValueError) as error:
                    raise AugmentError(f"a transform does not fit an image {list(image.shape)}: {error}") from error
        moved = planes.numpy().astype(mask.dtype)
        return picture.numpy().astype(np.float32), moved if mask.ndim == 3 else moved[0]
