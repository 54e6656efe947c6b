"""Progress of long work: a bar on a terminal, otherwise a line every half minute."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segkit.utils.text import readable_duration

LINE_SECONDS = 30.0  # between two lines where the output is no terminal
Item = TypeVar("Item")


class ProgressDisplay:
    """Shows how much of some work is done, with the remaining time and a note.

    Args:
        description: What is being done, such as `training`.
        total: The amount of work.
        console: Where it is shown.
        completed: The amount that was done before.
    """

    def __init__(self, description: str, total: int, console: Console, completed: int = 0):
        self.description, self.total, self.console = description, total, console
        self.completed: float = completed
        self.first = completed
        self.note = ""
        self.start = self.last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(description, total=total, completed=completed, note="")

    def __enter__(self) -> ProgressDisplay:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def update(self, completed: float, note: str | None = None) -> None:
        """Show the amount that is done by now, and a note, which stays until another one is given."""
        self.completed = completed
        self.note = self.note if note is None else note
        if not self.bar.disable:
            self.bar.update(self.task, completed=completed, note=self.note)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(self._line(), highlight=False, markup=False)

    def _line(self) -> str:
        seconds = time.monotonic() - self.start
        done = self.completed - self.first
        left = (self.total - self.completed) * seconds / done if done > 0 else math.inf
        remaining = "" if math.isinf(left) else f", about {readable_duration(left)} left"
        completed = f"{self.completed:.2f}" if self.completed % 1 else f"{self.completed:.0f}"
        return f"{self.description}: {completed} of {self.total}{remaining}  {self.note}".rstrip()


def tracked(items: Iterable[Item], description: str, total: int, console: Console) -> Iterator[Item]:
    """Iterate over items and show the progress."""
    with ProgressDisplay(description, total, console) as display:
        for number, item in enumerate(items, 1):
            yield item
            display.update(number)
