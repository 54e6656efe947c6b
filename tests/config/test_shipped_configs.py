"""Every shipped configuration is valid, says how to run it, and trains for two steps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from segkit.config.sections import FIXED
from segkit.experiment.build import TABLES, build_augment_from, build_labels, load_config
from segkit.experiment.build_training import build_experiment
from segkit.experiment.trained_model import load_trained
from segkit.training.loop import run_training
from segkit.training.run_folder import Run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

SAME_DATA = ("binary_2d", "imbalanced", "tiny_data")  # as another one, which takes seconds to read


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_is_a_result_card(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"python tools/train.py --config configs/{path.name}" in header
    for word in ("minute", "Dice", "two CPU cores"):
        assert word in header, f"the header does not say its {word}"
    assert re.search(r"[\d:.]+ minutes?", header)
    assert re.search(r"(Dice|mIoU)\D* 0\.\d{3}", header)


@pytest.mark.filterwarnings("default:2 groups are in more than one part")  # camvid's own lists share two drives
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in SAME_DATA else []) for path in CONFIGS],
    ids=lambda path: path.stem,
)
def test_two_steps(path, request, tmp_path):
    if path.stem != "quickstart":
        request.getfixturevalue("real_data")
    overrides = ["train.steps=2", f"run.dir={tmp_path}", "device=cpu", "evaluation.overlays=false"]
    config = load_config(path, [*overrides, "loader.batch=2"])
    built = build_experiment(config)
    experiment, data = built.experiment, built.data
    experiment.validation.cases = experiment.validation.cases[:1]  # one case shows as much as all
    trainer = run_training(experiment, Run(tmp_path), console=Console(quiet=True))
    assert trainer.step_number == 2
    assert load_trained(Run(tmp_path).last).config.experiment() == config.experiment()
    assert all(torch.isfinite(parameter).all() for parameter in experiment.model.parameters())
    assert data.split.train


def test_every_key_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text()
    keys = [key for section in FIXED.values() for key in section.model_fields]
    elsewhere = ("data", "split", "loss", "weight", "recipe", "like", "preset")  # which have pages of their own
    names = [name for key, table in TABLES.items() if key not in elsewhere for name in table.entries]
    elsewhere = {"names", "mode", "ignore_index", "background", "regions"}  # of labels, in docs/reference/data.md
    missing = [word for word in (*keys, *names) if word not in elsewhere and not re.search(rf"`(\w+\.)?{word}`", page)]
    assert not missing


QUICKSTART = next(path for path in CONFIGS if path.stem == "quickstart")


def test_a_preset_stands_for_its_transforms():
    """In the resolved configuration, so that a change of the preset is another experiment."""
    short = load_config(QUICKSTART, ["augment={engine: albumentations, preset: medium}"])
    affine = "{name: affine, rotate: 15, scale: 0.2, shift: 0.0, p: 0.7}"
    transforms = f"[horizontal_flip, {affine}, brightness_contrast]"
    written = load_config(QUICKSTART, [f"augment={{engine: albumentations, transforms: {transforms}}}"])
    assert short.augment == written.augment
    assert short.digest() == written.digest()
    more = load_config(QUICKSTART, ["augment={engine: albumentations, preset: light, transforms: [vertical_flip]}"])
    assert [one.name for one in more.augment.transforms] == ["horizontal_flip", "affine", "vertical_flip"]


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("{engine: albumentations, preset: huge}", "augment.preset: expected one of none, light, medium, strong"),
        ("{engine: torchvision, preset: nnunet}", "for the engine torchvision, got nnunet"),
        ("{preset: light}", "transforms need an engine: 'albumentations', 'torchvision' or 'monai'"),
        ("{swap_on_flip: [left, right]}", r"expected pairs of class names, such as \[\[left, right\]\]"),
        ("{swap_on_flip: [[a, b], [b, c]]}", "expected each class in one pair only"),
    ],
)
def test_augmentations_that_do_not_work(augment, message):
    with pytest.raises(ValueError, match=message):
        load_config(QUICKSTART, [f"augment={augment}"])


def test_classes_that_a_mirror_exchanges():
    labels = "labels={names: [background, left, right]}"
    augment = "augment={engine: albumentations, transforms: [{name: horizontal_flip, p: 1.0}], swap_on_flip: [[%s]]}"
    config = load_config(QUICKSTART, [labels, augment % "left, right"])
    mask = np.array([[0, 1, 2, 255]] * 2, np.uint8)
    _image, moved = build_augment_from(config, build_labels(config))(np.zeros((1, 2, 4), np.float32), mask, 0)
    assert moved[0].tolist() == [255, 1, 2, 0]
    config = load_config(QUICKSTART, [labels, augment % "left, rihgt"])
    with pytest.raises(ValueError, match="background, left, right, got rihgt"):
        build_augment_from(config, build_labels(config))
