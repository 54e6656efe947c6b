"""Every shipped configuration is valid, says how to run it, and trains for two steps."""

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from segkit import assemble, workflow
from segkit.assemble_training import build_experiment
from segkit.config import schema
from segkit.runs import Run

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_is_a_result_card(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"python tools/train.py --config configs/{path.name}" in header
    for word in ("minute", "Dice", "two CPU cores"):
        assert word in header, f"the header does not say its {word}"
    assert re.search(r"[\d:.]+ minutes?", header)
    assert re.search(r"(Dice|mIoU)\D* 0\.\d{3}", header)


@pytest.mark.filterwarnings("default:2 groups lie in more than one part")  # camvid's own lists share two drives
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps(path, request, tmp_path):
    if path.stem != "quickstart":
        request.getfixturevalue("real_data")
    overrides = ["train.steps=2", f"run.dir={tmp_path}", "device=cpu", "evaluation.overlays=false"]
    config = assemble.read(path, [*overrides, "loader.batch=2"])
    built = build_experiment(config)
    experiment, data = built.experiment, built.data
    experiment.validation.cases = experiment.validation.cases[:1]  # one case shows as much as all
    trainer = workflow.fit(experiment, Run(tmp_path), console=Console(quiet=True))
    assert trainer.step_number == 2
    assert all(torch.isfinite(parameter).all() for parameter in experiment.model.parameters())
    assert data.split.train


def test_every_key_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    described = schema(assemble.TABLES)
    keys = [f"{key}" for section in described["sections"].values() for key in section["properties"]]
    names = [
        name
        for table, entries in described["named"].items()
        if table not in ("data", "split", "loss", "weight")  # which have pages of their own
        for name in entries
    ]
    elsewhere = {"names", "mode", "ignore_index", "background", "regions"}  # of labels, in docs/data.md
    missing = [word for word in (*keys, *names) if word not in elsewhere and not re.search(rf"`(\w+\.)?{word}`", page)]
    assert not missing
