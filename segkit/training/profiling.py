"""Profiling of training steps: the time of each part of a step, and a trace of the PyTorch profiler."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segkit.training.run_folder import Run

PARTS = ("data", "forward", "loss", "backward", "optimiser")
TRACED = 3  # number of steps in the trace; traces are large


class Profiler:
    """Measures the parts of training steps, with a synchronisation of the device after each part.

    Args:
        steps: Number of steps to measure. The last few of them are also traced.
        device: The device of the training.
        warm_up: Number of steps before the measurement.

    `close` writes `profile/steps.json` (mean seconds of each part) and `profile/trace.json` (for Perfetto or
    chrome://tracing) to the run folder.
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
        """Measure a part of a step."""
        if not self._running:
            yield
            return
        start = time.perf_counter()
        with torch.profiler.record_function(part):
            yield
        self._synchronize()
        self.seconds[part] += time.perf_counter() - start

    def step_done(self, waited_for_data: float) -> None:
        """Finish a step. waited_for_data: Seconds spent waiting for its batch."""
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
        """Number of measured steps."""
        return max(0, min(self.steps, self.seen - self.warm_up))

    def close(self, run: Run) -> None:
        """Write the files. If the training ended early, they contain fewer steps; if no step was measured, warn."""
        self._stop_tracing()
        if not self.measured:
            warnings.warn(
                f"train.profile: no step was measured, because the training ended after {self.seen} steps and the "
                f"first {self.warm_up} steps are the warm-up",
                stacklevel=2,
            )
            return
        if run.writes:
            (run.folder / "profile").mkdir(parents=True, exist_ok=True)
            run.write_json("profile/steps.json", {"steps": self.measured, "seconds": self.means()})
            if self.trace is not None:
                self.trace.export_chrome_trace(str(run.folder / "profile" / "trace.json"))

    def means(self) -> dict[str, float]:
        """Mean seconds per step of each part."""
        return {part: seconds / max(1, self.measured) for part, seconds in self.seconds.items()}

    def _stop_tracing(self) -> None:
        if self.tracing:
            self.trace.stop()
            self.tracing = False

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
