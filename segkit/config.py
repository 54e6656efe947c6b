"""YAML and `key=value` overrides -> a checked, frozen configuration. All errors at once, with line and suggestion.

The program hands in tables of what can be named (losses, networks, sources); an entry's signature is its schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from segkit.config_check import Checker, Table
from segkit.config_tree import ConfigError, parse_file, with_overrides

__all__ = ["Config", "ConfigError", "Named", "Table", "check", "dump", "read", "schema"]

FORMAT = 1
Count = Annotated[int, Field(ge=1)]
Sides = list[Count]
Device = Literal["auto", "cpu", "cuda", "mps"]


class Section(BaseModel):
    """A part of the configuration with fixed keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LabelsSection(Section):
    names: list[str]
    mode: Literal["multiclass", "binary", "multilabel"] = "multiclass"
    ignore_index: int | None = None
    background: str = "background"
    regions: dict[str, list[int]] | None = None


class PreprocessSection(Section):
    intensity: Literal["zscore", "dataset", "percentile", "none"] = "zscore"
    spacing: list[float] | Literal["median"] | None = None


class SamplingSection(Section):
    patch: Sides | None = None
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.0
    margin: Annotated[float, Field(ge=1)] = 1.5


class LoaderSection(Section):
    batch: Count = 4
    workers: Annotated[int, Field(ge=0)] = 0
    cache: bool = True


class TrainSection(Section):
    steps: Count | None = None
    epochs: Count | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    validate_every: Count = 1
    log_every: Count = 10


class EvaluationSection(Section):
    split: Literal["train", "validation", "test"] | None = None
    window: Sides | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    overlays: bool = True


class RunSection(Section):
    dir: Path | None = None


class GeneralSection(Section):
    """The keys of the top level that are no section."""

    format: Literal[1] = FORMAT
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"


@dataclass(frozen=True)
class Named:
    """An entry of a table with its arguments, every default filled in."""

    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Augment:
    engine: Literal["none", "albumentations", "monai"]
    transforms: tuple[Named, ...]


