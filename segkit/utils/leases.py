"""Leases, by which several processes, on one machine or on several that share a folder, divide work among them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_SECONDS = 30.0  # without a heartbeat, after which another machine may take the work
EMPTY_SECONDS = 5.0  # for which a lease file without an owner stays; its owner writes its name at once


class Leases:
    """Leases on folders.

    A lease of a process that died on this machine ends at once. A lease of a process on another machine ends after
    `LEASE_SECONDS` without a heartbeat, by the clock of this machine. A lease file without an owner, of a process that
    was killed while it made it, is removed after `EMPTY_SECONDS`.
    """

    def __init__(self, on_lost: Callable[[object], None] | None = None):
        """on_lost: called when another process has taken a lease that this one holds, because it considered this one
        dead; by default this process finishes its current step and stops."""
        self.leases: dict[Path, SoftFileLease] = {}  # kept, because each remembers when it last saw a heartbeat
        self.on_lost = on_lost or _stop
        self.empty: dict[Path, tuple[tuple[int, int], float]] = {}  # lease files, and since when they are seen

    @contextmanager
    def acquire(self, folder: Path) -> Iterator[bool]:
        """Try to hold the lease on a folder for the length of the block; yields whether this process holds it.

        Its parent folder is made, but not those above it: a deleted output folder is not made anew.
        """
        folder.parent.mkdir(exist_ok=True)
        lease = self.leases.get(folder)
        if lease is None:
            lease = SoftFileLease(
                lease_file(folder), lease_duration=LEASE_SECONDS, timeout=0, on_compromise=self.on_lost
            )
            self.leases[folder] = lease
        self._remove_abandoned(lease_file(folder))
        try:
            lease.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lease.release()

    def _remove_abandoned(self, file: Path) -> None:
        """Remove a lease file that has been empty and unchanged for a while."""
        try:
            found = file.stat()
        except OSError:
            return
        identity = found.st_ino, found.st_mtime_ns
        known, since = self.empty.setdefault(file, (identity, time.monotonic()))
        if found.st_size or known != identity:
            del self.empty[file]
        elif time.monotonic() - since >= EMPTY_SECONDS:
            _remove_if_same(file, identity)


def lease_file(folder: Path) -> Path:
    """The file that exists while a lease on a folder is held."""
    return folder.with_name(f"{folder.name}.lease")


def _remove_if_same(file: Path, identity: tuple[int, int]) -> None:
    """Remove a file, unless another process has meanwhile removed it and made its own."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.abandoned")
    with suppress(OSError):
        file.rename(aside)
        found = aside.stat()
        if (found.st_ino, found.st_mtime_ns) != identity:
            aside.rename(file)
        aside.unlink(missing_ok=True)


def _stop(_lost: object) -> None:
    """Finish the current step and stop."""
    os.kill(os.getpid(), signal.SIGTERM)
