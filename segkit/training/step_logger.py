"""What a run says of itself while it goes on: log lines, and a bar with the time left."""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from segkit.utils.distributed import SINGLE_PROCESS, Processes

WHOLE = ("loss", "gradient_norm")  # the scalars of a step that are no term
BROKEN = "broken"


class Meter:
    """Collects the scalars of `every` steps on the device and reads them back at once.

    steps: of the whole run, for the time left. processes: of which this is one; their images are counted together, and
    all have to ask for a line at the same steps. `longest`: the most steps in a row, since the last one that was
    finite, whose loss or gradient was not.
    """

    def __init__(self, every: int, steps: int, device: torch.device, processes: Processes = SINGLE_PROCESS):
        self.every, self.steps, self.device, self.processes = every, steps, device, processes
        self.scalars: list[dict[str, Tensor]] = []
        self.cases: list[list[str]] = []
        self.restored = 0  # how many of them are from before a resume, of another time
        self.waiting = self.waiting_now = 0.0
        self.in_a_row = self.longest = 0

    def start(self) -> None:
        restart_memory_peak(self.device)
        self.began = self.mark = time.perf_counter()

    def data_arrived(self) -> None:
        self.waiting_now = time.perf_counter() - self.mark
        self.waiting += self.waiting_now

    def step_done(self) -> None:
        self.mark = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no part of a step: a validation, a checkpoint."""
        started = time.perf_counter()
        yield
        self.began += time.perf_counter() - started

    def record(
        self, scalars: dict[str, Tensor], cases: list[str], position: dict[str, Any], *, due: bool
    ) -> dict[str, Any] | None:
        """A log line every `every` steps, and where it is due: means over the steps since the last one.

        scalars: `loss`, `gradient_norm`, `broken`, and the terms. cases: of the step. position: step, epoch and
        learning rates. Steps that were broken are in no mean; `skipped` says how many and which cases they had.
        """
        if self.scalars and self.scalars[-1].keys() != scalars.keys():  # of another loss, before a resume
            self.scalars, self.cases, self.restored = [], [], 0
        self.scalars.append(scalars)
        self.cases.append(cases)
        if position["step"] % self.every and not due:
            return None
        table = torch.stack([torch.stack([one[name].float() for name in scalars]) for one in self.scalars]).tolist()
        rows = [dict(zip(scalars, row, strict=True)) for row in table]
        skipped = self._skipped([row.pop(BROKEN, 0.0) > 0 for row in rows])
        means = _means([row for row, broken in zip(rows, skipped, strict=True) if not broken], list(rows[0]))
        whole = {name: means.pop(name) for name in WHOLE if name in means}
        line = {"kind": "step", **position, **whole, "terms": means, "time": self._time(position["step"])}
        if any(skipped):
            named = [case for cases, broken in zip(self.cases, skipped, strict=True) if broken for case in cases]
            of_all = [case for cases in self.processes.all_gather(named) for case in cases]
            line["skipped"] = {"steps": sum(skipped), "cases": of_all}
        self.scalars, self.cases, self.restored, self.waiting = [], [], 0, 0.0
        self.began = time.perf_counter()
        return line

    def state(self) -> dict[str, Any]:
        """What was collected since the last line of the log, for a run that goes on to write the same next line."""
        return {
            "scalars": [{name: value.float().cpu() for name, value in one.items()} for one in self.scalars],
            "cases": self.cases,
            "in_a_row": self.in_a_row,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.scalars = [{name: value.to(self.device) for name, value in one.items()} for one in state["scalars"]]
        self.cases, self.in_a_row = state["cases"], state["in_a_row"]
        self.restored = len(self.cases)

    def _skipped(self, broken: list[bool]) -> list[bool]:
        """The same, once the rows of broken steps are counted."""
        self.longest = 0
        for one in broken:
            self.in_a_row = self.in_a_row + 1 if one else 0
            self.longest = max(self.longest, self.in_a_row)
        return broken

    def _time(self, step: int) -> dict[str, float]:
        seconds, timed = time.perf_counter() - self.began, self.cases[self.restored :]
        return {
            "images_per_second": self.processes.world_size * sum(map(len, timed)) / seconds,
            "waiting_for_data": self.waiting / seconds,
            "seconds_left": (self.steps - step) * seconds / len(timed),
            "memory_peak_mb": memory_peak(self.device) / 1e6,
        }


def _means(rows: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, float | None]:
    return {name: sum(row[name] for row in rows) / len(rows) if rows else None for name in names}


def restart_memory_peak(device: torch.device) -> None:
    """Have the peak be that of what follows, and not of what the process did before; on Linux and CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # other systems have no such file, and some containers may not write it
        Path("/proc/self/clear_refs").write_text("5")


def memory_peak(device: torch.device) -> int:
    """Bytes: of tensors on a CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def progress_bar(console: Console) -> Progress:
    """Steps done, time taken, time left and a note; nothing where the output is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
