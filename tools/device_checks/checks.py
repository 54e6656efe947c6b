"""What a part of the device check consists of, and how its checks are run one after the other."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from segkit.utils.errors import is_out_of_memory

OK, SKIPPED, UNMEASURED, FAILED = "ok", "skipped", "not measured", "failed"
LONGEST = 300  # characters of a message


@dataclass(frozen=True)
class Setup:
    """How the checks are run.

    device: cuda or cpu.
    short: Whether sizes are tiny, so that all parts together take seconds on a CPU.
    start: The method by which processes are started: spawn or forkserver.
    """

    device: str
    short: bool = False
    start: str = "spawn"

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"


@dataclass(frozen=True)
class Measured:
    """The cells of a row, and what is wrong with them, if anything."""

    cells: Sequence[str] = ()
    problem: str | None = None


class Skip(Exception):
    """A check does not apply here. The message says why."""


@dataclass(frozen=True)
class Check:
    """A row of a table.

    seconds: The time that it may need. It is not measured if less is left.
    """

    name: str
    run: Callable[[], Measured]
    seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """A table.

    headings: Of the first column and of the cells that a check measures. A column with the outcome follows.
    checks: The rows. A generator may do work that its rows share.
    seconds: The time of the part, in addition to what earlier parts have left of theirs.
    """

    name: str
    title: str
    headings: Sequence[str]
    checks: Callable[[Setup], Iterator[Check]]
    seconds: float
    note: str = ""

    def row(self, name: str, outcome: str, cells: Sequence[str] = ()) -> list[str]:
        """The cells of a row; those that are missing are empty."""
        missing = len(self.headings) - 1 - len(cells)
        return [name, *cells, *["-"] * missing, outcome]


Emit = Callable[[str, list[str]], None]  # called with OK, SKIPPED, UNMEASURED or FAILED, and the cells of a row


def run_checks(part: Part, setup: Setup, deadline: float, emit: Emit, started: Callable[[str], None]) -> None:
    """Run the checks of a part one after the other. One that fails does not end the others.

    deadline: The time by `time.monotonic` after which checks are not measured.
    started: Called with the name of each check before it runs.
    """
    checks = part.checks(setup)
    while True:
        name = "preparation"
        started(name)
        try:
            check = next(checks, None)
            if check is None:
                return
            name = check.name
            started(name)
            emit(*_outcome(part, check, deadline))
        except Exception as error:  # of the generator, which cannot go on
            emit(FAILED, part.row(name, f"{FAILED}: {described(error)}"))
            return


def _outcome(part: Part, check: Check, deadline: float) -> tuple[str, list[str]]:
    """Run a check. Sizes that do not fit into the memory are skipped."""
    if time.monotonic() + check.seconds > deadline:
        return UNMEASURED, part.row(check.name, f"{UNMEASURED}: no time left")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = check.run()
    except Skip as reason:
        return SKIPPED, part.row(check.name, f"{SKIPPED}: {reason}")
    except Exception as error:
        if is_out_of_memory(error):
            return SKIPPED, part.row(check.name, f"{SKIPPED}: does not fit into the memory")
        return FAILED, part.row(check.name, f"{FAILED}: {described(error)}")
    finally:
        free_memory()
    if measured.problem is not None:
        return FAILED, part.row(check.name, f"{FAILED}: {measured.problem}", measured.cells)
    return OK, part.row(check.name, OK, measured.cells)


def described(error: BaseException) -> str:
    """The type of an error and the start of its message, in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:LONGEST]}" if message else type(error).__name__


def free_memory() -> None:
    """Free the device's memory that the last check has left, also after an error, whose traceback held its tensors."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
