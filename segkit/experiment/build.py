"""Build labels, data, network, scoring and predictor from a checked configuration."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from segkit.config import DATA_DEFAULTS, DEFAULTS, Config, ConfigError, Named, Table, check
from segkit.config import read as read_config
from segkit.config.shipped import config_file
from segkit.data import SOURCES
from segkit.data.augment import PRESETS as AUGMENT_PRESETS
from segkit.data.augment import TRANSFORMS, Augment, Swap, build_augment
from segkit.data.case_store import CachedSource, CaseStore
from segkit.data.cases import Case, RawCase, Source
from segkit.data.class_counts import count_classes
from segkit.data.datasets import EvaluationSet
from segkit.data.disk_cache import DiskCache
from segkit.data.memory_check import available, copies_of_cases, estimate
from segkit.data.preprocess import Preprocess
from segkit.data.splits import SPLITS, Split
from segkit.evaluation.scoring import Scoring, build_scoring
from segkit.experiment.plugins import INJECTED, load_plugins, used_plugins
from segkit.experiment.validate import (
    CHECKS,
    check_weights,
    meta_network,
    multiple_of,
    weights_of,
)
from segkit.labels import Labels
from segkit.losses import LOSSES, RECIPES
from segkit.losses.library_presets import PRESETS
from segkit.losses.weight_schedules import WEIGHT_SCHEDULES
from segkit.models import MODELS
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.optimizers import OPTIMIZERS
from segkit.training.trackers import TRACKERS
from segkit.utils.distributed import SINGLE_PROCESS, Processes
from segkit.utils.padding import Multiple

TABLES: dict[str, Table] = {
    "data": Table(SOURCES, injected=INJECTED["SOURCES"]),
    "split": Table(SPLITS, injected=frozenset({"cases", "counts"})),
    **{
        f"augment.{engine}": Table(table, injected=frozenset({"padding_value", "swap"}))
        for engine, table in TRANSFORMS.items()
    },
    "preset": Table(AUGMENT_PRESETS, injected=frozenset()),
    "model": Table(MODELS, injected=INJECTED["MODELS"]),
    "loss": Table(LOSSES, injected=INJECTED["LOSSES"]),
    "recipe": Table(RECIPES, injected=frozenset()),
    "weight": Table(WEIGHT_SCHEDULES, injected=frozenset()),
    "like": Table(PRESETS, injected=frozenset()),
    "optimizer": Table(OPTIMIZERS, injected=frozenset({"parameters"})),
    "schedule": Table(SCHEDULES, injected=frozenset({"steps", "steps_per_epoch"})),
    "tracker": Table(TRACKERS, injected=INJECTED["TRACKERS"]),
}


# what is read from a file has changed: EXIF orientations (2)
READING = 2

ConfigSource = str | Path | Mapping[str, Any]
Track = Callable[[Any], Any]  # wraps something sized that is iterated over, for a progress bar


def load_config(source: ConfigSource, overrides: Sequence[str] = (), *, data_only: bool = False) -> Config:
    """Read a configuration: a YAML file, the name of a shipped configuration, or plain data.

    Plain data without a name is called `experiment`; its paths are relative to the current directory. data_only:
    whether the sections on network, loss and training may be missing. Raises ConfigError with all errors at once.
    """
    defaults = DATA_DEFAULTS if data_only else DEFAULTS
    if isinstance(source, Mapping):
        config = check(
            dict(source),
            overrides,
            TABLES,
            source="experiment",
            checks=CHECKS,
            load_plugins=load_plugins,
            defaults=defaults,
        )
    else:
        config = read_config(config_file(Path(source)), overrides, TABLES, CHECKS, load_plugins, defaults)
    return replace(with_default_intensity(config), plugins=used_plugins(config))


def with_default_intensity(config: Config) -> Config:
    """The configuration with the intensity `encoder` if its network has pretrained weights and it names no other."""
    if "intensity" in config.preprocess.model_fields_set or config.model.args.get("weights", "none") == "none":
        return config
    weights = weights_of(config)
    if weights is None or not weights.pretrained:
        return config
    return replace(config, preprocess=config.preprocess.model_copy(update={"intensity": "encoder"}))


def restore_config(content: dict[str, Any], overrides: Sequence[str] = (), file: Path | None = None) -> Config:
    """The configuration stored in a checkpoint, without its trackers, which need not be installed here.

    Raises ConfigError, for example for a plugin that is missing.
    """
    content = {**content, "logging": {}} if isinstance(content, Mapping) else content
    source = "the configuration in the checkpoint" + (f" {file}" if file else "")
    return check(content, overrides, TABLES, source=source, load_plugins=load_plugins)


@dataclass(frozen=True)
class Data:
    """The cases of each part of the split, the store that reads them, and the fitted preprocessing."""

    labels: Labels
    source: Source
    split: Split
    store: CaseStore
    preprocess: Preprocess
    memory: tuple[int, int] | None = None  # bytes needed and free, if cases are cached in memory
    sizes: tuple[tuple[int, ...], ...] = ()  # of the training images as the network receives them
    spacing: tuple[float, ...] = ()  # of these images, their median where they are not resampled
    absent_classes: tuple[str, ...] = ()  # that no training case contains

    def cases(self, part: str) -> list[Case]:
        """The cases of `train`, `validation` or `test`, in the order of the split."""
        by_name = {case.name: case for case in self.source.cases}
        return [by_name[name] for name in getattr(self.split, part)]

    def evaluation_set(self, part: str, *, keep: bool = False) -> EvaluationSet:
        """The cases of a part for evaluation. `keep` holds them in memory after the first read, for repeated
        evaluation."""
        return EvaluationSet(self.cases(part), self.source, self.preprocess, keep=keep)


def build_labels(config: Config) -> Labels:
    return Labels(**config.labels.model_dump())


def build_source(config: Config, labels: Labels) -> Source:
    return SOURCES[config.data.name](labels=labels, **config.data.args)


def with_data(config: Config, **options: Any) -> Config:
    """The configuration with other options for its data source."""
    return replace(config, data=Named(config.data.name, {**config.data.args, **options}))


def build_split(config: Config) -> Split:
    """The split alone, without reading any image."""
    return split_cases(config, build_source(config, build_labels(config)))


def split_cases(config: Config, source: Source) -> Split:
    """Split the cases of a source. Masks are read only if the split is stratified."""
    build = SPLITS[config.split.name]
    counting = {"counts": partial(_counts, source, build_labels(config))}
    injected = {name: value for name, value in counting.items() if name in inspect.signature(build).parameters}
    return build(source.cases, **config.split.args, **injected)


_counted: WeakKeyDictionary[Source, dict[str, list[int]]] = WeakKeyDictionary()


def _counts(source: Source, labels: Labels) -> dict[str, list[int]]:
    """The pixels of each class per case. They are counted once per source, since a comparison makes many splits."""
    if source not in _counted:
        masks = ((case.name, source.read(case).mask) for case in source.cases)
        _counted[source] = {name: count_classes(mask, labels).tolist() for name, mask in masks if mask is not None}
    return _counted[source]


def build_data(
    config: Config,
    labels: Labels,
    *,
    multiple: Callable[[int], Multiple],
    cache: Path | None = None,
    track: Track = iter,
) -> Data:
    """Find the cases, split them and fit the preprocessing on the training part.

    multiple: a function from the number of spatial axes (known from the first case) to the padding multiple of the
    network. cache: the folder of the disk cache. track: wraps the names of the training cases, for a progress bar.
    """
    source = _cached(config, build_source(config, labels), cache)
    return fitted_data(config, labels, source, split_cases(config, source), multiple=multiple, track=track)


def fitted_data(
    config: Config,
    labels: Labels,
    source: Source,
    split: Split,
    *,
    multiple: Callable[[int], Multiple],
    track: Track = iter,
) -> Data:
    """The data of a split, with the preprocessing fitted on its training part. See `build_data`."""
    store = CaseStore(source, config.loader.cache)
    by_name = {case.name: case for case in source.cases}
    memory = _memory(config, store, [by_name[name] for name in split.train], len(split.train + split.validation))
    shapes: list[tuple[tuple[int, ...], tuple[float, ...]]] = []  # size and spacing of each training image
    pixels = np.zeros(len(labels.names), np.int64)  # of each class

    def training() -> Iterator[tuple[Case, RawCase]]:
        for name in track(split.train):
            raw = store.read(by_name[name])
            shapes.append((raw.image.shape[1:], raw.spacing))
            if raw.mask is not None:
                np.add(pixels, count_classes(raw.mask, labels), out=pixels)
            yield by_name[name], raw

    first = store.read(by_name[split.train[0]])
    known = weights_of(config) if config.preprocess.intensity == "encoder" else None
    preprocess = Preprocess.fit(
        training(),
        intensity=config.preprocess.intensity,
        spacing=config.preprocess.spacing,
        multiple=multiple(first.image.ndim - 1),
        encoder=None if known is None else known.normalisation,
    )
    sizes = tuple(preprocess.resampled_size(size, spacing) for size, spacing in shapes)
    spacing = preprocess.spacing or tuple(np.median([spacing for _size, spacing in shapes], axis=0).tolist())
    absent = tuple(name for name, count in zip(labels.names, pixels.tolist(), strict=True) if not count)
    return Data(labels, source, split, store, preprocess, memory, sizes, spacing, absent)


def _memory(config: Config, store: CaseStore, cases: Sequence[Case], number: int) -> tuple[int, int] | None:
    """See `segkit.data.memory_check.estimate`; None if cases are not cached in memory."""
    if config.loader.cache != "memory":
        return None
    spacing = config.preprocess.spacing if isinstance(config.preprocess.spacing, list) else None
    copies = copies_of_cases(config.loader.workers, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return estimate(store, cases, number, spacing, copies)


def _cached(config: Config, source: Source, folder: Path | None) -> Source:
    """The source, wrapped in a disk cache if the configuration asks for one: with `cache: disk`, or with `cache:
    memory` and a `cache_dir`."""
    is_cached = {"disk": True, "memory": config.loader.cache_dir is not None, "none": False}
    if not is_cached[config.loader.cache]:
        return source
    if folder is None:
        raise ConfigError("loader.cache: disk needs loader.cache_dir in this command")
    content = config.experiment()
    return CachedSource(
        source, DiskCache(folder, {key: content[key] for key in ("data", "labels")} | {"reading": READING})
    )


def build_model(config: Config, in_channels: int, labels: Labels, dims: int) -> nn.Module:
    """The network with random weights. Raises ConfigError before any memory is taken if it does not fit into it, or
    cannot be built."""
    options: dict[str, Any] = {"in_channels": in_channels, "out_channels": labels.channels, "dims": dims}
    try:
        check_weights(meta_network(config, **options), available())
    except ValueError as error:
        raise ConfigError(f"{config.name}: model: {error}") from error
    return MODELS[config.model.name](**options, **config.model.args)


def to_format(model: nn.Module, config: Config, dims: int) -> nn.Module:
    """The network in the memory format given by `train.channels_last`."""
    if not config.train.channels_last:
        return model
    return model.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)  # pyright: ignore


def padding_multiple(config: Config, labels: Labels) -> Callable[[int], Multiple]:
    """A function from the number of spatial axes to the multiple that image sides must have, as reported by the
    network, which is built on the meta device."""

    def multiple(dims: int) -> Multiple:
        return multiple_of(meta_network(config, 1, labels.channels, dims))

    return multiple


def build_augment_from(config: Config, labels: Labels) -> Augment:
    """The augmentation of the training. Raises ConfigError for unknown classes in `swap_on_flip`."""
    engine = config.augment.engine
    injected = {"padding_value": labels.padding_value, "swap": _swap(config, labels)}
    transforms = [_build_transform(TRANSFORMS[engine], named, injected) for named in config.augment.transforms]
    return build_augment(engine, transforms, labels.padding_value)


def _build_transform(table: Mapping[str, Callable[..., Any]], named: Named, injected: Mapping[str, Any]) -> Any:
    build = table[named.name]
    parameters = inspect.signature(build).parameters
    return build(**named.args, **{name: value for name, value in injected.items() if name in parameters})


def _swap(config: Config, labels: Labels) -> Swap | None:
    """The mask values that a flip swaps. For regions, these are the values that the two regions do not share."""
    names = config.augment.swap_on_flip
    unknown = [name for pair in names for name in pair if name not in labels.names]
    if unknown:
        known = ", ".join(labels.names)
        raise ConfigError(f"augment.swap_on_flip: expected class names among {known}, got {', '.join(unknown)}")
    if not names:
        return None
    pairs: list[tuple[int, int]] = []
    for pair in names:
        first, second = (_values_of(name, labels) for name in pair)
        if len(first) != len(second):
            raise ConfigError(
                f"augment.swap_on_flip: expected two regions with the same number of values, got {' and '.join(pair)}"
            )
        pairs += [(a, b) for a, b in zip(first, second, strict=True) if a != b and (a, b) not in pairs]
    return Swap(tuple(pairs), labels.has_mask_channels)


def _values_of(name: str, labels: Labels) -> list[int]:
    return [labels.names.index(name)] if labels.regions is None else sorted(labels.regions[name])


def choose_device(name: str, processes: Processes = SINGLE_PROCESS) -> torch.device:
    """The device to use. `auto` is the accelerator that torch finds, otherwise the CPU; each of several processes
    gets its own CUDA device."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator is not None else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device; use device=auto or device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps, but torch finds no MPS device; use device=auto or device=cpu")
    return (
        torch.device(name, processes.local_rank) if name == "cuda" and processes.world_size > 1 else torch.device(name)
    )


MODES = (
    *("tolerance_mm", "hd95", "assd", "nsd", "boundary_ratio", "connectivity"),
    *("lesion_matching", "component_iou", "lesion_dilation", "lesion_min_volume", "lesion_penalty_mm"),
)


def scoring_of(config: Config, labels: Labels) -> Scoring:
    """The metrics and rules of an evaluation. Raises ConfigError for unknown names."""
    chosen = config.evaluation
    try:
        return build_scoring(
            labels,
            metrics=chosen.metrics,
            rules=chosen.rules,
            exclude_classes=chosen.exclude_classes,
            calibration=chosen.calibration,
            size_strata=chosen.size_strata,
            modes={name: getattr(chosen, name) for name in MODES},
        )
    except ValueError as error:
        raise ConfigError(f"evaluation: {error}") from error
