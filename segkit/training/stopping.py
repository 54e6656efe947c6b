"""When and why a training ends: its length, its limits, a signal, a loss that stays without a number."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segkit.utils.distributed import Processes


class Interrupted(Exception):
    """Training was asked to stop by a signal; the checkpoint holds everything up to `step`."""

    def __init__(self, number: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; continue with --resume, "
            "a comparison with the same command"
        )
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

    @property
    def last_step(self) -> int:
        """At which training ends at the latest."""
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)

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


class Watch:
    """Looks whether a signal came or the minutes are over.

    One process looks after each step. Several look together, every few seconds, so that all stop at the same step;
    how many steps that is, the first process says, from how long its steps take.
    """

    SECONDS = 3.0

    def __init__(self, limits: Limits, processes: Processes, received: Sequence[int]):
        self.limits, self.processes, self.received = limits, processes, received
        self.next_look = 0
        self.last: tuple[int, float] | None = None  # look: the step, and the time of the first process

    def look(self, step: int, seconds: float) -> tuple[str | None, int | None]:
        """Which length or limit is reached after `step` and `seconds` of training, and which signal came."""
        mine = self.received[0] if self.received else None
        if self.processes.group is None:
            return self.limits.reached(step, seconds), mine
        if step < self.next_look:
            return self.limits.reached(step, 0.0), None
        said = self.processes.all_gather((mine, seconds, time.perf_counter()))
        _signal, seconds, now = said[0]
        pace = 0.0 if self.last is None else (step - self.last[0]) / (now - self.last[1])  # steps a second
        self.next_look, self.last = step + max(1, int(self.SECONDS * pace)), (step, now)
        signals = [number for number, *_ in said if number is not None]
        return self.limits.reached(step, seconds), max(signals, default=None)

    def meanwhile(self, *, last: bool) -> int | None:
        """The signal that came while there was a validation, say; several processes look after the last step only."""
        mine = self.received[0] if self.received else None
        if self.processes.group is None:
            return mine
        said = self.processes.all_gather(mine) if last else []
        return max((number for number in said if number is not None), default=None)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list instead of stopping in the middle of a step; a second one stops at once, unless
    it comes within a second, as where both the job and its process are asked."""
    received: list[int] = []
    times: list[float] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        times.append(time.monotonic())
        if times[-1] - times[0] > 1:
            for each, handler in previous.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

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
