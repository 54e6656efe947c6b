"""The memory estimate before training, and the errors for workers that were killed."""

import os
import re
import signal

import pytest
import torch

from segkit import Labels
from segkit.data import SyntheticSource
from segkit.data.datasets import TrainingSet
from segkit.data.memory_check import MemoryLimitError, available, copies_of_cases, estimate

from support.command_line import TINY, tool

SOURCE = SyntheticSource(labels=Labels(["background", "a"]), size=[40, 30], train=12)
BYTES = 40 * 30 * (4 + 1)  # float32 and uint8


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def test_the_estimate_equals_the_size_of_the_arrays():
    needed, free = estimate(SOURCE, SOURCE.cases, 12, None, 1)
    assert needed == 12 * BYTES
    assert free > needed
    assert estimate(SOURCE, SOURCE.cases, 12, [0.5, 1.0], 3)[0] == 2 * 3 * 12 * BYTES
    assert sum(SOURCE.read(case).image.nbytes + SOURCE.read(case).mask.nbytes for case in SOURCE.cases[:12]) == needed


def test_cases_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("segkit.data.memory_check.available", lambda: 10 * BYTES)
    with pytest.raises(MemoryLimitError, match=r"12 cases .* GB .*`cache: disk`"):
        estimate(SOURCE, SOURCE.cases, 12, None, 1)
    assert estimate(SOURCE, SOURCE.cases, 9, None, 1)[0] == 9 * BYTES


def test_the_limit_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr("segkit.data.memory_check.CONTROL_GROUP", tmp_path)
    system = available()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert available() == pytest.approx(system, rel=0.2)
    (tmp_path / "memory.max").write_text("7000\n")
    assert available() == 2000
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 3000\nactive_file 500\n")
    assert available() == 5000  # cached files can be dropped from memory


def test_training_prints_the_estimate(folder, monkeypatch):
    monkeypatch.setattr("segkit.experiment.build_training.TOLD_MEMORY", 0)
    assert re.search(r"cases .*about .* memory", tool("train", "--config", "tiny.yaml", folder=folder))
    monkeypatch.setattr("segkit.data.memory_check.available", lambda: 100)
    printed = tool("train", "--config", "tiny.yaml", "run.dir=other", folder=folder, code=4)
    assert "`cache: disk`" in printed
    tool("train", "--config", "tiny.yaml", "run.dir=other", "loader.cache=none", folder=folder)


@pytest.mark.parametrize(
    ("number", "text"),
    [(signal.SIGKILL, "out of memory"), (signal.SIGBUS, "--shm-size"), (signal.SIGSEGV, "segkit data check")],
)
def test_killed_workers_are_explained(folder, monkeypatch, number, text):
    read = TrainingSet.__getitem__

    def deadly(self, key):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), number)
        return read(self, key)

    monkeypatch.setattr(TrainingSet, "__getitem__", deadly)
    printed = " ".join(tool("train", "--config", "tiny.yaml", "loader.workers=1", folder=folder, code=5).split())
    assert "died" in printed
    assert text in printed


def test_spawned_workers_get_copies_of_the_cases(monkeypatch):
    """Each worker holds one, the process holds one, and one is in transit."""
    assert copies_of_cases(3) == 1
    assert copies_of_cases(3, processes=2) == 2
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda: "spawn")
    assert copies_of_cases(0) == 1
    assert copies_of_cases(3) == 5
    assert copies_of_cases(3, processes=2) == 10
    monkeypatch.setattr("segkit.data.memory_check.available", lambda: 30 * BYTES)
    with pytest.raises(MemoryLimitError, match="in 5 copies"):
        estimate(SOURCE, SOURCE.cases, 12, None, copies_of_cases(3))
