"""Writing files atomically, and temporary files that a killed process does not leave behind for ever."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_NAME = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-\d+")
_counter = itertools.count()


def _temporary_name() -> str:
    return f".tmp-{_HOST}-{os.getpid()}-{next(_counter)}"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path, and moves that file to `path` at the end of the block.

    The temporary file lies in the same folder and has the suffixes of `path`, by which writers choose a format. If the
    block fails, the temporary file is removed and the old file at `path` stays as it was; if the process is killed, the
    old file stays too, and `remove_leftovers` removes the temporary one.
    """
    temporary = path.with_name(_temporary_name() + "".join(path.suffixes[-2:]))
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically, see `replaced`."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a binary file atomically, see `replaced`."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def read_json(file: Path, kind: type, default: Any) -> Any:
    """The contents of a JSON file of a type; the default if it does not exist, is damaged or has another type."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return default
    return content if isinstance(content, kind) else default


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the length of the block, in the temporary directory of the system.

    Folders of processes that were killed are removed first.
    """
    system = Path(tempfile.gettempdir())
    remove_leftovers(system)
    folder = system / _temporary_name()
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, *, locked: bool = False) -> None:
    """Remove temporary files and folders that processes of this machine left in a folder when they were killed.

    locked: whether no other process writes to the folder, so that those of other machines are removed too.
    """
    for path in folder.glob(".tmp-*"):
        match = _NAME.match(path.name)
        if match is not None and (locked or _is_dead(match)):
            with suppress(OSError):  # another process may be removing it too, or own it
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _is_dead(name: re.Match[str]) -> bool:
    return name["host"] == _HOST and not psutil.pid_exists(int(name["process"]))
