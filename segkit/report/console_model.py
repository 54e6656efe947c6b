"""A network in numbers, on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_model(summary: Mapping[str, Any], console: Console) -> None:
    """Print the stages of a network, its totals, and the memory of a training step.

    summary: the content of the JSON file that `segkit model summary` writes.
    """
    patch = " x ".join(map(str, summary["patch"]))
    table = Table(title=f"{escape(summary['name'])}, patch {patch}", title_justify="left")
    table.add_column("stage")
    for heading in ("output", "parameters", "multiply-adds"):
        table.add_column(heading, justify="right")
    for stage in summary["stages"]:
        shape = "-" if stage["shape"] is None else " x ".join(map(str, stage["shape"]))
        table.add_row(escape(stage["name"]), shape, f"{stage['parameters']:,}", _short(stage["multiply_adds"]))
    console.print(table)
    frozen = summary["parameters"] - summary["trained"]
    memory = summary["memory"]
    lines = [
        f"image channels: {summary['channels']}, output channels: {summary['classes']}",
        f"{summary['parameters']:,} parameters" + (f", {frozen:,} of them frozen" if frozen else ""),
        f"{_short(summary['multiply_adds'])} multiply-adds per patch",
        f"a training step on a batch of {summary['batch']} in {summary['precision']} needs {_mb(memory['peak'])} at "
        "its peak:",
        f"  {_mb(memory['activations'])} activations, {_mb(memory['weights'])} weights, {_mb(memory['gradients'])} "
        f"gradients, {_mb(memory['moments'])} optimiser; the rest is temporary",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _short(number: int) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _mb(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
