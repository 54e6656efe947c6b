"""Augmentation of one sample by albumentations, torchvision (pictures) or MONAI, chosen in the configuration.

All engines move image and mask together, masks by nearest neighbour, and fill what comes in from outside with
`labels.padding_value`, which counts in neither loss nor score. Every draw is a function of the seed that is passed in.
Albumentations and torchvision work on values in [0, 1] and therefore run before the intensities are normalised; MONAI
runs after.
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
    "albumentations": lambda transforms, _void: AlbumentationsAugment(transforms),
    "torchvision": lambda transforms, _void: TorchvisionAugment(transforms),
    "monai": MonaiAugment,
}


def build_augment(engine: str, transforms: Sequence[Any], padding_value: int) -> Augment:
    """The engine `none` or one of TRANSFORMS around built transforms."""
    return NoAugment() if engine == "none" or not transforms else ENGINES[engine](transforms, padding_value)
