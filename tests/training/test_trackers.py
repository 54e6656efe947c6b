"""TensorBoard and MLflow receive the numbers of the log file, and pictures."""

import json
import sqlite3

import pytest
from typer.testing import CliRunner

from segkit.cli import app
from segkit.training.trackers import numbers

from support.command_line import TINY


def test_numbers_of_a_record_by_path():
    line = {"kind": "step", "step": 4, "epoch": 2.0, "lr": [0.1, 0.2], "loss": 1.5, "terms": {"dice": 0.5}, "x": None}
    assert numbers(line) == {"train/lr/0": 0.1, "train/lr/1": 0.2, "train/loss": 1.5, "train/terms/dice": 0.5}
    assert numbers({"kind": "epoch", "step": 4, "validation": {"dice": 0.5}}) == {"validation/dice": 0.5}


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """A function that trains with the given overrides and returns the log of the run."""

    def train(*overrides):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tiny.yaml").write_text(TINY)
        done = CliRunner().invoke(app, ["train", "--config", "tiny.yaml", "run.dir=run", *overrides])
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]

    return train


def test_tensorboard_has_the_log_and_pictures(logged, tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = logged("logging.tensorboard=true")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines if line["kind"] == "step"]
    assert {"train/lr/0", "train/gradient_norm", "train/terms/dice", "validation/dice"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"validation", "evaluation"}


def test_mlflow_has_the_log_in_a_sqlite_file(logged, tmp_path):
    pytest.importorskip("mlflow", reason="needs mlflow")
    lines = logged("logging.mlflow=tracking.db")
    with sqlite3.connect(tmp_path / "tracking.db") as database:
        rows = database.execute("select step, value from metrics where key = 'train/loss' order by step").fetchall()
    assert rows == [(line["step"], pytest.approx(line["loss"])) for line in lines if line["kind"] == "step"]
    assert len(list((tmp_path / "tracking-artifacts").rglob("*.png"))) == 5  # four validations and the evaluation
