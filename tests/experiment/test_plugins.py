"""Losses, networks and data sources of the user's own packages."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from segkit.config import ConfigError
from segkit.experiment import plugins
from segkit.experiment.build import load_config
from segkit.experiment.plugins import describe_plugins, load_plugins, plugin_hashes
from segkit.losses import LOSSES, build_loss
from segkit.training import checkpoint

from support.command_line import TINY, tool
from support.pages import blocks
from support.plugin_tables import forget_plugins

LOSS = Path(__file__).parents[1] / "support" / "brier_plugin.py"
OTHERS = """\
from torch import nn
from segkit.data import SyntheticSource

class Tiny(nn.Module):
    multiple = 1

    def __init__(self, *, in_channels: int, out_channels: int, dims: int, width: int = 4):
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.layers = nn.Sequential(conv(in_channels, width, 3, padding=1), nn.ReLU(), conv(width, out_channels, 1))

    def forward(self, image):
        return self.layers(image)

class Phantoms(SyntheticSource):
    pass

MODELS = {"tiny_conv": Tiny}
SOURCES = {"phantoms": Phantoms}
"""
SWITCH = ["loss=[{name: my_brier}, {name: dice, weight: 0.5}]", "model={name: tiny_conv, width: 5}"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a configuration and two plugins, in which commands are run; forgotten afterwards."""
    (tmp_path / "my_losses.py").write_text(LOSS.read_text().replace('"brier"', '"my_brier"'))
    (tmp_path / "my_others.py").write_text(OTHERS)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("synthetic", "phantoms") + "plugins: [my_losses, my_others]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    forget_plugins("my_losses", "my_others")


def test_a_run_with_plugins_is_trained_evaluated_and_used(project):
    tool("train", "--config", "tiny.yaml", "run.dir=run", *SWITCH)
    content = checkpoint.load(project / "run/checkpoints/last.pt")
    assert content["config"]["plugins"] == ["my_losses", "my_others"]
    assert content["plugins"] == plugin_hashes(["my_losses", "my_others"])
    forget_plugins("my_losses", "my_others")
    tool("evaluate", "--checkpoint", "run", "--out", "scores")
    assert (project / "scores/scores.json").read_text().replace("\n", "")
    forget_plugins("my_losses", "my_others")
    import segkit

    assert segkit.load(project / "run").predict(torch.zeros(32, 32)).shape == (32, 32)


def test_losses_are_compared_in_processes_of_their_own(project, without_figures):  # noqa: ARG001
    """Processes are started with `spawn`, so they import the plugin themselves."""
    arguments = ["model={name: tiny_conv}", "train.steps=2", "evaluation.overlays=false"]
    tool("compare", "--config", "tiny.yaml", "--losses", "my_brier,dice", "--seeds", "1", "--parallel", "2",
         "--out", "out", *arguments)  # fmt: skip
    assert (project / "out/comparison.json").exists()
    assert len(pd.read_csv(project / "out/cases.csv")[["loss", "seed"]].drop_duplicates()) == 2
    assert {file.name for file in (project / "out/logs").iterdir()} == {"0.txt", "1.txt"}


def test_a_changed_plugin_makes_other_units(project):
    """So that no comparison mixes runs of two versions of a loss."""
    from segkit.compare.design import make_design
    from segkit.compare.units import Comparison, make_units

    def folders():
        base = load_config("tiny.yaml", ["comparison.losses=[my_brier, dice]", "comparison.seeds=2"])
        comparison = Comparison.of(Path("tiny.yaml"), [], make_design(base), base, Path("out"))
        return {unit.folder.name for unit in make_units(comparison)}

    changed = folders()
    (project / "my_losses.py").write_text((project / "my_losses.py").read_text() + "\n# again\n")
    forget_plugins("my_losses", "my_others")
    assert not changed & folders()


@pytest.mark.usefixtures("project")
def test_workers_of_the_loader_know_the_source():
    tool("train", "--config", "tiny.yaml", "run.dir=run", *SWITCH, "loader.workers=1", "train.steps=2")


def test_a_missing_plugin_is_named(project):
    tool("train", "--config", "tiny.yaml", "run.dir=run", *SWITCH, "train.steps=2")
    forget_plugins("my_losses", "my_others")
    (project / "my_losses.py").unlink()
    shutil.rmtree(project / "__pycache__", ignore_errors=True)
    for command in (
        ("evaluate", "--checkpoint", "run"),
        ("predict", "--checkpoint", "run", "--input", "tiny.yaml", "--output", "out"),
    ):
        printed = " ".join(tool(*command, code=2).split())
        assert "checkpoint" in printed
        assert "no module my_losses" in printed
        assert "unknown name" not in printed
        assert "install the package" in printed


