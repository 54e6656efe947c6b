"""Checks of a configuration beyond names and types, run before any data is read; see `segkit.config.read`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from segkit.config import Config
from segkit.evaluation.scoring import build_scoring
from segkit.labels import Labels
from segkit.losses import build_loss
from segkit.models import MODELS
from segkit.training.lr_schedules import SCHEDULES


def check_labels(config: Config) -> None:
    Labels(**config.labels.model_dump())


def check_loss(config: Config) -> None:
    """Build the loss with equal class counts. Errors in the labels are reported by `check_labels`."""
    try:
        labels = Labels(**config.labels.model_dump())
    except ValueError:
        return
    equal_counts = np.ones((1, len(labels.names)))
    build_loss(
        [dict(term) for term in config.loss], labels, class_counts={"pixels": equal_counts, "components": equal_counts}
    )


def check_model(config: Config) -> None:
    """Build the network on the meta device for the number of axes of the patch; without a patch, 2D or 3D must work."""
    patch = config.sampling.patch
    failures = []
    for dims in (2, 3) if patch is None else (len(patch),):
        try:
            with torch.device("meta"):
                MODELS[config.model.name](in_channels=1, out_channels=2, dims=dims, **config.model.args)
            return
        except ValueError as error:
            failures.append(error)
    raise failures[0]


def check_sides(config: Config) -> None:
    """The window must have as many axes as the patch, and so must the spacing if it is a list."""
    patch, window, spacing = config.sampling.patch, config.evaluation.window, config.preprocess.spacing
    sides = {len(lengths) for lengths in (patch, window, spacing) if isinstance(lengths, list)}
    if len(sides) > 1:
        raise ValueError(
            "expected sampling.patch, evaluation.window and preprocess.spacing with one number per image axis, "
            f"got {patch}, {window} and {spacing}"
        )


def check_schedule(config: Config) -> None:
    SCHEDULES[config.schedule.name](steps=10_000, steps_per_epoch=10, **config.schedule.args)


def check_scoring(config: Config) -> None:
    chosen, labels = config.evaluation, Labels(**config.labels.model_dump())
    build_scoring(labels, metrics=chosen.metrics, rules=chosen.rules, exclude_classes=chosen.exclude_classes)


CHECKS: dict[str, Callable[[Config], object]] = {
    "labels": check_labels,
    "loss": check_loss,
    "model": check_model,
    "schedule": check_schedule,
    "sampling": check_sides,
    "evaluation": check_scoring,
}
