"""The command `list`: the names that a configuration can use, with what each stands for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from segkit.experiment.build import TABLES
from segkit.experiment.plugins import load_plugins
from segkit.utils.errors import RunError
from segkit.utils.metric_names import FACTS, PATTERNS, MetricFacts

SENTENCE = re.compile(r".+?\.(?=\s+[A-Z`]|$)|.+", re.DOTALL)  # the first one


def list_names(kind: str | None, console: Console) -> dict[str, Any]:
    """Print the names of a kind, or without one the kinds, and return them with their meaning.

    Raises RunError for an unknown kind.
    """
    load_plugins([])  # the installed ones
    if kind is None:
        meanings = {name: f"{len(names())} names" for name, names in KINDS.items()}
    elif kind in KINDS:
        meanings = KINDS[kind]()
    else:
        raise RunError(f"expected one of {', '.join(KINDS)}, got {kind!r}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, meaning in meanings.items():
        table.add_row(name, meaning)
    console.print(table, markup=False, highlight=False)
    return meanings


def _of_table(key: str) -> dict[str, str]:
    """The entries of a table, with the first sentence of their documentation."""
    return {name: _first_sentence(entry) for name, entry in TABLES[key].entries.items()}


def _first_sentence(entry: Any) -> str:
    paragraph = (inspect.getdoc(entry) or "").split("\n\n")[0]
    match = SENTENCE.match(" ".join(paragraph.split()))
    return "" if match is None else match[0]


def _losses() -> dict[str, str]:
    recipes = {name: " + ".join(map(_term, terms)) for name, terms in TABLES["recipe"].entries.items()}
    return {**_of_table("loss"), **recipes}


def _term(term: Mapping[str, Any]) -> str:
    """A term of a recipe with its options."""
    options = {key: value for key, value in term.items() if key != "name"}
    return f"{term['name']} ({_as_yaml(options)})" if options else term["name"]


def _as_yaml(options: Mapping[str, Any]) -> str:
    shown = {key: f"{{{_as_yaml(value)}}}" if isinstance(value, Mapping) else value for key, value in options.items()}
    return ", ".join(f"{key}: {value}" for key, value in shown.items())


def _transforms() -> dict[str, str]:
    """The transforms of all engines, as `engine: name`."""
    keys = [key for key in TABLES if key.startswith("augment.")]
    return {
        f"{key.removeprefix('augment.')}: {name}": sentence for key in keys for name, sentence in _of_table(key).items()
    }


def _metrics() -> dict[str, str]:
    return {name: _range(facts) for name, facts in FACTS.items()} | PATTERNS


def _range(facts: MetricFacts) -> str:
    """Which values are good."""
    unit = " mm" if facts.is_length else ""
    direction = {True: "higher is better", False: "lower is better", None: "signed"}[facts.higher]
    return f"{direction}; {facts.perfect:g}{unit} is perfect"


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "losses": _losses,
    "models": lambda: _of_table("model"),
    "metrics": _metrics,
    "data": lambda: _of_table("data"),
    "splits": lambda: _of_table("split"),
    "transforms": _transforms,
    "optimizers": lambda: _of_table("optimizer"),
    "schedules": lambda: _of_table("schedule"),
    "weights": lambda: _of_table("weight"),
    "trackers": lambda: _of_table("tracker"),
}
