"""Augmentation of samples by albumentations or torchvision (2D images) or by MONAI (2D images and volumes).

All engines transform image and mask together and resample masks by nearest neighbours. Mask pixels from outside the
image are set to the padding value, which counts in neither loss nor score. All random numbers are a function of the
seed that is passed in.

Intensities are changed in units of the image's own range after normalisation (`Preprocess.case_range`), whatever the
number type of its file. Albumentations and torchvision see this range as 0 to 1, MONAI sees normalised images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from segkit.data.augment.albumentations_engine import ALBUMENTATIONS, AlbumentationsAugment
from segkit.data.augment.base import Augment, AugmentError, NoAugment, Swap
from segkit.data.augment.monai_engine import MONAI, MonaiAugment
from segkit.data.augment.presets import PRESETS
from segkit.data.augment.torchvision_engine import TORCHVISION, TorchvisionAugment

__all__ = ["PRESETS", "TRANSFORMS", "Augment", "AugmentError", "NoAugment", "Swap", "build_augment"]

TRANSFORMS: dict[str, dict[str, Callable[..., Any]]] = {
    "albumentations": ALBUMENTATIONS,
    "torchvision": TORCHVISION,
    "monai": MONAI,
}
ENGINES: dict[str, Callable[[Sequence[Any], int], Augment]] = {
    "albumentations": lambda transforms, _padding_value: AlbumentationsAugment(transforms),
    "torchvision": lambda transforms, _padding_value: TorchvisionAugment(transforms),
    "monai": MonaiAugment,
}


def build_augment(engine: str, transforms: Sequence[Any], padding_value: int) -> Augment:
    """Build the augmentation from an engine, `none` or a key of TRANSFORMS, and transforms built for it."""
    return NoAugment() if engine == "none" or not transforms else ENGINES[engine](transforms, padding_value)
