"""torchvision's transforms v2 for 2D images, whose usual intensities are 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segkit.data.augment.base import (
    Augment,
    Augmented,
    AugmentError,
    BelowOne,
    Degrees,
    NonNegative,
    Probability,
    Sigma,
    Swap,
    UpToHalf,
)
from segkit.data.preprocess import Units


def _v2() -> Any:
    """Import the library on first use, since the import takes a second."""
    from torchvision.transforms import v2

    return v2


def _within_range(transform: type, p: float, **options: Any) -> Any:
    """A transform that is defined on [0, 1] only: the part of a pixel beyond this range is kept and added again."""
    from torchvision.tv_tensors import Image

    class WithinRange(transform):
        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            if not isinstance(inpt, Image):
                return super().transform(inpt, params)
            inside = Image(inpt.clamp(0, 1))
            return Image(super().transform(inside, params) + (inpt - inside))

    return _v2().RandomApply([WithinRange(**options)], p=p)


def horizontal_flip(*, swap: Swap | None = None, p: Probability = 0.5) -> Any:
    """Flip left and right, and swap the classes of `swap_on_flip`."""
    library = _v2()
    if swap is None:
        return library.RandomHorizontalFlip(p=p)

    class SwappingFlip(library.RandomHorizontalFlip):
        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            from torchvision.tv_tensors import Mask

            flipped = super().transform(inpt, params)
            has_classes = isinstance(inpt, Mask) and not inpt.is_floating_point()  # weights have none
            return Mask(swap(flipped)) if has_classes else flipped

    return SwappingFlip(p=p)


def vertical_flip(*, p: Probability = 0.5) -> Any:
    """Flip top and bottom."""
    return _v2().RandomVerticalFlip(p=p)


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
    from torchvision import tv_tensors

    library = _v2()
    transform = library.RandomAffine(
        degrees=(-rotate, rotate),
        translate=(shift, shift),
        scale=(1 - scale, 1 + scale),
        shear=(-shear, shear) if shear else None,
        interpolation=library.InterpolationMode.BILINEAR,
        fill={tv_tensors.Image: 0, tv_tensors.Mask: padding_value},
    )
    return library.RandomApply([transform], p=p)


def elastic(*, padding_value: int, alpha: NonNegative = 50.0, sigma: Sigma = 7.0, p: Probability = 0.3) -> Any:
    """Apply a smooth random displacement of strength `alpha` and smoothness `sigma`, in pixels."""
    from torchvision import tv_tensors

    library = _v2()
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: padding_value}
    return library.RandomApply([library.ElasticTransform(alpha=alpha, sigma=sigma, fill=fill)], p=p)


def brightness_contrast(*, brightness: NonNegative = 0.2, contrast: NonNegative = 0.2, p: Probability = 0.5) -> Any:
    """Scale brightness by 1 +- `brightness` and contrast by 1 +- `contrast`. Requires 1 or 3 channels."""
    from torchvision.transforms.v2.functional import rgb_to_grayscale
    from torchvision.tv_tensors import Image

    class Unclipped(_v2().ColorJitter):
        """The library clips the result to [0, 1], so an image that fills only a part of it could become constant."""

        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            if not isinstance(inpt, Image):
                return inpt
            image = inpt
            for step in params["fn_idx"]:
                brightness, contrast = params["brightness_factor"], params["contrast_factor"]
                if step == 0 and brightness is not None:
                    image = image * brightness
                elif step == 1 and contrast is not None:
                    grey = rgb_to_grayscale(image) if len(image) == 3 else image
                    image = image * contrast + grey.mean() * (1 - contrast)
            return Image(image)

    return _v2().RandomApply([Unclipped(brightness=brightness, contrast=contrast)], p=p)


def hue_saturation(*, hue: UpToHalf = 0.05, saturation: BelowOne = 0.2, p: Probability = 0.3) -> Any:
    """Shift the hue of RGB images by up to a fraction `hue` of its range and scale saturation by 1 +- `saturation`."""
    return _within_range(_v2().ColorJitter, p, hue=hue, saturation=saturation)


def gaussian_noise(*, sd: NonNegative = 0.05, p: Probability = 0.3) -> Any:
    """Add Gaussian noise with a standard deviation of `sd` of the usual range."""
    return _v2().RandomApply([_v2().GaussianNoise(sigma=sd, clip=False)], p=p)


def gaussian_blur(*, sigma: Sigma = 1.5, p: Probability = 0.2) -> Any:
    """Blur with a Gaussian with a standard deviation of 0.3 to `sigma` pixels."""
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


class TorchvisionAugment(Augment):
    """Transforms v2 for 2D images: image float32 [C, H, W], mask [H, W] or [K, H, W].

    Raises AugmentError for volumes, and if a transform does not support the number of channels.
    """

    units: Units = "range"

    def __init__(self, transforms: Sequence[Any]):
        self.transforms = list(transforms)

    def apply(self, image: np.ndarray, mask: np.ndarray, weight: np.ndarray | None, seed: int) -> Augmented:
        import torch
        from torchvision import tv_tensors

        if image.ndim != 3:
            raise AugmentError(f"torchvision supports 2D images [C, H, W], got {list(image.shape)}; use engine: monai")
        tv_image = tv_tensors.Image(torch.from_numpy(np.array(image, order="C")))
        masks = [mask if mask.ndim == 3 else mask[None], *([] if weight is None else [weight[None]])]
        tv_masks = [tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(array))) for array in masks]
        # the library draws from torch's global generator, whose state must not change for training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for transform in self.transforms:
                try:
                    tv_image, *tv_masks = transform(tv_image, *tv_masks)
                except (TypeError, RuntimeError, ValueError) as error:
                    raise AugmentError(f"a transform does not support an image {list(image.shape)}: {error}") from error
        out_mask = tv_masks[0].numpy().astype(mask.dtype)
        out_weight = None if weight is None else tv_masks[1].numpy()[0]
        return tv_image.numpy().astype(np.float32), out_mask if mask.ndim == 3 else out_mask[0], out_weight
