"""Several checkpoints as one model, test-time augmentation, and what `predict` writes beside the masks."""

import json
import os
import shutil
import socket

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import segkit
from segkit.commands import prediction_jobs
from segkit.utils import leases

from support.command_line import TINY, tool
from support.processes import FORKS

pytestmark = pytest.mark.usefixtures("without_figures")

FAST = "evaluation: {overlays: false}\n"
FOLDED = """\
labels: {names: [background, a]}
data: {name: pairs, images: set/images, masks: set/masks}
split: {name: kfold, folds: 3}
augment: {engine: albumentations, transforms: [horizontal_flip, vertical_flip, rotate90]}
loader: {batch: 2}
model: {name: unet, widths: [4, 8]}
loss: dice_ce
optimizer: {name: adamw, lr: 1e-2}
train: {steps: 6}
comparison: {losses: [dice_ce], seeds: 1, folds: 3}
evaluation: {overlays: false, calibration: true}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with three runs of one configuration, one with other intensities, and some images."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(TINY + FAST)
    for seed in range(3):
        tool("train", "--config", "tiny.yaml", f"run.dir=run{seed}", f"seed={seed}", folder=folder)
    tool("train", "--config", "tiny.yaml", "run.dir=other", "preprocess.intensity=dataset", folder=folder)
    (folder / "in").mkdir()
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        pixels = np.random.default_rng(seed).integers(0, 255, (26, 34)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The folder of a comparison over three folds of twelve cases of several sizes."""
    folder = tmp_path_factory.mktemp("folds")
    random = np.random.default_rng(3)
    for kind in ("images", "masks"):
        (folder / "set" / kind).mkdir(parents=True)
    for number in range(12):
        pixels = random.integers(0, 255, (16 + 4 * (number % 3), 24)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "set" / "images" / f"{number}.png")
        Image.fromarray((pixels > 127).astype(np.uint8)).save(folder / "set" / "masks" / f"{number}.png")
    (folder / "folded.yaml").write_text(FOLDED)
    tool("compare", "--config", "folded.yaml", "--out", "out", folder=folder)
    return folder


def checkpoints(folder, *names):
    return [argument for name in names for argument in ("--checkpoint", folder / name)]


def predict(folder, output, *arguments, code=0):
    return tool("predict", "--input", folder / "in", "--output", output, *arguments, code=code)


def mask(folder, name):
    return np.asarray(Image.open(folder / f"{name}.png"))


def mean_probabilities(folder, names, image):
    return np.mean([segkit.load(folder / name).probabilities(image).astype(np.float64) for name in names], axis=0)


@pytest.mark.parametrize("names", [("run0", "run1", "run2"), ("run0", "other"), ("run0", "run1", "other")])
def test_an_ensemble_is_the_mean_of_the_probabilities(runs, tmp_path, names):
    """Also of networks that see the image with other intensities."""
    predict(runs, tmp_path, *checkpoints(runs, *names), "--probabilities", "--uncertainty")
    for name in "abc":
        expected = mean_probabilities(runs, names, runs / "in" / f"{name}.png")
        written = np.load(tmp_path / "probabilities" / f"{name}.npz")
        assert written["values"].dtype == np.float16
        assert written["names"].tolist() == ["background", "a", "b"]
        np.testing.assert_allclose(written["values"], expected, atol=6e-4)
        sure = np.ptp(np.sort(expected, 0)[-2:], 0)
        assert ((mask(tmp_path, name) == expected.argmax(0)) | (sure < 1e-5)).all()
        entropies = -(expected * np.log(expected)).sum(0)
        np.testing.assert_allclose(np.load(tmp_path / "entropy" / f"{name}.npz")["values"][0], entropies, atol=2e-3)
        each = [segkit.load(runs / run).probabilities(runs / "in" / f"{name}.png").astype(float) for run in names]
        mutual = entropies - np.mean([-(part * np.log(part)).sum(0) for part in each], axis=0)
        np.testing.assert_allclose(np.load(tmp_path / "disagreement" / f"{name}.npz")["values"][0], mutual, atol=1e-3)
    model = segkit.load([runs / name for name in names])
    np.testing.assert_array_equal(model.predict(runs / "in" / "a.png"), mask(tmp_path, "a"))
    assert "run0" in repr(model)


