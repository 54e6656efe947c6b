"""What is printed before a training."""

import io

import pytest
from rich.console import Console

from segkit.experiment.build import load_config
from segkit.experiment.build_training import build_experiment
from segkit.experiment.preflight import loss_warnings
from segkit.experiment.run_header import header, print_header

from support.command_line import TINY


@pytest.fixture
def built(tmp_path):
    """A function from overrides to the configuration and what is built from it."""

    def build(*overrides):
        (tmp_path / "tiny.yaml").write_text(TINY)
        config = load_config(tmp_path / "tiny.yaml", overrides)
        return config, build_experiment(config, tmp_path / "cache")

    return build


def test_it_fits_into_eight_lines_of_80_columns(built):
    """With the line on time and memory, which follows."""
    shown = io.StringIO()
    print_header(*built(), Console(file=shown, width=80))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:6] == [
        "tiny  on cpu, fp32",
        "cases    8 train, 4 validation, 12 test; 1 image channel",
        "classes  a, b; means are without background",
        f"network  unet, {lines[3].split()[2]} parameters",
        "loss     1 dice + 1 cross_entropy",
        "steps    8, each 4 images; 2 per epoch",
    ]
    assert lines[6].startswith("Note: ")  # beside the time, one more fact can come: what cached cases need


def test_patches_accumulation_and_processes_are_told(built):
    config, made = built("sampling.patch=[16,16]", "train.accumulate=2", "split={name: source}", "name='[bold]x'")
    facts = dict(header(config, made.experiment, made.data))
    assert facts["[bold]x"] == "on cpu, fp32"
    assert facts["steps"] == "8, each 2 x 4 patches of 16 x 16; 1 per epoch"
    shown = io.StringIO()
    print_header(config, made, Console(file=shown, width=80))
    assert shown.getvalue().startswith("[bold]x  on cpu")  # the name of a run is no markup


def test_losses_that_need_another_one():
    (warning,) = loss_warnings([{"name": "skeleton_recall", "weight": 1.0}])
    assert "nothing of false positives" in warning
    assert "loss=dice_ce_skeleton_recall" in warning
    assert loss_warnings([{"name": "skeleton_recall"}, {"name": "dice"}]) == []
    (warning,) = loss_warnings([{"name": "lovasz_softmax"}])
    assert "ce_lovasz" in warning
