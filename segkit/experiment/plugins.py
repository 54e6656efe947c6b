"""Losses, networks, data sources and trackers from the user's own packages.

A plugin is a Python module with any of the dictionaries `LOSSES`, `MODELS`, `SOURCES` and `TRACKERS`, from names to
classes or functions as in segkit's own tables. A configuration names it under `plugins`, or an installed package
declares it as an entry point of the group `segkit.plugins`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from segkit.config import Config, ConfigError
from segkit.data import SOURCES
from segkit.losses import LOSSES
from segkit.losses.build import INJECTED as LOSS_INJECTED
from segkit.models import MODELS
from segkit.training.trackers import TRACKERS

GROUP = "segkit.plugins"
TABLES: dict[str, dict[str, Any]] = {"LOSSES": LOSSES, "MODELS": MODELS, "SOURCES": SOURCES, "TRACKERS": TRACKERS}
INJECTED = {  # arguments that the program fills in; all others are options of the configuration
    "LOSSES": frozenset(LOSS_INJECTED),
    "MODELS": frozenset({"in_channels", "out_channels", "dims"}),
    "SOURCES": frozenset({"labels"}),
    "TRACKERS": frozenset({"run"}),
}
MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_providers: dict[tuple[str, str], str] = {}  # (table, entry) -> the plugin that provides it


@dataclass(frozen=True)
class Plugin:
    """A module and the entries that it provides, by table. error: why it cannot be used, None if it can."""

    module: str
    entries: Mapping[str, list[str]]
    error: str | None = None


def load_plugins(names: Iterable[str]) -> None:
    """Import plugins and add their entries to segkit's tables. Loading a plugin again changes nothing.

    Installed plugins come first; one that cannot be loaded is a warning, since the configuration may not need it.
    Raises ConfigError for a module that cannot be imported, provides nothing, or uses a name that is taken.
    """
    for point in installed_plugins():
        try:
            _load(point.value)
        except ConfigError as error:
            warnings.warn(f"the installed plugin {point.name} is not available: {error}", stacklevel=2)
    for name in names:
        _load(name)


def installed_plugins() -> list[EntryPoint]:
    """The entry points of the group `segkit.plugins`, sorted by name."""
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def used_plugins(config: Config) -> tuple[str, ...]:
    """The plugins that a configuration names, and the installed ones whose entries it uses for the experiment.

    Those of trackers are left out: the log of a run is no part of the experiment.
    """
    used = [("SOURCES", config.data.name), ("MODELS", config.model.name)]
    used += [("LOSSES", term["name"]) for term in config.loss]
    providers = [_providers[entry] for entry in used if entry in _providers]
    return tuple(dict.fromkeys([*config.plugins, *providers]))


def plugin_hashes(names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each plugin's file, which a checkpoint records."""
    return {name: hashlib.sha256(_file_of(_import(name)).read_bytes()).hexdigest() for name in names}


def warn_of_changes(recorded: Mapping[str, str]) -> None:
    """Warn about plugins whose file has changed since a checkpoint recorded its hash."""
    for name, digest in plugin_hashes(recorded).items():
        if digest != recorded[name]:
            warnings.warn(
                f"plugin {name} ({_file_of(_import(name))}) has changed since this checkpoint was trained; its results "
                "may differ",
                stacklevel=2,
            )


def describe_plugins(names: Iterable[str] = ()) -> list[Plugin]:
    """The installed and the named plugins with the entries that they provide."""
    modules = dict.fromkeys([*(point.value for point in installed_plugins()), *names])
    return [_describe(name) for name in modules]


def _describe(name: str) -> Plugin:
    try:
        _load(name)
    except ConfigError as error:
        return Plugin(name, {}, str(error))
    return Plugin(name, {table: list(entries) for table, entries in _entries(_import(name)).items()})


def _load(name: str) -> None:
    module = _import(name)
    entries = _entries(module)
    if not entries:
        raise ConfigError(
            f'{name} defines none of {", ".join(TABLES)}; expected a dictionary such as LOSSES = {{"my_loss": MyLoss}}'
        )
    _file_of(module)
    for table, provided in entries.items():
        for entry, value in provided.items():
            _register(table, entry, value, name)


def _register(table: str, entry: str, value: Any, plugin: str) -> None:
    provider = _providers.get((table, entry), "segkit" if entry in TABLES[table] else plugin)
    if provider != plugin:
        raise ConfigError(f"{plugin} provides {table}[{entry!r}], which {provider} provides already; rename it")
    if not callable(value):
        raise ConfigError(f"expected {plugin}.{table}[{entry!r}] to be a class or function, got {value!r}")
    for parameter in inspect.signature(value).parameters.values():
        if parameter.name not in INJECTED[table] and parameter.annotation is parameter.empty:
            raise ConfigError(
                f"{plugin}.{table}[{entry!r}]: the option {parameter.name} has no type annotation, which is needed to "
                "check its value"
            )
    _providers[table, entry] = plugin
    TABLES[table][entry] = value


def _entries(module: ModuleType) -> dict[str, dict[str, Any]]:
    """The tables that a module defines itself, without tables that it imports from segkit."""
    attributes = {table: getattr(module, table, None) for table in TABLES}
    return {
        table: value for table, value in attributes.items() if isinstance(value, dict) and value is not TABLES[table]
    }


def _import(name: str) -> ModuleType:
    """Import a module by its dotted name, from the Python path or from the current directory."""
    if not isinstance(name, str) or not MODULE_NAME.fullmatch(name):
        raise ConfigError(f"expected names of modules such as my_package.losses, got {name!r}")
    if name in sys.modules:
        return sys.modules[name]
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that installed packages come first; worker processes inherit it
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"importing {name} failed: {error}; install the missing package") from error
        raise ConfigError(
            f"there is no module {name}; install the package that contains it, or run the command from the "
            f"folder that contains {name.split('.')[0]}"
        ) from error
    except Exception as error:
        raise ConfigError(f"importing {name} failed: {type(error).__name__}: {error}") from error


def _file_of(module: ModuleType) -> Path:
    if module.__file__ is None:
        raise ConfigError(f"{module.__name__} is not a file; name a module inside it")
    return Path(module.__file__)
