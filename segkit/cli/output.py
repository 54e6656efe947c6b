"""Where a command prints, and where its results go as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

STANDARD_OUTPUT = "-"
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors, on standard error.")
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="JSON file for the results; - prints them, and all else goes to standard error."),
]


@dataclass
class Output:
    """Where a command prints. results: what it has found, as plain data."""

    console: Console
    results: Any = None


@contextmanager
def command_output(quiet: bool, written: Path | None) -> Iterator[Output]:
    """Provide the console of a command, and write its results when it ends.

    An error can have an attribute `results` with what was found nevertheless, which is written too.

    quiet: whether only warnings are shown. written: JSON file for the results, or `-`.
    """
    from rich.console import Console

    from segkit.utils.console import QuietConsole

    prints = str(written) == STANDARD_OUTPUT
    if written is not None and not prints:
        _check(written)
    out = Output(QuietConsole() if quiet else Console(stderr=prints))
    try:
        yield out
    except Exception as error:
        out.results = getattr(error, "results", None)
        raise
    finally:
        is_first = os.environ.get("RANK", "0") == "0"  # of the processes of a distributed training
        if written is not None and out.results is not None and is_first:
            _write(out.results, written)


def _check(written: Path) -> None:
    """Raise RunError before the work if the file cannot be written."""
    from segkit.utils.errors import RunError

    try:
        written.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"--json {written}: its folder cannot be made ({error.strerror}); choose another file"
        ) from error
    if written.is_dir():
        raise RunError(f"--json {written}: expected a file, got a folder; add a name to it")


def _write(results: Any, written: Path) -> None:
    from segkit.utils.files import replace_text

    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    if str(written) == STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        replace_text(written, text)
