"""Where each value of a configuration comes from: the file, an override, or the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.config.schema import FORMER_NAMES, Config, leaves
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
    content = config.to_dict()
    found = []
    for key, value in leaves(content).items():
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        places = [_written(path, tree, content), _former(_written(path, tree, content))]
        known = [origin for place in places if (origin := _origin(place, tree, lines, overridden)) != DEFAULT]
        found.append((key, value, known[0] if known else DEFAULT))
    return found


def _written(path: KeyPath, tree: Mapping[str, Any], content: Mapping[str, Any]) -> KeyPath:
    """Where the value at a path of the checked configuration stands in the file, in the forms that the file may have:
    a single term of the loss without a list, transforms after those of a preset, and trackers after those in short
    forms."""
    if path[:2] == ("loss", 0) and not isinstance(tree.get("loss"), list):
        return ("loss", *path[2:])
    if path[:2] == ("augment", "transforms") and len(path) > 2:
        own = _at(tree, ("augment", "transforms"))
        from_preset = len(content["augment"]["transforms"]) - (len(own) if isinstance(own, list) else 0)
        number = path[2] - from_preset
        return (*path[:2], number, *path[3:]) if number >= 0 else ("augment", "preset")
    if path[:2] == ("logging", "trackers") and len(path) > 2:
        short = [("logging", key) for key in ("tensorboard", "mlflow") if _at(tree, ("logging", key))]
        number = path[2] - len(short)
        return (*path[:2], number, *path[3:]) if number >= 0 else short[number]
    return path


def _former(path: KeyPath) -> KeyPath:
    """The same path with the name that its option had in earlier versions."""
    former = FORMER_NAMES.get((str(path[0]), str(path[-1])))
    return path if former is None else (*path[:-1], former)


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
            return DEFAULT  # of a section that the file has, but not this key
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
