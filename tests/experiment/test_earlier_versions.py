"""A run folder of format 1, made by version 0.1.0 before options were renamed: `small.yaml` and what came of it."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from segkit.experiment.build import load_config
from segkit.training import checkpoint
from segkit.training.run_folder import Run

from support.command_line import tool

HERE = Path(__file__).parent
NAME = "small-4e60251db05b"


# of the configuration below, by version 0.1.0 before networks had more options
DIGESTS = {
    "unet": "3281ac67b1f3",
    "monai_unet": "b40ceab5d7ed",
    "monai_basic_unet": "1c11ee82bb19",
    "monai_dynunet": "6fceccf1f5c1",
    "monai_segresnet": "f33e866e148d",
    "fcn_resnet50": "4e243b30413e",
    "deeplabv3_resnet50": "0df28722d2e3",
    "deeplabv3_mobilenet": "e21af17477df",
    "lraspp_mobilenet": "f8a58f126daf",
}


@pytest.mark.parametrize("network", DIGESTS)
def test_networks_keep_their_digest(network):
    """Options that were added later do not change it, or runs could not be continued."""
    config = {
        "name": "x",
        "labels": {"names": ["background", "a"]},
        "data": {"name": "synthetic", "size": [32, 32], "train": 2, "validation": 1, "test": 1},
        "model": network,
        "loss": "dice",
        "optimizer": "adamw",
        "train": {"steps": 2},
    }
    assert load_config(config).digest() == DIGESTS[network]


@pytest.fixture
def old(tmp_path):
    """A copy of the folder that holds the run, as it was left."""
    (tmp_path / "runs").mkdir()
    shutil.copy(HERE / "small.yaml", tmp_path)
    shutil.copytree(HERE / NAME, tmp_path / "runs" / NAME)
    return tmp_path


def test_the_digest_is_the_same(old):
    """The file still says `link` and `aa`."""
    config = load_config(old / "small.yaml")
    assert f"small-{config.digest()}" == NAME
    assert config.loss[1]["activation"] == "sigmoid"
    assert config.comparison.noise_floor


def test_the_resolved_configuration_is_read(old):
    assert load_config(old / "runs" / NAME / "config.yaml").digest() == NAME.removeprefix("small-")


def test_the_checkpoint_has_its_scores(old):
    tool("evaluate", "--checkpoint", old / "runs" / NAME, "--out", old / "again")
    scores, again = (json.loads((place / "scores.json").read_text()) for place in (_evaluated(old), old / "again"))
    assert again["rules"] == scores["rules"]
    assert again["mean"] == pytest.approx(scores["mean"], abs=1e-3)  # another processor may decide a pixel otherwise
    tables = [pd.read_csv(place / "cases.csv") for place in (_evaluated(old), old / "again")]
    pd.testing.assert_series_equal(tables[0]["reference"], tables[1]["reference"])


def test_a_finished_run_is_not_trained_again(old):
    text = (_evaluated(old) / "scores.json").read_text()
    tool("train", "--config", "small.yaml", folder=old)
    assert (_evaluated(old) / "scores.json").read_text() == text


def test_an_interrupted_run_is_continued(old):
    run = Run(old / "runs" / NAME)
    finished = checkpoint.load(run.last)
    shutil.move(run.numbered(4), run.last)
    shutil.rmtree(run.folder / "evaluation")
    tool("train", "--config", "small.yaml", "--resume", folder=old)
    continued = checkpoint.load(run.last)
    assert (continued["step"], continued["finished"]) == (8, "steps")
    for name, weights in finished["model"].items():
        torch.testing.assert_close(continued["model"][name], weights, msg=name)
    assert (_evaluated(old) / "scores.json").exists()


def _evaluated(folder):
    return folder / "runs" / NAME / "evaluation" / "test"
