"""When a training ends: after its last step, at a limit, on a signal, or after repeated non-finite losses."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.utils.distributed import Processes
from segkit.utils.text import listed


class Interrupted(Exception):
    """Training was stopped by a signal. The checkpoint contains everything up to `step`, if it is a single training."""

    def __init__(self, number: int, step: int | None = None):
        after = "" if step is None else f" after step {step}"
        super().__init__(
            f"stopped by {signal.Signals(number).name}{after}; to continue, use --resume, or run the same command "
            "again for a comparison"
        )
        self.exit_code = 128 + number


class BatchOverdue(Exception):
    """A signal asked to stop, and the batch of the next step did not arrive."""


class Diverged(Exception):
    """The loss or its gradient was infinite or NaN for too many consecutive steps."""

    exit_code = 1

    def __init__(self, step: int, consecutive: int, cases: list[str], saved: Path):
        shown = listed(cases)
        super().__init__(
            f"training stopped: the loss or its gradient was not finite for {consecutive} consecutive steps, up to "
            f"step {step} (cases {shown}). These steps were skipped and did not change the weights in {saved}. Lower "
            "optimizer.lr, set train.clip_norm, set train.precision to fp32, or check these cases"
        )


@dataclass(frozen=True)
class Limits:
    """The length of a training, and limits that end it earlier.

    Args:
        steps: Length in steps, over which schedules extend.
        max_steps: Ends the training after this number of steps.
        max_minutes: Ends the training after this training time. The time before a resume is included.
        patience: Ends the training after this number of steps without an improved validation score.
    """

    steps: int
    max_steps: int | None = None
    max_minutes: float | None = None
    patience: int | None = None

    @property
    def last_step(self) -> int:
        """The last possible step."""
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)

    def reached(self, step: int, seconds: float) -> str | None:
        """The name of the limit that is reached, or `steps` for the end of the training; None if it continues."""
        if step >= self.steps:
            return "steps"
        if self.max_steps is not None and step >= self.max_steps:
            return "max_steps"
        if self.max_minutes is not None and seconds >= 60 * self.max_minutes:
            return "max_minutes"
        return None

    def out_of_patience(self, step: int, best_step: int) -> str | None:
        """`patience` if the score has not improved for too long, else None."""
        return "patience" if self.patience is not None and step - best_step >= self.patience else None


class StopMonitor:
    """Checks for signals and limits after each step.

    A single process checks after each step. In distributed training, all ranks must stop at the same step. They
    therefore exchange their signals at common steps, about every `SECONDS`. The interval in steps follows from the
    pace of rank 0.
    """

    SECONDS = 3.0

    def __init__(self, limits: Limits, processes: Processes, signals: StopSignals):
        self.limits, self.processes, self.signals = limits, processes, signals
        self.next_exchange = 0  # step
        self.last_exchange: tuple[int, float] | None = None  # step and time of rank 0

    @property
    def _own_signal(self) -> int | None:
        return self.signals.first

    def after_step(self, step: int, seconds: float) -> tuple[str | None, int | None]:
        """The name of the limit and the number of the signal that end the training, each None if there is none.

        seconds: Training time so far.
        """
        if self.processes.group is None:
            return self.limits.reached(step, seconds), self._own_signal
        if step < self.next_exchange:
            return self.limits.reached(step, 0.0), None
        gathered = self.processes.all_gather((self._own_signal, seconds, time.perf_counter()))
        _signal, seconds, now = gathered[0]  # all ranks decide by the clock of rank 0
        steps_per_second = 0.0
        if self.last_exchange is not None:
            last_step, last_time = self.last_exchange
            steps_per_second = (step - last_step) / (now - last_time)
        self.next_exchange = step + max(1, int(self.SECONDS * steps_per_second))
        self.last_exchange = step, now
        return self.limits.reached(step, seconds), _any_signal(number for number, *_rest in gathered)

    def after_validation(self, *, is_last: bool) -> int | None:
        """The number of a signal that arrived during logging, validation or saving, else None.

        is_last: Whether this was the last step. In distributed training only then the ranks exchange signals here.
        """
        if self.processes.group is None:
            return self._own_signal
        return _any_signal(self.processes.all_gather(self._own_signal)) if is_last else None


def _any_signal(numbers: Iterable[int | None]) -> int | None:
    """The largest signal number, the same on all ranks."""
    return max((number for number in numbers if number is not None), default=None)


class StopSignals:
    """Collects SIGINT and SIGTERM, so that the current step can be finished.

    A second signal ends the process at once, unless it arrives within one second of the first: schedulers may signal
    both the job and its process. A step that has not begun, because its batch does not arrive, is not waited for longer
    than `WAIT_SECONDS`: a loader worker may hang.
    """

    WAIT_SECONDS = 20.0

    def __init__(self) -> None:
        self.first: int | None = None
        self.first_time = 0.0
        self.waiting = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        handlers: dict[int, Any] = {signal.SIGINT: self._collect, signal.SIGTERM: self._collect}
        if hasattr(signal, "SIGALRM"):
            handlers[signal.SIGALRM] = self._stop_waiting
        if threading.current_thread() is threading.main_thread():  # otherwise the caller handles signals
            self.previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_error: object) -> None:
        if hasattr(signal, "SIGALRM") and self.previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting_for_batch(self) -> Iterator[None]:
        """Mark the time in which the training waits for its next batch."""
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False

    def _collect(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.first_time = number, now
            if hasattr(signal, "SIGALRM"):
                signal.setitimer(signal.ITIMER_REAL, self.WAIT_SECONDS, 1.0)
        elif now - self.first_time > 1:
            self.__exit__()
            signal.raise_signal(number)

    def _stop_waiting(self, _number: int, _frame: object) -> None:
        if self.waiting:
            raise BatchOverdue
