"""What a run says of itself while it goes on: log lines, and a bar with the time left."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor


class Meter:
    """Collects the scalars of `every` steps on the device and reads them back at once."""

    def __init__(self, every: int):
        self.every = every
        self.scalars: list[dict[str, Tensor]] = []
        self.images = 0
        self.waiting = 0.0

    def start(self) -> None:
        self.began = self.mark = time.perf_counter()

    def data_arrived(self) -> None:
        self.waiting += time.perf_counter() - self.mark

    def step_done(self) -> None:
        self.mark = time.perf_counter()

    def record(
        self, scalars: dict[str, Tensor], images: int, position: dict[str, Any], *, due: bool
    ) -> dict[str, Any] | None:
        """A log line every `every` steps, and where it is due: means over the steps since the last one.

        scalars: `loss`, `gradient_norm` if there is one, and the terms. position: step, epoch and learning rates.
        """
        self.scalars.append(scalars)
        self.images += images
        if position["step"] % self.every and not due:
            return None
        means = torch.stack([torch.stack([one[name].float() for name in scalars]) for one in self.scalars]).mean(0)
        values = dict(zip(scalars, means.tolist(), strict=True))
        seconds = time.perf_counter() - self.began
        whole = {name: values.pop(name) for name in ("loss", "gradient_norm") if name in values}
        speed = {"images_per_second": self.images / seconds, "waiting_for_data": self.waiting / seconds}
        self.scalars, self.images, self.waiting = [], 0, 0.0
        self.began = time.perf_counter()
        return {"kind": "step", **position, **whole, "terms": values, "time": speed}


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
