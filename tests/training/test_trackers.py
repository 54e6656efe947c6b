"""Trackers receive the numbers of the log file, pictures, the configuration and the final scores."""

import json
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segkit.cli import app
from segkit.config import ConfigError
from segkit.config.origins import origins
from segkit.experiment import plugins
from segkit.experiment.build import load_config, restore_config
from segkit.training import checkpoint
from segkit.training.trackers import TRACKERS, numbers

from support.command_line import TINY, tool
from support.wandb_file import records


def test_numbers_of_a_record_by_path():
    line = {"kind": "step", "step": 4, "epoch": 2.0, "lr": [0.1, 0.2], "loss": 1.5, "terms": {"dice": 0.5}, "x": None}
    assert numbers(line) == {"train/lr/0": 0.1, "train/lr/1": 0.2, "train/loss": 1.5, "train/terms/dice": 0.5}
    assert numbers({"kind": "epoch", "step": 4, "validation": {"dice": 0.5}}) == {"validation/dice": 0.5}


def final_scores(folder):
    return json.loads((folder / "run" / "evaluation" / "test" / "scores.json").read_text())["mean"]


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
    (final,) = events.Scalars("test/dice")
    assert (final.step, final.value) == (lines[-1]["step"], pytest.approx(final_scores(tmp_path)["dice"]))
    (text,) = events.Tensors("configuration/text_summary")
    assert 'model.name: "unet"' in text.tensor_proto.string_val[0].decode()


def test_mlflow_has_the_log_in_a_sqlite_file(logged, tmp_path):
    pytest.importorskip("mlflow", reason="needs mlflow")
    lines = logged("logging.mlflow=tracking.db")
    with sqlite3.connect(tmp_path / "tracking.db") as database:
        rows = database.execute("select step, value from metrics where key = 'train/loss' order by step").fetchall()
        parameters = dict(database.execute("select key, value from params").fetchall())
        finals = database.execute("select value from metrics where key = 'test/dice'").fetchall()
    assert rows == [(line["step"], pytest.approx(line["loss"])) for line in lines if line["kind"] == "step"]
    assert parameters["model.name"] == "unet"
    assert finals == [(pytest.approx(final_scores(tmp_path)["dice"]),)]
    assert len(list((tmp_path / "tracking-artifacts").rglob("*.png"))) == 5  # four validations and the evaluation
    (scores,) = (tmp_path / "tracking-artifacts").rglob("scores.json")
    assert json.loads(scores.read_text())["mean"] == final_scores(tmp_path)


