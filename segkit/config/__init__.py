"""From YAML and `key=value` overrides to a checked, frozen configuration; all errors at once, with line and suggestion.

The caller passes tables of everything that can be named (losses, networks, sources); the signature of an entry is its
schema.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ruamel.yaml import YAML

from segkit.config.errors import ConfigError
from segkit.config.json_schema import json_schema
from segkit.config.plain_data import plain_copy
from segkit.config.schema import (
    FORMER_NAMES,
    Config,
    GeneralSection,
    Named,
    plain_named,
    renamed,
)
from segkit.config.sections import FIXED, check_part, keys_of_sections
from segkit.config.validation import Checker, Table
from segkit.config.yaml_tree import apply_overrides, parse_file
from segkit.utils.text import shown

__all__ = ["DATA_DEFAULTS", "Config", "ConfigError", "Named", "Table", "check", "dump", "plain_named", "read", "schema"]

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
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: expected a mapping with {', '.join(REQUIRED)}; got {shown(tree)}")
    checker = Checker(source, tables, dict(lines or {}), folder or Path.cwd())
    checker.keys_elsewhere = partial(keys_of_sections, tables, NAMED)
    plain = plain_copy(tree, checker.error)
    checker.finish()
    written = {key: value for key, value in plain.items() if value is not None or key not in defaults}
    # defaults first, so that an override can change a key of a section that the file omits or leaves empty
    tree = {**copy.deepcopy(dict(defaults)), **written}
    checker.origins, checker.errors = apply_overrides(tree, overrides)
    _rename_options(tree)
    if not _load_plugins(checker, tree.get("plugins"), load_plugins):
        checker.finish()  # the names that a missing plugin provides would be reported as unknown
    checker.length(tree.get("train"), ("train",))
    known = [*FIXED, *NAMED, "augment", "logging", "loss"]
    general = {key: value for key, value in tree.items() if key not in known}
    if general.get("name") is None:
        general["name"] = Path(source).stem
    parts: dict[str, Any] = {"general": checker.section((), general, GeneralSection, known=known)}
    for key in known:
        if key in tree:
            parts[key] = check_part(checker, key, defaults.get(key) if tree[key] is None else tree[key])
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


def dump(config: Config, file: TextIO | Path) -> None:
    """Write the resolved configuration as YAML that `read` accepts."""
    yaml = YAML(typ="safe", pure=True)
    # flow style and folding would alter some strings: ruamel writes ?0 unquoted and folds between two spaces
    yaml.default_flow_style = False
    yaml.width = 2**20
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.dump(config.to_dict(), file)


def schema(tables: Mapping[str, Table]) -> dict[str, Any]:
    """The JSON Schema of a configuration file, see `json_schema`."""
    return json_schema(tables, NAMED, REQUIRED, DEFAULTS)
