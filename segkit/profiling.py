"""Where the time of a training step goes: a table of its parts, and a trace of torch's profiler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segkit.runs import Run

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

    def step_done(self, waited_for_data: float, run: Run) -> None:
        """After a step; waited_for_data: seconds before it. Writes the files after the last one."""
        if self._running:
            self.seconds["data"] += waited_for_data
        self.seen += 1
        last = self.warm_up + self.steps
        if self.seen == last - min(TRACED, self.steps):
            self.trace = torch.profiler.profile()
            self.trace.start()
        if self.seen == last:
            self.trace.stop()
            if run.writes:
                (run.folder / "profile").mkdir(parents=True, exist_ok=True)
                self.trace.export_chrome_trace(str(run.folder / "profile" / "trace.json"))
                run.write_json("profile/steps.json", {"steps": self.steps, "seconds": self.means()})

    def means(self) -> dict[str, float]:
        """Seconds a step of each part."""
        return {
            part: seconds / max(1, min(self.steps, self.seen - self.warm_up)) for part, seconds in self.seconds.items()
        }

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
