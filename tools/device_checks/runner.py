"""Run parts in processes of their own, within their time, and write their tables row by row."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from device_checks.checks import FAILED, OK, SKIPPED, UNMEASURED, Emit, Part, Setup, run_checks

GRACE = 10.0  # seconds after its time in which a part may end by itself


class Output:
    """Writes Markdown to several streams line by line, so that a run that is killed leaves its finished rows."""

    def __init__(self, streams: Sequence[TextIO]):
        self.streams = streams

    def line(self, text: str = "") -> None:
        for stream in self.streams:
            print(text, file=stream, flush=True)

    def row(self, cells: Sequence[str]) -> None:
        self.line("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")

    def head(self, part: Part) -> None:
        self.line(f"## {part.title}\n")
        if part.note:
            self.line(f"{part.note}\n")
        self.row([*part.headings, "result"])
        self.row([":--", *["--:"] * (len(part.headings) - 1), ":--"])


def run_parts(parts: Sequence[Part], setup: Setup, output: Output) -> Counter[str]:
    """Run the parts one after the other, write their tables, and count the outcomes of their checks.

    Each part may use its own time and what the parts before it have left, so that all together end within the sum of
    their times and GRACE.
    """
    outcomes: Counter[str] = Counter()
    start = deadline = time.monotonic()

    def emit(outcome: str, cells: list[str]) -> None:
        outcomes[outcome] += 1
        output.row(cells)

    for part in parts:
        deadline += part.seconds
        began = time.monotonic()
        output.head(part)
        run_isolated(part, setup, deadline, emit)
        output.line(f"\n{time.monotonic() - began:.0f} s\n")
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in (OK, SKIPPED, UNMEASURED, FAILED))
    output.line(f"**{outcomes.total()} checks in {time.monotonic() - start:.0f} s: {counts}**")
    return outcomes


def run_isolated(part: Part, setup: Setup, deadline: float, emit: Emit) -> None:
    """Run a part in a process of its own, which is killed with all that it started if it exceeds its time and GRACE.

    A crash of the process, such as that after an illegal access to memory of the device, fails the check that was
    running.
    """
    context: Any = multiprocessing.get_context(setup.start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part, setup, deadline, sender))
    process.start()
    sender.close()
    current = "start of the process"
    while True:
        if not receiver.poll(max(0.0, deadline + GRACE - time.monotonic())):
            emit(FAILED, part.row(current, f"{FAILED}: stopped, since the time of this part was over"))
            _kill(process)
            return
        try:
            kind, content = receiver.recv()
        except EOFError:
            break
        if kind == "started":
            current = content
        else:
            emit(kind, content)
    process.join()
    if process.exitcode != 0:
        emit(FAILED, part.row(current, f"{FAILED}: {_ended(process.exitcode)}"))


def _kill(process: Any) -> None:
    """Kill a process, and with it the group that it leads, if it has made one already."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _ended(exit_code: int) -> str:
    if exit_code < 0:
        return f"the process was ended by {signal.Signals(-exit_code).name}"
    return f"the process ended with exit code {exit_code}"


def _work(part: Part, setup: Setup, deadline: float, sender: Connection) -> None:
    """The process of a part: the leader of a group, to which the processes that it spawns belong."""
    os.setpgid(0, 0)
    run_checks(
        part,
        setup,
        deadline,
        emit=lambda outcome, cells: sender.send((outcome, cells)),
        started=lambda name: sender.send(("started", name)),
    )


def opened(file: Path | None) -> TextIO | None:
    """The file for the tables, in a folder that is made."""
    if file is None:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("w", encoding="utf-8")
