"""Trainings that fail or are stopped at any place lose no finished step, and continue as if nothing had happened."""

import json
import signal
import time
from dataclasses import replace

import pytest

from segkit.evaluation.scorer import score_cases
from segkit.training import checkpoint
from segkit.training.loop import fit
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.run_folder import Run
from segkit.training.stopping import Interrupted, Limits, StopSignals
from segkit.training.trainer import Trainer

from support.experiments import QUIET, assert_same, make_experiment


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    run = Run(tmp_path_factory.mktemp("whole"))
    fit(make_experiment(), run, console=QUIET)
    return run


def log_of(run):
    """The log without the fields that differ between identical runs."""
    records = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def assert_continues_like(run, whole):
    """The run, continued, has the weights, the random states and the log of the uninterrupted one."""
    fit(make_experiment(), run, resume=True, console=QUIET)
    first, second = (checkpoint.load(file) for file in (run.last, whole.last))
    for content in (first, second):
        del content["time"]
    assert_same(first, second)
    assert log_of(run) == log_of(whole)
    assert checkpoint.load(run.best)["step"] == checkpoint.load(whole.best)["step"]


def failing_batches(experiment, number, error):
    """The experiment, with an error in place of a batch."""

    def batches(start):
        for position, batch in enumerate(experiment.batches(start), start):
            if position == number:
                raise error
            yield batch

    return replace(experiment, batches=batches)


def test_a_case_that_cannot_be_read_in_the_middle_loses_no_step(tmp_path, whole):
    run = Run(tmp_path)
    with pytest.raises(OSError, match="unplugged"):
        fit(failing_batches(make_experiment(), 3, OSError("the disk was unplugged")), run, console=QUIET)
    assert checkpoint.load(run.last)["step"] == 3
    assert_continues_like(run, whole)


@pytest.mark.parametrize("where", ["_backward", "_update"])
def test_a_step_that_fails_loses_no_step_before_it(tmp_path, whole, monkeypatch, where):
    """A failure in the optimiser may have changed some weights already: then the last checkpoint stays as it was."""
    run, original = Run(tmp_path), getattr(Trainer, where)

    def out_of_memory(self, *arguments, **options):
        result = original(self, *arguments, **options)  # uses random numbers and changes running statistics
        if self.step_number == 3:
            raise MemoryError
        return result

    with monkeypatch.context() as patch, pytest.raises(MemoryError):  # noqa: PT012
        patch.setattr(Trainer, where, out_of_memory)
        fit(make_experiment(), run, console=QUIET)
    assert checkpoint.load(run.last)["step"] == {"_backward": 3, "_update": 2}[where]
    assert_continues_like(run, whole)


@pytest.mark.parametrize("validation", [1, 2, 3])
def test_a_validation_that_fails_is_repeated_at_the_resume(tmp_path, whole, monkeypatch, validation):
    run, calls = Run(tmp_path), []

    def out_of_memory(*arguments, **options):
        calls.append(1)
        if len(calls) == validation:
            raise MemoryError
        return score_cases(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):  # noqa: PT012
        patch.setattr("segkit.training.loop.score_cases", out_of_memory)
        fit(make_experiment(), run, console=QUIET)
    assert checkpoint.load(run.last)["step"] == 2 * validation
    assert_continues_like(run, whole)


@pytest.mark.parametrize("save", range(1, 10))
def test_a_run_killed_before_any_of_its_checkpoints_continues_as_if_nothing_had_happened(
    tmp_path, whole, monkeypatch, save
):
    """Before the first step, and before, in and after each validation; `best.pt` is written in between."""
    run, saves = Run(tmp_path), []
    original = checkpoint.save

    def killed(path, content):
        saves.append(path)
        if len(saves) == save:
            raise KeyboardInterrupt  # nothing handles it, as if the process were killed
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        try:
            fit(make_experiment(), run, console=QUIET)
        except KeyboardInterrupt:
            pass
        else:
            assert len(saves) < save
    assert_continues_like(run, whole)


def test_a_signal_ends_the_wait_for_a_batch_that_does_not_arrive(tmp_path, monkeypatch):
    """A loader worker may be stopped or hang; the steps so far are saved."""
    monkeypatch.setattr(StopSignals, "WAIT_SECONDS", 0.2)
    experiment = make_experiment()

    def batches(start):
        for position, batch in enumerate(experiment.batches(start), start):
            if position == 3:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(30)
            yield batch

    start = time.monotonic()
    with pytest.raises(Interrupted, match="after step 3") as stopped:
        fit(replace(experiment, batches=batches), Run(tmp_path), console=QUIET)
    assert stopped.value.exit_code == 143
    assert time.monotonic() - start < 20
    assert checkpoint.load(Run(tmp_path).last)["step"] == 3


def test_validations_without_a_score_do_not_end_a_run_or_lower_the_rate():
    limits = Limits(100, patience=3)
    assert limits.out_of_patience(10, 0) == "patience"  # the loop asks only if there was a score
    plateau = SCHEDULES["plateau"](steps=100, patience={"steps": 3}, factor=0.5)
    for step in range(10, 60, 10):
        plateau.observe(step, None)
    assert plateau(60) == 1.0
    plateau.observe(70, 0.5)
    plateau.observe(80, 0.5)
    assert plateau(81) == 0.5


def test_a_run_without_validation_scores_is_not_ended_by_patience(tmp_path, monkeypatch):
    monkeypatch.setattr("segkit.training.loop.foreground_means", lambda *_: {"dice": None, "iou": None})
    trainer = fit(make_experiment(limits=Limits(6, patience=2)), Run(tmp_path), console=QUIET)
    assert (trainer.step_number, trainer.finished) == (6, "steps")


def test_damaged_lines_of_the_log_are_left_out(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2):
        run.log({"kind": "step", "step": step, "loss": 0.5})
    content = run.log_file.read_bytes()
    damages = [b"\xff\xfe\x00\n", b"[]\n", b"{}\n", b'{"step": "x", "kind": "step"}\n', b"[" * 100_000 + b"\n", b"\n"]
    run.log_file.write_bytes(b"".join(damages) + content + content[:10])
    assert [record["step"] for record in run.records()] == [1, 2]
    run.cut_log(1)
    assert [json.loads(line)["step"] for line in run.log_file.read_text().splitlines()] == [1]


def test_false_positives_alone_do_not_make_a_score(tmp_path):
    """The validation masks are background, and the untrained network predicts some foreground, which scores 0."""
    experiment = make_experiment(limits=Limits(6, patience=2))
    for number in range(len(experiment.validation)):
        experiment.validation[number]["mask"].zero_()
    run = Run(tmp_path)
    trainer = fit(experiment, run, console=QUIET)
    assert any(record["validation"]["dice"] == 0 for record in log_of(run) if record["kind"] == "epoch")
    assert (trainer.finished, trainer.best, run.best.exists()) == ("steps", None, False)
