"""From a checked configuration to built objects: with `assemble_training` all that knows configuration and families."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from segkit.config import Config, ConfigError, Named, Table, check
from segkit.config import read as read_config
from segkit.data import SOURCES
from segkit.data.augment import PRESETS as AUGMENT_PRESETS
from segkit.data.augment import TRANSFORMS, Augment, Swap, build_augment
from segkit.data.case_store import CachedSource, CaseStore
from segkit.data.cases import Case, Source
from segkit.data.class_counts import count_classes
from segkit.data.disk_cache import DiskCache
from segkit.data.loaders import EvaluationSet
from segkit.data.memory_check import estimate
from segkit.data.preprocess import Preprocess
from segkit.data.splits import SPLITS, Split
from segkit.evaluation.scoring import Scoring, build_scoring
from segkit.experiment.validate import TRIALS
from segkit.inference.predictor import Predictor
from segkit.labels import Labels
from segkit.losses import LOSSES, RECIPES
from segkit.losses.library_presets import PRESETS
from segkit.losses.weight_schedules import WEIGHT_SCHEDULES
from segkit.models import MODELS
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.optimizers import OPTIMIZERS
from segkit.utils.distributed import ALONE, Processes
from segkit.utils.padding import Multiple, padded

FROM_DATA = frozenset({"in_channels", "out_channels", "dims"})
TABLES: dict[str, Table] = {
    "data": Table(SOURCES, injected=frozenset({"labels"})),
    "split": Table(SPLITS, injected=frozenset({"cases", "counts"})),
    **{
        f"augment.{engine}": Table(table, injected=frozenset({"padding_value", "swap"}))
        for engine, table in TRANSFORMS.items()
    },
    "preset": Table(AUGMENT_PRESETS, injected=frozenset()),
    "model": Table(MODELS, injected=FROM_DATA),
    "loss": Table(LOSSES, injected=frozenset({"labels", "class_counts", "reduce"})),
    "recipe": Table(RECIPES, injected=frozenset()),
    "weight": Table(WEIGHT_SCHEDULES, injected=frozenset()),
    "like": Table(PRESETS, injected=frozenset()),
    "optimizer": Table(OPTIMIZERS, injected=frozenset({"parameters"})),
    "schedule": Table(SCHEDULES, injected=frozenset({"steps", "steps_per_epoch"})),
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration against the tables of every family. Raises ConfigError with all errors at once."""
    return read_config(path, overrides, TABLES, TRIALS)


