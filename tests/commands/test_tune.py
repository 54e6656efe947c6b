"""`segkit tune`: what it writes, and that predict and evaluate apply it, for the right checkpoint, and say so."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import segkit
from segkit.inference.post_processing import PostProcess

from support.command_line import tool

pytestmark = pytest.mark.usefixtures("without_figures")

CONFIG = """\
labels: {names: [no, a], mode: binary}
data: {name: pairs, images: set/images, masks: set/masks}
split: {name: kfold, folds: 2}
augment: {engine: albumentations, transforms: [horizontal_flip]}
loader: {batch: 4}
model: {name: unet, widths: [4, 8]}
loss: {name: cross_entropy}
optimizer: {name: adamw, lr: 1e-2}
train: {steps: 30}
comparison: {losses: [cross_entropy], seeds: 1, folds: 2, steps: 60}
evaluation: {overlays: false, calibration: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bright discs that are rarely annotated: a network that is right has small probabilities, so 0.5 is too much."""
    folder = tmp_path_factory.mktemp("tune")
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / "set" / kind).mkdir(parents=True)
    rows, columns = np.indices((32, 32))
    for number in range(24):
        y, x = random.integers(8, 24, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 36
        pixels = np.where(disc, 170, 60) + random.normal(0, 10, disc.shape)
        annotated = disc & (random.random(disc.shape) < 0.4)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "set" / "images" / f"{number:02}.png")
        Image.fromarray(annotated.astype(np.uint8)).save(folder / "set" / "masks" / f"{number:02}.png")
    (folder / "config.yaml").write_text(CONFIG)
    tool("train", "--config", "config.yaml", "run.dir=run", folder=folder)
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """A copy of the run, to which decisions can be added."""
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run"


def tuned(run, folder, *arguments):
    printed = tool("tune", "--checkpoint", run, *arguments, folder=folder)
    file = run / "checkpoints" / "last.decisions.json"
    return json.loads(file.read_text()), " ".join(printed.split())


def dice(folder, run, out, *arguments):
    tool("evaluate", "--checkpoint", run, "--out", out, *arguments, folder=folder)
    scores = json.loads((out / "scores.json").read_text())
    return scores["classes"]["a"]["dice"]["mean"], scores


def test_a_threshold_that_gains_is_applied_and_told(folder, run, tmp_path):
    before, _scores = dice(folder, run, tmp_path / "before")
    content, printed = tuned(run, folder)
    chosen = content["thresholds"]["a"]
    assert chosen["kept"]
    assert 0.1 < chosen["value"] < 0.45, "the share of annotated pixels of discs is 0.4"
    assert chosen["ci95"][0] > 0
    assert content["cases"] == 12
    assert content["part"] == "validation"
    assert "95 % CI" in printed
    after, scores = dice(folder, run, tmp_path / "after")
    assert after > before + 0.1
    assert scores["threshold"] == {"a": chosen["value"]}
    assert scores["decisions"]["chosen_on"] == "validation"
    assert f"threshold of a {chosen['value']:g}" in scores["decisions"]["in_words"]
    printed = tool("evaluate", "--checkpoint", run, "--out", tmp_path / "told", folder=folder)
    assert "so this score is optimistic" in " ".join(printed.split())
    without, scores = dice(folder, run, tmp_path / "without", "--decisions", "none")
    assert without == before
    assert "decisions" not in scores


def test_predict_applies_them(folder, run, tmp_path):
    content, _printed = tuned(run, folder)
    image = folder / "set" / "images" / "00.png"
    printed = tool("predict", "--checkpoint", run, "--input", image, "--output", tmp_path / "masks", folder=folder)
    assert "decided on validation by dice" in printed
    probabilities = segkit.load(run, decisions="none").probabilities(image)[0]
    mask = np.asarray(Image.open(tmp_path / "masks" / "00.png"))
    expected = probabilities > content["thresholds"]["a"]["value"]
    process = content["post_processing"]["a"]
    expected = PostProcess(**process["value"]).apply(expected) if process["kept"] else expected
    np.testing.assert_array_equal(mask, expected)
    record = json.loads((tmp_path / "masks" / "prediction.json").read_text())
    assert record["decisions"]["metric"] == "dice"
    arguments = ["--checkpoint", run, "--input", image, "--output", tmp_path / "masks", "--skip-existing"]
    assert "1 images had their masks already" in tool("predict", *arguments, folder=folder)
    model = segkit.load(run)
    np.testing.assert_array_equal(model.predict(image), mask)
    assert model.decisions == record["decisions"]["in_words"]
    assert model.evaluate(out=tmp_path / "scores")["threshold"] == {"a": content["thresholds"]["a"]["value"]}
    assert segkit.load(run, decisions="none").decisions == []
    assert "decisions" in tool("predict", *arguments, "--decisions", "none", folder=folder, code=2)


def test_scores_in_the_run_folder_stay_those_of_the_run(folder, run):
    file = run / "evaluation" / "validation" / "scores.json"
    before = json.loads(file.read_text())
    tuned(run, folder)
    printed = tool("evaluate", "--checkpoint", run, folder=folder)
    assert "applied with --out only" in " ".join(printed.split())
    assert json.loads(file.read_text())["classes"] == before["classes"]
    decisions = run / "checkpoints" / "last.decisions.json"
    printed = tool("evaluate", "--checkpoint", run, "--decisions", decisions, folder=folder, code=2)
    assert "--decisions differs" in printed


def test_decisions_are_for_one_checkpoint(folder, run, tmp_path):
    tuned(run, folder)
    other = tmp_path / "other"
    tool("train", "--config", "config.yaml", f"run.dir={other}", "seed=1", "train.steps=2", folder=folder)
    file = run / "checkpoints" / "last.decisions.json"
    printed = tool(
        "evaluate", "--checkpoint", other, "--decisions", file, "--out", tmp_path / "x", folder=folder, code=2
    )
    assert "chosen for other checkpoints" in printed
    shutil.copy(file, other / "checkpoints")
    printed = tool("evaluate", "--checkpoint", other, "--out", tmp_path / "x", folder=folder)
    assert "not applied: they were chosen for other checkpoints" in " ".join(printed.split())
    assert "decisions" not in json.loads((tmp_path / "x" / "scores.json").read_text())
    printed = tool("evaluate", "--checkpoint", run, "--tta", "--out", tmp_path / "y", folder=folder)
    assert "chosen without --tta" in " ".join(printed.split())
    arguments = ["--checkpoint", run, "--out", tmp_path / "z", "evaluation.threshold=0.3"]
    printed = " ".join(tool("evaluate", *arguments, folder=folder).split())
    assert "not applied: they were chosen with another evaluation.threshold, 0.5" in printed
    assert json.loads((tmp_path / "z" / "scores.json").read_text())["threshold"] == 0.3
    printed = tool("evaluate", *arguments, "--decisions", file, folder=folder, code=2)
    assert "another evaluation.threshold" in printed


def test_a_cross_validation_is_tuned_on_all_its_cases(folder, tmp_path):
    tool("compare", "--config", "config.yaml", "--out", tmp_path / "out", folder=folder)
    arguments = ["--checkpoint", tmp_path / "out", "--loss", "cross_entropy"]
    assert "--out" in tool("tune", *arguments, folder=folder, code=2)
    file = tmp_path / "decisions.json"
    tool("tune", *arguments, "--tta", "--out", file, folder=folder)
    content = json.loads(file.read_text())
    assert content["cases"] == 24
    assert len(content["checkpoints"]) == 2
    assert content["thresholds"]["a"]["kept"]
    arguments += ["--decisions", file, "--tta"]
    tool("evaluate", *arguments, "--out", tmp_path / "scores", folder=folder)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["threshold"] == {"a": content["thresholds"]["a"]["value"]}
    tool("predict", *arguments, "--input", folder / "set" / "images", "--output", tmp_path / "masks", folder=folder)
    assert len(list((tmp_path / "masks").glob("*.png"))) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format"),
        ({"thresholds": {"b": {"value": 0.5, "in_words": "", "kept": True, "gain": 0.0, "ci95": None}}}, "got b"),
        (
            {"thresholds": {"a": {"value": 7, "in_words": "", "kept": True, "gain": 0.0, "ci95": None}}},
            "between 0 and 1",
        ),
        ({"thresholds": {"a": {"value": "x", "in_words": "", "kept": True, "gain": 0.0, "ci95": None}}}, "applied"),
        ({"post_processing": {"a": {"value": {"x": 1}, "in_words": "", "kept": True, "gain": 0.0, "ci95": None}}}, "x"),
        ({"post_processing": {"a": {"value": 3, "in_words": "", "kept": True, "gain": 0.0, "ci95": None}}}, "applied"),
        ({"cases": "many"}, "cases"),
    ],
)
def test_damaged_files_are_named(folder, run, tmp_path, change, message):
    content, _printed = tuned(run, folder)
    file = run / "checkpoints" / "last.decisions.json"
    file.write_text(json.dumps(content | change))
    printed = tool("evaluate", "--checkpoint", run, "--out", tmp_path / "x", folder=folder, code=2)
    assert message in printed
    assert "last.decisions.json" in " ".join(printed.split())
    file.write_bytes(b"\x00nothing")
    assert "last.decisions.json" in tool(
        "evaluate", "--checkpoint", run, "--out", tmp_path / "x", folder=folder, code=2
    )


def test_what_cannot_be_tuned(folder, run, tmp_path):
    assert "expected --metric to be one of" in tool(
        "tune", "--checkpoint", run, "--metric", "hd", folder=folder, code=2
    )
    (folder / "lists.yaml").write_text(
        CONFIG.replace("split: {name: kfold, folds: 2}", "split: {name: lists, train: ['00', '01'], test: ['02']}")
    )
    tool("train", "--config", "lists.yaml", f"run.dir={tmp_path / 'lists'}", "train.steps=1", folder=folder)
    printed = tool("tune", "--checkpoint", tmp_path / "lists", folder=folder, code=2)
    assert "without validation cases" in " ".join(printed.split())
