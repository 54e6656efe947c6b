"""Paths and modules that a checkpoint names: followed only where the user has named them too."""

import contextlib
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console

from segkit.config import ConfigError, Named
from segkit.experiment.build import load_config
from segkit.experiment.runner import run_experiment
from segkit.experiment.trained_model import load_trained, moved_paths
from segkit.training.checkpoint import CheckpointError
from segkit.training.run_folder import Run
from segkit.utils.errors import DataError

from support.command_line import tool, write_pairs
from support.faults.checkpoints import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images in `data`, and a run trained on them."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data").mkdir()
    write_pairs(folder / "data")
    data = {"name": "pairs", "images": str(folder / "data/images"), "masks": str(folder / "data/masks")}
    split = {"name": "kfold", "folds": 3, "test_fold": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = load_config({**TINY, "data": data, "split": split}, ["train.steps=1"])
        run_experiment(config, Run(folder / "run"), resume=False, console=Console(quiet=True))
    return folder


@pytest.fixture
def project(trained, tmp_path):
    """A copy of the run; the data stay where they are."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


def changed(project, **data):
    """The checkpoint of the run with other options under `data`."""
    last = Run(project / "run").last
    content = torch.load(last, weights_only=True)
    content["config"]["data"] |= data
    torch.save(content, last)
    return last


def test_the_own_run_is_evaluated_wherever_it_is(project, trained):
    """Its config.yaml moves with it, and the data are where they were."""
    for place in (trained / "run", project / "run"):
        assert len(load_trained(Run(place).last).data().cases("test")) == 2
    tool("evaluate", "--checkpoint", project / "run", "--out", project / "scores")
    assert (project / "scores/scores.json").exists()


def test_a_file_alone_shows_its_paths_and_asks(project, trained):
    """As one that somebody has sent: nothing of this machine is read."""
    file = shutil.copy(Run(project / "run").last, project / "sent.pt")
    printed = tool("evaluate", "--checkpoint", file, "--out", project / "scores", code=2)
    for text in ("sent.pt", f"data.images={trained}/data/images", f"data.masks={trained}/data/masks", "--data"):
        assert text in printed.replace("\n", "")
    assert not (project / "scores").exists()
    named = [f"data.images={trained}/data/images", f"data.masks={trained}/data/masks"]
    assert len(load_trained(file, overrides=named).data().cases("test")) == 2
    with pytest.raises(ConfigError, match=r"data\.masks=") as error:
        load_trained(file, overrides=named[:1]).data()
    assert "data.images" not in str(error.value)
    assert len(load_trained(file).other_data(trained / "data").cases("test")) == 6


def test_a_file_alone_predicts(project, trained):
    """Predicting reads the images that the user names, and nothing that the checkpoint names."""
    file = shutil.copy(Run(project / "run").last, project / "sent.pt")
    tool("predict", "--checkpoint", file, "--input", trained / "data/images", "--output", project / "masks")
    assert len([path for path in (project / "masks").iterdir() if path.suffix != ".json"]) == 6


@pytest.mark.parametrize("path", ["/etc", "https://example.org/data", "s3://bucket/data", "../../elsewhere", "~/x"])
def test_paths_that_the_run_folder_does_not_name_are_not_followed(project, path, monkeypatch):
    last = changed(project, images=path)
    monkeypatch.setattr("socket.socket", None)
    with pytest.raises(ConfigError, match=r"last\.pt are not read") as error:
        load_trained(last).data()
    assert f"data.images={path}\n" in str(error.value)
    assert "data.masks" not in str(error.value)


def test_another_folder_is_not_left_by_a_pattern(project, trained):
    """`--data` replaces the folders; the texts that are put into them are those of the checkpoint."""
    last = changed(project, images=f"{trained}/data/{{split}}", masks=f"{trained}/data/{{split}}")
    content = torch.load(last, weights_only=True)
    content["config"]["data"]["splits"] = {"test": "../../private"}
    torch.save(content, last)
    with pytest.raises(ConfigError, match=r"data\.splits\.test=\.\./\.\./private"):
        load_trained(last).other_data(trained / "data")


def test_paths_in_mappings_move_with_the_folder():
    named = Named(
        "coco", {"images": {"train": Path("/a/b/x"), "test": Path("/a/b/y")}, "annotations": Path("/a/b/z.json")}
    )
    assert moved_paths(named, Path("/new")) == {
        "images": {"train": "/new/x", "test": "/new/y"},
        "annotations": "/new/z.json",
    }


def test_cases_that_are_gone_are_named(project):
    last = Run(project / "run").last
    content = torch.load(last, weights_only=True)
    content["split"]["test"] = ["nobody"]
    torch.save(content, last)
    with pytest.raises(DataError, match=r"last\.pt was trained on 1 cases that the data do not have: nobody"):
        load_trained(last).data()


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "evil.py", "file:///tmp/evil", "a b", "", "..evil", "evil/", "os.path.", 3, None]
)
def test_plugins_are_names_and_no_paths(project, name):
    """A module is imported by its name, from where Python finds it, as the documentation on security says."""
    (project / "evil.py").write_text("raise SystemExit('executed')")
    last = Run(project / "run").last
    content = torch.load(last, weights_only=True)
    content["config"]["plugins"] = [name]
    torch.save(content, last)
    with contextlib.chdir("/"), pytest.raises(ConfigError, match=r"last\.pt"):
        load_trained(last)


def test_the_record_of_plugins_imports_nothing(project, monkeypatch):
    """Only what the configuration names: the hashes in a checkpoint are no list of modules."""
    (project / "evil_module.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(project)
    last = Run(project / "run").last
    content = torch.load(last, weights_only=True)
    content["plugins"] = {"evil_module": "0" * 64}
    torch.save(content, last)
    load_trained(last)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("field", ["config", "preprocess", "split", "model", "step", "steps", "selected_on", "format"])
def test_a_missing_field_is_named(project, field):
    last = Run(project / "run").last
    content = torch.load(last, weights_only=True)
    del content[field]
    torch.save(content, last)
    with pytest.raises(CheckpointError, match=rf"last\.pt .*no {field}"):
        load_trained(last)
