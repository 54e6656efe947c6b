"""Exported networks predict what the trained model predicts, without segkit, and nothing else is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import segkit
from segkit.experiment import exported_network

from support.command_line import TINY, tool
from support.pages import blocks

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "export.md"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two runs, and a picture."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.yaml").write_text(TINY + "evaluation: {overlays: false}\n")
    for seed in range(2):
        tool("train", "--config", "tiny.yaml", f"run.dir=run{seed}", f"seed={seed}", folder=folder)
    pixels = np.random.default_rng(0).integers(0, 255, (37, 50)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def exported(runs):
    tool("export", "--checkpoint", runs / "run0", "--out", runs / "onnx", folder=runs)
    return runs / "onnx"


def test_the_folder_is_complete(exported):
    assert sorted(path.name for path in exported.iterdir()) == ["MODEL_CARD.md", "model.json", "model.onnx"]
    content = json.loads((exported / "model.json").read_text())
    assert content["input"]["channels"] == 1
    assert content["input"]["multiple_of"] == [2, 2]
    assert content["output"]["classes"] == ["background", "a", "b"]
    assert content["preprocessing"]["normalise"]["name"] == "zscore"
    assert len(content["check"]["images"]) == 3
    assert content["check"]["largest_difference"] <= 1e-4
    assert content["check"]["equal_pixels"] >= 0.9999


def test_the_card_has_the_scores_of_the_run_and_room_for_the_rest(runs, exported):
    card = (exported / "MODEL_CARD.md").read_text()
    scores = json.loads((runs / "run0" / "evaluation" / "test" / "scores.json").read_text())
    assert f"| a | {scores['classes']['a']['dice']['mean']:.3f} (" in card
    assert "Test, 12 cases" in card
    assert "spurious class counts as 0" in card
    assert "8 train cases, 4 validation cases, 12 test cases" in card
    assert card.count("_To be filled in._") == 3
    assert str(runs) not in card, "paths of the machine stay on it"


@pytest.mark.parametrize("size", [(2, 24, 40), (1, 38, 26)])
def test_batch_and_size_are_free(runs, exported, size):
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 3, "height", "width"]
    batch, *sides = size
    image = np.random.default_rng(1).standard_normal((batch, 1, *sides)).astype(np.float32)
    (logits,) = session.run(None, {"image": image})
    with torch.no_grad():
        expected = segkit.load(runs / "run0").network(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_lines_of_the_documentation_predict_the_same_mask(runs, exported, monkeypatch):
    """The code of the page, word by word, in the folder of the export."""
    code = blocks(PAGE, ["python"])[0]
    assert "segkit" not in code.replace("segkit.load", ""), "the lines need no segkit"
    assert len(code.strip().splitlines()) <= 15
    monkeypatch.chdir(exported)
    (exported / "image.png").write_bytes((runs / "picture.png").read_bytes())
    exec(code, {})  # the code of our own page
    found = np.asarray(Image.open(exported / "mask.png"))
    (exported / "image.png").unlink()
    (exported / "mask.png").unlink()
    expected = segkit.load(runs / "run0").predict(runs / "picture.png")
    assert (found == expected).mean() > 0.9999


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_an_ensemble_with_test_time_augmentation(runs, tmp_path, kind):
    names = ["run0", "run1"]
    checkpoints = [argument for name in names for argument in ("--checkpoint", runs / name)]
    tool("export", *checkpoints, "--tta", "--format", kind, "--out", tmp_path / "out", folder=runs)
    image = torch.randn(1, 1, 24, 32)
    network = exported_network.ExportedNetwork(tmp_path / "out" / exported_network.FILES[kind], kind)
    model = segkit.load([runs / name for name in names], tta=True)
    with torch.no_grad():
        expected = model._ensemble.predictor.model(image)
        torch.testing.assert_close(network(image), expected, atol=1e-4, rtol=0)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "2, of which the probabilities are averaged" in card
    assert "2 checkpoint(s) over 2 orientation(s)" in card


def test_a_file_that_predicts_otherwise_is_not_written(runs, tmp_path, monkeypatch):
    forward = exported_network.ExportedNetwork.forward
    monkeypatch.setattr(exported_network.ExportedNetwork, "forward", lambda self, image: 1.01 * forward(self, image))
    printed = tool("export", "--checkpoint", runs / "run0", "--out", tmp_path / "out", folder=runs, code=2)
    assert "predicts otherwise" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_an_error_with_the_reason(runs, tmp_path, monkeypatch):
    def forward(self, image):
        return self.original(image) * (2 if float(image.sum()) > 0 else 1)

    from segkit.models.unet import UNet

    monkeypatch.setattr(UNet, "original", UNet.forward, raising=False)
    monkeypatch.setattr(UNet, "forward", forward)
    printed = tool("export", "--checkpoint", runs / "run0", "--out", tmp_path / "out", folder=runs, code=2)
    assert "the network cannot be exported" in printed
    assert "--size" in printed
    assert list(tmp_path.iterdir()) == []


def test_one_size_and_own_images(runs, tmp_path):
    """Images that are larger than the size are predicted in windows of it, smaller ones are padded to it."""
    for size in ("16,20", "64,64"):
        arguments = ["--checkpoint", runs / "run0", "--size", size, "--input", runs / "picture.png"]
        tool("export", *arguments, "--out", tmp_path / size, folder=runs)
    arguments[3] = "38,50"
    tool("export", *arguments, "--out", tmp_path / "out", folder=runs)
    content = json.loads((tmp_path / "out" / "model.json").read_text())
    assert content["input"]["size"] == content["window"]["size"] == [38, 50]
    assert content["check"]["images"] == ["picture.png"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 38, 50]


def test_what_is_refused(runs, exported, tmp_path):
    assert "is not empty" in tool("export", "--checkpoint", runs / "run0", "--out", exported, folder=runs, code=2)
    printed = tool(
        "export", "--checkpoint", runs / "run0", "--out", tmp_path / "x", "--format", "tf", folder=runs, code=2
    )
    assert "onnx or torch" in printed
    if not (runs / "other").exists():
        overrides = ["preprocess.intensity=dataset", "train.steps=1"]
        tool("train", "--config", "tiny.yaml", f"run.dir={runs / 'other'}", *overrides, folder=runs)
    checkpoints = ["--checkpoint", runs / "run0", "--checkpoint", runs / "other"]
    printed = tool("export", *checkpoints, "--out", tmp_path / "x", folder=runs, code=2)
    assert "see an image in the same way" in " ".join(printed.split())
    printed = tool(
        "export", "--checkpoint", runs / "run0", "--size", "a,b", "--out", tmp_path / "x", folder=runs, code=2
    )
    assert "whole numbers" in printed
    assert not (tmp_path / "x").exists()


def test_differences_that_are_not_finite_are_differences(runs, tmp_path, monkeypatch):
    forward = exported_network.ExportedNetwork.forward
    monkeypatch.setattr(
        exported_network.ExportedNetwork, "forward", lambda self, image: forward(self, image) + float("inf")
    )
    printed = tool("export", "--checkpoint", runs / "run0", "--out", tmp_path / "out", folder=runs, code=3)
    assert "expected finite logits" in printed
    assert list(tmp_path.iterdir()) == []


def test_decisions_are_exported_as_numbers_and_the_card_says_what_was_scored(runs, tmp_path):
    shutil.copytree(runs / "run0", tmp_path / "run")
    tool("tune", "--checkpoint", tmp_path / "run", folder=runs)
    file = tmp_path / "run" / "checkpoints" / "last.decisions.json"
    content = json.loads(file.read_text())
    value = {"smallest": 9, "largest": True, "fill": False}
    content["post_processing"]["a"] |= {"value": value, "kept": True}
    file.write_text(json.dumps(content))
    tool("export", "--checkpoint", tmp_path / "run", "--out", tmp_path / "out", folder=runs)
    exported = json.loads((tmp_path / "out" / "model.json").read_text())["decoding"]["post_processing"]["a"]
    assert {name: exported[name] for name in value} == value
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "a: objects of fewer than 9 pixels removed, largest object only" in card
    assert "scores of the network alone" in card
