"""The sections of a checked configuration, their defaults, and the digest of the experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from segkit.config.fields import Count, FolderName, MaskValue, Name, Seed, Sides
from segkit.utils.durations import Duration

FORMAT = 1
# Renamed options: (section, option) -> former name. Former names are still read, and the digest uses them, so that runs
# of earlier versions keep their digest and can be continued.
FORMER_NAMES = {("comparison", "noise_floor"): "aa", ("loss", "activation"): "link"}
Device = Literal["auto", "cpu", "cuda", "mps"]


# options that earlier versions did not have: with these values they do not change the digest
ADDED = {
    ("data", "numbered_masks"): "refuse",
    ("data", "boxes"): "refuse",
    ("sampling", "foreground_cases"): 0.0,
    ("model", "weights"): "none",
    ("model", "kernels"): None,
    ("model", "norm_groups"): 8,
    ("model", "bias"): False,
    ("model", "stochastic_depth"): 0.0,
    ("model", "attention"): False,
    ("model", "init"): "torch",
}
# the same for options that only some entries of a section lacked
ADDED_TO = {
    ("model", "monai_unet"): {"strides": None},
    ("model", "monai_dynunet"): {
        "strides": None,
        "norm": "instance",
        "residual": False,
        "dropout": 0.0,
        "deep_supervision": False,
    },
}
# and for options of losses, by the name of the loss
ADDED_TO_LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"positive_weights": None},
    **{name: {"average": "macro", "activation": None} for name in ("dice", "jaccard", "tversky", "focal_tversky")},
    "generalized_dice": {"power": 1, "activation": None},
}


class Section(BaseModel):
    """A section of the configuration with fixed keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LabelsSection(Section):
    names: list[Name]
    mode: Literal["multiclass", "binary", "multilabel"] = "multiclass"
    ignore_index: MaskValue | None = None
    background: str = "background"
    regions: dict[Name, list[MaskValue]] | None = None


class PreprocessSection(Section):
    intensity: Literal["zscore", "dataset", "percentile", "encoder", "none"] = "zscore"
    spacing: list[Annotated[float, Field(gt=0)]] | Literal["median"] | None = None


class SamplingSection(Section):
    patch: Sides | None = None
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.0
    foreground_cases: Annotated[float, Field(ge=0, le=1)] = 0.0
    balance: Literal["pixels", "classes"] = "pixels"
    margin: Annotated[float, Field(ge=1, le=10)] = 1.5


class LoaderSection(Section):
    batch: Annotated[int, Field(ge=1, le=2**16)] = 4
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    cache: Literal["memory", "disk", "none"] = "memory"
    cache_dir: Path | None = None
    timeout: Annotated[float, Field(gt=0)] = 600.0


class ParametersSection(Section):
    encoder_lr: Annotated[float, Field(gt=0)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    decay_norms_and_biases: bool = False
    freeze: list[str] = []


class TrainSection(Section):
    steps: Count | None = None
    epochs: Count | None = None
    max_steps: Count | None = None
    max_epochs: Count | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    patience: Duration | None = None
    init: Path | None = None
    overfit: Count | None = None
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    accumulate: Count = 1
    sync_batchnorm: bool = False
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    nonfinite: Count = 10
    validate_every: Duration = {"epochs": 1.0}
    log_every: Duration = {"steps": 10}
    gradients_every: Duration = {"steps": 100}
    validation_loss: bool = True
    profile: Duration | None = None


class CheckpointsSection(Section):
    best: str = "dice"
    every: Duration | None = None
    keep: Count = 3


# settings that can change without a new training, so they are not part of the digest
REPORTED = (
    *("metrics", "rules", "exclude_classes", "tolerance_mm", "hd95", "assd", "nsd", "boundary_ratio"),
    *("connectivity", "lesion_matching", "component_iou", "lesion_dilation", "lesion_min_volume", "lesion_penalty_mm"),
    *("size_strata", "calibration", "overlays", "read_first"),
)


class EvaluationSection(Section):
    split: Literal["train", "validation", "test"] | None = None
    window: Sides | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    metrics: Annotated[list[str], Field(min_length=1)] = ["dice", "iou"]
    rules: str = "segkit"
    exclude_classes: list[str] = []
    tolerance_mm: Annotated[float, Field(gt=0)] = 1.0
    hd95: Literal["directed", "pooled", "area"] | None = None
    assd: Literal["pooled", "mean_of_means"] | None = None
    nsd: Literal["area", "voxel"] | None = None
    boundary_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    connectivity: Literal["full", "direct"] | None = None
    lesion_matching: Literal["overlap", "iou", "brats"] | None = None
    component_iou: Annotated[float, Field(ge=0, lt=1)] | None = None
    lesion_dilation: Count | None = None
    lesion_min_volume: Annotated[float, Field(ge=0)] | None = None
    lesion_penalty_mm: Annotated[float, Field(ge=0)] | Literal["worst"] | None = None
    size_strata: Annotated[int, Field(ge=2, le=20)] | list[Annotated[float, Field(gt=0)]] | None = None
    calibration: bool = False
    overlays: bool = True
    read_first: bool = True


class RunSection(Section):
    dir: Path | None = None


class ComparisonSection(Section):
    """The losses to compare and the design of the comparison; see docs/how_to/compare_losses.md.

    losses: names of losses or recipes, or a mapping from labels to anything that `loss` may be.
    seeds: the number of seeds, or a list of them; with `folds`, each fold adds 10000 times its number.
    folds: number of cross-validation folds, each evaluated on its own part; None keeps the split as it is.
    repeats: repetitions of the cross-validation with new folds.
    steps, minutes: the budget of each training, instead of the one in `train`.
    sweep: learning rates, from which each loss gets the one with the best validation score.
    metric, aggregation: the score of a run, and how it is averaged over cases and classes.
    noise_floor: train the baseline once more under another name and with other seeds.
    """

    losses: list[Name] | dict[Name, Any] = []
    seeds: Annotated[int, Field(ge=1, le=1000)] | list[Seed] = 3
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    metric: str = "dice"
    aggregation: str = "class_case"
    baseline: str | None = None
    family: Literal["all_pairs", "vs_baseline"] | None = None
    margin: Annotated[float, Field(ge=0)] = 0.005
    steps: Count | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    sweep: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2)] | None = None
    noise_floor: bool = False


