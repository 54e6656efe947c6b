"""The results of a data check on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segkit.report.figure_text import printable, shortened

STYLES = {"error": "bold red", "warning": "yellow"}

LINES = "\n"  # the text of a finding may list cases, one per line


def print_check(result: Mapping[str, Any], console: Console) -> None:
    """Print the class table, the size of the data set, and all findings.

    result: the content of the JSON file that `segkit data check` writes.
    """
    console.print(_class_table(result))
    parts = ", ".join(f"{count} {part}" for part, count in result["parts"].items() if count)
    split = f"; {parts}, split {result['split']}" if parts else ""
    console.print(
        f"{result['cases']} cases in {result['groups']} groups, {result['read']} readable{split}", highlight=False
    )
    if result["augmentation"]:
        console.print(result["augmentation"], highlight=False, soft_wrap=True)
    for finding in result["findings"]:
        style = STYLES[finding["level"]]
        text = escape(printable(finding["text"], keep=LINES))
        console.print(f"[{style}]{finding['level']}[/] {text}", highlight=False, soft_wrap=True)
    errors = sum(finding["level"] == "error" for finding in result["findings"])
    warnings = len(result["findings"]) - errors
    console.print(
        f"{_count(errors, 'error')}, {_count(warnings, 'warning')}" if result["findings"] else "no problems found",
        style="bold red" if errors else "bold",
        highlight=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _class_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="classes", title_justify="left")
    table.add_column("class")
    for heading in ("pixels", "share", "cases", "components", "components per case"):
        table.add_column(heading, justify="right")
    for row in result["classes"]:
        per_case = f"{row['components'] / row['cases']:.1f}" if row["cases"] else "-"
        cells = [str(row["pixels"]), f"{100 * row['share']:.3g} %", f"{row['cases']}", f"{row['components']}", per_case]
        table.add_row(escape(shortened(row["class"])), *cells)
    return table