FIXED = {
    "labels": LabelsSection,
    "preprocess": PreprocessSection,
    "sampling": SamplingSection,
    "loader": LoaderSection,
    "train": TrainSection,
    "evaluation": EvaluationSection,
    "run": RunSection,
}
NAMED = ("data", "split", "model", "optimizer", "schedule")
DEFAULTS: dict[str, Any] = {
    "split": {"name": "source"},
    "schedule": {"name": "constant"},
    "augment": {},
    "preprocess": {},
    "sampling": {},
    "loader": {},
    "evaluation": {},
    "run": {},
}
REQUIRED = ("labels", "data", "model", "loss", "optimizer", "train")


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
    schedule: Named
    train: TrainSection
    evaluation: EvaluationSection
    run: RunSection

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data that `check` accepts again; paths are text."""
        return {"format": FORMAT, **_plain(self, keep_paths=True)}

    def digest(self) -> str:
        """12 hexadecimal digits that are the same wherever the same experiment runs: without name, paths, device,
        run folder, workers and logging."""
        return hashlib.sha256(json.dumps(self._experiment(), sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: Config) -> list[tuple[str, Any, Any]]:
        """(key, value here, value there) of all that the digest is of and that differs; None where a key is missing."""
        mine, theirs = _leaves(self._experiment()), _leaves(other._experiment())
        keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        return [(key, mine.get(key), theirs.get(key)) for key in keys]

    def _experiment(self) -> dict[str, Any]:
        content = _plain(self, keep_paths=False)
        for section, key in (("loader", "workers"), ("train", "log_every"), ("evaluation", "overlays")):
            del content[section][key]
        for key in ("name", "device", "run"):
            del content[key]
        return content


def read(
    path: Path,
    overrides: Sequence[str],
    tables: Mapping[str, Table],
    trials: Mapping[str, Callable[[Config], object]] | None = None,
) -> Config:
    """Read and check a YAML file. Raises ConfigError with everything that is wrong with it.

    trials: for sections what else must work without a ValueError, for what no signature can say.
    overrides: `key.path=value`, the value being YAML, list items by number. Setting `train.steps` drops the file's
        `train.epochs` and the other way round. Paths in the file are relative to it, those of overrides to the
        current directory.
    """
    tree, lines = parse_file(path)
    folder = Path(path).absolute().parent
    return check(tree, overrides, tables, source=str(path), lines=lines, folder=folder, trials=trials)


def check(
    tree: dict[str, Any],
    overrides: Sequence[str],
    tables: Mapping[str, Table],
    *,
    source: str,
    lines: Mapping[tuple, int] | None = None,
    folder: Path | None = None,
    trials: Mapping[str, Callable[[Config], object]] | None = None,
) -> Config:
    """Check a configuration that is plain data, such as a checkpoint holds; errors say that it is from `source`."""
    # defaults come first, so that an override can reach into a section that the file leaves out or leaves empty
    tree = {**DEFAULTS, **{key: value for key, value in tree.items() if value is not None or key not in DEFAULTS}}
    tree, origins, errors = with_overrides(tree, overrides)
    checker = Checker(source, tables, dict(lines or {}), origins, folder or Path.cwd(), errors)
    checker.one_of(tree.get("train"), ("train",), "steps", "epochs")
    known = [*FIXED, *NAMED, "augment", "loss"]
    general = {key: value for key, value in tree.items() if key not in known}
    if general.get("name") is None:
        general["name"] = Path(source).stem
    parts: dict[str, Any] = {"general": checker.section((), general, GeneralSection, known=known)}
    for key in known:
        if key in tree:
            parts[key] = _check_part(checker, key, DEFAULTS.get(key) if tree[key] is None else tree[key])
        elif key in REQUIRED:
            checker.error((), f"missing required key '{key}'")
    checker.finish()
    general_part = parts.pop("general").model_dump(exclude={"format"})
    config = Config(**general_part, **parts)
    for key, trial in (trials or {}).items():
        try:
            trial(config)
        except ValueError as error:
            checker.error((key,), str(error))
    checker.finish()
    return config


def _check_part(checker: Checker, key: str, value: Any) -> Any:
    if key in FIXED:
        return checker.section((key,), value, FIXED[key])
    if key == "loss":
        return _check_loss(checker, value)
    if key == "augment":
        return _check_augment(checker, value)
    return _check_named(checker, (key,), value, key)


def _check_named(checker: Checker, path: tuple, value: Any, table: str) -> Named | None:
    chosen = checker.choose(path, value, table)
    if chosen is None:
        return None
    name, given = chosen
    args = checker.arguments(path, given, table, name)
    return None if args is None else Named(name, args)


def _check_augment(checker: Checker, value: Any) -> Augment | None:
    path = ("augment",)
    if not isinstance(value, dict):
        return checker.error(path, f"expected a mapping with engine and transforms, got {value!r}")
    checker.known_keys(path, value, ["engine", "transforms"])
    engine, transforms = value.get("engine", "none"), value.get("transforms") or []
    if engine not in ("none", "albumentations", "monai"):
        return checker.error((*path, "engine"), f"expected 'none', 'albumentations' or 'monai', got {engine!r}")
    if not isinstance(transforms, list):
        return checker.error((*path, "transforms"), f"expected a list of transforms, got {transforms!r}")
    if engine == "none" and transforms:
        return checker.error((*path, "engine"), "transforms need an engine: 'albumentations' or 'monai'")
    built = [
        _check_named(checker, (*path, "transforms", place), entry, f"augment.{engine}")
        for place, entry in enumerate(transforms)
    ]
    return Augment(engine, tuple(one for one in built if one is not None))


def _check_loss(checker: Checker, value: Any) -> tuple[dict[str, Any], ...] | None:
    """A name of a loss or recipe, a mapping, or a list of names and mappings."""
    recipes = checker.tables["recipe"].entries
    if isinstance(value, str) and value in recipes:
        value = recipes[value]
    if isinstance(value, str) and value not in checker.tables["loss"].entries:
        return checker.unknown_name(("loss",), value, [*checker.tables["loss"].entries, *recipes])
    entries = value if isinstance(value, list) else [value]
    if not entries:
        return checker.error(("loss",), "expected a name, a mapping or a list of them, got an empty list")
    terms = [
        _check_term(checker, ("loss", place) if isinstance(value, list) else ("loss",), entry)
        for place, entry in enumerate(entries)
    ]
    return tuple(term for term in terms if term is not None)


def _check_term(checker: Checker, path: tuple, entry: Any) -> dict[str, Any] | None:
    chosen = checker.choose(path, entry, "loss")
    if chosen is None:
        return None
    name, given = chosen
    weight = given.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        checker.error((*path, "weight"), f"expected a number of at least 0, got {weight!r}")
    args = checker.arguments(path, given, "loss", name, also=("name", "weight"))
    return None if args is None else {"name": name, "weight": float(weight), **args}


def _plain(value: Any, *, keep_paths: bool) -> Any:
    """Dataclasses, sections and mappings as dictionaries; `name` and arguments of an entry side by side."""
    if isinstance(value, Named):
        value = {"name": value.name, **value.args}
    elif isinstance(value, Section):
        value = dict(value)
    elif isinstance(value, (Config, Augment)):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        kept = {key: one for key, one in value.items() if keep_paths or not isinstance(one, Path)}
        return {key: _plain(one, keep_paths=keep_paths) for key, one in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, keep_paths=keep_paths) for one in value if keep_paths or not isinstance(one, Path)]
    return str(value) if isinstance(value, Path) else value


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping from dotted keys."""
    if not isinstance(value, (dict, list)) or not value:
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for step, one in items for key, leaf in _leaves(one, f"{path}.{step}".lstrip(".")).items()}


def dump(config: Config, file: TextIO | Path) -> None:
    """Write the resolved configuration as YAML that `read` accepts."""
    yaml = YAML(typ="safe", pure=True)
    # flow style and folding change some texts: ruamel writes ?0 unquoted, and folds at one of two spaces
    yaml.default_flow_style = False
    yaml.width = 2**20
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.dump(config.to_dict(), file)


def schema(tables: Mapping[str, Table]) -> dict[str, Any]:
    """JSON schemas of the fixed sections and of every entry that can be named."""
    return {
        "sections": {key: model.model_json_schema() for key, model in FIXED.items()},
        "named": {
            key: {name: table.model(name).model_json_schema() for name in table.entries}
            for key, table in tables.items()
            if key != "recipe"
        },
    }
