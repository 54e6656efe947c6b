"""When and why a training ends: its length, its limits, a signal, a loss that stays without a number."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class Interrupted(Exception):
    """Training was asked to stop by a signal; the checkpoint holds everything up to `step`."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; continue with --resume")
        self.exit_code = 128 + number


class Diverged(Exception):
    """The loss or its gradient was infinite or NaN for too many steps in a row."""

    exit_code = 1

    def __init__(self, step: int, in_a_row: int, cases: list[str], saved: Path):
        shown = ", ".join(cases[:6]) + (f" and {len(cases) - 6} more" if len(cases) > 6 else "")
        super().__init__(
            f"the loss or its gradient was not finite in {in_a_row} steps in a row, up to step {step} (cases {shown}), "
            f"so training is stopped; these steps changed nothing in {saved}. Lower optimizer.lr, set train.clip_norm, "
            "train with precision fp32, or look at these cases"
        )


@dataclass(frozen=True)
class Limits:
    """What ends a training. steps: its length, over which schedules go. max_steps, max_minutes: end it earlier; minutes
    are those of all parts of a run that was resumed. patience: steps without a better validation score."""

    steps: int
    max_steps: int | None = None
    max_minutes: float | None = None
    patience: int | None = None

    def reached(self, step: int, seconds: float) -> str | None:
        """Which length or limit is reached, by name; None if training goes on."""
        if step >= self.steps:
            return "steps"
        if self.max_steps is not None and step >= self.max_steps:
            return "max_steps"
        if self.max_minutes is not None and seconds >= 60 * self.max_minutes:
            return "max_minutes"
        return None

    def out_of_patience(self, step: int, best_step: int) -> str | None:
        return "patience" if self.patience is not None and step - best_step >= self.patience else None


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list instead of stopping in the middle of a step; a second one stops at once."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever runs us there looks after signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
