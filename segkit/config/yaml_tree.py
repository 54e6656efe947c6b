"""A configuration as a tree of plain data: read from a YAML file with the line of every key, changed by overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkit.config.errors import ConfigError
from segkit.config.plain_data import plain_copy
from segkit.config.yaml_reader import MAX_BYTES, MAX_DEPTH, KeyPath, YamlProblem, parse_text
from segkit.utils.text import one_line, shown


def parse_file(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """A YAML file as plain data, and the line of every key path. Raises ConfigError with the line of a syntax error."""
    try:
        tree, lines = parse_text(_read_text(Path(path)))
    except YamlProblem as error:
        line = "" if error.line is None else f":{error.line}"
        raise ConfigError(f"{path}{line}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected a mapping with labels, data, model, loss, optimizer, train; got {shown(tree)}"
        )
    return tree, lines


def _read_text(path: Path) -> str:
    """The text of a file. Raises ConfigError if it is not a file of UTF-8 text, or too large."""
    try:
        if path.exists() and not path.is_file():  # a named pipe would be waited for
            content, kind = None, "a folder" if path.is_dir() else "a pipe or device"
        else:
            with open(path, "rb") as file:
                content, kind = file.read(MAX_BYTES + 1), ""
    except (OSError, ValueError) as error:  # the latter for a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{one_line(str(path))}: cannot read the configuration: {reason}; `segkit config list` names the shipped "
            "ones"
        ) from error
    if content is None:
        raise ConfigError(f"{path}: expected a YAML file, got {kind}")
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: expected a configuration of at most {MAX_BYTES // 1024} KiB, got a larger file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8 text, got the byte 0x{content[error.start]:02x} at position {error.start}; save "
            "the file as UTF-8"
        ) from error


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[KeyPath, str], list[tuple[int, str]]]:
    """Change a tree by `key.path=value` overrides. Returns the override that set each key path, and the errors."""
    origins: dict[KeyPath, str] = {}
    errors: list[tuple[int, str]] = []
    for text in overrides:
        try:
            path = _apply(tree, text)
            origins[path] = f"override '{one_line(text)}'"
        except ConfigError as error:
            errors.append((0, f"override '{one_line(text)}': {error}"))
    return origins, errors


def _apply(tree: dict[str, Any], text: str) -> KeyPath:
    dotted, equals, written = text.partition("=")
    if not equals or not dotted:
        raise ConfigError("expected key=value, for example train.steps=100")
    value, path = _value(written), _path(dotted)
    last = path[-1]
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
        raise ConfigError(f"{'.'.join(map(str, path[:-1]))} is {shown(node)}, which has no keys")
    partner = {"train.steps": "epochs", "train.epochs": "steps"}.get(dotted)
    if partner is not None and value is not None:
        tree["train"].pop(partner, None)
    return path


def _value(written: str) -> Any:
    try:
        value, _lines = parse_text(written)
    except YamlProblem as error:
        raise ConfigError(f"the value is not valid YAML: {error}") from error
    problems: list[str] = []
    value = plain_copy(value, lambda _path, problem: problems.append(problem))
    if problems:
        raise ConfigError(problems[0])
    return value


def _path(dotted: str) -> KeyPath:
    """The keys of a dotted path; digits are the number of a list item."""
    parts = dotted.split(".")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"expected a path of at most {MAX_DEPTH} keys, got {len(parts)}")
    return tuple(int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in parts)


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
    raise ConfigError(f"'{key}' cannot be set: its parent is {shown(node)}")
