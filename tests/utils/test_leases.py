"""Leases on work: one process at a time, and none that a killed process would keep for ever."""

import multiprocessing
import os
import signal

import pytest

from segkit.utils import leases
from segkit.utils.leases import Leases, lease_file


def test_work_is_held_by_one_at_a_time(tmp_path):
    first, second = Leases(), Leases()
    with first.acquire(tmp_path / "unit") as held:
        assert held
        with second.acquire(tmp_path / "unit") as also:
            assert not also
    with second.acquire(tmp_path / "unit") as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def _hold_until_killed(folder):
    with Leases().acquire(folder):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lease_ends_with_its_process(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_hold_until_killed, args=(tmp_path / "unit",))
    process.start()
    process.join()
    assert lease_file(tmp_path / "unit").exists()
    with Leases().acquire(tmp_path / "unit") as held:
        assert held


def test_a_lease_without_an_owner_ends_after_a_while(tmp_path, monkeypatch):
    """A process was killed after it had made the file and before it had written its name."""
    file = lease_file(tmp_path / "unit")
    file.touch()
    clock = [100.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: clock[0])
    found = Leases()
    for seconds, expected in ((0.0, False), (4.9, False), (5.1, True)):
        clock[0] = 100.0 + seconds
        with found.acquire(tmp_path / "unit") as held:
            assert held == expected


@pytest.mark.parametrize("change", ["touched", "written"])
def test_a_lease_that_is_being_made_is_left_alone(tmp_path, monkeypatch, change):
    file = lease_file(tmp_path / "unit")
    file.touch()
    clock = [100.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: clock[0])
    found = Leases()
    with found.acquire(tmp_path / "unit") as held:
        assert not held
    if change == "touched":
        os.utime(file, (1, 1))
    else:
        file.write_text("someone\n")
    clock[0] = 106.0
    with found.acquire(tmp_path / "unit") as held:
        assert not held
    assert file.exists()
