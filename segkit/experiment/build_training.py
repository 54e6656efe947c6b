"""From a checked configuration to everything that training needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segkit.config import Config, ConfigError
from segkit.data.augment import Augment, NoAugment
from segkit.data.cases import data_digest
from segkit.data.formats import FORMATS, format_name
from segkit.data.loaders import EvaluationSet, TrainingSet, training_loader
from segkit.data.memory_check import in_gb
from segkit.data.sampling import steps_per_epoch
from segkit.experiment.build import (
    Data,
    build_augment_from,
    build_data,
    build_labels,
    build_model,
    check_network,
    choose_device,
    padding_multiple,
    predictor_factory,
    to_format,
)
from segkit.experiment.class_weights import Weighted, with_class_weights
from segkit.labels import Labels
from segkit.losses import build_loss, expanded
from segkit.losses.deep_supervision import DeepSupervision
from segkit.losses.weighted_sum import WeightedSum
from segkit.training.compile import Compiled
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.optimizers import Grouping, build_optimizer, freeze
from segkit.training.precision import bf16_slowdown
from segkit.training.pretrained import load_weights, weights_digest
from segkit.training.stopping import Limits
from segkit.training.trainer import Batch, Experiment, Settings
from segkit.utils.distributed import ALONE, Processes
from segkit.utils.durations import to_steps
from segkit.utils.environment import versions
from segkit.utils.seeding import switch

SLOW = 1.5  # times slower than float32


@dataclass(frozen=True)
class Built:
    """Everything that training needs.

    config: with class weights as numbers, which `weighted` tells, and with the options that `like` stands for. notes:
    what a user should read before training begins.
    """

    experiment: Experiment
    data: Data
    config: Config
    weighted: Sequence[Weighted]
    notes: Sequence[str]


def build_experiment(
    config: Config, cache: Path | None = None, processes: Processes = ALONE, *, from_init: bool = True
) -> Built:
    """Build what a configuration says. Raises ConfigError for options that do not fit the data or each other.

    cache: the folder, where the configuration names none, of what is made from the data and holds for other runs too.
    from_init: whether to take the weights of `train.init`, which a run that goes on has long left behind.
    """
    try:
        processes.share(config.loader.batch)
        return _build_experiment(config, cache, processes, from_init)
    except ValueError as error:
        if hasattr(error, "exit_code"):  # bad data, for instance, says so itself
            raise
        raise ConfigError(f"{config.name}: {error}") from error


def _build_experiment(config: Config, cache: Path | None, processes: Processes, from_init: bool) -> Built:
    """In the order in which the parts depend on each other."""
    labels, device = build_labels(config), choose_device(config.device, processes)
    _check_device(config, device)
    switch(deterministic=config.train.deterministic, tf32=config.train.tf32)
    cache = config.loader.cache_dir or cache
    data = build_data(config, labels, multiple=padding_multiple(config, labels), cache=cache)
    model, notes = _model(config, data, device, processes, from_init)
    settings, batches = _training(config, data, device, processes)
    check_network(config, data)
    _check_validation(config, data)
    _check_sides(config, data)
    resolved, weighted = with_class_weights(config, labels, data.cases("train"), data.store, cache)
    resolved = replace(resolved, loss=tuple(expanded(term, labels) for term in resolved.loss))
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
        predictor=predictor_factory(config, data.preprocess, device),
        settings=settings,
        device=device,
        threshold=config.evaluation.threshold,
        network=Compiled(model) if config.train.compile else None,
        processes=processes,
        plain=_plain(config, resolved, data),
    )
    torch.manual_seed(config.seed + processes.rank)  # of dropout, in which processes have to differ
    return Built(experiment, data, resolved, weighted, [*_memory_note(data), *notes])


def _memory_note(data: Data) -> list[str]:
    if data.memory is None:
        return []
    needed, free = data.memory
    return [f"cases in memory: about {in_gb(needed)} of {in_gb(free)} that are free"]


def _check_device(config: Config, device: torch.device) -> None:
    """Raise ValueError for what the device cannot do."""
    train, on_cpu = config.train, device.type == "cpu"
    if train.precision == "fp16" and on_cpu:
        raise ValueError("train.precision: fp16 needs an accelerator; use bf16 or fp32 on the CPU")
    if train.precision == "bf16" and on_cpu and (times := bf16_slowdown()) > SLOW:
        warnings.warn(
            f"train.precision: bf16 makes a convolution {times:.0f} times slower than fp32 on this processor, which "
            "has no units for it; use fp32",
            stacklevel=1,
        )
    if train.tf32 and device.type != "cuda":
        raise ValueError(f"train.tf32 is a mode of CUDA devices, and this is {device.type}; leave it out")
    if train.sync_batchnorm and device.type != "cuda":
        raise ValueError(
            f"train.sync_batchnorm is for several CUDA devices, and this is {device.type}; use model.norm=instance"
        )


def _check_sides(config: Config, data: Data) -> None:
    """Raise ValueError where `swap_on_flip` would exchange classes that a mirror of pictures does not."""
    if not config.augment.swap_on_flip or data.preprocess.dims != 2:
        return
    for file in data.cases("train")[0].images:
        if FORMATS[str(format_name(file))].place is not None:
            raise ValueError(
                f"augment.swap_on_flip: {file} is a picture whose first axis runs from left to right, and a mirror of "
                "pictures turns the last one; save the pictures as PNG, TIFF or NPY, or leave swap_on_flip out"
            )


def _check_validation(config: Config, data: Data) -> None:
    """Raise ValueError for what follows the score of a validation, where there is none."""
    following = ["train.patience"] if config.train.patience is not None else []
    following += ["schedule: plateau"] if config.schedule.name == "plateau" else []
    if following and not data.split.validation:
        raise ValueError(f"{' and '.join(following)} follow the validation, and the split has no validation cases")


def _validation(config: Config, data: Data) -> EvaluationSet | None:
    if not data.split.validation:
        return None
    return data.evaluation_set("validation", keep=config.loader.cache == "memory")


def _model(
    config: Config, data: Data, device: torch.device, processes: Processes, from_init: bool
) -> tuple[nn.Module, list[str]]:
    """The network on the device, with the weights that it starts from, and what is to be said of these."""
    torch.manual_seed(config.seed)
    dims, notes = data.preprocess.dims, []
    model = build_model(config, data.preprocess.channels, data.labels, dims)
    if config.train.init is not None and from_init:
        notes += load_weights(model, config.train.init).in_words(config.train.init)
    freeze(model, config.parameters.freeze)
    if config.train.sync_batchnorm and processes.group is not None:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return to_format(model, config, dims).to(device), notes


def _loss(config: Config, labels: Labels, device: torch.device, processes: Processes) -> WeightedSum | DeepSupervision:
    loss = build_loss([dict(term) for term in config.loss], labels, group=processes.group).to(device)
    return DeepSupervision(loss) if config.model.args.get("deep_supervision") else loss


def _grouping(config: Config) -> Grouping:
    chosen = config.parameters
    return Grouping(chosen.encoder_lr, chosen.layer_decay, chosen.decay_norms_and_biases)


def training_set(config: Config, data: Data, augment: Augment) -> TrainingSet:
    """The samples that the network is shown."""
    return TrainingSet(
        data.cases("train"),
        data.store,
        data.preprocess,
        data.labels,
        augment,
        patch=config.sampling.patch,
        foreground=config.sampling.foreground,
        balance=config.sampling.balance,
        margin=config.sampling.margin,
        seed=config.seed,
    )


def _training(
    config: Config, data: Data, device: torch.device, processes: Processes
) -> tuple[Settings, Callable[[int], Any]]:
    """How to train, and the batches from a step on."""
    overfit = config.train.overfit
    training = training_set(config, data, NoAugment() if overfit else build_augment_from(config, data.labels))
    if config.loader.cache != "none":
        training.prepare()
    settings = _settings(config, steps_per_epoch(len(training), config.loader.batch, config.train.accumulate))

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
            share=processes.share(config.loader.batch),
        )

    if overfit is None:
        return settings, batches
    return settings, lambda start: _again_and_again(batches(0), overfit, config.train.accumulate, start, settings)


def _again_and_again(
    batches: Iterable[Batch], steps: int, accumulate: int, start: int, settings: Settings
) -> Iterator[Batch]:
    """The batches of the first few steps, over and over, from a step on to the last."""
    first = list(batches)
    for step in range(start, settings.limits.steps):
        place = step % steps * accumulate
        yield from first[place : place + accumulate]


def _settings(config: Config, epoch: int) -> Settings:
    """All lengths in steps; epoch: the steps of one."""
    train, kept = config.train, config.checkpoints
    limits = [
        steps
        for steps in (train.max_steps, None if train.max_epochs is None else train.max_epochs * epoch)
        if steps is not None
    ]
    steps = train.steps if train.steps is not None else None if train.epochs is None else train.epochs * epoch
    steps = steps if steps is not None else min(limits)

    def in_steps(duration: Any) -> int:
        return to_steps(duration, steps=steps, steps_per_epoch=epoch, least=1)

    return Settings(
        limits=Limits(
            steps,
            min(limits, default=None),
            train.max_minutes,
            None if train.patience is None else in_steps(train.patience),
        ),
        steps_per_epoch=epoch,
        precision=train.precision,
        channels_last=train.channels_last,
        accumulate=train.accumulate,
        clip_norm=train.clip_norm,
        ema=train.ema,
        validate_every=in_steps(train.validate_every),
        log_every=in_steps(train.log_every),
        gradients_every=in_steps(train.gradients_every),
        best=kept.best,
        keep_every=None if kept.every is None else in_steps(kept.every),
        keep=kept.keep,
        nonfinite=train.nonfinite,
    )


def _plain(config: Config, resolved: Config, data: Data) -> dict[str, Any]:
    """What a checkpoint holds beside the weights, so that it can be evaluated on its own and told where it is from.

    resolved: with class weights as numbers and the like.
    """
    return {
        "config": config.to_dict(),
        "resolved": resolved.to_dict(),
        "preprocess": data.preprocess.to_dict(),
        "split": data.split.to_json(),
        "data": data_digest(data.source.cases),
        "init": init_digest(config),
        "environment": versions(),
    }


def init_digest(config: Config, began_from: str | None = None) -> str | None:
    """Of the weights to start from; `began_from` where their file was taken away since, no longer needed."""
    init = config.train.init
    return weights_digest(init) if init is not None and init.is_file() else began_from


def profile_steps(config: Config, settings: Settings) -> int | None:
    """How many steps `train.profile` asks to be timed."""
    wanted = config.train.profile
    if wanted is None:
        return None
    return to_steps(wanted, steps=settings.limits.steps, steps_per_epoch=settings.steps_per_epoch, least=1)
