"""The device check in its short form on the CPU, and what becomes of checks that fail."""

import io
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from ruamel.yaml import YAML

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import loss_peers
from device_checks import experiments, resume, runner, shipped, synchronisation
from device_checks.checks import FAILED, OK, SKIPPED, UNMEASURED, Part, Setup, run_checks
from device_checks.parts import PAGE, PARTS
from meters import CpuMeter, CudaMeter

from support import odd_checks, processes

SHORT = Setup("cpu", short=True, start="forkserver")
CUDA = torch.device("cuda")
LIMIT = 480  # seconds of the whole check on a CUDA device
assert processes.FORKS  # tells the server of the processes what to import


def outcomes_of(part, setup=SHORT, deadline=None):
    """The outcomes and rows of a part that runs in this process."""
    rows = []
    deadline = time.monotonic() + 1000 if deadline is None else deadline
    run_checks(part, setup, deadline, lambda outcome, cells: rows.append((outcome, cells)), lambda _name: None)
    return rows


LONG = ("steps",)  # takes as long as all others


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name in PARTS
        if name not in ("tests", "resume")
    ],
)
def test_a_part_succeeds_on_the_cpu(name):
    rows = outcomes_of(PARTS[name])
    assert [cells for outcome, cells in rows if outcome == FAILED] == []
    assert sum(outcome == OK for outcome, _cells in rows) >= 3
    assert {len(cells) for _outcome, cells in rows} == {len(PARTS[name].headings) + 1}


@pytest.mark.slow
def test_parts_that_start_processes_succeed_on_the_cpu():
    written = io.StringIO()
    parts = [replace(PARTS[name], seconds=1000.0) for name in ("tests", "resume")]
    outcomes = runner.run_parts(parts, SHORT, runner.Output([written]))
    assert outcomes[FAILED] == 0, written.getvalue()
    assert "test_intervals_are_the_same_on_a_gpu | - | skipped: needs a CUDA device |" in written.getvalue()
    assert "| 2D, fp32 | 24 |" in written.getvalue()


def test_a_check_that_fails_leaves_the_others():
    """Also a failure between two checks, and a crash of the process."""
    written = io.StringIO()
    outcomes = runner.run_parts([odd_checks.BREAKING, odd_checks.ODD], SHORT, runner.Output([written]))
    assert outcomes == {OK: 2, SKIPPED: 2, UNMEASURED: 1, FAILED: 4}
    table = written.getvalue().split("\n")
    for row in (
        "| good | 6 | ok |",
        "| preparation | - | failed: ImportError: no such library |",
        "| good | 1 | ok |",
        "| wrong | 2 | failed: too large |",
        r"| raises | - | failed: KeyError: 'a\|b\nc' |",
        "| too large for the memory | - | skipped: does not fit into the memory |",
        "| not here | - | skipped: needs an accelerator |",
        "| too long | - | not measured: no time left |",
        "| crashes | - | failed: the process was ended by SIGSEGV |",
    ):
        assert row in table
    assert "never" not in written.getvalue()


def test_a_part_that_exceeds_its_time_is_stopped(monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 1.0)
    start, rows = time.monotonic(), []
    runner.run_isolated(odd_checks.HANGING, SHORT, start, lambda outcome, cells: rows.append((outcome, cells)))
    assert time.monotonic() - start < 60
    outcome, cells = rows[-1]
    assert outcome == FAILED
    assert cells[-1] == "failed: stopped, since the time of this part was over"


