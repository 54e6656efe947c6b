"""Log lines with the means over several steps."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from segkit.utils.distributed import SINGLE_PROCESS, Processes

TOTALS = ("loss", "gradient_norm")  # the scalars of a step that are not terms of the loss
NONFINITE = "broken"  # the scalar that is 1 if a step was skipped


class Meter:
    """Collects the scalars of several steps on the device and reads them back together, once per log line.

    Args:
        every: Steps per log line.
        steps: The last step of the run, for the remaining time.
        device: The device of the scalars.
        processes: The process group. Images are counted over all ranks, and all ranks must record the same steps.

    `longest` is the largest number of consecutive skipped steps up to and within the last log line.
    """

    def __init__(self, every: int, steps: int, device: torch.device, processes: Processes = SINGLE_PROCESS):
        self.every, self.steps, self.device, self.processes = every, steps, device, processes
        self.scalars: list[dict[str, Tensor]] = []
        self.cases: list[list[str]] = []
        self.restored = 0  # number of collected steps from before a resume, which are not timed
        self.total_wait = self.last_wait = 0.0
        self.consecutive = self.longest = 0

    def start(self) -> None:
        """Start the clock, before the first step."""
        reset_memory_peak(self.device)
        self.line_start = self.step_end = time.perf_counter()

    def data_arrived(self) -> None:
        """Measure the time spent waiting for the batch of a step."""
        self.last_wait = time.perf_counter() - self.step_end
        self.total_wait += self.last_wait

    def step_done(self) -> None:
        """Start measuring the wait for the next batch."""
        self.step_end = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a validation or checkpoint from the time per step."""
        start = time.perf_counter()
        yield
        self.line_start += time.perf_counter() - start

    def record(
        self, scalars: dict[str, Tensor], cases: list[str], position: dict[str, Any], *, due: bool
    ) -> dict[str, Any] | None:
        """Record a step. Returns a log line every `every` steps and whenever `due` is true, else None.

        The log line contains means over the steps since the last line. Skipped steps are excluded from the means; the
        field `skipped` contains their number and their cases.

        Args:
            scalars: `loss`, `gradient_norm`, `broken` and the terms.
            cases: The cases of the step.
            position: Step, epoch and learning rates.
            due: Whether to return a line at this step in any case.
        """
        if self.scalars and self.scalars[-1].keys() != scalars.keys():  # collected with another loss before a resume
            self.scalars, self.cases, self.restored = [], [], 0
        self.scalars.append(scalars)
        self.cases.append(cases)
        if position["step"] % self.every and not due:
            return None
        table = torch.stack([torch.stack([step[name].float() for name in scalars]) for step in self.scalars]).tolist()
        rows = [dict(zip(scalars, row, strict=True)) for row in table]
        skipped = [row.pop(NONFINITE, 0.0) > 0 for row in rows]
        self._count_consecutive(skipped)
        means = _means([row for row, skip in zip(rows, skipped, strict=True) if not skip], list(rows[0]))
        totals = {name: means.pop(name) for name in TOTALS if name in means}
        line = {"kind": "step", **position, **totals, "terms": means, "time": self._time(position["step"])}
        if any(skipped):
            line["skipped"] = {"steps": sum(skipped), "cases": self._skipped_cases(skipped)}
        self.scalars, self.cases, self.restored, self.total_wait = [], [], 0, 0.0
        self.line_start = time.perf_counter()
        return line

    def state(self) -> dict[str, Any]:
        """The steps since the last log line, so that a resumed run writes the same next line."""
        return {
            "scalars": [{name: value.float().cpu() for name, value in step.items()} for step in self.scalars],
            "cases": self.cases,
            "in_a_row": self.consecutive,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""
        self.scalars = [{name: value.to(self.device) for name, value in step.items()} for step in state["scalars"]]
        self.cases, self.consecutive = state["cases"], state["in_a_row"]
        self.restored = len(self.cases)

    def _count_consecutive(self, skipped: Sequence[bool]) -> None:
        """Update the counts of consecutive skipped steps."""
        self.longest = 0
        for skip in skipped:
            self.consecutive = self.consecutive + 1 if skip else 0
            self.longest = max(self.longest, self.consecutive)

    def _skipped_cases(self, skipped: Sequence[bool]) -> list[str]:
        """The cases of skipped steps on all ranks."""
        of_rank = [case for cases, skip in zip(self.cases, skipped, strict=True) if skip for case in cases]
        return [case for cases in self.processes.all_gather(of_rank) for case in cases]

    def _time(self, step: int) -> dict[str, float]:
        seconds, timed = time.perf_counter() - self.line_start, self.cases[self.restored :]
        return {
            "images_per_second": self.processes.world_size * sum(map(len, timed)) / seconds,
            "waiting_for_data": self.total_wait / seconds,
            "seconds_left": (self.steps - step) * seconds / len(timed),
            "memory_peak_mb": memory_peak(self.device) / 1e6,
        }


def _means(rows: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, float | None]:
    return {name: sum(row[name] for row in rows) / len(rows) if rows else None for name in names}


def reset_memory_peak(device: torch.device) -> None:
    """Reset the peak that `memory_peak` returns, so that it excludes earlier work of the process.

    This is supported for CUDA devices, and for the process itself on Linux.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # the file exists on Linux only, and some containers do not allow writing it
        Path("/proc/self/clear_refs").write_text("5")


def memory_peak(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a CUDA device, or of this process for any other device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
