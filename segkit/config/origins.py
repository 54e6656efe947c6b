"""Where each value of a configuration comes from: the file, an override, or the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.config.schema import Config, leaves
from segkit.config.yaml_reader import KeyPath
from segkit.config.yaml_tree import apply_overrides, parse_file

DEFAULT = "default"


def origins(config: Config, file: Path, overrides: Sequence[str]) -> list[tuple[str, Any, str]]:
    """The values of a configuration as (key, value, origin), in its order.

    config: read from this file with these overrides. The origin is `line 12` of the file, the override, or `default`.
    What a short form stands for, such as the terms of `loss: dice_ce` or the transforms of a preset, has the origin of
    the short form.
    """
    tree, lines = parse_file(file)
    overridden, _errors = apply_overrides(tree, overrides)
    found = []
    for key, value in leaves(config.to_dict()).items():
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        found.append((key, value, _origin(path, tree, lines, overridden)))
    return found


def _origin(
    path: KeyPath, tree: Mapping[str, Any], lines: Mapping[KeyPath, int], overridden: Mapping[KeyPath, str]
) -> str:
    for length in range(len(path), 0, -1):
        part = path[:length]
        if part in overridden:
            return overridden[part]
        written = _at(tree, part)
        if written is None:
            continue
        # an override of another key has made a mapping of a name, whose key has no line of its own
        has_key = length < len(path) and _at(tree, path[: length + 1]) is not None
        if length < len(path) and isinstance(written, dict) and not has_key:
            if "preset" not in written:
                return DEFAULT  # of a section that the file has, but not this key
            part = (*part, "preset")
            if part in overridden:
                return overridden[part]
        if part in lines:
            return f"line {lines[part]}"
    return DEFAULT


def _at(tree: Any, path: KeyPath) -> Any:
    """The value at a path of the file; None if there is none, or it is empty."""
    for key in path:
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list) and isinstance(key, int) and key < len(tree):
            tree = tree[key]
        else:
            return None
    return tree


def differing(first: Config, second: Config) -> list[tuple[str, Any, Any]]:
    """The values in which two configurations differ, as (key, value of the first, value of the second).

    A value is None where a configuration has no such key. Where runs lie and what they are called is left out.
    """
    before, after = (
        {key: value for key, value in leaves(config.to_dict()).items() if key not in ("name", "run.dir")}
        for config in (first, second)
    )
    keys = dict.fromkeys([*before, *after])
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
