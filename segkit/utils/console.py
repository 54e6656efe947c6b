"""Warnings on the console."""

from __future__ import annotations

from typing import Any, Literal

from rich.console import Console


class QuietConsole(Console):
    """A console that shows nothing but warnings, which go to standard error."""

    def __init__(self, **options: Any):
        super().__init__(quiet=True, **options)
        self.warnings = Console(stderr=True, **options)


def warn(message: str, console: Console, kind: Literal["warning", "failed"] = "warning") -> None:
    """Print a warning, or what failed while other work goes on, also on a `QuietConsole`."""
    shown = console.warnings if isinstance(console, QuietConsole) else console
    style = {"warning": "yellow", "failed": "red"}[kind]
    shown.print(f"{kind}: {message}", style=style, highlight=False, markup=False)
