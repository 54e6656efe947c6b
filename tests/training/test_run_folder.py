"""Checkpoints and run folders."""

import json

import pytest
import torch

from segkit.training import checkpoint
from segkit.training.checkpoint import CheckpointError
from segkit.training.run_folder import Run
from segkit.utils.errors import RunError

from support.command_line import TINY, tool
from support.limits import limited_file_size


def test_checkpoint_round_trip(tmp_path):
    content = {"step": 3, "model": {"weight": torch.randn(2, 2)}, "best": None, "config": {"a": [1, 2.5, "x"]}}
    path = tmp_path / "deep" / "last.pt"
    checkpoint.save(path, content)
    loaded = checkpoint.load(path)
    assert loaded.pop("format") == checkpoint.FORMAT
    assert torch.equal(loaded["model"].pop("weight"), content["model"].pop("weight"))
    assert loaded == content
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("limit", [100, 10_000, 405_000])
def test_a_failed_save_keeps_the_old_checkpoint_and_names_the_reason(tmp_path, limit):
    """At any moment of the writing: PyTorch's writer has an error message of its own for each."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    content = {"step": 2, "model": {"a": torch.ones(100_000), "b": torch.ones(5000)}}
    with limited_file_size(limit), pytest.raises(CheckpointError, match=r"cannot write .*last.pt, .* File too large"):
        checkpoint.save(path, content)
    assert checkpoint.load(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class NotPlainData:
    pass


def test_checkpoints_contain_plain_data_only(tmp_path):
    torch.save({"format": 1, "object": NotPlainData()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path / "bad.pt")


def test_checkpoint_errors_name_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*none\.pt"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"format": checkpoint.FORMAT + 1}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match=r"new\.pt has checkpoint format 2.*upgrade"):
        checkpoint.load(tmp_path / "new.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt .* no format"):
        checkpoint.load(tmp_path / "other.pt")
    (tmp_path / "short.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"short\.pt is not a readable"):
        checkpoint.load(tmp_path / "short.pt")


def test_a_run_is_not_overwritten(tmp_path):
    run = Run(tmp_path / "run")
    run.check_free(resume=False)
    run.start()
    checkpoint.save(run.last, {"step": 0})
    with pytest.raises(RunError, match=r"already contains a run.*--resume"):
        run.check_free(resume=False)
    run.check_free(resume=True)


def test_the_environment_is_recorded(tmp_path):
    run = Run(tmp_path / "run")
    run.start()
    recorded = json.loads((run.folder / "environment.json").read_text())
    assert recorded["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert recorded["threads"] == torch.get_num_threads()


def test_the_log_is_truncated_to_the_checkpoint(tmp_path):
    run = Run(tmp_path)
    for step in (10, 20, 30):
        run.log({"kind": "step", "step": step})
    with open(run.log_file, "a") as file:
        file.write('{"kind": "step", "st')  # a crash in the middle of a line
    run.cut_log(20)
    assert [json.loads(line)["step"] for line in run.log_file.read_text().splitlines()] == [10, 20]


def test_last_checkpoint_is_read_once(tmp_path, monkeypatch):
    """Until it is released, its contents stay in memory; afterwards the file is read again."""
    run, load, reads = Run(tmp_path), checkpoint.load, []

    def counted(path):
        reads.append(path)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", counted)
    assert run.load_last(keep=True) is None
    checkpoint.save(run.last, {"step": 1})
    assert run.load_last(keep=True) is run.load_last(keep=True)
    assert run.load_last()["step"] == 1
    assert len(reads) == 1
    checkpoint.save(run.last, {"step": 2})
    assert run.load_last(keep=True)["step"] == 2
    run.remove_last()
    assert run.load_last() is None


def test_a_resume_reads_the_last_checkpoint_once(tmp_path, monkeypatch):
    """From the check of the run folder to the training loop."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["train", "--config", "tiny.yaml", "run.dir=run", "train.steps=4"]
    tool(*arguments, "train.max_steps=2")
    load, reads = checkpoint.load, []

    def counted(path):
        reads.append(path.name)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", counted)
    tool(*arguments, "train.max_steps=3", "--resume", "--allow", "train.max_steps")
    assert reads == ["last.pt"]
