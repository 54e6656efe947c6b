"""From YAML and `key=value` overrides to a checked, frozen configuration; all errors at once, with line and suggestion.

The caller passes tables of everything that can be named (losses, networks, sources); the signature of an entry is its
schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ruamel.yaml import YAML

from segkit.config.schema import (
    FORMER_NAMES,
    Augment,
    CheckpointsSection,
    ComparisonSection,
    Config,
    EvaluationSection,
    GeneralSection,
    LabelsSection,
    LoaderSection,
    LoggingSection,
    Named,
    ParametersSection,
    PreprocessSection,
    RunSection,
    SamplingSection,
    TrainSection,
    plain_named,
    renamed,
)
from segkit.config.validation import Checker, Table
from segkit.config.yaml_tree import ConfigError, parse_file, with_overrides

__all__ = ["DATA_DEFAULTS", "Config", "ConfigError", "Named", "Table", "check", "dump", "plain_named", "read", "schema"]

FIXED = {
    "labels": LabelsSection,
    "preprocess": PreprocessSection,
    "sampling": SamplingSection,
    "loader": LoaderSection,
    "parameters": ParametersSection,
    "train": TrainSection,
    "checkpoints": CheckpointsSection,
    "evaluation": EvaluationSection,
    "logging": LoggingSection,
    "run": RunSection,
    "comparison": ComparisonSection,
}
NAMED = ("data", "split", "model", "optimizer", "schedule")
DEFAULTS: dict[str, Any] = {
    "split": {"name": "source"},
    "schedule": {"name": "constant"},
    "augment": {},
    "preprocess": {},
    "sampling": {},
    "loader": {},
    "parameters": {},
    "checkpoints": {},
    "evaluation": {},
    "logging": {},
    "run": {},
    "comparison": {},
}
REQUIRED = ("labels", "data", "model", "loss", "optimizer", "train")
# for commands that look at the data alone, whose configuration need not say how to train
DATA_DEFAULTS = {
    **DEFAULTS,
    "model": {"name": "unet"},
    "loss": "dice_ce",
    "optimizer": {"name": "adamw"},
    "train": {"steps": 1},
}


def read(
    path: Path,
    overrides: Sequence[str],
    tables: Mapping[str, Table],
    checks: Mapping[str, Callable[[Config], object]] | None = None,
    load_plugins: Callable[[Sequence[str]], None] | None = None,
    defaults: Mapping[str, Any] = DEFAULTS,
) -> Config:
    """Read and check a YAML file. Raises ConfigError with all errors at once.

    overrides: `key.path=value` with a YAML value; list items are addressed by number. Setting `train.steps` drops the
        file's `train.epochs` and vice versa. Paths in the file are relative to the file, paths in overrides to the
        current directory.
    checks: by section, a function that raises ValueError for an error that no signature can express.
    load_plugins: adds the entries of the modules under `plugins` to the tables, before anything is checked.
    defaults: the sections that the file may omit.
    """
    tree, lines = parse_file(path)
    folder = Path(path).absolute().parent
    location: dict[str, Any] = {"source": str(path), "lines": lines, "folder": folder}
    return check(tree, overrides, tables, **location, checks=checks, load_plugins=load_plugins, defaults=defaults)


def check(
    tree: dict[str, Any],
    overrides: Sequence[str],
    tables: Mapping[str, Table],
    *,
    source: str,
    lines: Mapping[tuple, int] | None = None,
    folder: Path | None = None,
    checks: Mapping[str, Callable[[Config], object]] | None = None,
    load_plugins: Callable[[Sequence[str]], None] | None = None,
    defaults: Mapping[str, Any] = DEFAULTS,
) -> Config:
    """Check a configuration given as plain data, such as the one in a checkpoint; errors name `source`."""
    # defaults first, so that an override can change a key of a section that the file omits or leaves empty
    tree = {**defaults, **{key: value for key, value in tree.items() if value is not None or key not in defaults}}
    tree, origins, errors = with_overrides(tree, overrides)
    _rename_options(tree)
    checker = Checker(source, tables, dict(lines or {}), origins, folder or Path.cwd(), errors)
    if not _load_plugins(checker, tree.get("plugins"), load_plugins):
        checker.finish()  # the names that a missing plugin provides would be reported as unknown
    checker.length(tree.get("train"), ("train",))
    known = [*FIXED, *NAMED, "augment", "loss"]
    general = {key: value for key, value in tree.items() if key not in known}
    if general.get("name") is None:
        general["name"] = Path(source).stem
    parts: dict[str, Any] = {"general": checker.section((), general, GeneralSection, known=known)}
    for key in known:
        if key in tree:
            parts[key] = _check_part(checker, key, defaults.get(key) if tree[key] is None else tree[key])
        elif key in REQUIRED:
            checker.error((), f"missing required key '{key}'")
    checker.finish()
    general_part = parts.pop("general").model_dump(exclude={"format"})
    config = Config(**general_part, **parts)
    for key, check_section in (checks or {}).items():
        try:
            check_section(config)
        except ValueError as error:
            checker.error((key,), str(error))
    checker.finish()
    return config


def _rename_options(tree: dict[str, Any]) -> None:
    """Accept the option names of earlier versions."""
    for (section, option), former in FORMER_NAMES.items():
        if section in tree:
            tree[section] = renamed(tree[section], {former: option})


def _load_plugins(checker: Checker, names: Any, load_plugins: Callable[[Sequence[str]], None] | None) -> bool:
    """Load plugins one by one, so that every failure is reported. Returns whether all could be loaded.

    The section itself is checked later.
    """
    if load_plugins is None:
        return True
    loaded = True
    for place, name in enumerate(names if isinstance(names, list) else []):
        try:
            load_plugins([name])
        except ConfigError as error:
            checker.error(("plugins", place), str(error))
            loaded = False
    if not names:
        load_plugins([])  # installed plugins
    return loaded


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
    name, options = chosen
    args = checker.arguments(path, options, table, name)
    return None if args is None else Named(name, args)


def _check_augment(checker: Checker, value: Any) -> Augment | None:
    """Expand a preset into its transforms, followed by those of the file."""
    path = ("augment",)
    if not isinstance(value, dict):
        return checker.error(path, f"expected a mapping with engine and transforms, got {value!r}")
    checker.known_keys(path, value, ["engine", "preset", "transforms", "swap_on_flip"])
    engine, preset, entries = value.get("engine", "none"), value.get("preset"), value.get("transforms") or []
    engines = [key.removeprefix("augment.") for key in checker.tables if key.startswith("augment.")]
    listed = f"{', '.join(map(repr, engines[:-1]))} or {engines[-1]!r}"
    if engine != "none" and engine not in engines:
        return checker.error((*path, "engine"), f"expected 'none', {listed}, got {engine!r}")
    if not isinstance(entries, list):
        return checker.error((*path, "transforms"), f"expected a list of transforms, got {entries!r}")
    if engine == "none" and (entries or preset not in (None, "none")):
        return checker.error((*path, "engine"), f"transforms need an engine: {listed}")
    transforms = [
        *_preset(checker, (*path, "preset"), preset, engine),
        *(
            _check_named(checker, (*path, "transforms", index), entry, f"augment.{engine}")
            for index, entry in enumerate(entries)
        ),
    ]
    swaps = _check_swaps(checker, (*path, "swap_on_flip"), value.get("swap_on_flip") or [])
    return Augment(engine, tuple(transform for transform in transforms if transform is not None), swaps)


def _preset(checker: Checker, path: tuple, preset: Any, engine: str) -> list[Named | None]:
    if preset is None or engine == "none":
        return []
    presets = checker.tables["preset"].entries
    if preset not in presets:
        checker.error(path, f"expected one of {', '.join(presets)}, got {preset!r}")
        return []
    try:
        entries = presets[preset](engine)
    except ValueError as error:
        checker.error(path, str(error))
        return []
    return [_check_named(checker, path, entry, f"augment.{engine}") for entry in entries]


def _check_swaps(checker: Checker, path: tuple, pairs: Any) -> tuple[tuple[str, str], ...]:
    fits = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
    )
    if not fits:
        checker.error(path, f"expected pairs of class names, such as [[left, right]], got {pairs!r}")
        return ()
    names = [name for pair in pairs for name in pair]
    if len(set(names)) < len(names):
        checker.error(path, f"expected each class in one pair only, got {pairs!r}")
    return tuple((first, second) for first, second in pairs)


def _check_loss(checker: Checker, value: Any) -> tuple[dict[str, Any], ...] | None:
    """Check a loss: the name of a loss or recipe, a mapping, or a list of names and mappings."""
    recipes = checker.tables["recipe"].entries
    if isinstance(value, str) and value in recipes:
        value = recipes[value]
    if isinstance(value, str) and value not in checker.tables["loss"].entries:
        return checker.unknown_name(("loss",), value, [*checker.tables["loss"].entries, *recipes])
    entries = value if isinstance(value, list) else [value]
    if not entries:
        return checker.error(("loss",), "expected a name, a mapping or a list of them, got an empty list")
    terms = [
        _check_term(checker, ("loss", index) if isinstance(value, list) else ("loss",), entry)
        for index, entry in enumerate(entries)
    ]
    return tuple(term for term in terms if term is not None)


def _check_term(checker: Checker, path: tuple, entry: Any) -> dict[str, Any] | None:
    chosen = checker.choose(path, entry, "loss")
    if chosen is None:
        return None
    name, options = chosen
    weight = _check_weight(checker, (*path, "weight"), options.pop("weight", 1.0))
    like = options.pop("like", None)
    if like is not None and (not isinstance(like, str) or like not in checker.tables["like"].entries):
        checker.unknown_name((*path, "like"), like, checker.tables["like"].entries)
    args = checker.arguments(path, options, "loss", name, also=("name", "weight", "like"))
    if args is None:
        return None
    if like is not None:  # options that are not set then follow the defaults of the library, not those of segkit
        args = {"like": like, **{key: value for key, value in args.items() if key in options}}
    return {"name": name, "weight": weight, **args}


def _check_weight(checker: Checker, path: tuple, value: Any) -> Any:
    """Check a weight: a number, or the name and arguments of a schedule."""
    if isinstance(value, dict):
        chosen = checker.choose(path, value, "weight")
        args = None if chosen is None else checker.arguments(path, chosen[1], "weight", chosen[0])
        return None if chosen is None or args is None else {"name": chosen[0], **args}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        return checker.error(path, f"expected a number of at least 0, or a schedule, got {value!r}")
    return float(value)


def dump(config: Config, file: TextIO | Path) -> None:
    """Write the resolved configuration as YAML that `read` accepts."""
    yaml = YAML(typ="safe", pure=True)
    # flow style and folding would alter some strings: ruamel writes ?0 unquoted and folds between two spaces
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
            if key not in ("recipe", "like", "preset")
        },
    }