def test_test_time_augmentation_is_the_mean_over_both_flips(runs, tmp_path):
    predict(runs, tmp_path, *checkpoints(runs, "run0"), "--tta", "--probabilities")
    model = segkit.load(runs / "run0")
    pixels = np.asarray(Image.open(runs / "in" / "b.png"))
    flipped = model.probabilities(np.ascontiguousarray(pixels[:, ::-1]))[..., ::-1]
    expected = (model.probabilities(pixels) + flipped) / 2
    np.testing.assert_allclose(np.load(tmp_path / "probabilities" / "b.npz")["values"], expected, atol=6e-4)
    record = json.loads((tmp_path / "prediction.json").read_text())
    assert record["orientations"] == ["as it is", "axis 1 flipped"]
    with_tta = segkit.load(runs / "run0", tta=True)
    np.testing.assert_allclose(with_tta.probabilities(pixels), expected, atol=1e-6)


def test_what_cannot_be_averaged_is_refused(runs, tmp_path):
    (runs / "names.yaml").write_text(TINY.replace("background, a, b", "background, a, c") + FAST)
    (runs / "still.yaml").write_text(TINY.replace("transforms: [horizontal_flip]", "transforms: []") + FAST)
    for name in ("names", "still"):
        if not (runs / name).exists():
            tool("train", "--config", f"{name}.yaml", f"run.dir={name}", "train.steps=1", folder=runs)
    printed = predict(runs, tmp_path / "x", *checkpoints(runs, "run0", "names"), code=2)
    assert "cannot be averaged: classes ['background', 'a', 'b'] and ['background', 'a', 'c']" in " ".join(
        printed.split()
    )
    assert "got one twice" in predict(runs, tmp_path / "x", *checkpoints(runs, "run0", "run0"), code=2)
    printed = predict(runs, tmp_path / "x", *checkpoints(runs, "still"), "--tta", code=2)
    assert "random flips or right-angle turns" in printed
    assert "needs one --checkpoint" in predict(
        runs, tmp_path / "x", *checkpoints(runs, "run0", "run1"), "--loss", "dice", code=2
    )
    assert "runs.csv" in predict(runs, tmp_path / "x", *checkpoints(runs, "run0"), "--loss", "dice", code=2)
    printed = tool("evaluate", *checkpoints(runs, "run0", "run1"), "--ensemble", code=2)
    assert "choose a folder for the scores with --out" in printed
    assert "--tta differs" in tool("evaluate", *checkpoints(runs, "run0"), "--tta", code=2)
    assert not (tmp_path / "x").exists()


# --- masks that exist ------------------------------------------------------------------------------------------------


def test_masks_that_exist_are_kept_or_replaced_when_asked(runs, tmp_path):
    arguments = checkpoints(runs, "run0")
    predict(runs, tmp_path, *arguments)
    first = {name: (tmp_path / f"{name}.png").read_bytes() for name in "abc"}
    printed = predict(runs, tmp_path, *arguments, code=2)
    assert "3 files exist" in printed
    assert "--skip-existing" in printed
    assert "--overwrite" in printed
    (tmp_path / "a.png").write_bytes(b"kept as it is")
    (tmp_path / "b.png").unlink()
    printed = predict(runs, tmp_path, *arguments, "--skip-existing")
    assert "1 masks written" in printed
    assert "2 images had their masks" in printed
    assert (tmp_path / "a.png").read_bytes() == b"kept as it is"
    assert (tmp_path / "b.png").read_bytes() == first["b"]
    assert "differ" in predict(runs, tmp_path, *checkpoints(runs, "run1"), "--skip-existing", code=2)
    assert "either" in predict(runs, tmp_path, *arguments, "--skip-existing", "--overwrite", code=2)
    predict(runs, tmp_path, *checkpoints(runs, "run1"), "--overwrite")
    model = segkit.load(runs / "run1")
    for name in "abc":
        np.testing.assert_array_equal(mask(tmp_path, name), model.predict(runs / "in" / f"{name}.png"))
    printed = predict(runs, tmp_path, *checkpoints(runs, "run1"), "--skip-existing", "--uncertainty", "--overlays")
    assert "3 masks written" in printed, "an image without all the files that are asked for is not finished"
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["a.png", "b.png", "c.png"]
    assert Image.open(tmp_path / "overlays" / "a.png").size[0] > 300
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["entropy", "overlays"]