def test_a_part_of_the_check_does_not_replace_the_page(tmp_path):
    page = tmp_path / "device.md"
    page.write_text("tables")
    command = [sys.executable, Path(runner.__file__).parents[1] / "device_check.py", "--device", "cpu", "--short"]
    ended = subprocess.run(
        [*command, "--only", "losses", "--output", page], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "exists, and a part of the check would replace all of it" in ended.stderr
    assert page.read_text() == "tables"


def test_a_library_that_is_not_installed_leaves_its_column_empty(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.losses", None)  # an import raises ImportError
    rows = outcomes_of(PARTS["speed"])
    assert {outcome for outcome, _cells in rows} == {OK}
    assert {cells[1 + loss_peers.LIBRARIES.index("kornia")] for _outcome, cells in rows} == {"-"}
    assert all(cells[1 + loss_peers.LIBRARIES.index("torch")] != "-" for _outcome, cells in rows)


def test_the_configurations_that_the_short_form_leaves_out_are_valid():
    """Of steps, evaluations and resumed trainings, whose first run would otherwise be that on a device."""
    known = [*synchronisation.STEPS.values(), *synchronisation.EVALUATIONS.values()]
    known += [(tree, [f"train.precision={precision}"]) for tree, precision in resume.TRAININGS.values()]
    for tree, overrides in known:
        if "train.precision=fp16" not in overrides:  # needs an accelerator
            assert experiments.built(SHORT, {"name": "x", **tree}, [*overrides, "train.steps=1"]).experiment.batches


def test_the_memory_of_a_step_is_near_the_count():
    """A step leaves no gradients, which would be missing in the next one."""
    wide = {**experiments.PLANE, "model": {"name": "unet", "widths": [16, 32, 64, 128]}, "loader": {"batch": 8}}
    config = experiments.configured(SHORT, wide, ["data.size=[128, 128]"])
    peak = CpuMeter().peak_bytes(shipped.prepared(config))
    assert peak == pytest.approx(shipped._counted(config), rel=0.1)


def test_the_whole_check_ends_in_time():
    assert sum(part.seconds for part in PARTS.values()) + runner.GRACE < LIMIT


def test_the_page_with_the_tables_says_how_to_measure_them():
    page = Path(__file__).parents[1] / "docs" / "benchmarks" / "device.md"
    assert page.read_text(encoding="utf-8").startswith(PAGE)


def test_rows_are_written_as_they_are_measured(tmp_path):
    """Those of a run that is killed are in the file."""
    file = tmp_path / "folder" / "device.md"
    stream = runner.opened(file)

    def checks(_setup):
        for number in range(2):
            yield odd_checks.Check(str(number), lambda: odd_checks.Measured([file.read_text()[-18:]]))

    output = runner.Output([stream])
    part = Part("part", "Title", ["what", "end of the file"], checks, 1.0, "Text.")
    output.head(part)
    rows = []

    def emit(outcome, cells):
        rows.append(cells)
        output.row([cells[0], outcome])

    run_checks(part, SHORT, time.monotonic() + 100, emit, lambda _name: None)
    stream.close()
    assert rows[0][1].endswith("| :-- | --: | :-- |\n"[-18:])
    assert rows[1][1].endswith("| 0 | ok |\n")


# --- what needs a CUDA device, with the functions of the installed torch replaced by ones of the same signature ------


@pytest.fixture
def fake_cuda(monkeypatch):
    """Functions of torch.cuda that do nothing, but take the arguments of the real ones alone."""
    names = (
        "synchronize",
        "current_stream",
        "reset_peak_memory_stats",
        "memory_allocated",
        "max_memory_allocated",
        "get_sync_debug_mode",
        "set_sync_debug_mode",
    )
    fakes = {name: mock.create_autospec(getattr(torch.cuda, name)) for name in names}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return fakes


class Event:
    """An event whose clock advances by 2, 3, 4, ... ms with each pair."""

    times = iter(())

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self, stream):
        assert stream is not None

    def elapsed_time(self, end):
        assert isinstance(end, Event)
        return next(Event.times)


def test_the_time_of_a_call_is_the_median_of_the_events(monkeypatch, fake_cuda):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    calls = []
    for times, repeats, expected, number in (([2.0, 9.0, 3.0], 3, 3.0, 3), ([700.0, 1.0], 9, 700.0, 1)):
        Event.times = iter(times)
        calls.clear()
        assert CudaMeter(CUDA).milliseconds(lambda: calls.append(1), repeats, seconds=0.5) == expected
        assert len(calls) == 2 + number  # two to warm up
    assert fake_cuda["synchronize"].called


def test_the_peak_of_a_call_excludes_what_existed_before(fake_cuda):
    fake_cuda["memory_allocated"].return_value = 100
    fake_cuda["max_memory_allocated"].return_value = 350
    assert CudaMeter(CUDA).peak_bytes(lambda: None) == 250


def test_the_meter_of_the_cpu_measures_a_known_call():
    values = torch.ones(1000)
    assert 8000 <= CpuMeter().peak_bytes(lambda: (values * 2) * 3) < 8100
    assert CpuMeter().milliseconds(lambda: time.sleep(0.02), 3, 1.0) >= 20


def test_waiting_for_a_cuda_device_is_an_error_within_the_context_alone(fake_cuda):
    """The former mode is restored, also after an error."""
    fake_cuda["get_sync_debug_mode"].return_value = 0
    modes = fake_cuda["set_sync_debug_mode"]

    def wait():
        modes.assert_called_once_with("error")
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="called a synchronizing"), synchronisation.never_waiting(CUDA):
        wait()
    assert modes.call_args_list == [mock.call("error"), mock.call(0)]


def test_a_mode_that_finds_nothing_fails_its_control(monkeypatch):
    monkeypatch.setattr(synchronisation, "NoWaiting", mock.MagicMock)
    assert "show nothing" in synchronisation._control(SHORT).problem


def test_a_failed_compilation_is_not_taken_for_a_compiled_step():
    def step():
        warnings.warn("train.compile: compilation failed, training continues without it (no g++)", stacklevel=1)
        return {"loss": torch.ones(())}

    with pytest.raises(RuntimeError, match="compilation failed"):
        shipped._first_loss(step)


def test_a_first_loss_that_differs_from_that_in_fp32_fails():
    file = shipped.CONFIGS / "quickstart.yaml"
    measured = shipped._measure(SHORT, file, shipped.VARIANTS["fp32"], {"quickstart": 1e3})
    assert "expected the first loss 1000" in measured.problem


@pytest.mark.parametrize("file", sorted(shipped.CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_images_of_every_shipped_configuration_are_known(file):
    tree = YAML(typ="safe").load(file)
    synthetic = shipped.with_synthetic_data(tree, short=False)
    assert synthetic["loader"]["batch"] == tree["loader"]["batch"]
    assert synthetic["model"].keys() == tree["model"].keys()
    patch = tree.get("sampling", {}).get("patch")
    assert patch is None or all(a <= b for a, b in zip(patch, synthetic["data"]["size"], strict=True))


def test_an_error_beyond_its_bound_fails(monkeypatch):
    """A loss that is wrong by a thousandth on the device."""
    from device_checks import losses

    original = losses._on_device
    monkeypatch.setattr(losses, "_on_device", lambda *arguments: tuple(1.001 * x for x in original(*arguments)))
    measured = losses._compare(SHORT, {"name": "dice"}, ["multiclass"], (5, 6))
    assert measured.problem.startswith("fp32 exceeds")
