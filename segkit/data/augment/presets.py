"""Presets: named lists of transforms for each engine, from weak to strong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Entry = str | dict[str, Any]


def _affine(rotate: float, scale: float, p: float) -> Entry:
    return {"name": "affine", "rotate": rotate, "scale": scale, "shift": 0.0, "p": p}


IMAGES_2D: dict[str, list[Entry]] = {
    "none": [],
    "light": ["horizontal_flip", _affine(10, 0.1, 0.5)],
    "medium": ["horizontal_flip", _affine(15, 0.2, 0.7), "brightness_contrast"],
    "strong": [
        "horizontal_flip",
        _affine(30, 0.3, 0.9),
        "elastic",
        "brightness_contrast",
        "gaussian_noise",
        "gaussian_blur",
    ],
}
# only nnU-Net's preset flips, since the left and right side of a body differ
VOLUMES: dict[str, list[Entry]] = {
    "none": [],
    "light": [_affine(10, 0.1, 0.5)],
    "medium": [_affine(15, 0.15, 0.5), "scale_intensity", "gamma"],
    "strong": [
        _affine(30, 0.25, 0.7),
        "scale_intensity",
        "shift_intensity",
        "gamma",
        "gaussian_noise",
        "gaussian_smooth",
    ],
    # the transforms and probabilities of nnU-Net for nearly isotropic spacing, in 2D and 3D
    # (nnUNetTrainer.get_training_transforms, version 2), except that nnU-Net scales from 0.7 to 1.4 and blurs and
    # downsamples each channel separately
    "nnunet": [
        _affine(30, 0.0, 0.2),
        _affine(0, 0.3, 0.2),
        {"name": "gaussian_noise", "sd": 0.316, "p": 0.1},
        {"name": "gaussian_smooth", "sigma": 1.0, "p": 0.1},
        {"name": "scale_intensity", "factor": 0.25, "p": 0.15},
        {"name": "contrast", "factor": 0.25, "p": 0.15},
        {"name": "low_resolution", "zoom": 0.5, "p": 0.125},
        {"name": "gamma", "low": 0.7, "high": 1.5, "invert": True, "p": 0.1},
        {"name": "gamma", "low": 0.7, "high": 1.5, "p": 0.3},
        {"name": "flip", "axes": "all"},
    ],
}
BY_ENGINE = {"albumentations": IMAGES_2D, "torchvision": IMAGES_2D, "monai": VOLUMES}


def _preset(name: str) -> Callable[..., list[Entry]]:
    def entries(engine: str) -> list[Entry]:
        """Return the transforms of the preset. Raises ValueError if the engine has no such preset."""
        presets = BY_ENGINE[engine]
        if name not in presets:
            raise ValueError(f"expected one of {', '.join(presets)} for the engine {engine}, got {name}")
        return presets[name]

    return entries


PRESETS = {name: _preset(name) for name in {**IMAGES_2D, **VOLUMES}}
