"""The decisions of `segkit tune` on the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segkit.report.figure_text import shortened

NAMES = {"thresholds": "threshold", "post_processing": "post-processing"}


def print_decisions(content: Mapping[str, Any], console: Console) -> None:
    """Print each choice with its gain and whether it is applied.

    content: of the file of decisions.
    """
    title = f"decisions on {content['cases']} cases of {content['groups']} groups ({content['part']})"
    table = Table(title=title, title_justify="left")
    for heading, justify in (
        ("decision", "left"),
        ("class", "left"),
        ("best value", "left"),
        ("gain", "right"),
        ("95 % CI", "right"),
        ("applied", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
    for decision, name, choice in _rows(content):
        interval = choice["ci95"]
        cells = [
            decision,
            shortened(name),
            choice["in_words"],
            f"{choice['gain']:+.4f}",
            "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}",
            "yes" if choice["kept"] else "no",
        ]
        table.add_row(*map(Text, cells))
    console.print(table)
    for line in _notes(content):
        console.print(f"  {line}", style="dim", markup=False, highlight=False)


def _rows(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Decision, class, choice."""
    for decision in ("thresholds", "post_processing"):
        for name, choice in content[decision].items():
            yield NAMES[decision], name, choice
    yield "temperature", "all", content["temperature"]


def _notes(content: Mapping[str, Any]) -> list[str]:
    choices = [choice for _decision, _name, choice in _rows(content)]
    notes = [
        f"gain in {content['metric']}, of temperature in log-likelihood; estimated on cases on which the value was not "
        "chosen (5-fold cross-fitting)",
        "applied is what gains more than chance: the interval, of 95 % for all decisions together, lies above 0",
        "harm that is rarer than one group in all of these cannot be seen here",
    ]
    return notes + sorted({f"no interval: {choice['reason']}" for choice in choices if choice["reason"]})
