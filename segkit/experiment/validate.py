"""Checks of a configuration beyond names and types, run before any data is read; see `segkit.config.read`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
from torch import nn

from segkit.config import Config
from segkit.data.memory_check import in_gb
from segkit.data.sources.synthetic import check_options
from segkit.evaluation.scoring import build_scoring, validation_scoring
from segkit.labels import Labels
from segkit.losses import build_loss
from segkit.losses.class_weights import equal_class_counts
from segkit.models import MODELS
from segkit.models.initial_weights import InitialWeights, initial_weights
from segkit.training.lr_schedules import SCHEDULES
from segkit.utils.errors import reason
from segkit.utils.padding import Multiple
from segkit.utils.text import shown

PIXELS = 2**31  # of a patch or a window, the largest number that many operations of torch index
UNITS = 10_000  # trainings of one comparison
PROGRESS = (0.0, 0.25, 0.5, 0.75, 1.0)  # where a schedule is tried
STEPS_PER_EPOCH = 1000  # of a length in epochs, whose steps are not known yet


def check_labels(config: Config) -> None:
    Labels(**config.labels.model_dump())


def _labels(config: Config) -> Labels | None:
    """The labels, or None if they are invalid, which `check_labels` reports."""
    try:
        return Labels(**config.labels.model_dump())
    except ValueError:
        return None


def check_loss(config: Config) -> None:
    """Build the loss with equal class counts."""
    labels = _labels(config)
    if labels is None:
        return
    build_loss([dict(term) for term in config.loss], labels, equal_class_counts(labels))


def check_data(config: Config) -> None:
    """Check the options of synthetic images, which no file limits."""
    labels = _labels(config)
    if config.data.name == "synthetic" and labels is not None:
        check_options(**config.data.args)


def check_model(config: Config) -> None:
    """Build the network on the meta device for the number of axes of the patch; without a patch, 2D or 3D must work.

    Its weights and their gradients must fit into the memory of this machine. If it takes one image size alone, patch
    and window must have it.
    """
    patch, failures = config.sampling.patch, []
    if patch is not None and len(patch) not in (2, 3):
        return  # see `check_sides`
    for dims in (2, 3) if patch is None else (len(patch),):
        try:
            network = meta_network(config, 1, 2, dims)
        except ValueError as error:
            failures.append(error)
            continue
        check_weights(network, psutil.virtual_memory().total, copies=2)
        check_fixed_size(config, fixed_size(network))
        return
    raise failures[0]


def fixed_size(network: nn.Module) -> tuple[int, ...] | None:
    """The only image size that a network takes, if there is one; see `segkit.models`."""
    return getattr(network, "fixed_size", None)


def multiple_of(network: nn.Module) -> Multiple:
    """The multiple to which a network needs its images padded; the size itself if it takes one size alone."""
    return fixed_size(network) or getattr(network, "multiple", 1)


def check_fixed_size(config: Config, size: tuple[int, ...] | None) -> None:
    """Raise ValueError if a network takes images of one size alone and the patch or the window has another one."""
    sides = {"sampling.patch": config.sampling.patch, "evaluation.window": config.evaluation.window}
    for name, given in sides.items():
        if size is not None and given is not None and tuple(given) != size:
            option = " (model.image_size)" if "image_size" in config.model.args else ""
            raise ValueError(
                f"expected {name} {list(size)}, since {config.model.name} with these options takes only images of that "
                f"size{option}, got {list(given)}"
            )


def meta_network(config: Config, in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """The network on the meta device, where it takes no memory. The random state does not change.

    Raises ValueError if it cannot be built.
    """
    return build_on_meta(config.model.name, config.model.args, in_channels, out_channels, dims)


def build_on_meta(name: str, options: Mapping[str, Any], in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """The same for an entry of `MODELS` and its options."""
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            return MODELS[name](in_channels=in_channels, out_channels=out_channels, dims=dims, **options)
    except RuntimeError as error:  # sizes that torch cannot count
        raise ValueError(f"{name} cannot be built: {reason(error)}") from error


def weights_of(config: Config) -> InitialWeights | None:
    """What the network of a configuration knows of pretrained weights; None if it knows none, or cannot be built, which
    `check_model` reports."""
    if "weights" not in config.model.args:
        return None
    try:
        return initial_weights(meta_network(config, 3, 2, 2))
    except ValueError:
        return None


def check_intensity(config: Config) -> None:
    """`encoder` needs a network that knows the images of its encoder."""
    if config.preprocess.intensity == "encoder" and weights_of(config) is None:
        raise ValueError(
            "intensity: encoder needs a network whose encoder was trained on images of a known mean, such as "
            f"encoder_unet; {config.model.name} knows none, so use zscore or dataset"
        )


def check_weights(network: nn.Module, memory: int, *, copies: int = 1) -> None:
    """Raise ValueError if so many copies of the weights of a network do not fit into so many bytes of memory."""
    tensors = [*network.parameters(), *network.buffers()]
    needed = copies * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if needed > memory:
        number = sum(parameter.numel() for parameter in network.parameters())
        what = "its weights and their gradients" if copies > 1 else "its weights"
        raise ValueError(
            f"the network has {number:.3g} parameters: {what} need {in_gb(needed)}, expected at most the "
            f"{in_gb(memory)} of memory of this machine; use smaller or fewer widths"
        )


def check_sides(config: Config) -> None:
    """The patch, the window and the spacing must have two or three numbers, one per image axis."""
    patch, window, spacing = config.sampling.patch, config.evaluation.window, config.preprocess.spacing
    given = [lengths for lengths in (patch, window, spacing) if isinstance(lengths, list)]
    if len({len(lengths) for lengths in given}) > 1 or any(len(lengths) not in (2, 3) for lengths in given):
        raise ValueError(
            "expected sampling.patch, evaluation.window and preprocess.spacing with one number per image axis, two or "
            f"three, got {shown(patch)}, {shown(window)} and {shown(spacing)}"
        )
    for name, sides in (("sampling.patch", patch), ("evaluation.window", window)):
        if sides is not None and math.prod(sides) > PIXELS:
            raise ValueError(f"expected {name} with at most 2^31 pixels, got {sides}")


def check_schedule(config: Config) -> None:
    """Build the schedule for the length of the run; its factors must be finite and not negative."""
    train = config.train
    epochs = train.epochs or train.max_epochs
    steps = train.steps or train.max_steps or (STEPS_PER_EPOCH * epochs if epochs else None)
    if train.steps is None and epochs and "steps" in (config.schedule.args.get("warmup") or {}):
        return  # whether the warm-up is shorter is known once the cases are
    steps = steps or 10_000
    schedule = SCHEDULES[config.schedule.name](steps=steps, steps_per_epoch=STEPS_PER_EPOCH, **config.schedule.args)
    for progress in PROGRESS:
        step = round(progress * steps)
        try:
            factor = schedule(step)
        except (ZeroDivisionError, OverflowError):
            factor = math.nan
        if isinstance(factor, complex) or not 0 <= factor < math.inf:
            raise ValueError(
                f"expected factors on the learning rate that are finite and at least 0, got {factor} at step {step} of "
                f"{steps}"
            )


def check_scoring(config: Config) -> None:
    chosen, labels = config.evaluation, _labels(config)
    if labels is not None:
        build_scoring(
            labels,
            metrics=chosen.metrics,
            rules=chosen.rules,
            exclude_classes=chosen.exclude_classes,
            size_strata=chosen.size_strata,
        )


def check_checkpoints(config: Config) -> None:
    """The metric that selects `best.pt` must be one that a validation computes, of which one direction is better."""
    validation_scoring(config.checkpoints.best)


def check_comparison(config: Config) -> None:
    """The number of trainings is bounded."""
    chosen = config.comparison
    seeds = chosen.seeds if isinstance(chosen.seeds, int) else len(chosen.seeds)
    units = len(chosen.losses) * seeds * (chosen.folds or 1) * chosen.repeats
    if units > UNITS:
        raise ValueError(f"expected at most {UNITS} trainings, got {units}: losses x seeds x folds x repeats")


def check_sampling(config: Config) -> None:
    """Raise ValueError for sides that do not fit, and for a way of choosing foreground where none is chosen."""
    check_sides(config)
    sampling = config.sampling
    if sampling.balance == "classes" and sampling.foreground == 0:
        raise ValueError("balance: classes chooses among the pixels of sampling.foreground, which is 0: set it, too")


CHECKS: dict[str, Callable[[Config], object]] = {
    "labels": check_labels,
    "data": check_data,
    "loss": check_loss,
    "model": check_model,
    "preprocess": check_intensity,
    "schedule": check_schedule,
    "sampling": check_sampling,
    "evaluation": check_scoring,
    "checkpoints": check_checkpoints,
    "comparison": check_comparison,
}
