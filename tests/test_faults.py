"""Each kind of fault a few times; tools/inject_faults.py tries them in large numbers, see docs/reliability.md."""

import pytest

from support.faults import all_faults
from support.faults.folders import can_mount

TRIES = {"kills": 2, "folders": 1, "own_files": 2, "prediction": 3}  # of kinds that start processes; of others:
OTHERS = 8
# of the kinds that take seconds for each try, those that are part of every run of the tests
QUICK = (
    "kills: predict, before a file operation",
    "folders: predict, full disk",
    "folders: train, finished run in a read-only folder",
)


def kinds():
    for name in all_faults():
        is_slow = name.split(":")[0] in ("kills", "folders", "own_files") and name not in QUICK
        yield pytest.param(name, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("name", list(kinds()))
def test_faults_are_survived(tmp_path, name):
    if name.startswith("folders: ") and not can_mount():
        pytest.skip("file systems of a few bytes can be mounted by root only")
    folder = tmp_path / "work"
    folder.mkdir()
    results = list(all_faults()[name](folder, TRIES.get(name.split(":")[0], OTHERS), 7))
    assert results
    assert [result for result in results if result is not None] == []