def restore_config(content: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The configuration that a checkpoint holds."""
    return check(content, overrides, TABLES, source="the configuration in the checkpoint")


@dataclass(frozen=True)
class Data:
    """The cases of every part of the split, read through one store, and how images are prepared."""

    labels: Labels
    source: Source
    split: Split
    store: CaseStore
    preprocess: Preprocess
    memory: tuple[int, int] | None = None  # bytes that the cases need and that are free, where they are kept there

    def cases(self, part: str) -> list[Case]:
        """The cases of `train`, `validation` or `test`, in the order of the split."""
        by_name = {case.name: case for case in self.source.cases}
        return [by_name[name] for name in getattr(self.split, part)]

    def evaluation_set(self, part: str, *, keep: bool = False) -> EvaluationSet:
        """The cases of a part; `keep` has them in memory once read, for a set that is gone through often."""
        return EvaluationSet(self.cases(part), self.source, self.preprocess, keep=keep)


def build_labels(config: Config) -> Labels:
    return Labels(**config.labels.model_dump())


def build_source(config: Config, labels: Labels) -> Source:
    return SOURCES[config.data.name](labels=labels, **config.data.args)


def with_data(config: Config, **options: Any) -> Config:
    """The configuration with other options of its source."""
    return replace(config, data=Named(config.data.name, {**config.data.args, **options}))


def build_split(config: Config) -> Split:
    """The split alone, for which no image is read."""
    return split_cases(config, build_source(config, build_labels(config)))


def split_cases(config: Config, source: Source) -> Split:
    """The split of the cases of a source; its masks are read where it is stratified."""
    build = SPLITS[config.split.name]
    counting = {"counts": partial(_counts, source, build_labels(config))}
    injected = {name: value for name, value in counting.items() if name in inspect.signature(build).parameters}
    return build(source.cases, **config.split.args, **injected)


_counted: WeakKeyDictionary[Source, dict[str, list[int]]] = WeakKeyDictionary()


def _counts(source: Source, labels: Labels) -> dict[str, list[int]]:
    """The pixels of each class in every case; read once for a source, of which a comparison makes many splits."""
    if source not in _counted:
        masks = ((case.name, source.read(case).mask) for case in source.cases)
        _counted[source] = {name: count_classes(mask, labels).tolist() for name, mask in masks if mask is not None}
    return _counted[source]


def build_data(
    config: Config, labels: Labels, *, multiple: Callable[[int], Multiple], cache: Path | None = None
) -> Data:
    """Find the cases, split them and fit the preprocessing on the training part.

    multiple: from the number of spatial axes, which the first case tells, to the padding multiple of the network.
    cache: the folder of what is kept on disk.
    """
    source = _cached(config, build_source(config, labels), cache)
    split = split_cases(config, source)
    store = CaseStore(source, config.loader.cache)
    by_name = {case.name: case for case in source.cases}
    memory = _memory(config, store, [by_name[name] for name in split.train], len(split.train + split.validation))
    training = ((by_name[name], store.read(by_name[name])) for name in split.train)
    first = store.read(by_name[split.train[0]])
    preprocess = Preprocess.fit(
        training,
        intensity=config.preprocess.intensity,
        spacing=config.preprocess.spacing,
        multiple=multiple(first.image.ndim - 1),
    )
    return Data(labels, source, split, store, preprocess, memory)


def _memory(config: Config, store: CaseStore, cases: Sequence[Case], number: int) -> tuple[int, int] | None:
    """See `segkit.data.memory_check.estimate`; None where cases are not kept there."""
    if config.loader.cache != "memory":
        return None
    spacing = config.preprocess.spacing if isinstance(config.preprocess.spacing, list) else None
    return estimate(store, cases, number, spacing, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cached(config: Config, source: Source, folder: Path | None) -> Source:
    """The source, read through a cache on disk if the configuration asks for one: by `disk`, or with `memory` by naming
    the folder that fills it."""
    wanted = {"disk": True, "memory": config.loader.cache_dir is not None, "none": False}
    if not wanted[config.loader.cache]:
        return source
    if folder is None:
        raise ConfigError("loader.cache: disk needs loader.cache_dir here")
    content = config.experiment()
    return CachedSource(source, DiskCache(folder, {key: content[key] for key in ("data", "labels")}))


def build_model(config: Config, in_channels: int, labels: Labels, dims: int) -> nn.Module:
    build = MODELS[config.model.name]
    return build(in_channels=in_channels, out_channels=labels.channels, dims=dims, **config.model.args)


def check_network(config: Config, data: Data) -> None:
    """Show the network a batch without memory. Raises ConfigError if it cannot be trained on one."""
    dims, multiple = data.preprocess.dims, data.preprocess.multiple
    if config.sampling.patch is None:
        return  # images differ in size
    sides = padded(config.sampling.patch, multiple)
    shape = [config.loader.batch, data.preprocess.channels, *sides]
    try:
        with torch.device("meta"):
            build_model(config, shape[1], data.labels, dims).train()(torch.zeros(shape))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{config.name}: model {config.model.name} cannot train on batches {shape}: {error}"
        ) from error


def to_format(model: nn.Module, config: Config, dims: int) -> nn.Module:
    """The network in the memory format that `train.channels_last` asks for."""
    if not config.train.channels_last:
        return model
    return model.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)  # pyright: ignore


def padding_multiple(config: Config, labels: Labels) -> Callable[[int], Multiple]:
    """What the sides of an image must be multiples of, asked of the network itself, built without memory."""

    def multiple(dims: int) -> Multiple:
        with torch.device("meta"):
            return build_model(config, 1, labels, dims).multiple  # pyright: ignore[reportReturnType]

    return multiple


def build_augment_from(config: Config, labels: Labels) -> Augment:
    """The augmentation of training. Raises ConfigError for classes of swap_on_flip that there are not."""
    engine = config.augment.engine
    filling = {"padding_value": labels.padding_value, "swap": _swap(config, labels)}
    transforms = [_build_transform(TRANSFORMS[engine], named, filling) for named in config.augment.transforms]
    return build_augment(engine, transforms, labels.padding_value)


def _build_transform(table: Mapping[str, Callable[..., Any]], named: Named, filling: Mapping[str, Any]) -> Any:
    build = table[named.name]
    parameters = inspect.signature(build).parameters
    return build(**named.args, **{name: value for name, value in filling.items() if name in parameters})


def _swap(config: Config, labels: Labels) -> Swap | None:
    """What a mirror exchanges, as numbers of the mask; of regions those of their values that they do not share."""
    names = config.augment.swap_on_flip
    unknown = [name for pair in names for name in pair if name not in labels.names]
    if unknown:
        known = ", ".join(labels.names)
        raise ConfigError(f"augment.swap_on_flip: expected classes of labels, {known}, got {', '.join(unknown)}")
    if not names:
        return None
    pairs: list[tuple[int, int]] = []
    for pair in names:
        first, second = (_values_of(name, labels) for name in pair)
        if len(first) != len(second):
            raise ConfigError(f"augment.swap_on_flip: expected regions of as many values, got {' and '.join(pair)}")
        pairs += [(a, b) for a, b in zip(first, second, strict=True) if a != b and (a, b) not in pairs]
    return Swap(tuple(pairs), labels.has_mask_channels)


def _values_of(name: str, labels: Labels) -> list[int]:
    return [labels.names.index(name)] if labels.regions is None else sorted(labels.regions[name])


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """`auto` is the accelerator that torch finds, else the CPU; several processes have a CUDA device each."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found is not None else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch finds no CUDA device; use device=auto or device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps was asked for, but torch finds none; use device=auto or device=cpu")
    return torch.device(name, processes.local_rank) if name == "cuda" and processes.number > 1 else torch.device(name)


