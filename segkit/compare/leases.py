"""Who trains a unit: several processes, on one machine or several that see the same folder, take what no one is at."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_SECONDS = 30.0  # without a sign of life, after which a unit is taken from another machine


class Claims:
    """Leases on units. A dead process of this machine loses its own at once, one of another machine after
    LEASE_SECONDS in which it gave no sign of life, by this machine's clock."""

    def __init__(self) -> None:
        self.leases: dict[Path, SoftFileLease] = {}  # kept, since each remembers how long it has seen no sign

    @contextmanager
    def claimed(self, folder: Path) -> Iterator[bool]:
        """Whether the unit is ours for the length of the block."""
        folder.parent.mkdir(parents=True, exist_ok=True)
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
    """Another has taken the unit, since this process seemed dead: finish the step and stop."""
    os.kill(os.getpid(), signal.SIGTERM)
