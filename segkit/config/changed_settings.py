"""What a configuration says that is not the default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from segkit.config.schema import Config
from segkit.config.sections import FIXED
from segkit.config.validation import Table

LEFT_OUT = ("format", "name", "run")  # they change nothing about the run itself
GENERAL = {"seed": 0, "device": "auto", "plugins": []}


@dataclass(frozen=True)
class ChangedSetting:
    """A value that differs from its default, both as plain data.

    has_default: whether there is a default; if not, it is None here.
    """

    key: str
    value: Any
    default: Any = None
    has_default: bool = True


def changed_settings(config: Config, tables: Mapping[str, Table]) -> list[ChangedSetting]:
    """The values that differ from their defaults, in the order of the configuration.

    Options of entries, such as transforms and terms of the loss, are compared with the defaults of their names; the
    names themselves have none.
    """
    content = config.to_dict()
    return [setting for key in content if key not in LEFT_OUT for setting in _of_part(key, content[key], tables)]


def _of_part(key: str, value: Any, tables: Mapping[str, Table]) -> Iterator[ChangedSetting]:
    if key in GENERAL:
        if value != GENERAL[key]:
            yield ChangedSetting(key, value, GENERAL[key])
    elif key in FIXED:
        yield from _options(key, value, FIXED[key])
    elif key == "loss":
        for number, term in enumerate(value):
            yield from _entry(f"loss.{number}", term, tables["loss"])
    elif key == "logging":
        for number, tracker in enumerate(value["trackers"]):
            yield from _entry(f"logging.trackers.{number}", tracker, tables["tracker"])
    elif key == "augment":
        yield from _augment(value, tables)
    else:
        yield from _entry(key, value, tables[key])


def _augment(augment: Mapping[str, Any], tables: Mapping[str, Table]) -> Iterator[ChangedSetting]:
    if augment["engine"] == "none":
        return
    yield ChangedSetting("augment.engine", augment["engine"], "none")
    for number, transform in enumerate(augment["transforms"]):
        yield from _entry(f"augment.transforms.{number}", transform, tables[f"augment.{augment['engine']}"])
    if augment["swap_on_flip"]:
        yield ChangedSetting("augment.swap_on_flip", augment["swap_on_flip"], [])


def _entry(key: str, entry: Mapping[str, Any], table: Table) -> Iterator[ChangedSetting]:
    """The name of an entry, and the options that its signature has otherwise."""
    options = dict(entry)
    name = options.pop("name")
    yield ChangedSetting(f"{key}.name", name, has_default=False)
    if options.pop("weight", 1.0) != 1.0:
        yield ChangedSetting(f"{key}.weight", entry["weight"], 1.0)
    yield from _options(key, options, table.model(name))


def _options(key: str, options: Mapping[str, Any], model: type[BaseModel]) -> Iterator[ChangedSetting]:
    for name, value in options.items():
        field = model.model_fields.get(name)
        if field is None or field.is_required():
            yield ChangedSetting(f"{key}.{name}", value, has_default=False)
        elif value != (default := _plain(field.get_default(call_default_factory=True))):
            yield ChangedSetting(f"{key}.{name}", value, default)


def _plain(value: Any) -> Any:
    """As it stands in a configuration: tuples as lists, paths as texts."""
    return json.loads(json.dumps(value, default=str))
