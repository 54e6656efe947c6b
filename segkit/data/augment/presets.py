"""Named lists of transforms for each engine, from little to much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Entry = str | dict[str, Any]


def _affine(rotate: float, scale: float, p: float) -> Entry:
    return {"name": "affine", "rotate": rotate, "scale": scale, "shift": 0.0, "p": p}


PICTURES: dict[str, list[Entry]] = {
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
# organs have a side, so that nothing is mirrored but by nnU-Net's
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
    # what nnU-Net draws for volumes of about equal spacing (nnUNetTrainer.get_training_transforms, version 2), with its
    # probabilities; it scales from 0.7 to 1.4 and blurs and coarsens each channel on its own
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
        {"name": "flip", "axes": [0, 1, 2]},
    ],
}
BY_ENGINE = {"albumentations": PICTURES, "torchvision": PICTURES, "monai": VOLUMES}


def _preset(name: str) -> Callable[..., list[Entry]]:
    def entries(engine: str) -> list[Entry]:
        """Raises ValueError where the engine has no such preset."""
        known = BY_ENGINE[engine]
        if name not in known:
            raise ValueError(f"expected one of {', '.join(known)} for the engine {engine}, got {name}")
        return known[name]

    return entries


PRESETS = {name: _preset(name) for name in {**PICTURES, **VOLUMES}}
