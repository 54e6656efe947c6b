"""Part: time and peak memory of losses beside those of other libraries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from loss_peers import LIBRARIES, Call, Row, calls_of, losses_of, random_batch, rows, sides_of
from meters import Meter, meter_of

from device_checks.checks import Check, Measured, Setup, described, free_memory
from segkit.utils.errors import is_out_of_memory

SHAPES = ("8x19x1024x1024", "2x4x160x160x160", "1x117x128x128x128")
SHORT_SHAPES = ("2x3x12x16", "1x4x6x8x8")
SHORT_LIBRARIES = ("segkit", "torch", "kornia")  # those that are imported quickly
REPEATS, SECONDS = 9, 0.4  # of a call; at least one repeat
COLUMNS = (*LIBRARIES, "of the fastest", "of the smallest")
NOTE = """\
A call computes a loss and its gradient with respect to float32 logits. Cells: median milliseconds by the events of the
device after a warm-up, and peak memory of torch's allocator in sizes of the logits, the gradient (1) included. The last
columns: time of segkit over that of the fastest other library, and memory over the smallest other. The losses of a row
are of the same kind, but not always of the same value: each library has its own defaults. A library that is not
installed has empty cells.\
"""


def checks(setup: Setup) -> Iterator[Check]:
    """A row per shape and loss."""
    meter = meter_of(setup.torch_device)
    for shape in SHORT_SHAPES if setup.short else SHAPES:
        dims = len(sides_of(shape)) - 2
        libraries = installed(SHORT_LIBRARIES if setup.short else LIBRARIES, dims)
        for name, row in rows(dims, libraries).items():
            if not setup.short or row.peers:
                yield Check(f"{shape}, {name}", partial(_measure, setup, meter, shape, row))


def installed(libraries: Sequence[str], dims: int) -> list[str]:
    """Those that can be imported. The columns of others stay empty."""
    found = []
    for library in libraries:
        with suppress(ImportError):
            losses_of(library, dims)
            found.append(library)
    return found


def _measure(setup: Setup, meter: Meter, shape: str, row: Row) -> Measured:
    """Time and memory of each library. One whose loss fails or does not fit leaves its cell without numbers."""
    logits, mask = random_batch(shape, setup.torch_device)
    size = logits.numel() * logits.element_size()
    cells: dict[str, str] = {}
    numbers: dict[str, tuple[float, float]] = {}
    calls = calls_of(row, logits, mask)
    for library, call in calls.items():
        try:
            numbers[library] = _numbers(setup, meter, call, size)
            cells[library] = "{:.2f} ms, {:.1f}x".format(*numbers[library])
        except Exception as error:
            if library == "segkit":
                raise
            cells[library] = "does not fit" if is_out_of_memory(error) else f"fails: {described(error)[:60]}"
        free_memory()
    others = [numbers[library] for library in numbers if library != "segkit"] or [(math.nan, math.nan)]
    ratios = [numbers["segkit"][which] / min(other[which] for other in others) for which in (0, 1)]
    shown = ["-" if math.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios]
    return Measured([*(cells.get(library, "-") for library in LIBRARIES), *shown])


def _numbers(setup: Setup, meter: Meter, call: Call, size: int) -> tuple[float, float]:
    """Milliseconds, and peak memory in sizes of the logits."""
    milliseconds = meter.milliseconds(call, 1 if setup.short else REPEATS, SECONDS)
    return milliseconds, meter.peak_bytes(call) / size