def predictor_factory(config: Config, preprocess: Preprocess, device: torch.device) -> Callable[[nn.Module], Predictor]:
    """The same way of predicting for validation, evaluation and prediction."""
    window = prediction_window(config, preprocess.dims, preprocess.multiple)

    def predictor(model: nn.Module) -> Predictor:
        return Predictor(
            model, device, preprocess.multiple, window, config.evaluation.overlap, config.train.channels_last
        )

    return predictor


MODES = ("tolerance_mm", "hd95", "assd", "nsd", "boundary_ratio")


def scoring_of(config: Config, labels: Labels) -> Scoring:
    """What an evaluation measures, and by which rules. Raises ConfigError for names that are none."""
    chosen = config.evaluation
    try:
        return build_scoring(
            labels,
            metrics=chosen.metrics,
            rules=chosen.rules,
            exclude_classes=chosen.exclude_classes,
            threshold=chosen.threshold,
            calibration=chosen.calibration,
            modes={name: getattr(chosen, name) for name in MODES},
        )
    except ValueError as error:
        raise ConfigError(f"evaluation: {error}") from error


def prediction_window(config: Config, dims: int, multiple: Multiple) -> tuple[int, ...] | None:
    """`evaluation.window`, or else the training patch for volumes and the whole image for pictures."""
    window = config.evaluation.window or (config.sampling.patch if dims == 3 else None)
    if window is None:
        return None
    if len(window) != dims:
        raise ValueError(f"expected evaluation.window with {dims} sides, got {list(window)}")
    return padded(window, multiple)