def test_masks_of_unknown_origin_are_not_mixed_with_new_ones(runs, tmp_path):
    shutil.copy(runs / "in" / "a.png", tmp_path / "a.png")
    assert "of unknown origin" in predict(runs, tmp_path, *checkpoints(runs, "run0"), "--skip-existing", code=2)
    predict(runs, tmp_path, *checkpoints(runs, "run0"), "--overwrite")


def test_an_image_that_another_process_has_taken_is_left_to_it(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_jobs, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(prediction_jobs, "LOOK_SECONDS", 0.1)
    with leases.Leases().acquire(tmp_path / ".b.png") as acquired:
        assert acquired
        printed = predict(runs, tmp_path, *checkpoints(runs, "run0"))
    assert "2 masks written" in printed
    assert "1 images are left to other processes" in printed
    assert "1 masks written" in predict(runs, tmp_path, *checkpoints(runs, "run0"), "--skip-existing")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_image_of_a_process_that_dies_is_predicted(runs, tmp_path, monkeypatch):
    """Also of one on another machine, whose lease ends after a time without a sign of life."""
    monkeypatch.setattr(prediction_jobs, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(prediction_jobs, "WAIT_SECONDS", 5.0)
    monkeypatch.setattr("segkit.utils.leases.LEASE_SECONDS", 1.0)
    process = FORKS.Process(target=take_and_die, args=(tmp_path / ".b.png", 1.0))
    process.start()
    process.join()
    lease = tmp_path / ".b.png.lease"
    lease.write_text(lease.read_text().replace(socket.gethostname(), "another-machine"))
    assert "another-machine" in lease.read_text()
    assert "3 masks written" in predict(runs, tmp_path, *checkpoints(runs, "run0"))
    assert not lease.exists()


def test_an_interrupted_replacement_leaves_no_old_masks(runs, tmp_path, monkeypatch):
    """Whatever is there after `--overwrite` was stopped is of the new checkpoint."""
    predict(runs, tmp_path, *checkpoints(runs, "run0"))

    def stop(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("segkit.commands.predict.write_mask", stop)
        predict(runs, tmp_path, *checkpoints(runs, "run1"), "--overwrite", code=2)
    assert list(tmp_path.glob("*.png")) == []
    printed = predict(runs, tmp_path, *checkpoints(runs, "run1"), "--skip-existing")
    assert "3 masks written" in printed


def test_a_part_of_a_folder_is_not_replaced_by_another_checkpoint(runs, tmp_path):
    predict(runs, tmp_path, *checkpoints(runs, "run0"))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    arguments = ["--input", runs / "in" / "a.png", "--output", tmp_path, "--overwrite"]
    printed = tool("predict", *checkpoints(runs, "run1"), *arguments, code=2)
    assert "predicted in another way" in " ".join(printed.split())
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == before
    tool("predict", *checkpoints(runs, "run0"), *arguments)


def take_and_die(folder, seconds=leases.LEASE_SECONDS):
    leases.LEASE_SECONDS = seconds
    with leases.Leases().acquire(folder):
        os._exit(1)


def test_leases_of_killed_processes_are_removed(runs, tmp_path):
    predict(runs, tmp_path, *checkpoints(runs, "run0"))
    process = FORKS.Process(target=take_and_die, args=(tmp_path / ".a.png",))
    process.start()
    process.join()
    assert (tmp_path / ".a.png.lease").exists()
    predict(runs, tmp_path, *checkpoints(runs, "run0"), "--skip-existing")
    assert not (tmp_path / ".a.png.lease").exists()


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("run0", "run1", "run2"), ("run0", "other")])
def test_an_ensemble_is_evaluated_as_its_masks_are(runs, tmp_path, names):
    """The table of `evaluate --ensemble` is that of the masks of `predict` for the same images."""
    tool("evaluate", *checkpoints(runs, *names), "--ensemble", "--out", tmp_path / "scores")
    cases = segkit.load(runs / "run0")._trained.data().evaluation_set("test")
    model = segkit.load([runs / name for name in names])
    masks = [model.predict(cases.raw(number).image) for number in range(len(cases))]
    references = [cases.raw(number).mask for number in range(len(cases))]
    expected = segkit.evaluate(masks, references, model.labels, cases=[case.name for case in cases.cases])
    table = pd.read_csv(tmp_path / "scores" / "cases.csv")
    columns = ["case", "class", "tp", "predicted", "reference"]
    pd.testing.assert_frame_equal(table[columns], expected.cases[columns], check_dtype=False)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["checkpoint"] == f"average of {len(names)} checkpoints"
    assert [member["checkpoint"] for member in scores["members"]] == [
        str(runs / name / "checkpoints" / "last.pt") for name in names
    ]
    assert scores["split"] == "test"
    assert "orientations" not in scores


def test_an_evaluation_says_that_it_was_augmented(runs, tmp_path):
    tool("evaluate", *checkpoints(runs, "run0"), "--tta", "--out", tmp_path / "one")
    scores = json.loads((tmp_path / "one" / "scores.json").read_text())
    assert scores["orientations"] == ["as it is", "axis 1 flipped"]
    result = segkit.load(runs / "run0", tta=True).evaluate(out=tmp_path / "two")
    assert result["mean"] == scores["mean"]


def test_folds_are_judged_as_one_table(comparison, tmp_path):
    """With one seed, each case has the counts that the run of its own fold recorded."""
    out = comparison / "out"
    runs = pd.read_csv(out / "runs.csv")
    assert runs["loss"].tolist() == ["dice_ce"] * 3
    tool("evaluate", "--checkpoint", out, "--loss", "dice_ce", "--out", tmp_path, folder=comparison)
    tables = [pd.read_csv(out / folder / "evaluation" / "validation" / "cases.csv") for folder in runs["folder"]]
    columns = ["case", "class", "tp", "predicted", "reference"]
    expected, found = (
        table[columns].sort_values(["case", "class"], ignore_index=True)
        for table in (pd.concat(tables), pd.read_csv(tmp_path / "cases.csv"))
    )
    pd.testing.assert_frame_equal(found, expected)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["cases"] == 12
    assert scores["checkpoint"] == "3 checkpoints of 3 folds"
    assert scores["split"] == "out of fold, 3 folds"
    assert len(scores["members"]) == 3
    assert "calibration" in scores


def test_folds_with_some_cases_in_common_are_refused(comparison, tmp_path):
    runs = [comparison / "out" / folder for folder in pd.read_csv(comparison / "out" / "runs.csv")["folder"]]
    (comparison / "other.yaml").write_text(FOLDED.replace("folds: 3}", "folds: 2}", 1))
    tool("train", "--config", "other.yaml", "run.dir=other", folder=comparison)
    arguments = ["--checkpoint", runs[0], "--checkpoint", comparison / "other", "--ensemble", "--out", tmp_path]
    printed = tool("evaluate", *arguments, folder=comparison, code=2)
    assert "share a part of their cases" in " ".join(printed.split())


def test_the_loss_of_a_comparison_is_chosen(comparison, tmp_path):
    arguments = ["--input", comparison / "set" / "images", "--output", tmp_path / "out"]
    printed = tool("predict", "--checkpoint", comparison / "out", *arguments, code=2)
    assert "--loss (dice_ce)" in printed
    printed = tool("evaluate", "--checkpoint", comparison / "out", code=2)
    assert "out is a comparison: choose one of its losses with --loss (dice_ce" in printed
    printed = tool("predict", "--checkpoint", comparison / "out", "--loss", "dice", *arguments, code=2)
    assert "one of dice_ce, got dice" in printed
    tool("predict", "--checkpoint", comparison / "out", "--loss", "dice_ce", "--tta", *arguments)
    assert len(list((tmp_path / "out").glob("*.png"))) == 12
    runs = pd.read_csv(comparison / "out" / "runs.csv")
    partly = tmp_path / "partly"
    shutil.copytree(comparison / "out", partly)
    runs[:2].to_csv(partly / "runs.csv", index=False)
    arguments = ["--checkpoint", partly, "--loss", "dice_ce", "--out", tmp_path / "scores"]
    printed = " ".join(tool("evaluate", *arguments, folder=comparison).split())
    assert "2 of 3 planned runs of dice_ce have finished" in printed
    assert len(json.loads((tmp_path / "out" / "prediction.json").read_text())["orientations"]) == 8
