"""What must work in a configuration beyond names and types, tried before anything is read: see `segkit.config.read`."""

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


def try_labels(config: Config) -> None:
    Labels(**config.labels.model_dump())


def try_loss(config: Config) -> None:
    """Build the loss with class counts in which every class is alike. Labels that do not fit have a trial of their
    own."""
    try:
        labels = Labels(**config.labels.model_dump())
    except ValueError:
        return
    alike = np.ones((1, len(labels.names)))
    build_loss([dict(term) for term in config.loss], labels, class_counts={"pixels": alike, "components": alike})


def try_model(config: Config) -> None:
    """Build the network without memory, for images of as many axes as the patch has, or of any."""
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


def try_sides(config: Config) -> None:
    """The window must have the axes of the patch, and the spacing too, if it is a list."""
    patch, window, spacing = config.sampling.patch, config.evaluation.window, config.preprocess.spacing
    sides = {len(given) for given in (patch, window, spacing) if isinstance(given, list)}
    if len(sides) > 1:
        raise ValueError(
            "expected sampling.patch, evaluation.window and preprocess.spacing with a number for each axis of the "
            f"images, got {patch}, {window} and {spacing}"
        )


def try_schedule(config: Config) -> None:
    SCHEDULES[config.schedule.name](steps=10_000, steps_per_epoch=10, **config.schedule.args)


def try_scoring(config: Config) -> None:
    chosen, labels = config.evaluation, Labels(**config.labels.model_dump())
    build_scoring(labels, metrics=chosen.metrics, rules=chosen.rules, exclude_classes=chosen.exclude_classes)


TRIALS: dict[str, Callable[[Config], object]] = {
    "labels": try_labels,
    "loss": try_loss,
    "model": try_model,
    "schedule": try_schedule,
    "sampling": try_sides,
    "evaluation": try_scoring,
}
