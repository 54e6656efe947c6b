"""Check a configuration tree against models and signatures, and report where each error is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from segkit.config.errors import ConfigError
from segkit.config.yaml_reader import KeyPath
from segkit.utils.field_errors import PROBLEM
from segkit.utils.signatures import accepted_as_text, describe, first_errors, signature_model, union_members
from segkit.utils.text import nearest_name, one_line, shown

VARIABLE = re.compile(r"\$\{(\w+)\}")
MOST_ERRORS = 100  # in one message
ELSEWHERE = 0.8  # similarity of an unknown key with a key of another section that is suggested
MAX_NAME = 255  # bytes of a file name
BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


@dataclass(frozen=True)
class Table:
    """Entries that a section can name. `injected`: parameters that the program sets, not the file."""

    entries: Mapping[str, Any]
    injected: frozenset[str] = frozenset()

    def model(self, name: str) -> type[BaseModel]:
        """The signature of an entry as a pydantic model: annotations check values, defaults are filled in."""
        return signature_model(self.entries[name], self.injected)


class Checker:
    """Checks parts of a tree and collects errors until `finish` raises them in the order of their lines."""

    def __init__(
        self,
        source: str,
        tables: Mapping[str, Table],
        lines: dict[KeyPath, int],
        folder: Path,
    ):
        self.source, self.tables, self.lines, self.folder = source, tables, lines, folder
        self.origins: dict[KeyPath, str] = {}  # the override that set each key path
        self.errors: list[tuple[int, str]] = []  # the line and the message
        self.keys_elsewhere: Callable[[], dict[str, str]] = dict  # the keys of all sections, and where they belong

    def error(self, path: KeyPath, message: str) -> None:
        override = self._override(path)
        prefixes = [path[:length] for length in range(len(path), 0, -1)]
        line = next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), 0)
        location = override or (f"{self.source}:{line}" if line else self.source)
        dotted = one_line(".".join(map(str, path)))
        self.errors.append((0 if override else line, f"{location}: {dotted + ': ' if dotted else ''}{message}"))

    def _override(self, path: KeyPath) -> str | None:
        """The last override that set the value at `path` or, for a key that is not in the file, created it."""
        is_new = bool(path) and path not in self.lines
        overrides = [
            text for key, text in self.origins.items() if _related(key, path) or (is_new and _related(path, key))
        ]
        return overrides[-1] if overrides else None

    def finish(self) -> None:
        texts = [text for _, text in sorted(self.errors, key=lambda error: error[0])]
        if len(texts) > MOST_ERRORS:
            texts[MOST_ERRORS:] = [f"{self.source}: and {len(texts) - MOST_ERRORS} more errors"]
        if texts:
            raise ConfigError("\n".join(texts))

    def unknown_name(self, path: KeyPath, name: object, known: Iterable[str]) -> None:
        known = list(known)
        self.error(path, f"unknown name {shown(name)}; {_suggestion(name, known)}")

    def known_keys(self, path: KeyPath, value: Mapping[str, Any], known: Iterable[str]) -> None:
        known = list(known)
        for key in value:
            if key not in known:
                self._unknown_key((*path, key), known)

    def _unknown_key(self, path: KeyPath, known: Sequence[str]) -> None:
        hint = self._known_key(path[-1], known) if len(self.errors) < MOST_ERRORS else ""  # not shown, and slow
        self.error(path, f"unknown key; {hint}")

    def _known_key(self, key: object, known: Sequence[str]) -> str:
        """The key of this section, or of another one, that an unknown key probably means; otherwise all of this one."""
        if (here := nearest_name(key, known)) is not None:
            return f"did you mean '{here}'?"
        keys = self.keys_elsewhere()
        elsewhere = nearest_name(key, keys, similarity=ELSEWHERE)
        return f"expected one of {', '.join(known)}" if elsewhere is None else f"did you mean '{keys[elsewhere]}'?"

    def length(self, value: Any, path: KeyPath) -> None:
        """Check that the length is given once, in steps or epochs. It may be omitted if there is a limit."""
        if not isinstance(value, dict):
            return
        lengths = [key for key in ("steps", "epochs") if value.get(key) is not None]
        limits = [key for key in ("max_steps", "max_epochs") if value.get(key) is not None]
        if len(lengths) == 2 or not (lengths or limits):
            self.error(path, f"expected either 'steps' or 'epochs', got {'both' if lengths else 'neither'}")

    def choose(self, path: KeyPath, value: Any, table: str) -> tuple[str, dict[str, Any]] | None:
        """The name of an entry and its other keys; a plain string is a name without arguments."""
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return self.error(path, f"expected a mapping with a name, got {shown(value)}")
        if "name" not in value:
            return self.error(path, "missing required key 'name'")
        name, known = value["name"], self.tables[table].entries
        if not isinstance(name, str) or name not in known:
            return self.unknown_name((*path, "name"), name, known)
        return name, {key: item for key, item in value.items() if key != "name"}

    def arguments(
        self, path: KeyPath, options: dict[str, Any], table: str, name: str, also: Sequence[str] = ("name",)
    ) -> dict[str, Any] | None:
        """The arguments of an entry, checked against its signature, with defaults."""
        checked = self.section(path, options, self.tables[table].model(name), known=also)
        return None if checked is None else {key: getattr(checked, key) for key in type(checked).model_fields}

    def section(self, path: KeyPath, value: Any, model: type[BaseModel], known: Sequence[str] = ()) -> Any:
        """The value as an instance of the model, or None after an error. `known`: other keys allowed here."""
        if not isinstance(value, dict):
            return self.error(path, f"expected a mapping, got {shown(value)}")
        before = len(self.errors)
        value = {key: self._path(path, key, item, model) for key, item in value.items()}
        try:
            # as JSON, in which a list may become a tuple and a string a path, as the annotation requires
            built = model.model_validate_json(json.dumps(value, default=str))
            return built if len(self.errors) == before else None
        except ValidationError as error:
            for field, details in first_errors(error).items():
                self._field_error(path, field, details, value, model, known)
        return None

    def _field_error(
        self,
        path: KeyPath,
        field: str,
        details: Any,
        value: dict[str, Any],
        model: type[BaseModel],
        known: Sequence[str],
    ) -> None:
        kind = details["type"]
        if kind == "missing":
            return self.error(path, f"missing required key '{field}'")
        if kind == "extra_forbidden":
            names = [*model.model_fields, *known]
            return self._unknown_key((*path, field), names)
        location = (*path, field, *[step for step in details["loc"][1:] if isinstance(step, int)])
        location = location if location in self.lines else (*path, field)
        if kind == PROBLEM:
            return self.error(location, details["msg"])
        if kind == "too_long":
            allowed, given = details["ctx"]["max_length"], details["ctx"]["actual_length"]
            return self.error(location, f"expected at most {allowed} items, got {given}")
        if kind in BOUNDS:
            bound = details["msg"].removeprefix("Input should be ")
            return self.error(location, f"expected a value {bound}, got {shown(details['input'])}")
        if field == "format":
            return self.error(
                location, f"format {shown(value[field])} cannot be read by this version; upgrade segkit-trainer"
            )
        expected = describe(model.model_fields[field].annotation)
        return self.error(location, f"expected {expected}, got {shown(value[field])}")

    def _path(self, path: KeyPath, key: Any, value: Any, model: type[BaseModel]) -> Any:
        """Strings in fields that hold a path, or paths by name, as absolute paths with ${NAME} expanded."""
        field = model.model_fields.get(key)
        members = () if field is None else union_members(field.annotation)
        if isinstance(value, dict) and dict[str, Path] in members:
            return {
                name: self._absolute(path, key, item) if isinstance(item, str) else item for name, item in value.items()
            }
        if not isinstance(value, str) or Path not in members or accepted_as_text(value, members):
            return value
        return self._absolute(path, key, value)

    def _absolute(self, path: KeyPath, key: Any, value: str) -> Any:
        for name in VARIABLE.findall(value):
            if name not in os.environ:
                dotted = ".".join(map(str, (*path, key)))
                self.error(
                    (*path, key),
                    f"the environment variable {name} is not set: export it, or give a path with {dotted}=PATH",
                )
                return value
        expanded = Path(VARIABLE.sub(lambda match: os.environ[match[1]], value))
        if any(len(os.fsencode(part)) > MAX_NAME for part in expanded.parts):
            self.error((*path, key), f"expected names of at most {MAX_NAME} bytes in a path, got {shown(value)}")
            return value
        overridden = any(_related(origin, (*path, key)) for origin in self.origins)
        return Path(os.path.normpath((Path.cwd() if overridden else self.folder) / expanded))


def _related(origin: KeyPath, path: KeyPath) -> bool:
    """Whether the value at `path` was set by an override of `origin`."""
    return path[: len(origin)] == origin


def _suggestion(name: object, known: Sequence[str]) -> str:
    nearest = nearest_name(name, known)
    return f"did you mean '{nearest}'?" if nearest else f"expected one of {', '.join(known)}"
