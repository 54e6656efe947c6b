"""What the check of a data set says, on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

STYLES = {"error": "bold red", "warning": "yellow"}


def print_check(result: Mapping[str, Any], console: Console) -> None:
    """result: the contents of the JSON file of `segkit data check`."""
    console.print(_class_table(result))
    parts = ", ".join(f"{number} {part}" for part, number in result["parts"].items() if number)
    divided = f"; {parts}, split {result['split']}" if parts else ""
    said = f"{result['cases']} cases in {result['groups']} groups, {result['read']} can be read{divided}"
    console.print(said, highlight=False)
    for finding in result["findings"]:
        style = STYLES[finding["level"]]
        console.print(f"[{style}]{finding['level']}[/] {escape(finding['text'])}", highlight=False, soft_wrap=True)
    errors = sum(finding["level"] == "error" for finding in result["findings"])
    others = len(result["findings"]) - errors
    console.print(
        f"{errors} errors, {others} warnings" if result["findings"] else "nothing was found wrong",
        style="bold red" if errors else "bold",
        highlight=False,
    )


def _class_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="classes", title_justify="left")
    table.add_column("class")
    for heading in ("pixels", "share", "cases", "components", "components a case"):
        table.add_column(heading, justify="right")
    for row in result["classes"]:
        each = f"{row['components'] / row['cases']:.1f}" if row["cases"] else "-"
        cells = [str(row["pixels"]), f"{100 * row['share']:.3g} %", f"{row['cases']}", f"{row['components']}", each]
        table.add_row(escape(row["class"]), *cells)
    return table
