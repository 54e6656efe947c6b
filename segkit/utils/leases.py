"""Leases on units, so that several processes, on one machine or on several that share a folder, can work together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_SECONDS = 30.0  # without a heartbeat, after which another machine may take the unit


class Leases:
    """Leases on folders.

    A lease of a process that died on this machine ends at once. A lease of a process on another machine ends after
    `LEASE_SECONDS` without a heartbeat, by the clock of this machine.
    """

    def __init__(self) -> None:
        self.leases: dict[Path, SoftFileLease] = {}  # kept, because each remembers when it last saw a heartbeat

    @contextmanager
    def acquire(self, folder: Path) -> Iterator[bool]:
        """Try to hold the lease on a folder for the length of the block; yields whether this process holds it.

        Its parent folder is made, but not those above it: a deleted output folder is not made anew.
        """
        folder.parent.mkdir(exist_ok=True)
        lease = self.leases.get(folder)
        if lease is None:
            file = folder.with_name(f"{folder.name}.lease")
            lease = SoftFileLease(file, lease_duration=LEASE_SECONDS, timeout=0, on_compromise=_stop)
            self.leases[folder] = lease
        try:
            lease.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lease.release()


def _stop(_lost: object) -> None:
    """Finish the current step and stop, because another process considered this one dead and took the unit."""
    os.kill(os.getpid(), signal.SIGTERM)