def test_a_plugin_that_has_changed_is_warned_of_and_not_resumed(project):
    tool("train", "--config", "tiny.yaml", "run.dir=run", *SWITCH, "train.steps=2")
    (project / "my_losses.py").write_text((project / "my_losses.py").read_text() + "\n# changed\n")
    forget_plugins("my_losses", "my_others")
    assert "my_losses" in tool("evaluate", "--checkpoint", "run", "--out", "scores")
    forget_plugins("my_losses", "my_others")
    printed = tool("train", "--config", "tiny.yaml", "run.dir=run", *SWITCH, "train.steps=2", "--resume", code=2)
    assert "plugins" in printed


@pytest.mark.usefixtures("project")
def test_options_of_a_plugin_are_checked_as_our_own():
    printed = tool("train", "--config", "tiny.yaml", "model={name: tiny_conv, widht: 5}", code=2)
    assert "did you mean 'width'?" in printed
    printed = tool("train", "--config", "tiny.yaml", "loss=my_brire", code=2)
    assert "did you mean 'my_brier'?" in printed


@pytest.mark.usefixtures("project")
def test_without_plugins_the_digest_is_as_it_was():
    """And with them it is that of another experiment."""
    plain, same = load_config("quickstart"), load_config("quickstart", ["plugins=[]"])
    other = load_config("quickstart", ["plugins=[my_losses]"])
    assert plain.digest() == same.digest() != other.digest()


def test_an_installed_plugin_needs_no_line(project, monkeypatch):
    """It is written into the resolved configuration if it is used."""
    points = [EntryPoint("mine", "my_losses", plugins.GROUP), EntryPoint("broken", "not_there", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == plugins.GROUP else [])
    monkeypatch.syspath_prepend(project)
    with pytest.warns(UserWarning, match="broken.*not available"):
        config = load_config("quickstart", ["loss=my_brier"])
    assert config.plugins == ("my_losses",)
    with pytest.warns(UserWarning, match="broken"):
        assert load_config("quickstart").plugins == ()


@pytest.mark.usefixtures("project")
def test_the_table_is_that_of_losses_in_python():
    from segkit import Labels

    load_plugins(["my_losses"])
    assert "my_brier" in LOSSES
    loss = build_loss("my_brier", Labels(["background", "a"]))
    assert loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_the_sort", "nothing_of_the_sort"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "defines none of LOSSES, MODELS, SOURCES"),
        ("LOSSES = {'dice': dict}", "segkit provides already"),
        ("LOSSES = {'other': 3}", "class or function"),
        ("class A:\n    def __init__(self, *, labels, x=1): ...\nLOSSES = {'unannotated': A}", "annotation"),
    ],
)
def test_a_plugin_that_cannot_be_used(project, text, message):
    (project / "my_losses.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", ["plugins=[my_losses]"])


@pytest.mark.parametrize("name", ["os.system('x')", "../other", "a b", "my_losses:Brier", ".relative", ""])
def test_only_names_of_modules_are_imported(name):
    with pytest.raises(ConfigError, match="names of modules"):
        load_plugins([name])


@pytest.mark.usefixtures("project")
def test_the_command_lists_them():
    printed = tool("plugins", "my_losses", "my_others")
    assert "my_losses  LOSSES: my_brier" in printed
    assert "MODELS: tiny_conv; SOURCES: phantoms" in printed
    assert "error" in tool("plugins", "not_there", code=2)
    assert [plugin.error is None for plugin in describe_plugins(["my_losses", "not_there"])] == [True, False]


def test_from_another_folder_the_python_path_is_enough(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "segkit", "config", "validate", "-c", str(project / "tiny.yaml")]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no module my_losses" in done.stderr
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("project")
def test_the_plugins_in_the_how_to_train_together(tmp_path):
    """The loss, the network, the source and the tracker of docs/how_to/extend.md, as they stand there."""
    page = Path(__file__).parents[2] / "docs" / "how_to" / "extend.md"
    modules = ["how_loss", "how_network", "how_source", "how_tracker"]
    for name, block in zip(modules, blocks(page, ["python"]), strict=True):
        (tmp_path / f"{name}.py").write_text(block)
    (tmp_path / "cases").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.random((16, 16))
        np.savez(tmp_path / "cases" / f"{number}.npz", image=image, mask=image > 0.5)
    (tmp_path / "own.yaml").write_text(
        f"plugins: [{', '.join(modules)}]\n"
        "labels: {names: [background, a]}\n"
        "data: {name: npz_folder, folder: cases}\n"
        "split: {name: kfold, folds: 3}\n"
        "model: {name: two_convolutions, width: 4}\n"
        "loss: [{name: brier}, {name: dice, weight: 0.5}]\n"
        "optimizer: adamw\nloader: {batch: 2}\ntrain: {steps: 2}\nevaluation: {overlays: false}\n"
        "logging: {trackers: [{name: lines, file: loss.txt}]}\n"
    )
    try:
        assert "run folder" in tool("train", "--config", "own.yaml", "run.dir=run")
        assert "train/loss" in (tmp_path / "run" / "loss.txt").read_text()
    finally:
        forget_plugins("my_losses", "my_others")
        for name in modules:
            sys.modules.pop(name, None)
