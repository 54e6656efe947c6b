"""Comparisons that are killed, or whose files are damaged, end in the same report, or say what cannot be made again."""

import io
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from segkit.compare import executors
from segkit.compare.executors import LocalExecutor
from segkit.training.stopping import Interrupted

from support.command_line import TINY, tool

pytestmark = pytest.mark.usefixtures("without_figures")

LOSSES = ("--losses", "dice,cross_entropy,focal", "--seeds", "3")


def compare(folder, *arguments, code=0):
    return tool("compare", "--config", "tiny.yaml", "--out", "out", *LOSSES, *arguments, code=code, folder=folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished comparison of nine units."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY.replace("steps: 8", "steps: 2") + "evaluation: {overlays: false}\n")
    compare(folder)
    return folder


def result_of(folder):
    """The result, without the times in the plan."""
    result = json.loads((folder / "out" / "comparison.json").read_text())
    del result["plan"]
    return result


def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def without_one_case(content):
    lines = content.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(lines[1].split(b",")[0]))


DAMAGES = {
    "scores.json, empty": ("evaluation/*/scores.json", lambda _: b""),
    "scores.json, another type": ("evaluation/*/scores.json", lambda _: b"[]"),
    "scores.json, no fields": ("evaluation/*/scores.json", lambda _: b"{}"),
    "scores.json, no text": ("evaluation/*/scores.json", lambda _: b"\xff\xfe\x00"),
    "cases.csv, empty": ("evaluation/*/cases.csv", lambda _: b""),
    "cases.csv, cut": ("evaluation/*/cases.csv", lambda content: content[: len(content) // 2]),
    "cases.csv, without one case": ("evaluation/*/cases.csv", without_one_case),
    "cases.csv, other columns": ("evaluation/*/cases.csv", lambda _: b"a,b\n1,2\n"),
    "last.pt, cut": ("checkpoints/last.pt", lambda content: content[: len(content) // 2]),
}


def units_of(folder):
    return sorted((folder / "out" / "units").glob("*-seed*"))


def damage_units(folder):
    """Damage each unit in another way. Returns the changed files."""
    files = []
    for unit, (name, change) in zip(units_of(folder), DAMAGES.values(), strict=False):
        files.append(next(unit.glob(name)))
        files[-1].write_bytes(change(files[-1].read_bytes()))
    return files


def test_damaged_units_are_named_and_made_again(finished, tmp_path):
    folder = copied(finished, tmp_path)
    assert len(units_of(folder)) == len(DAMAGES)
    files = damage_units(folder)
    printed = " ".join(compare(folder).split())
    assert printed.count("it is made again") == len(files)
    assert [file.name for file in files if f"{file.parent}/{file.name}" not in printed.replace(" ", "")] == []
    assert result_of(folder) == result_of(finished)


def test_damage_of_what_is_not_needed_changes_nothing(finished, tmp_path):
    """In the same start, leftovers of killed processes are removed."""
    folder = copied(finished, tmp_path)
    dead = next(_names_of_a_dead_process())
    names = ("failed.json", "attempts.json", "split.json", "config.yaml", "environment.json")
    for unit, content in zip(units_of(folder), (b"", b"[", b"\xff", b"[]", b"{}") * 2, strict=False):
        for name in names:
            (unit / name).write_bytes(content)
        for place in (folder / "out", unit, unit / "evaluation" / "test"):
            (place / dead).write_text("half a file")
    printed = compare(folder)
    assert "made again" not in printed
    assert result_of(folder) == result_of(finished)
    assert not list(folder.rglob(".tmp-*"))


def test_a_damaged_plan_is_an_error_that_names_the_file(finished, tmp_path):
    folder = copied(finished, tmp_path)
    for content in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        (folder / "out" / "plan.json").write_bytes(content)
        printed = " ".join(compare(folder, code=2).split())
        assert "plan.json is damaged" in printed
    for name in ("plan.json", "comparison.json", "report.html", "cases.csv"):
        (folder / "out" / name).unlink()
    compare(folder, "--parallel", "2")  # with nothing left to train
    result = json.loads((folder / "out" / "comparison.json").read_text())
    assert any("written after 9 units had finished" in warning for warning in result["warnings"])


def _names_of_a_dead_process():
    from segkit.utils.files import _prefix

    own, dead = str(os.getpid()), os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    yield _prefix().replace(own, str(dead)) + "0.json"


@dataclass(frozen=True)
class Unit:
    """The attributes of a unit that an executor uses."""

    folder: Path


def stops_its_process(unit, _leases, _since, _console):
    unit.folder.mkdir(parents=True, exist_ok=True)
    (unit.folder / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGSTOP)
    return True


def waits(unit, _leases, _since, _console):
    unit.folder.mkdir(parents=True, exist_ok=True)
    (unit.folder / str(os.getpid())).touch()
    time.sleep(120)
    return True


def pids(folder):
    """The two processes that train units in a folder, once both have started."""
    deadline = time.monotonic() + 60
    while len(files := list(folder.glob("out/units/*/*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return [int(file.name) for file in files]


@pytest.mark.usefixtures("quick_workers")
def test_a_stopped_worker_does_not_hang_the_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "STOP_SECONDS", 0.5)
    units, printed = [Unit(tmp_path / "out" / "units" / str(number)) for number in range(2)], io.StringIO()

    def terminate():
        pids(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(Interrupted) as stopped:
        LocalExecutor(2).run(units, stops_its_process, Console(file=printed))
    assert stopped.value.exit_code == 143
    assert "did not stop within" in printed.getvalue()
    assert not any(_is_alive(pid) for pid in pids(tmp_path))


def _is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def run_workers(units):
    """Start workers, in a process that is killed."""
    executors.START_METHOD = "fork"
    LocalExecutor(2).run(units, waits, Console(file=io.StringIO()))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_workers_stop_when_their_parent_is_killed(tmp_path):
    import multiprocessing

    units = [Unit(tmp_path / "out" / "units" / str(number)) for number in range(2)]
    parent = multiprocessing.get_context("fork").Process(target=run_workers, args=(units,))
    parent.start()
    workers = pids(tmp_path)
    assert all(map(_is_alive, workers))
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    while any(map(_is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, workers))
