"""Whether the cases fit into memory, before they are read into it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil

from segkit.data.cases import Case, RawCase, spread

SAMPLED = 5  # cases that are read for the estimate
USED = 0.9  # of the free memory, at most
CONTROL_GROUP = Path("/sys/fs/cgroup")  # where Linux says what a container may take


class DoesNotFit(MemoryError):
    """The cases need more memory than there is."""

    exit_code = 4


class Reader(Protocol):
    """A source, or what keeps what it has read."""

    def read(self, case: Case) -> RawCase: ...


def estimate(
    source: Reader, cases: Sequence[Case], number: int, spacing: Sequence[float] | None, copies: int
) -> tuple[int, int]:
    """(bytes that `number` cases need in memory, bytes that are free), by the pixels of a few of them.

    cases: those of which some are read. spacing: that they are resampled to, if it is known. copies: processes on this
    machine that each keep all. Raises DoesNotFit where they do not fit.
    """
    sizes = []
    for case in spread(cases, SAMPLED):
        raw = source.read(case)
        finer = 1.0 if spacing is None else math.prod(np.divide(raw.spacing, spacing))
        sizes.append(finer * (raw.image.nbytes + (0 if raw.mask is None else raw.mask.nbytes)))
    needed, free = int(np.mean(sizes) * number * copies), available()
    if needed > USED * free:
        raise DoesNotFit(
            f"the {number} cases need about {in_gb(needed)} in memory, of which {in_gb(free)} are free; write "
            "`cache: disk` under `loader`, from which only the pieces that are needed are read, or `cache: none`"
        )
    return needed, free


def available() -> int:
    """Bytes that this process can still get, by the system and by the container that it runs in."""
    free = psutil.virtual_memory().available
    limit, taken = (_control_group(name) for name in ("max", "current"))
    if limit in ("", "max") or not taken:
        return free
    # files that were read lately, which the system gives up as soon as the memory is wanted
    cached = dict(line.split() for line in _control_group("stat").splitlines()).get("inactive_file", "0")
    return min(free, max(0, int(limit) - int(taken) + int(cached)))


def _control_group(name: str) -> str:
    """What Linux says of the container's memory; an empty text elsewhere."""
    try:
        return (CONTROL_GROUP / f"memory.{name}").read_text().strip()
    except OSError:
        return ""


def in_gb(size: int) -> str:
    return f"{size / 1e9:.2g} GB"
