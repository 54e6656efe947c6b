"""Build everything that training needs from a checked configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segkit.config import Config, ConfigError
from segkit.data.augment import Augment, NoAugment
from segkit.data.cases import data_digest
from segkit.data.datasets import EvaluationSet, MakeMaps, TrainingSet
from segkit.data.formats import format_of, is_raster
from segkit.data.loaders import training_loader
from segkit.data.memory_check import in_gb
from segkit.data.sampling import steps_per_epoch
from segkit.experiment.build import (
    Data,
    Track,
    build_augment_from,
    build_data,
    build_labels,
    build_model,
    choose_device,
    padding_multiple,
    to_format,
)
from segkit.experiment.build_predictor import predictor_factory
from segkit.experiment.class_weights import Weighted, with_class_weights
from segkit.experiment.measured_radius import with_measured_iterations
from segkit.experiment.network_check import check_network
from segkit.experiment.plugins import plugin_hashes
from segkit.labels import Labels
from segkit.losses import build_loss, expanded
from segkit.losses.class_weights import equal_class_counts
from segkit.losses.deep_supervision import DeepSupervision
from segkit.losses.target_maps import maps_of_mask
from segkit.losses.weighted_sum import WeightedSum
from segkit.training.checkpoint import CheckpointError
from segkit.training.compile import Compiled
from segkit.training.encoder_weights import LoadedEncoder, load_initial_weights
from segkit.training.init_file import weights_digest
from segkit.training.init_weights import load_weights
from segkit.training.loaded_weights import Loaded
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.optimizers import Grouping, build_optimizer, freeze
from segkit.training.precision import bf16_slowdown, chosen_precision
from segkit.training.stopping import Limits
from segkit.training.trainer import Batch, Experiment, Settings
from segkit.utils.distributed import SINGLE_PROCESS, Processes
from segkit.utils.durations import to_steps
from segkit.utils.environment import versions
from segkit.utils.errors import DataError
from segkit.utils.seeding import configure_backends

TOLD_MEMORY = 1e8  # bytes of cached cases from which their need of memory is told
SLOW = 1.5  # bf16 is reported if it is this many times slower than float32


@dataclass(frozen=True)
class Built:
    """Everything that training needs.

    config: the resolved configuration, with named class weights as numbers (details in `weighted`) and with the options
    that `like` implies. notes: messages for the user before the training starts. loaded: what was loaded from
    `train.init`, if anything was.
    """

    experiment: Experiment
    data: Data
    config: Config
    weighted: Sequence[Weighted]
    notes: Sequence[str]
    loaded: Loaded | None = None


def build_experiment(
    config: Config,
    cache: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
    *,
    from_init: bool = True,
    track: Callable[[str], Track] = lambda _description: iter,
) -> Built:
    """Build the experiment that a configuration describes.

    cache: the folder for files computed from the data that other runs can reuse, unless the configuration names one.
    from_init: whether to load the weights of `train.init` and `model.weights`; a resumed run does not need them.
    track: from a description to a function that shows the progress of reading cases.

    Raises ConfigError for options that do not fit the data or each other.
    """
    try:
        processes.batch_slice(config.loader.batch)
        return _build_experiment(config, cache, processes, from_init, track)
    except ValueError as error:
        if hasattr(error, "exit_code"):  # for example bad data, which has its own message and exit code
            raise
        raise ConfigError(f"{config.name}: {error}") from error


def _build_experiment(
    config: Config, cache: Path | None, processes: Processes, from_init: bool, track: Callable[[str], Track]
) -> Built:
    """Build the parts in the order in which they depend on each other."""
    labels, device = build_labels(config), choose_device(config.device, processes)
    given, config = config, with_precision(config, device)
    _check_device(config, device)
    configure_backends(deterministic=config.train.deterministic, tf32=config.train.tf32)
    cache = config.loader.cache_dir or cache
    reading = track("reading the training cases")
    data = build_data(config, labels, multiple=padding_multiple(config, labels), cache=cache, track=reading)
    model, pretrained, loaded = _model(config, data, device, processes, from_init)
    training = data.cases("train")
    resolved, weighted = with_class_weights(config, labels, training, data.store, cache)
    resolved, radius = with_measured_iterations(resolved, labels, training, data.store, data.preprocess, cache)
    resolved = replace(resolved, loss=tuple(expanded(term, labels) for term in resolved.loss))
    settings, batches = _training(resolved, data, device, processes, track("preparing the training cases"))
    check_network(config, data, processes)
    _check_validation(config, data)
    _check_sides(config, data)
    experiment = Experiment(
        labels=labels,
        model=model,
        loss=_loss(resolved, labels, device, processes),
        optimizer=build_optimizer(config.optimizer.name, model, config.optimizer.args, _grouping(config)),
        schedule=SCHEDULES[config.schedule.name](
            steps=settings.limits.steps, steps_per_epoch=settings.steps_per_epoch, **config.schedule.args
        ),
        batches=batches,
        validation=_validation(config, data),
        validation_loss=_loss_of_cases(resolved, labels, device) if config.train.validation_loss else None,
        predictor=predictor_factory(config, labels, data.preprocess, device),
        settings=settings,
        device=device,
        network=Compiled(model) if config.train.compile else None,
        processes=processes,
        plain=_plain(given, resolved, data, None if pretrained is None else pretrained.origin),
    )
    torch.manual_seed(config.seed + processes.rank)  # for dropout, which must differ between processes
    notes = [*_precision_note(given, config), *_memory_note(data)]
    notes += [] if radius is None else [f"the widest structure of the training masks has a radius of {radius} pixels"]
    notes += [] if pretrained is None else pretrained.describe()
    return Built(experiment, data, resolved, weighted, notes, loaded)


def _precision_note(given: Config, config: Config) -> list[str]:
    if given.train.precision != "auto":
        return []
    return [f"train.precision: auto is {config.train.precision} on this device"]


def _memory_note(data: Data) -> list[str]:
    if data.memory is None:
        return []
    needed, free = data.memory
    return [f"cached cases need about {in_gb(needed)} of {in_gb(free)} free memory"] if needed > TOLD_MEMORY else []


def with_precision(config: Config, device: torch.device) -> Config:
    """The configuration with the precision that `auto` stands for on this device."""
    precision = chosen_precision(config.train.precision, device)
    return replace(config, train=config.train.model_copy(update={"precision": precision}))


def _check_device(config: Config, device: torch.device) -> None:
    """Raise ValueError for settings that the device does not support."""
    train, on_cpu = config.train, device.type == "cpu"
    if train.precision == "fp16" and on_cpu:
        raise ValueError("train.precision: fp16 needs an accelerator; use bf16 or fp32 on the CPU")
    if train.precision == "bf16" and on_cpu and (times := bf16_slowdown()) > SLOW:
        warnings.warn(
            f"train.precision: bf16 makes a convolution {times:.0f} times slower than fp32 on this processor, which "
            "does not support it in hardware; use fp32",
            stacklevel=1,
        )
    if train.tf32 and device.type != "cuda":
        raise ValueError(f"train.tf32 needs a CUDA device, and the device is {device.type}; remove the option")
    if train.sync_batchnorm and device.type != "cuda":
        raise ValueError(
            f"train.sync_batchnorm needs CUDA devices, and the device is {device.type}; use model.norm=instance"
        )


def _check_sides(config: Config, data: Data) -> None:
    """Raise ValueError if `swap_on_flip` is used with a 2D format in which the last axis is not left-right."""
    if not config.augment.swap_on_flip or data.preprocess.dims != 2:
        return
    for file in data.cases("train")[0].images:
        if (image_format := format_of(file)) is not None and image_format.has_geometry:
            raise ValueError(
                f"augment.swap_on_flip: the first axis of {file} runs from left to right, but 2D images are flipped "
                "along the last axis; save the images as PNG, TIFF or NPY, or remove swap_on_flip"
            )


def _check_validation(config: Config, data: Data) -> None:
    """Raise ValueError for settings that follow the validation score if there is no validation part."""
    dependent = ["train.patience"] if config.train.patience is not None else []
    dependent += ["schedule: plateau"] if config.schedule.name == "plateau" else []
    if dependent and not data.split.validation:
        raise ValueError(f"the split has no validation cases, whose scores {' and '.join(dependent)} would follow")


def _validation(config: Config, data: Data) -> EvaluationSet | None:
    if not data.split.validation:
        return None
    return data.evaluation_set("validation", keep=config.loader.cache == "memory")


def _model(
    config: Config, data: Data, device: torch.device, processes: Processes, from_init: bool
) -> tuple[nn.Module, LoadedEncoder | None, Loaded | None]:
    """The network on the device with its initial weights, and which of them come from files: those that the network
    itself asks for, and those of `train.init`."""
    torch.manual_seed(config.seed)
    dims, channels, loaded = data.preprocess.dims, data.preprocess.channels, None
    model = build_model(config, channels, data.labels, dims)
    pretrained = load_initial_weights(model) if from_init else None
    if config.train.init is not None and from_init:
        loaded = load_weights(model, config.train.init, in_channels=channels, out_channels=data.labels.channels)
    freeze(model, config.parameters.freeze)
    if config.train.sync_batchnorm and processes.group is not None:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return to_format(model, config, dims).to(device), pretrained, loaded


def _loss(config: Config, labels: Labels, device: torch.device, processes: Processes) -> WeightedSum | DeepSupervision:
    loss = build_loss([dict(term) for term in config.loss], labels, group=processes.group).to(device)
    return DeepSupervision(loss) if config.model.args.get("deep_supervision") else loss


def _loss_of_cases(config: Config, labels: Labels, device: torch.device) -> WeightedSum:
    """The loss for single validation cases: of the finest head, in this process alone."""
    return build_loss([dict(term) for term in config.loss], labels).to(device)


def _grouping(config: Config) -> Grouping:
    chosen = config.parameters
    return Grouping(chosen.encoder_lr, chosen.layer_decay, chosen.decay_norms_and_biases)


def training_set(config: Config, data: Data, augment: Augment) -> TrainingSet:
    """The training samples."""
    return TrainingSet(
        data.cases("train"),
        data.store,
        data.preprocess,
        data.labels,
        augment,
        patch=config.sampling.patch,
        foreground=config.sampling.foreground,
        locate=config.sampling.foreground_cases > 0,
        balance=config.sampling.balance,
        margin=config.sampling.margin,
        seed=config.seed,
        maps=maps_maker(config, data.labels),
    )


def maps_maker(config: Config, labels: Labels) -> MakeMaps | None:
    """What makes the maps that the loss needs, from the mask of a sample and its spacing; None if it needs none."""
    maps = build_loss([dict(term) for term in config.loss], labels, equal_class_counts(labels)).maps
    return partial(maps_of_mask, maps, labels) if maps else None


def _check_pixel_weights(config: Config, data: Data) -> None:
    """Raise ConfigError if a term of the loss is not defined for weights of pixels."""
    labels = data.labels
    sides = (2,) * data.preprocess.dims
    loss = build_loss([dict(term) for term in config.loss], labels, equal_class_counts(labels))
    mask = torch.zeros(1, *((len(labels.names),) if labels.has_mask_channels else ()), *sides, dtype=labels.mask_dtype)
    try:
        loss.terms(torch.zeros(1, labels.channels, *sides), mask, torch.ones(1, *sides))
    except ValueError as error:
        raise ConfigError(f"loss: the data have weights of pixels, but {error}") from error


def _training(
    config: Config, data: Data, device: torch.device, processes: Processes, track: Track
) -> tuple[Settings, Callable[[int], Any]]:
    """The training settings, and a function from a step to the batches from that step on."""
    overfit = config.train.overfit
    training = training_set(config, data, NoAugment() if overfit else build_augment_from(config, data.labels))
    if config.loader.cache != "none":
        training.prepare(track)
    if training.has_weights:
        _check_pixel_weights(config, data)
    frequent = training.with_foreground(track) if config.sampling.foreground_cases else []
    if config.sampling.foreground_cases and not frequent:
        raise DataError("sampling.foreground_cases: no training case has foreground; leave this option out")
    epoch = steps_per_epoch(len(training), config.loader.batch, config.train.accumulate)
    settings = _settings(config, epoch, device)

    def batches(start: int) -> Any:
        return training_loader(
            training,
            batch=config.loader.batch,
            workers=config.loader.workers,
            steps=settings.limits.steps if overfit is None else overfit,
            seed=config.seed,
            start=start,
            multiple=data.preprocess.multiple,
            pin=device.type == "cuda",
            accumulate=config.train.accumulate,
            share=processes.batch_slice(config.loader.batch),
            frequent=frequent,
            frequent_share=config.sampling.foreground_cases,
            timeout=config.loader.timeout,
        )

    if overfit is None:
        return settings, batches
    return settings, lambda start: _repeated(batches(0), overfit, config.train.accumulate, start, settings)


def _repeated(batches: Iterable[Batch], steps: int, accumulate: int, start: int, settings: Settings) -> Iterator[Batch]:
    """The batches of the first `steps` steps, repeated, from step `start` to the last one."""
    first = list(batches)
    for step in range(start, settings.limits.steps):
        offset = step % steps * accumulate
        yield from first[offset : offset + accumulate]


def _settings(config: Config, epoch: int, device: torch.device) -> Settings:
    """The training settings with all durations in steps. epoch: the number of steps per epoch."""
    train, checkpoints = config.train, config.checkpoints
    limits = [
        steps
        for steps in (train.max_steps, None if train.max_epochs is None else train.max_epochs * epoch)
        if steps is not None
    ]
    steps = train.steps if train.steps is not None else None if train.epochs is None else train.epochs * epoch
    steps = steps if steps is not None else min(limits)

    def in_steps(duration: Any) -> int:
        return to_steps(duration, steps=steps, steps_per_epoch=epoch, minimum=1)

    return Settings(
        limits=Limits(
            steps,
            min(limits, default=None),
            train.max_minutes,
            None if train.patience is None else in_steps(train.patience),
        ),
        steps_per_epoch=epoch,
        precision=chosen_precision(train.precision, device),
        channels_last=train.channels_last,
        accumulate=train.accumulate,
        clip_norm=train.clip_norm,
        ema=train.ema,
        validate_every=in_steps(train.validate_every),
        log_every=in_steps(train.log_every),
        gradients_every=in_steps(train.gradients_every),
        best=checkpoints.best,
        keep_every=None if checkpoints.every is None else in_steps(checkpoints.every),
        keep=checkpoints.keep,
        nonfinite=train.nonfinite,
    )


def _plain(config: Config, resolved: Config, data: Data, weights: dict[str, str] | None) -> dict[str, Any]:
    """The contents of a checkpoint besides the weights: everything that evaluation needs, and the origin of the model.

    resolved: the configuration with class weights as numbers. weights: where pretrained weights come from.
    """
    return {
        "config": config.to_dict(),
        "resolved": resolved.to_dict(),
        "preprocess": data.preprocess.to_dict(),
        "split": data.split.to_json(),
        "data": data_digest(data.source.cases),
        "init": init_digest(config),
        "pretrained": weights,
        "plugins": plugin_hashes(config.plugins),
        "integers_scaled": _integers_scaled(data),
        "environment": versions(),
    }


def _integers_scaled(data: Data) -> bool:
    """Whether the integers of the training images were scaled to 0..1, as those of raster files are."""
    files = data.cases("train")[0].images
    return bool(files) and is_raster(files[0])


def init_digest(config: Config, recorded: str | None = None) -> str | None:
    """The digest of the initial weights. `recorded` is the digest in the checkpoint; it is used if the file no longer
    exists, which does not matter once a run has started."""
    try:
        return recorded if config.train.init is None else weights_digest(config.train.init)
    except CheckpointError:
        return recorded


def profile_steps(config: Config, settings: Settings) -> int | None:
    """The number of steps to profile according to `train.profile`."""
    duration = config.train.profile
    if duration is None:
        return None
    return to_steps(duration, steps=settings.limits.steps, steps_per_epoch=settings.steps_per_epoch, minimum=1)
