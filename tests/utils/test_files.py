"""Atomic writing: the old or the new file is there whole, and killed processes leave nothing behind for ever."""

import errno
import itertools
import os
import subprocess
import sys
import time

import pytest

from segkit.utils import files
from segkit.utils.files import remove_leftovers, replace_text, replaced, temporary_folder


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "scores.json"
    replace_text(file, "old")
    with pytest.raises(OSError, match="full"), replaced(file) as temporary:  # noqa: PT012
        temporary.write_text("half of the new")
        raise OSError("the disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert file.read_text() == "old"


def test_temporary_files_keep_the_suffixes_by_which_writers_choose_a_format(tmp_path):
    with replaced(tmp_path / "case.1.nii.gz") as temporary:
        temporary.write_text("")
        assert temporary.suffixes[-2:] == [".nii", ".gz"]
        assert temporary.parent == tmp_path
    with replaced(tmp_path / ("x" * 250 + ".png")) as temporary:  # file systems allow names of 255 bytes
        temporary.write_text("")


def test_a_leftover_of_the_same_process_number_is_no_obstacle(tmp_path, monkeypatch):
    """In a container, the process that is started again often has the number of the one that was killed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for number in range(3):
        (tmp_path / f"{files._prefix()}{number}").mkdir()
    monkeypatch.setattr(files, "_counter", itertools.count())
    with temporary_folder() as folder, replaced(tmp_path / "scores.json") as temporary:
        assert folder.is_dir()
        temporary.write_text("")


def test_old_leftovers_of_other_machines_are_removed(tmp_path):
    for name, age in (("old", 4 * 24 * 3600), ("new", 60)):
        file = tmp_path / f".tmp-00000000-1-{name}.png"
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".tmp-00000000-1-new.png"]


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"scores\.json"), replaced(tmp_path / "scores.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


KILLED = """
import os, sys
from pathlib import Path
from segkit.utils.files import replaced, temporary_folder
with temporary_folder() as folder, replaced(Path(sys.argv[1]) / "mask.png") as temporary:
    (folder / "0.npy").write_text("a mask")
    temporary.write_text("half")
    os._exit(9)
"""


def test_files_of_killed_processes_are_removed_at_the_next_start_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    (tmp_path / ".tmp-notes").write_text("of another program")
    with replaced(tmp_path / "other.png") as alive:
        alive.write_text("")
        assert len(list(tmp_path.glob(".tmp-*"))) == 4
        with temporary_folder() as folder:
            left = sorted(path.name for path in tmp_path.glob(".tmp-*"))
            assert left == sorted([".tmp-notes", alive.name, folder.name])
    remove_leftovers(tmp_path, locked=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-notes", "other.png"]
