"""Bounds on plain data, wherever it comes from: a YAML file, an override, a checkpoint or Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from segkit.config.yaml_reader import MAX_DEPTH, MAX_VALUES, KeyPath
from segkit.utils.text import shown

MAX_TEXT = 4096  # characters, as many as a path may have
LARGEST = 2**63  # whole numbers are smaller than this
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # and halves of surrogate pairs, which no file can hold

Report = Callable[[KeyPath, str], object]


def plain_copy(value: Any, report: Report) -> Any:
    """A copy of plain data with dicts, lists, numbers, text, paths, booleans and None; tuples become lists.

    report: receives the place and the description of everything that is of another type or exceeds a bound.
    """
    return _Copier(report).copy(value, ())


@dataclass
class _Copier:
    report: Report
    values: int = 0

    def copy(self, value: Any, path: KeyPath) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            if self.values == MAX_VALUES + 1:
                self.report(path, f"expected at most {MAX_VALUES} values in a configuration, got more")
            return None
        if isinstance(value, (Mapping, list, tuple)):
            return self._collection(value, path)
        problem = _problem(value)
        if problem is not None:
            return self.report(path, problem)
        return value

    def _collection(self, value: Any, path: KeyPath) -> Any:
        if len(path) >= MAX_DEPTH:
            return self.report(path[:4], f"expected at most {MAX_DEPTH} mappings and lists inside each other, got more")
        if not isinstance(value, Mapping):
            return [self._item(item, path, index) for index, item in enumerate(value)]
        content = {}
        for key, item in value.items():
            problem = _key_problem(key)
            if problem is not None:
                self.report(path, f"expected text or a whole number as a key, got {shown(key)}: {problem}")
            else:
                content[key] = self._item(item, path, key)
        return content

    def _item(self, item: Any, path: KeyPath, key: Any) -> Any:
        return None if self.values > MAX_VALUES else self.copy(item, (*path, key))


def _key_problem(key: Any) -> str | None:
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        return f"its type is {type(key).__name__}"
    return _problem(key)


def _problem(value: Any) -> str | None:
    """What is wrong with a value that contains no others; None if nothing is."""
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        return _text_problem(value)
    if value is None or isinstance(value, (bool, float)):
        return None
    if not isinstance(value, int):
        return f"expected text, a number, true, false, null, a list or a mapping, got the type {type(value).__name__}"
    if not -LARGEST < value < LARGEST:
        return f"expected a whole number between -2^63 and 2^63, got {shown(value)}"
    return None


def _text_problem(text: str) -> str | None:
    if len(text) > MAX_TEXT:
        return f"expected text of at most {MAX_TEXT} characters, got {len(text)}"
    found = CONTROL.search(text)
    if found is not None:
        return f"expected text without control characters, got {found[0]!r} at character {found.start() + 1}"
    return None