class GeneralSection(Section):
    """The keys at the top level."""

    format: Literal[1] = FORMAT
    name: FolderName
    seed: Seed = 0
    device: Device = "auto"
    plugins: list[str] = []


@dataclass(frozen=True)
class Named:
    """An entry of a table with its arguments, all defaults filled in."""

    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Augment:
    """The augmentation. swap_on_flip: pairs of classes that swap names when an image is mirrored left to right."""

    engine: str
    transforms: tuple[Named, ...]
    swap_on_flip: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Logging:
    """Where the log goes in addition to the run folder."""

    trackers: tuple[Named, ...] = ()


@dataclass(frozen=True)
class Config:
    """A checked configuration. `loss` is a tuple of terms, {"name", "weight", **options}."""

    name: str
    seed: int
    device: Device
    labels: LabelsSection
    data: Named
    split: Named
    preprocess: PreprocessSection
    augment: Augment
    sampling: SamplingSection
    loader: LoaderSection
    model: Named
    loss: tuple[Mapping[str, Any], ...]
    optimizer: Named
    parameters: ParametersSection
    schedule: Named
    train: TrainSection
    checkpoints: CheckpointsSection
    evaluation: EvaluationSection
    logging: Logging
    run: RunSection
    comparison: ComparisonSection
    plugins: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, which `check` accepts; paths are strings."""
        return {"format": FORMAT, **_plain(self, keep_paths=True)}

    def digest(self) -> str:
        """12 hexadecimal digits that identify the experiment on any machine.

        Name, paths, device, run folder, workers, caches, logging and the section `comparison` do not change it.
        """
        return hashlib.sha256(json.dumps(self.experiment(), sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: Config) -> list[tuple[str, Any, Any]]:
        """The differences that change the digest, as (key, value here, value there); None where a key is missing."""
        before, after = leaves(self.experiment()), leaves(other.experiment())
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return [(key, before.get(key), after.get(key)) for key in keys]

    def experiment(self) -> dict[str, Any]:
        """The part of the configuration that identifies the experiment, as plain data."""
        content = _plain(self, keep_paths=False)
        for section, key in (
            *(("loader", key) for key in ("workers", "cache", "timeout")),
            *(("train", key) for key in ("log_every", "gradients_every", "profile", "validation_loss")),
            *(("checkpoints", key) for key in ("every", "keep")),
            *(("evaluation", key) for key in REPORTED),
        ):
            del content[section][key]
        # paths are not part of the experiment, but the initial weights are
        content["train"]["init"] = None if self.train.init is None else self.train.init.name
        if isinstance(weights := self.model.args.get("weights"), Path):
            content["model"]["weights"] = weights.name
        for key in ("name", "device", "logging", "run", "comparison"):
            del content[key]
        if not self.plugins:
            del content["plugins"]
        added = [(section, key, default) for (section, key), default in ADDED.items()]
        for (section, name), options in ADDED_TO.items():
            if content[section].get("name") == name:
                added += [(section, key, default) for key, default in options.items()]
        for section, key, default in added:
            if content[section].get(key) == default:
                content[section].pop(key, None)
        content["loss"] = [_without_added(term, ADDED_TO_LOSSES.get(term["name"], {})) for term in content["loss"]]
        for (section, option), former in FORMER_NAMES.items():
            if section in content:
                content[section] = renamed(content[section], {option: former})
        return content


def _without_added(term: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """A term of a loss without the options that earlier versions did not have, where they have their defaults."""
    return {key: value for key, value in term.items() if key not in added or value != added[key]}


def _plain(value: Any, *, keep_paths: bool) -> Any:
    """Dataclasses, sections and mappings as plain dictionaries; the name and arguments of an entry are siblings."""
    if isinstance(value, Named):
        value = {"name": value.name, **value.args}
    elif isinstance(value, Section):
        value = dict(value)
    elif isinstance(value, (Config, Augment, Logging)):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if keep_paths or not isinstance(item, Path)}
        return {key: _plain(item, keep_paths=keep_paths) for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, keep_paths=keep_paths) for item in value if keep_paths or not isinstance(item, Path)]
    return str(value) if isinstance(value, Path) else value


def renamed(section: Any, names: Mapping[str, str]) -> Any:
    """A section (a mapping, or a list of mappings) with some of its keys renamed, in the same order."""
    if isinstance(section, list):
        return [renamed(entry, names) for entry in section]
    if not isinstance(section, dict):
        return section
    return {key if names.get(key) in section else names.get(key, key): value for key, value in section.items()}


def plain_named(named: Named) -> dict[str, Any]:
    """The name and arguments of an entry as plain data, paths as strings."""
    return _plain(named, keep_paths=True)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as a flat mapping with dotted keys."""
    if not isinstance(value, (dict, list)) or not value:
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for step, item in items for key, leaf in leaves(item, f"{path}.{step}".lstrip(".")).items()}
