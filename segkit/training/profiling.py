"""Where the time of a training step goes: a table of its parts, and a trace of torch's profiler."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segkit.training.run_folder import Run

PARTS = ("data", "forward", "loss", "backward", "optimiser")
TRACED = 3  # steps in the trace, which is large


class Profiler:
    """Times the parts of some steps, once a few have warmed up; the device is waited for after each part.

    steps: how many are timed, of which the last few are traced too. After them `profile/steps.json` (seconds of each
    part, mean over the steps) and `profile/trace.json` (for Perfetto or chrome://tracing) are in the run folder.
    """

    def __init__(self, steps: int, device: torch.device, warm_up: int = 3):
        self.steps, self.device, self.warm_up = steps, device, warm_up
        self.seen = 0
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.trace: Any = None
        self.tracing = False

    @property
    def _running(self) -> bool:
        return self.warm_up <= self.seen < self.warm_up + self.steps

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Around a part of a step."""
        if not self._running:
            yield
            return
        started = time.perf_counter()
        with torch.profiler.record_function(part):
            yield
        self._wait()
        self.seconds[part] += time.perf_counter() - started

    def step_done(self, waited_for_data: float) -> None:
        """After a step; waited_for_data: seconds before it."""
        if self._running:
            self.seconds["data"] += waited_for_data
        self.seen += 1
        last = self.warm_up + self.steps
        if self.seen == last - min(TRACED, self.steps):
            self.trace = torch.profiler.profile()
            self.trace.start()
            self.tracing = True
        if self.seen == last:
            self._stop_tracing()

    @property
    def measured(self) -> int:
        """How many steps were timed."""
        return max(0, min(self.steps, self.seen - self.warm_up))

    def close(self, run: Run) -> None:
        """Write the files; of fewer steps if the training ended before. Warns if not one was timed."""
        self._stop_tracing()
        if not self.measured:
            warnings.warn(
                f"train.profile: the training ended after {self.seen} steps, of which the first {self.warm_up} warm "
                "up, so nothing was timed",
                stacklevel=2,
            )
            return
        if run.writes:
            (run.folder / "profile").mkdir(parents=True, exist_ok=True)
            run.write_json("profile/steps.json", {"steps": self.measured, "seconds": self.means()})
            if self.trace is not None:
                self.trace.export_chrome_trace(str(run.folder / "profile" / "trace.json"))

    def means(self) -> dict[str, float]:
        """Seconds a step of each part."""
        return {part: seconds / max(1, self.measured) for part, seconds in self.seconds.items()}

    def _stop_tracing(self) -> None:
        if self.tracing:
            self.trace.stop()
            self.tracing = False

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
