"""segkit from Python: it does what the commands do, and scores arrays as independent libraries do."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from scipy import ndimage

import segkit
from segkit.config import ConfigError
from segkit.utils.errors import DataError, RunError

from support.command_line import TINY, tool, write_pairs
from support.pages import blocks

pytestmark = pytest.mark.usefixtures("without_figures")

LABELS = segkit.Labels(["background", "a", "b"], ignore_index=255)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.yaml").write_text(TINY)
    result = segkit.train(folder / "tiny.yaml", [f"run.dir={folder / 'run'}"], verbose=False)
    return folder, result


def test_training_returns_scores_folder_and_model(trained):
    folder, result = trained
    assert result.folder == folder / "run"
    assert result.scores == json.loads((folder / "run/evaluation/test/scores.json").read_text())
    assert result.model is result.model
    assert result.model.labels.names == ("background", "a", "b")


def test_a_mapping_is_the_same_experiment_as_its_file(trained, tmp_path):
    _, result = trained
    mapping = YAML(typ="safe").load(TINY)
    again = segkit.train(mapping, [f"run.dir={tmp_path / 'run'}"], verbose=False)
    assert again.scores["mean"] == result.scores["mean"]


def test_a_shipped_configuration_has_a_name():
    with pytest.raises(ConfigError, match=r"model\.depth"):
        segkit.train("quickstart", ["model.depth=3"], verbose=False)
    with pytest.raises(ConfigError, match="quickstar: cannot read the configuration"):
        segkit.train("quickstar")


def test_a_model_predicts_what_the_command_writes(trained, tmp_path):
    folder, _ = trained
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 40, 24)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    tool("predict", "--checkpoint", folder / "run", "--input", tmp_path / "image.npy", "--output", tmp_path / "out")
    written = np.load(tmp_path / "out/image.npy")
    model = segkit.load(folder / "run")
    for same in (image, image[0], torch.from_numpy(image), tmp_path / "image.npy", str(tmp_path / "image.npy")):
        np.testing.assert_array_equal(model.predict(same), written)
    probabilities = model.probabilities(image)
    assert probabilities.shape == (3, 40, 24)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(0), written)
    assert "multiclass, background, a, b" in repr(model)


@pytest.mark.parametrize("ending", ["png", "npy"])
@pytest.mark.parametrize("intensity", ["none", "zscore"])
def test_an_array_is_predicted_as_the_file_that_holds_it(tmp_path, ending, intensity):
    """Integers of image files are scaled to 0..1, those of NPY files are not; `none` sees the difference."""
    write_pairs(tmp_path)
    for file in [*tmp_path.glob("*/*.bmp")]:
        pixels = np.asarray(Image.open(file))
        np.save(file.with_suffix(".npy"), pixels) if ending == "npy" else Image.fromarray(pixels).save(
            file.with_suffix(".png")
        )
        file.unlink()
    config = {
        "labels": {"names": ["background", "a"]},
        "data": {"name": "pairs", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")},
        "split": {"name": "kfold", "folds": 3},
        "preprocess": {"intensity": intensity},
        "model": {"name": "unet", "widths": [4, 8]},
        "loss": "dice",
        "optimizer": "adamw",
        "loader": {"batch": 2},
        "train": {"steps": 2},
        "evaluation": {"overlays": False},
    }
    model = segkit.train(config, [f"run.dir={tmp_path / 'run'}"], verbose=False).model
    file = tmp_path / "images" / f"0.{ending}"
    array = np.load(file) if ending == "npy" else np.asarray(Image.open(file))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(model.probabilities(array), model.probabilities(file))
    as_read = array.astype(np.float32) / (255 if ending == "png" else 1)
    np.testing.assert_array_equal(model.probabilities(array), model.probabilities(as_read))
    if ending == "png":
        with pytest.raises(DataError, match=r"uint8 or uint16.*int64"):
            model.predict(array.astype(np.int64))


def test_images_that_do_not_fit_are_refused(trained):
    model = trained[1].model
    with pytest.raises(DataError, match=r"expected an image \[1, H, W\], got \[3, 32, 32\]"):
        model.predict(np.zeros((3, 32, 32)))
    with pytest.raises(DataError, match=r"moveaxis"):
        model.predict(np.zeros((32, 32, 1)))
    with pytest.raises(DataError, match=r"\[7\]"):
        model.predict(np.zeros(7))
    with pytest.raises(DataError, match=r"NaN|finite"):
        model.predict(np.full((1, 32, 32), np.nan))
    with pytest.raises(ValueError, match="2 positive lengths"):
        model.predict(np.zeros((32, 32)), spacing=(1, 1, 1))


def test_a_model_evaluates_as_the_command_does(trained, tmp_path):
    _, result = trained
    assert result.model.evaluate()["mean"] == result.scores["mean"]
    other = result.model.evaluate("validation", out=tmp_path, overrides=["evaluation.metrics=[hd95]"])
    assert other["split"] == "validation"
    assert "hd95" in other["classes"]["a"]
    with pytest.raises(RunError, match="--out"):
        result.model.evaluate(overrides=["evaluation.metrics=[hd95]"])


def masks(seed, number=4):
    rng = np.random.default_rng(seed)
    shapes = [(20, 30), (16, 16), (25, 12), (8, 40)][:number]
    return [
        (ndimage.gaussian_filter(rng.normal(size=shape), 2) * 12).round().clip(0, 2).astype(np.uint8)
        for shape in shapes
    ]


def test_arrays_are_scored_as_by_hand():
    predictions, references = masks(0), masks(1)
    references[0][:4] = 255
    result = segkit.evaluate(predictions, references, LABELS, cases=["p", "q", "r", "s"])
    table = result.cases.set_index(["case", "class"])
    for name, prediction, reference in zip("pqrs", predictions, references, strict=True):
        valid = reference != 255
        for number, label in enumerate(LABELS.names):
            predicted, there = (prediction == number) & valid, (reference == number) & valid
            if predicted.any() or there.any():
                dice = 2 * (predicted & there).sum() / (predicted.sum() + there.sum())
                assert table.loc[(name, label), "dice"] == pytest.approx(dice)
    assert result.scores["cases"] == 4
    assert result.scores["rules"]["id"].startswith("segkit")


def test_arrays_tensors_and_names_are_the_same():
    predictions, references = masks(2), masks(3)
    expected = segkit.evaluate(predictions, references, segkit.Labels(["background", "a", "b"]))
    for form in (torch.from_numpy, lambda mask: mask.astype(np.float32), lambda mask: mask.astype(np.int64), list):
        again = segkit.evaluate(
            [form(mask) for mask in predictions], [form(mask) for mask in references], ["background", "a", "b"]
        )
        pd.testing.assert_frame_equal(again.cases, expected.cases)
        assert again.scores == expected.scores


@pytest.mark.parametrize("form", [lambda m: m[::-1, ::-1], lambda m: m.astype(">i4"), lambda m: m.tolist()])
def test_masks_of_any_layout_are_accepted(form):
    """Flipped views, big-endian and read-only arrays, and nested lists."""
    mask = masks(1)[0]
    expected = segkit.evaluate([mask], [mask], LABELS).scores["mean"]
    assert segkit.evaluate([form(mask)], [form(mask)], LABELS).scores["mean"] == expected


def test_definitions_and_strata_are_options():
    predictions, references = masks(2), masks(3)
    table = {"predictions": predictions, "references": references, "labels": ["background", "a", "b"]}
    found = {
        matching: segkit.evaluate(
            **table,
            metrics=["lesion_f1", "rq"],
            options={"lesion_matching": matching, "component_iou": 0.1},
            size_strata=2,
        )
        for matching in ("overlap", "iou")
    }
    means = {matching: result.scores["mean"] for matching, result in found.items()}
    assert means["iou"]["lesion_f1"] == means["iou"]["rq"] < means["overlap"]["lesion_f1"]
    strata = found["iou"].scores["by_size"]["classes"]["a"]["strata"]
    assert sum(stratum["cases"] for stratum in strata) == 4
    with pytest.raises(ValueError, match=r"options to be some of tolerance_mm, .*got matching"):
        segkit.evaluate(**table, options={"matching": "iou"})


def test_distances_follow_the_spacing():
    """A plane that is moved by two pixels of 3 mm is 6 mm away."""
    reference = np.zeros((1, 12, 12), np.uint8)
    prediction = reference.copy()
    reference[0, :4], prediction[0, :6] = 1, 1
    labels = ["background", "a"]
    near = segkit.evaluate(prediction, reference, labels, metrics=["hd95"])
    far = segkit.evaluate(prediction, reference, labels, metrics=["hd95"], spacing=(3.0, 1.0))
    each = segkit.evaluate(prediction, reference, labels, metrics="hd95", spacing=[np.float32([3.0, 1.0])])
    assert near.scores["classes"]["a"]["hd95"]["mean"] == 2
    assert far.scores["classes"]["a"]["hd95"]["mean"] == each.scores["classes"]["a"]["hd95"]["mean"] == 6


def test_overlapping_classes():
    labels = segkit.Labels(["a", "b"], mode="multilabel")
    reference = np.zeros((1, 2, 6, 6), np.uint8)
    reference[0, 0, :3], reference[0, 1, :2] = 1, 1
    prediction = reference.copy()
    prediction[0, 1, 1] = 0
    scores = segkit.evaluate(prediction.astype(bool), reference, labels).scores["classes"]
    assert (scores["a"]["dice"]["mean"], scores["b"]["dice"]["mean"]) == (1, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"predictions": masks(0, 2)}, ValueError, "same length"),
        ({"predictions": [mask[1:] for mask in masks(0)]}, DataError, "case 0: expected masks of one shape"),
        ({"predictions": [mask + 5 for mask in masks(0)]}, DataError, "case 0.*prediction"),
        ({"predictions": [mask * 0.3 for mask in masks(0)]}, DataError, "whole numbers.*argmax"),
        ({"metrics": ["dise"]}, ValueError, "dise|metrics"),
        ({"rules": "none"}, ValueError, "rules"),
        ({"cases": ["one"]}, ValueError, "same length"),
        ({"spacing": [(1, 1), (1, 1)]}, ValueError, "one spacing"),
        ({"spacing": (1, 1, 1)}, ValueError, "2 lengths"),
        ({"spacing": 2.0}, ValueError, "one number per axis"),
        ({"spacing": (float("nan"), 1)}, ValueError, "positive"),
        ({"cases": ["a", "a", "b", "c"]}, ValueError, "different name"),
        ({"labels": "abc"}, ValueError, "list of class names"),
        ({"predictions": masks(0)[0], "references": masks(1)[0]}, DataError, r"\[mask\]"),
        ({"predictions": ["a.png"] * 4}, DataError, "case 0"),
    ],
)
def test_what_cannot_be_scored_is_named(change, error, message):
    arguments = {"predictions": masks(0), "references": masks(1), "labels": LABELS} | change
    with pytest.raises(error, match=message):
        segkit.evaluate(**arguments)


def test_losses_are_compared_as_by_the_command(trained, tmp_path):
    folder, _ = trained
    arguments = (folder / "tiny.yaml", ["dice", "cross_entropy"])
    result = segkit.compare_losses(
        *arguments, seeds=2, out=tmp_path / "out", overrides=["train.steps=2"], verbose=False
    )
    assert {loss["name"] for loss in result.result["losses"]} == {"dice", "cross_entropy"}
    assert list(result.verdicts["verdict"]) == [result.result["pairs"][0]["verdict"]]
    assert set(result.table["loss"]) == {"dice", "cross_entropy"}
    assert result.folder == tmp_path / "out"
    units = sorted(path.name for path in (tmp_path / "out/units").iterdir())
    tool("compare", "--config", folder / "tiny.yaml", "--losses", "dice,cross_entropy", "--seeds", "2", "--out",
         tmp_path / "out", "train.steps=2")  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out/units").iterdir()) == units


def test_numpy_masks_are_accepted_by_losses_and_counts():
    from segkit.losses import build_loss
    from segkit.metrics import count

    logits = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = np.random.default_rng(0).integers(0, 3, (2, 8, 9))
    loss = build_loss("dice_ce", LABELS)
    for dtype in (np.uint8, np.uint16, np.int64, ">i4"):
        assert loss(logits, mask.astype(dtype)) == loss(logits, torch.from_numpy(mask))
    assert loss(logits, mask[:, ::-1]) == loss(logits, torch.from_numpy(mask[:, ::-1].copy()))
    prediction = logits.argmax(1).numpy()
    assert torch.equal(
        count(prediction, mask, LABELS), count(torch.from_numpy(prediction), torch.from_numpy(mask), LABELS)
    )


def test_readme_blocks_run(trained, tmp_path, monkeypatch):
    """Every Python block of the README, as it stands, in a folder of its own with the files that it names."""
    folder, _ = trained
    found = blocks(Path(__file__).parents[1] / "README.md", ["python"])
    assert found
    monkeypatch.chdir(tmp_path)
    for block in found:
        shortened = block.replace('"quickstart"', f'"{folder / "tiny.yaml"}"').replace("seeds=3", "seeds=1")
        exec(compile(shortened, "README.md", "exec"), {})
