"""Writing files atomically, and temporary files that a killed process does not leave behind for ever."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_NAME = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-")
OLD = 3 * 24 * 3600.0  # seconds, after which a temporary file is a leftover whoever made it
_counter = itertools.count()


def _host() -> str:
    """A digest of what numbers the processes: the machine and, in a container, its own numbering."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        numbering = ""
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]


def _prefix() -> str:
    return f".tmp-{_host()}-{os.getpid()}-"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path, and moves that file to `path` at the end of the block.

    The temporary file lies in the same folder and has the suffixes of `path`, by which writers choose a format. If the
    block fails, the temporary file is removed and the old file at `path` stays as it was; if the process is killed, the
    old file stays too, and `remove_leftovers` removes the temporary one.
    """
    temporary = path.with_name(f"{_prefix()}{next(_counter)}{''.join(path.suffixes[-2:])}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # which the user knows; a full disk names no file at all
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
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder for the length of the block.

    parent: where it is made. None: the temporary directory of the system, from which folders of processes that were
        killed are removed first; elsewhere the caller does that, see `remove_leftovers`.
    """
    if parent is None:
        parent = Path(tempfile.gettempdir())
        remove_leftovers(parent)
        folder = Path(tempfile.mkdtemp(prefix=_prefix(), dir=parent))
    else:
        folder = parent / f"{_prefix()}{next(_counter)}"
        folder.mkdir()  # unlike mkdtemp with the permissions that the user gives to new files
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def reserve(file: int, size: int) -> None:
    """Give an empty file its size, and take its room on the disk where the system can: of a mapped file, a page for
    which there is no room would end the process later. file: its descriptor. Raises OSError if there is no room."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # file systems that cannot do it
                raise
    os.truncate(file, size)


def remove_leftovers(folder: Path, *, locked: bool = False) -> None:
    """Remove temporary files and folders that processes of this machine left in a folder when they were killed.

    Those of other machines and containers are removed after some days, or at once if the folder is locked.

    locked: whether no other process writes to the folder.
    """
    for path in folder.glob(".tmp-*"):
        match = _NAME.match(path.name)
        if match is not None and (locked or _is_dead(match) or _is_old(path)):
            with suppress(OSError):  # another process may be removing it too, or own it
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _is_dead(name: re.Match[str]) -> bool:
    return name["host"] == _host() and not psutil.pid_exists(int(name["process"]))


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > OLD
    except OSError:
        return False