def test_weights_and_biases_has_the_log_in_its_offline_file(logged, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for folder in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(folder, str(tmp_path))
    tracker = "logging.trackers=[{name: wandb, project: discs, mode: offline}]"
    lines = logged(tracker, "train.max_steps=4")
    lines = logged(tracker, "--resume", "--allow", "train.max_steps")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    (run_id,) = {file.stem.removeprefix("run-") for file in files}
    assert run_id == (tmp_path / "run" / "wandb-run").read_text()
    found = [record for file in files for record in records(file)]
    (project,) = {record.run.project for record in found if record.HasField("run")}
    assert project == "discs"
    history = [wandb_values(record.history.item) for record in found if record.HasField("history")]
    losses = {row["_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert losses == {line["step"]: pytest.approx(line["loss"]) for line in lines if line["kind"] == "step"}
    assert {row["_step"] for row in history if "validation._type" in row} == {2, 4, 6, 8}
    summaries = {}
    for record in found:
        summaries |= wandb_values(record.summary.update) if record.HasField("summary") else {}
    assert summaries["test/dice"] == pytest.approx(final_scores(tmp_path)["dice"])
    assert list((tmp_path / "run" / "wandb").rglob("*.png"))


def wandb_values(items):
    """Names and values of a list of items, whose names may be nested."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


OWN = """\
import json
from pathlib import Path

class Diary:
    def __init__(self, run, title: str = "diary"):
        self.file = run.folder / f"{title}.jsonl"
        self.write(start=run.first_step, model=run.config["model"]["name"])

    def write(self, **content):
        with open(self.file, "a") as file:
            file.write(json.dumps(content) + "\\n")

    def log(self, record):
        self.write(record=record["kind"], step=record["step"])

    def show(self, name, picture, step):
        self.write(picture=name, shape=list(picture.shape))

    def scores(self, scores, step):
        self.write(dice=scores["mean"]["dice"], step=step)

    def close(self, ended):
        self.write(ended=ended)

class Broken(Diary):
    def log(self, record):
        raise ConnectionError("no such server")

    def close(self, ended):
        super().close(ended)
        raise ConnectionError("nor now")

class Absent(Diary):
    def __init__(self, run):
        raise ConnectionError("no such server")

TRACKERS = {"diary": Diary, "broken": Broken, "absent": Absent}
"""


@pytest.fixture
def own_trackers(tmp_path, monkeypatch):
    (tmp_path / "my_trackers.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield ["plugins=[my_trackers]"]
    for name in ("diary", "broken", "absent"):
        TRACKERS.pop(name, None)
        plugins._providers.pop(("TRACKERS", name), None)
    sys.modules.pop("my_trackers", None)


def test_a_tracker_of_a_plugin(logged, tmp_path, own_trackers):
    lines = logged(*own_trackers, "logging.trackers=[{name: diary, title: notes}]")
    told = [json.loads(line) for line in (tmp_path / "run" / "notes.jsonl").read_text().splitlines()]
    assert told[0] == {"start": 0, "model": "unet"}
    assert [(entry["record"], entry["step"]) for entry in told if "record" in entry] == [
        (line["kind"], line["step"]) for line in lines
    ]
    assert [entry["picture"] for entry in told if "picture" in entry] == ["validation"] * 4 + ["evaluation"]
    assert told[-2] == {"dice": final_scores(tmp_path)["dice"], "step": 8}
    assert told[-1] == {"ended": "FINISHED"}


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(logged, tmp_path, own_trackers):
    with pytest.warns(UserWarning, match=r"the tracker Broken failed \(ConnectionError: no such server\)"):
        lines = logged(*own_trackers, "logging.trackers=[broken, tensorboard]")
    assert lines[-1]["step"] == 8
    told = [json.loads(line) for line in (tmp_path / "run" / "diary.jsonl").read_text().splitlines()]
    assert told == [{"start": 0, "model": "unet"}, {"ended": "FAILED"}]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_tracker_that_cannot_start_stops_before_the_training(tmp_path, monkeypatch, own_trackers):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    options = ("run.dir=run", *own_trackers, "logging.trackers=[diary, absent]")
    printed = tool("train", "--config", "tiny.yaml", *options, code=2)
    assert "the tracker absent cannot start, and nothing was trained (ConnectionError: no such server)" in printed
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    assert '"ended": "FAILED"' in (tmp_path / "run" / "diary.jsonl").read_text()


def test_the_plugin_of_a_tracker_is_not_needed_to_evaluate(logged, tmp_path, own_trackers):
    logged(*own_trackers, "logging.trackers=[diary]")
    TRACKERS.pop("diary")
    content = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["config"]
    assert restore_config({**content, "plugins": []}).logging.trackers == ()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{tensorboard: maybe}", "logging.tensorboard: expected true or false, got 'maybe'"),
        ("{trackers: tensorboard}", "logging.trackers: expected a list of trackers, got 'tensorboard'"),
        ("{trackers: [tensorboad]}", "logging.trackers.0.name: unknown name 'tensorboad'; did you mean 'tensorboard'"),
        ("{tensorboard: true, trackers: [tensorboard]}", "logging: expected each tracker once, got tensorboard 2 "),
        ("{trackers: [mlflow]}", "logging.trackers.0: missing required key 'file'"),
        ("{wandb: true}", "logging.wandb: unknown key"),
        ("[]", "logging: expected a mapping with trackers"),
    ],
)
def test_mistakes_in_the_section(tmp_path, written, message):
    (tmp_path / "tiny.yaml").write_text(TINY + f"logging: {written}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(tmp_path / "tiny.yaml")


def test_short_forms_stand_for_entries(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY + "logging: {tensorboard: true, mlflow: runs.db, trackers: [wandb]}\n")
    config = load_config(tmp_path / "tiny.yaml", ["logging.mlflow=other.db"])
    assert [tracker.name for tracker in config.logging.trackers] == ["tensorboard", "mlflow", "wandb"]
    assert config.logging.trackers[1].args == {"file": Path.cwd() / "other.db"}
    assert config.digest() == load_config(tmp_path / "tiny.yaml", ["logging={}"]).digest()
    found = {key: origin for key, _value, origin in origins(config, tmp_path / "tiny.yaml", [])}
    line = len(TINY.splitlines()) + 1
    assert found["logging.trackers.0.name"] == found["logging.trackers.2.name"] == f"line {line}"
