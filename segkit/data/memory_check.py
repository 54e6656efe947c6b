"""Estimating, before cases are cached in memory, whether they fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import torch

from segkit.data.cases import Case, RawCase, spread

SAMPLED = 5  # number of cases read for the estimate
USED = 0.9  # largest fraction of the free memory to use
CONTROL_GROUP = Path("/sys/fs/cgroup")  # where Linux exposes the memory limit of a container


class MemoryLimitError(MemoryError):
    """The cases need more memory than is available."""

    exit_code = 4


class Reader(Protocol):
    """A source, or a cache of a source."""

    def read(self, case: Case) -> RawCase: ...


def estimate(
    source: Reader, cases: Sequence[Case], number: int, spacing: Sequence[float] | None, copies: int
) -> tuple[int, int]:
    """Estimate the memory that cases need. Returns (bytes needed, bytes available).

    cases: a few of them are read to measure their size.
    number: how many cases are kept in memory.
    spacing: the spacing to which cases are resampled, None if they are not resampled or the spacing is unknown.
    copies: how often all cases are kept on this machine, see `copies_of_cases`.

    Raises MemoryLimitError if the cases do not fit.
    """
    sizes = []
    for case in spread(cases, SAMPLED):
        raw = source.read(case)
        growth = 1.0 if spacing is None else math.prod(np.divide(raw.spacing, spacing))
        sizes.append(growth * (raw.image.nbytes + (0 if raw.mask is None else raw.mask.nbytes)))
    needed, free = int(np.mean(sizes) * number * copies), available()
    if needed > USED * free:
        times = f" in {copies} copies, one for each process that reads them" if copies > 1 else ""
        raise MemoryLimitError(
            f"the {number} cases need about {in_gb(needed)} of memory{times}, but only {in_gb(free)} are "
            "available; write `cache: disk` under `loader`, which reads only the required regions, or `cache: none`"
        )
    return needed, free


def copies_of_cases(workers: int, processes: int = 1) -> int:
    """How many copies of the cached cases exist at the same time on this machine.

    workers: loader workers of each training process. processes: training processes on this machine.

    Workers that are forked share the cases of their process. Workers that are started by spawn or forkserver, as on
    macOS and Windows, get copies, one of which is in transit while they start.
    """
    is_shared = not workers or torch.multiprocessing.get_start_method() == "fork"
    return processes * (1 if is_shared else 2 + workers)


def available() -> int:
    """Bytes that this process can still allocate within the limits of the system and of its container."""
    free = psutil.virtual_memory().available
    limit, used = (_control_group(name) for name in ("max", "current"))
    if limit in ("", "max") or not used:
        return free
    # recently read files, which the system drops from memory when it is needed
    cached = dict(line.split() for line in _control_group("stat").splitlines()).get("inactive_file", "0")
    return min(free, max(0, int(limit) - int(used) + int(cached)))


def _control_group(name: str) -> str:
    """A memory value of the container's control group; an empty string if there is none."""
    try:
        return (CONTROL_GROUP / f"memory.{name}").read_text().strip()
    except OSError:
        return ""


def in_gb(size: int) -> str:
    """A number of bytes as text in gigabytes, with two significant digits."""
    return f"{size / 1e9:.2g} GB"
