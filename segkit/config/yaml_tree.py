"""A configuration as a tree of plain data: parsed from YAML with the line of every key, and changed by overrides."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

KeyPath = tuple


class ConfigError(ValueError):
    """All errors of a configuration, one per line."""

    exit_code = 2


def parse_file(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """A YAML file as plain data, and the line of every key path. Raises ConfigError with the line of a syntax error."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path}: cannot read the configuration: {reason}; `segkit config list` names the shipped ones"
        ) from error
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{path}{line}: {(error.problem or str(error)).splitlines()[0]}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(tree, CommentedMap):
        raise ConfigError(f"{path}: expected a mapping with labels, data, model, loss, optimizer, train; got {tree!r}")
    lines: dict[KeyPath, int] = {}
    return _plain(tree, (), lines), lines


def _plain(node: Any, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    if isinstance(node, CommentedMap):
        for key in node.lc.data or ():  # keys merged in with `<<` have no line of their own
            lines[(*path, key)] = node.lc.key(key)[0] + 1
        return {_scalar(key): _plain(value, (*path, key), lines) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*path, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*path, index), lines) for index, value in enumerate(node)]
    return _scalar(node)


def _scalar(value: Any) -> Any:
    """Scalars of the round-trip parser as plain types; dates stay strings."""
    if isinstance(value, ScalarBoolean):  # an int, not a bool
        return bool(value)
    for plain_type in (bool, int, float, str):
        if isinstance(value, plain_type):
            return plain_type(value)
    return value if value is None else str(value)


def with_overrides(
    tree: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[KeyPath, str], list[tuple[int, str]]]:
    """Apply `key.path=value` overrides. Returns the tree, the override that set each key path, and the errors."""
    tree = copy.deepcopy(tree)
    origins: dict[KeyPath, str] = {}
    errors: list[tuple[int, str]] = []
    for text in overrides:
        try:
            path = _apply(tree, text)
            origins[path] = f"override '{text}'"
        except ConfigError as error:
            errors.append((0, f"override '{text}': {error}"))
    return tree, origins, errors


def _apply(tree: dict[str, Any], text: str) -> KeyPath:
    dotted, equals, written = text.partition("=")
    if not equals or not dotted:
        raise ConfigError("expected key=value, for example train.steps=100")
    try:
        value = _plain(YAML(typ="rt").load(written), (), {})
    except YAMLError as error:
        raise ConfigError(f"the value is not valid YAML: {str(error).splitlines()[0]}") from error
    parts: list[Any] = [int(part) if part.isascii() and part.isdigit() else part for part in dotted.split(".")]
    path, last = tuple(parts), parts[-1]
    if len(path) > 1:
        tree[path[0]] = _with_names(tree.get(path[0]))
    node: Any = tree
    for key in path[:-1]:
        node = _step(node, key)
    if isinstance(node, list):
        _step(node, last)
        node[last] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"{'.'.join(map(str, path[:-1]))} is {node!r}, which has no keys")
    partner = {"train.steps": "epochs", "train.epochs": "steps"}.get(dotted)
    if partner is not None and value is not None:
        tree["train"].pop(partner, None)
    return path


def _with_names(section: Any) -> Any:
    """A section given as a name, or as a list of names, in the form that has keys."""
    if isinstance(section, list):
        return [_with_names(term) for term in section]
    return {"name": section} if isinstance(section, str) else section


def _step(node: Any, key: Any) -> Any:
    if isinstance(node, list):
        if not isinstance(key, int) or key >= len(node):
            raise ConfigError(f"expected a list item from 0 to {len(node) - 1}, got '{key}'")
        return node[key]
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = {}
        return node[key]
    raise ConfigError(f"'{key}' cannot be set: its parent is {node!r}")
