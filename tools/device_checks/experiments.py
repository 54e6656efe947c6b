"""Small experiments on synthetic images, built from configurations as those of users are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from device_checks.checks import Setup
from segkit.config import Config
from segkit.experiment.build import load_config
from segkit.experiment.build_training import Built, build_experiment

PLANE: dict[str, Any] = {
    "labels": {"names": ["background", "a", "b"], "ignore_index": 255},
    "data": {"name": "synthetic", "size": [64, 80], "train": 8, "validation": 2, "test": 2, "foreground": 0.3},
    "preprocess": {"intensity": "zscore"},
    "augment": {"engine": "albumentations", "transforms": ["horizontal_flip"]},
    "loader": {"batch": 4},
    "model": {"name": "unet", "widths": [8, 16, 32]},
    "loss": "dice_ce",
    "optimizer": {"name": "adamw", "lr": 1e-2},
    "train": {"steps": 8},
}
COLOUR: dict[str, Any] = {**PLANE, "data": {**PLANE["data"], "channels": 3}}
VOLUME: dict[str, Any] = {
    **PLANE,
    "data": {**PLANE["data"], "size": [32, 40, 24], "train": 4},
    "augment": {"engine": "monai", "transforms": []},
    "sampling": {"patch": [24, 24, 24]},
    "loader": {"batch": 2},
    "model": {"name": "unet", "widths": [8, 16], "norm": "instance", "residual": True},
}


def built(setup: Setup, tree: dict[str, Any], overrides: Sequence[str] = ()) -> Built:
    """The experiment of a configuration, on the device of the check."""
    return build_experiment(configured(setup, tree, overrides))


def configured(setup: Setup, tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A configuration, on the device of the check."""
    return load_config(tree, [*overrides, f"device={setup.torch_device.type}"])
