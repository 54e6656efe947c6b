"""The command line from end to end, in processes of its own, on small phantoms."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from segkit.data.splits import Split
from segkit.training import checkpoint
from segkit.training.run_folder import Run

from support.command_line import TINY, tool, write_pairs
from support.processes import start_tool

pytestmark = pytest.mark.usefixtures("without_figures")

ROOT = Path(__file__).parents[2]


def tool_process(name, *arguments, code=0, folder=None):
    """The same in a process of its own."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run, and its configuration."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "tiny.yaml").write_text(TINY)
    printed = tool("train", "--config", "tiny.yaml", "run.dir=run", folder=folder)
    return folder, printed


def read_scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_training_leaves_a_complete_run(trained):
    folder, printed = trained
    run = folder / "run"
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml",
        "report.html",
        "evaluation/test/report.html",
        "environment.json",
        "split.json",
        "log.jsonl",
        "lock",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "evaluation/test/cases.csv",
        "evaluation/test/scores.json",
        "evaluation/test/overlays.png",
        "evaluation/test/confusion.csv",
        "evaluation/test/confusion.png",
    }
    assert "8 train, 4 validation, 12 test" in printed
    scores = read_scores(run / "evaluation" / "test")
    assert scores["cases"] == 12
    assert scores["checkpoint"] == "checkpoints/last.pt"
    assert scores["selected_on"] is None
    assert scores["split_hash"] == Split.from_json(json.loads((run / "split.json").read_text())).content_hash
    cases = pd.read_csv(run / "evaluation" / "test" / "cases.csv")
    assert len(cases) == 12 * 3
    means = cases[cases["class"] != "background"].groupby("class")["dice"].mean()
    assert scores["mean"]["dice"] == pytest.approx(means.mean())
    assert f"{scores['mean']['dice']:.4f}" in printed


def test_evaluating_the_checkpoint_gives_the_same_scores(trained, tmp_path):
    folder, _ = trained
    tool("evaluate", "--checkpoint", "run", "--out", tmp_path / "again", folder=folder)
    first, again = read_scores(folder / "run" / "evaluation" / "test"), read_scores(tmp_path / "again")
    assert first == again


def test_evaluating_another_split_and_the_best_checkpoint(trained, tmp_path):
    folder, _ = trained
    tool("evaluate", "--checkpoint", "run", "--split", "validation", folder=folder)
    last = read_scores(folder / "run" / "evaluation" / "validation")
    assert last["cases"] == 4
    best = folder / "run" / "checkpoints" / "best.pt"
    assert "with --out" in tool("evaluate", "--checkpoint", best, code=2)
    tool("evaluate", "--checkpoint", best, "--split", "validation", "--out", tmp_path, folder=folder)
    scores = read_scores(tmp_path)
    assert scores["selected_on"] == "validation"
    logged = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    reached = max(record["validation"]["dice"] for record in logged if record["kind"] == "epoch")
    assert scores["mean"]["dice"] == pytest.approx(reached, abs=1e-6)
    printed = tool("evaluate", "--checkpoint", "run", "--split", "tset", code=2, folder=folder)
    assert "one of train, validation, test, got tset" in printed


def test_a_finished_run_prints_its_scores_and_an_unfinished_one_is_continued_only_when_asked(trained, tmp_path):
    folder, _ = trained
    before = read_scores(folder / "run" / "evaluation" / "test")
    printed = tool_process("train", "--config", "tiny.yaml", "run.dir=run", folder=folder)
    assert "holds the finished run" in printed
    assert f"{before['mean']['dice']:.4f}" in printed
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    arguments = ("--config", "tiny.yaml", f"run.dir={tmp_path / 'run'}")
    assert "--resume" in tool("train", *arguments, code=2, folder=folder)
    tool("train", *arguments, "--resume", folder=folder)
    assert read_scores(tmp_path / "run" / "evaluation" / "test") == before
    split = tmp_path / "run" / "split.json"
    whole = split.read_bytes()
    split.write_bytes(whole.replace(b"train", b"trail"))
    assert "split.json" in tool("train", *arguments, folder=folder)
    assert split.read_bytes() == whole


def test_a_run_that_failed_at_once_does_not_keep_the_mended_one_from_starting(trained, tmp_path):
    folder, _ = trained
    content = checkpoint.load(folder / "run" / "checkpoints" / "last.pt")
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last.pt", {**content, "step": 0})
    tool("train", "--config", "tiny.yaml", f"run.dir={tmp_path / 'run'}", "loss=dice", folder=folder)
    assert read_scores(tmp_path / "run" / "evaluation" / "test")["step"] == 8


def test_steps_without_a_checkpoint_are_an_unfinished_run(tmp_path):
    """Its checkpoint is that of before the first step, and it is refused as any other."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("log_every: {steps: 4}", "log_every: {steps: 1}"))
    train = ["train", "--config", "tiny.yaml", "run.dir=run", "train.validate_every.steps=8"]
    endless = [*train, "train.steps=100000", "schedule.name=constant"]
    process = start_tool(*endless, folder=tmp_path, output=tmp_path / "killed")
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    (step,) = {checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"]}
    printed = tool(*train, "train.steps=4", code=2, folder=tmp_path)
    assert step % 8 == 0
    assert "holds a run of another experiment" in printed


def test_two_processes_do_not_train_into_one_folder(trained, tmp_path):
    folder, _ = trained
    with Run(tmp_path / "run").locked():
        printed = tool("train", "--config", "tiny.yaml", f"run.dir={tmp_path / 'run'}", code=2, folder=folder)
    assert "another process is training" in printed
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_run_is_not_continued_as_another_experiment(trained):
    folder, _ = trained
    before = (folder / "run" / "config.yaml").read_text()
    changed = ("loss=focal", "model.widths=[8, 32]")
    printed = tool("train", "--config", "tiny.yaml", "run.dir=run", *changed, "--resume", code=2, folder=folder)
    assert "loss.0.name: 'dice' in the run, 'focal' now" in printed
    assert "model.widths.1: 16 in the run, 32 now" in printed
    assert (folder / "run" / "config.yaml").read_text() == before


def test_other_data_need_a_place_for_their_scores(trained):
    folder, _ = trained
    for arguments, message in (
        (("--data", "somewhere"), "with --out"),
        (("--data", "somewhere", "--split", "test", "--out", "other"), "not both"),
        (("--checkpoint", "run"), "expected different checkpoints, got one twice"),
        (("--metrics", "dice,hd955", "--out", "x"), "did you mean hd95?"),
        (("--rules", "nnunett", "--out", "x"), "expected rules to be one of segkit, nnunet"),
        (("--metrics", "hd95"), "comparisons read them: choose another folder with --out"),
        (("--ignore", "255", "--group", "x"), "--ignore, --group can only be used"),
        (("--predictions", "somewhere"), "give --checkpoint, or --predictions"),
        (("model.widths=[4, 8]",), "only data."),
    ):
        assert message in tool("evaluate", "--checkpoint", "run", *arguments, code=2, folder=folder)


def test_several_checkpoints_side_by_side(trained, tmp_path):
    folder, _ = trained
    last, best = (folder / "run" / "checkpoints" / name for name in ("last.pt", "best.pt"))
    asked = ("--metrics", "hd95,nsd", "--rules", "monai", "evaluation.calibration=true", "--split", "validation")
    printed = tool("evaluate", "--checkpoint", last, "--checkpoint", best, *asked, "--out", tmp_path, folder=folder)
    assert "dice/case_class, side by side" in printed
    assert "best: selected on validation" in printed
    assert "optimistic" in printed
    scores = {name: read_scores(tmp_path / name) for name in ("run", "best")}
    for score in scores.values():
        assert list(score["metrics"]) == ["dice", "iou", "hd95", "nsd"]
        assert score["rules"]["name"] == "monai"
        assert f"{score['mean']['dice']:.4f}" in printed
        assert 0 <= score["calibration"]["toplabel"]["all"]["ece"] <= 1
    table = pd.read_csv(tmp_path / "side_by_side.csv")
    assert len(table) == 2 * 4 * 3
    files = {path.name for path in (tmp_path / "run").iterdir()}
    pictures = {"overlays.png", "confusion.png", "reliability.png", "report.html"}
    assert files == {"cases.csv", "scores.json", "confusion.csv", *pictures}
    cases = pd.read_csv(tmp_path / "run" / "cases.csv")
    assert set(cases["rules"]) == {"monai"}
    matrix = pd.read_csv(tmp_path / "run" / "confusion.csv", index_col=0)
    assert matrix.to_numpy().sum() == 4 * 32 * 32
    assert np.diag(matrix).tolist() == cases.groupby("class")["tp"].sum()[matrix.columns].tolist()


def test_predicting_pictures(trained, tmp_path):
    folder, _ = trained
    pixels = np.random.default_rng(0).integers(0, 255, (37, 50)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "one.png")
    Image.fromarray(pixels.T).save(tmp_path / "in" / "two.png")
    tool("predict", "--checkpoint", "run", "--input", tmp_path / "in", "--output", tmp_path / "out", folder=folder)
    shapes = {path.name: np.array(Image.open(path)).shape for path in (tmp_path / "out").glob("*.png")}
    assert shapes == {"one.png": (37, 50), "two.png": (50, 37)}
    arguments = ("--checkpoint", "run", "--input", tmp_path / "in", "--output", tmp_path / "in")
    assert "would overwrite the image" in tool("predict", *arguments, code=2, folder=folder)
    assert np.array_equal(np.array(Image.open(tmp_path / "in" / "one.png")), pixels)
    colour = tmp_path / "colour.png"
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(colour)
    arguments = ("--checkpoint", "run", "--input", colour, "--output", tmp_path / "no")
    assert "1 channels" in tool("predict", *arguments, code=3, folder=folder)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--config", "none.yaml"), 2, "none.yaml"),
        (("--config", "tiny.yaml", "train.stepz=1"), 2, "did you mean 'steps'?"),
        (("--config", "tiny.yaml", "loss={name: dice, background: false}", "labels.names=[a, b, c]"), 2, "background"),
        (("--config", "tiny.yaml", "train.precision=fp16", "device=cpu"), 2, "fp16 needs an accelerator"),
        (("--config", "tiny.yaml", "sampling.patch=[8, 8, 8]"), 2, "2 sides"),
        (("--config", "tiny.yaml", "data={name: pairs, images: nowhere, masks: nowhere}"), 3, "nowhere"),
        (("--confg", "tiny.yaml"), 2, "--confg"),
    ],
)
def test_mistakes_give_a_message_and_an_exit_code(trained, tmp_path, arguments, code, message):
    folder, _ = trained
    printed = tool("train", *arguments, f"run.dir={tmp_path / 'run'}", code=code, folder=folder)
    assert message in printed


def test_comparing_losses(trained):
    folder, _ = trained
    arguments = ("--config", "tiny.yaml", "--losses", "cross_entropy,dice", "--seeds", "2", "--out", "comparison")
    printed = tool("compare", *arguments, "train.steps=4", folder=folder)
    out = folder / "comparison"
    table = pd.read_csv(out / "cases.csv")
    assert list(table.columns[:11]) == [
        *("loss", "seed", "fold", "case", "group", "class"),
        *("tp", "predicted", "reference", "dice", "iou"),
    ]
    assert len(table) == 2 * 2 * 12 * 3
    result = json.loads((out / "comparison.json").read_text())
    assert {loss["name"]: len(loss["runs"]) for loss in result["losses"]} == {"cross_entropy": 2, "dice": 2}
    assert result["pairs"][0]["verdict"] in {"better", "worse", "equivalent", "undecided"}
    assert "fewer than 3 runs (cross_entropy 2, dice 2)" in printed
    for loss in result["losses"]:
        for run in loss["runs"]:
            (unit,) = (out / "units").glob(f"{loss['name']}-seed{run['seed']}-*")
            assert run["mean"] == pytest.approx(read_scores(unit / "evaluation" / "test")["mean"]["dice"])
    # scores of another part of the split are not those of the comparison
    unit = next((out / "units").iterdir())
    tool("evaluate", "--checkpoint", unit, "--split", "train", folder=folder)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert "already finished" in tool("compare", *arguments, "train.steps=4", folder=folder)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == stamps
    assert pd.read_csv(out / "cases.csv").equals(table)


def test_a_failing_loss_stops_no_other(tmp_path):
    """No weight follows from the masks for a class that is in none of them."""
    write_pairs(tmp_path)
    text = re.sub("data: .*", "data: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold, folds: 2}", TINY)
    (tmp_path / "four.yaml").write_text(text)
    arguments = ("--config", "four.yaml", "--losses", "weighted_cross_entropy,dice", "--seeds", "1", "--out", "failing")
    printed = tool("compare", *arguments, "train.steps=2", code=2, folder=tmp_path)
    assert "1 of 2 units failed" in printed
    assert "no training case contains b" in printed
    result = json.loads((tmp_path / "failing" / "comparison.json").read_text())
    assert list(result["failed"]) == ["weighted_cross_entropy, seed 0, fold 0"]
    assert {loss["name"]: len(loss["runs"]) for loss in result["losses"]} == {"dice": 1, "weighted_cross_entropy": 0}
    assert result["pairs"][0]["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--losses", "dice,dice"), "different names of losses"),
        (("--losses", "dice", "--metric", "acuracy"), "accuracy"),
        (("--losses", "dice", "--baseline", "dcie"), "(--baseline) to be one of dice"),
        (("--losses", "dice", "seed=7"), "the comparison sets seed"),
    ],
)
def test_a_comparison_is_checked_before_anything_is_trained(trained, arguments, message):
    folder, _ = trained
    printed = tool("compare", "--config", "tiny.yaml", "--out", "checked", *arguments, code=2, folder=folder)
    assert message in printed
    assert not (folder / "checked").exists()


def test_one_seed_compares_checkpoints_only(trained):
    folder, _ = trained
    arguments = ("--config", "tiny.yaml", "--losses", "cross_entropy,dice", "--seeds", "1", "--out", "single")
    printed = tool("compare", *arguments, "train.steps=4", folder=folder)
    result = json.loads((folder / "single" / "comparison.json").read_text())
    assert result["scope"] == "checkpoints"
    assert all(pair["verdict"] is None and pair["p"] is None for pair in result["pairs"])
    assert "checkpoints" in printed
    assert "better" not in printed
    again = tool("compare", "--from-table", folder / "single" / "cases.csv", "--out", folder / "table")
    assert "checkpoints" in again
    assert json.loads((folder / "table" / "comparison.json").read_text())["losses"] == result["losses"]


def test_volumes_from_disk_end_to_end(tmp_path):
    """MSD layout, sliding windows, MONAI augmentation, class weights from the masks, prediction in NIfTI."""
    random = np.random.default_rng(0)
    listed = []
    for number in range(6):
        shape = (18 + number, 20, 12)
        mask = np.zeros(shape, np.uint8)
        mask[4:12, 5:14, 3:9] = 1
        image = (mask * 2 + random.normal(size=shape)).astype(np.float32)
        for kind, array in (("imagesTr", image), ("labelsTr", mask)):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-1, 1, 2, 1])), tmp_path / "set" / kind / f"case_{number}.nii.gz")
        listed.append({"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"})
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"labels": {"0": "bg", "1": "x"}, "training": listed}))
    (tmp_path / "volume.yaml").write_text(
        """\
labels: {names: [background, x]}
data: {name: msd, root: set}
split: {name: kfold, folds: 3}
augment: {engine: monai, transforms: [affine, {name: flip, axes: [0]}]}
sampling: {patch: [16, 16, 8], foreground: 0.5}
preprocess: {spacing: [1, 1, 1.5]}
loader: {batch: 2}
model: {name: unet, widths: [4, 8], norm: instance}
loss: weighted_cross_entropy
optimizer: {name: sgd}
train: {epochs: 2, channels_last: true}
"""
    )
    tool("train", "--config", "volume.yaml", "run.dir=run", folder=tmp_path)
    assert read_scores(tmp_path / "run" / "evaluation" / "validation")["cases"] == 2
    tool("predict", "--checkpoint", "run", "--input", "set/imagesTr", "--output", "out", folder=tmp_path)
    written = nib.load(tmp_path / "out" / "case_5.nii.gz")
    assert written.shape == (23, 20, 12)
    assert np.array_equal(written.affine, np.diag([-1, 1, 2, 1]))
    tool("evaluate", "--checkpoint", "run", "--data", "set", "--out", "all", folder=tmp_path)
    assert read_scores(tmp_path / "all")["cases"] == 6
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert weights["preprocess"]["spacing"] == [1.0, 1.0, 1.5]


def test_class_weights_are_printed_written_as_numbers_and_counted_once(tmp_path):
    text = TINY.replace("loss: dice_ce", "loss: {name: cross_entropy, class_weights: {method: inverse, cap: 4}}")
    (tmp_path / "tiny.yaml").write_text(text)
    printed = tool("train", "--config", "tiny.yaml", "run.dir=runs/a", folder=tmp_path)
    assert "class weights of cross_entropy: method inverse, cap 4" in printed
    (file,) = (tmp_path / "runs" / "cache").glob("census-*.json")
    pixels = np.array(json.loads(file.read_text())["pixels"]).sum(0)
    weights = np.minimum(4, pixels.sum() / (3 * pixels))
    written = YAML(typ="safe").load((tmp_path / "runs" / "a" / "config.yaml").read_text())["loss"][0]["class_weights"]
    assert written == pytest.approx(weights.tolist())
    # another run reads the count: one that is changed is the one that is used
    file.write_text(json.dumps({"pixels": [[100, 100, 100]], "components": [[1, 1, 1]]}))
    tool("train", "--config", "tiny.yaml", "run.dir=runs/b", folder=tmp_path)
    written = YAML(typ="safe").load((tmp_path / "runs" / "b" / "config.yaml").read_text())["loss"][0]["class_weights"]
    assert written == [1.0, 1.0, 1.0]


def test_schedules_and_presets_from_yaml(tmp_path):
    terms = "[cross_entropy, {name: dice, like: monai, weight: {name: linear, start: 0, end: 2}}]"
    (tmp_path / "tiny.yaml").write_text(TINY.replace("loss: dice_ce", f"loss: {terms}"))
    printed = tool("train", "--config", "tiny.yaml", "run.dir=run", "train.gradients_every.steps=4", folder=tmp_path)
    assert "1 cross_entropy + (linear start 0, end 2, begin 0, until 1) dice" in printed
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [record for record in log if record["kind"] == "step"]
    found = [record["gradients"] for record in steps if "gradients" in record]
    # looked at in the steps 1, 4 and 8, of which the first has weight 0 for dice
    assert [one["share"]["dice"] > 0 for one in found] == [False, True, True]
    assert all(sum(one["share"].values()) == pytest.approx(1) for one in found)
    assert all(-1 <= one["cosine"]["cross_entropy, dice"] <= 1 for one in found)
    resolved = YAML(typ="safe").load((tmp_path / "run" / "config.yaml").read_text())["loss"][1]
    assert resolved == {
        "name": "dice",
        "like": "monai",
        "weight": {"name": "linear", "start": 0.0, "end": 2.0, "begin": 0.0, "until": 1.0},
        # what the library stands for
        "per": "image",
        "empty": "keep",
        "eps": 1e-5,
    }


def test_a_lovasz_loss_alone_is_warned_of(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("loss: dice_ce", "loss: lovasz_softmax"))
    printed = tool("train", "--config", "tiny.yaml", "run.dir=run", "train.steps=1", folder=tmp_path)
    assert "warning: lovasz_softmax alone" in printed
    assert "loss=ce_lovasz" in printed


def test_a_change_is_allowed_by_its_key(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    train = ["train", "--config", "tiny.yaml", "run.dir=run"]
    tool(*train, "train.max_steps=4", folder=tmp_path)
    assert read_scores(tmp_path / "run" / "evaluation" / "test")["finished"] == "max_steps"
    refused = tool(*train, "--resume", code=2, folder=tmp_path)
    assert "train.max_steps: 4 in the run, None now" in refused
    assert "--allow KEY" in refused
    assert "no such key" in tool(*train, "--resume", "--allow", "train.max_step", code=2, folder=tmp_path)
    printed = tool(*train, "--resume", "--allow", "train.max_steps", folder=tmp_path)
    assert "continued with changes: train.max_steps 4 -> None" in printed
    scores = read_scores(tmp_path / "run" / "evaluation" / "test")
    assert (scores["step"], scores["finished"]) == (8, "steps")
    # the same command again finds the finished run
    assert "holds the finished run" in tool(*train, "--resume", "--allow", "train.max_steps", folder=tmp_path)
    # without run.dir, the changed configuration has another folder, in which there is nothing to continue
    other = tool(*train[:-1], "train.max_steps=5", "--resume", "--allow", "train.max_steps", code=2, folder=tmp_path)
    assert "give the folder of the run to continue, run.dir=FOLDER" in other
    assert not (tmp_path / "runs").exists()


def test_an_allowed_change_is_not_undone_by_the_checkpoint(tmp_path):
    """Rates and decays are those asked for; what the checkpoint could not be continued with is refused all the same."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    train = ["train", "--config", "tiny.yaml", "run.dir=run", "train.steps=8"]
    tool(*train, "train.max_steps=4", folder=tmp_path)
    changed = ["--resume", "--allow", "train.max_steps", "--allow", "optimizer", "--allow", "model"]
    for change in ("optimizer.name=sgd", "model.widths=[8, 8]"):
        refused = " ".join(tool(*train, *changed, change, code=2, folder=tmp_path).split())
        assert "run.dir= and train.init=" in refused
    tool(*train, *changed, "optimizer.lr=1e-9", "optimizer.weight_decay=0.5", folder=tmp_path)
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["training"]["optimizer"]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.5, 0.0}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert max(lines[-2]["lr"]) <= 1e-9 < 1e-3 < max(lines[0]["lr"])


def test_a_run_is_not_continued_with_other_files(tmp_path):
    """A mask in which a few pixels were changed, and other weights of the same name, are another experiment."""
    write_pairs(tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        TINY.replace("[background, a, b]", "[background, a]")
        .replace(TINY.splitlines()[1], "data: {name: pairs, images: images, masks: masks}")
        .replace("loader:", "split: {name: kfold, folds: 3}\nloader:")
        .replace("steps: 8,", "steps: 8, max_steps: 1, init: weights.pt,")
    )
    first = ["train", "--config", "tiny.yaml"]
    tool(*first, "run.dir=first", "train.init=null", folder=tmp_path)
    shutil.copy(tmp_path / "first" / "checkpoints" / "last.pt", tmp_path / "weights.pt")
    train = [*first, "run.dir=run"]
    tool(*train, folder=tmp_path)
    with Image.open(tmp_path / "masks" / "3.bmp") as mask:
        changed = 1 - np.asarray(mask)
    size = (tmp_path / "masks" / "3.bmp").stat().st_size
    Image.fromarray(changed).save(tmp_path / "masks" / "3.bmp")
    assert (tmp_path / "masks" / "3.bmp").stat().st_size == size
    shutil.copy(tmp_path / "run" / "checkpoints" / "last.pt", tmp_path / "weights.pt")
    refused = tool(*train, code=2, folder=tmp_path)
    assert re.search(r"\n  data: '\w{16}' in the run, '\w{16}' now\n  train.init: '\w{16}' in", refused)
    allowed = ["--resume", "--allow", "data", "--allow", "train.init", "--allow", "train.max_steps"]
    assert re.search("continued with changes: .* data '", tool(*train, *allowed, "train.max_steps=2", folder=tmp_path))

    weights = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").unlink()  # not needed any more, and still known
    longer = [*train, "--resume", "--allow", "train.max_steps"]
    tool(*longer, "train.max_steps=3", folder=tmp_path)
    tool(*longer, "train.max_steps=4", folder=tmp_path)
    (tmp_path / "weights.pt").write_bytes(weights)
    assert "finished run" in tool(*train, "train.max_steps=4", folder=tmp_path)


def test_a_signal_to_all_processes_of_a_job_finishes_the_step_and_saves(tmp_path):
    """The workers of the loader get it too, and go on loading until the training itself has stopped."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("steps: 8", "steps: 100000"))
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", "tiny.yaml", "run.dir=run"]
    arguments = ["loader.workers=2", "train.log_every.steps=4", "schedule.name=constant"]
    log = tmp_path / "run" / "log.jsonl"
    process = subprocess.Popen([*command, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors.decode()
    assert "stopped by SIGTERM after step" in errors.decode()
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] >= 2


def test_overfitting_a_batch_and_going_on_from_its_weights(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("ema: 0.8, ", ""))
    tool("train", "--config", "tiny.yaml", "run.dir=a", "train.steps=60", "--overfit", "1", folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert losses[-1] < 0.4 * losses[0]
    last = "a/checkpoints/last.pt"
    printed = tool(
        "train", "--config", "tiny.yaml", "run.dir=b", f"train.init={last}", "train.steps=1", folder=tmp_path
    )
    assert "weights from" in printed
    assert "no validation cases" in tool(
        "train",
        "--config",
        "tiny.yaml",
        "run.dir=c",
        "train.patience.steps=2",
        "data.validation=0",
        code=2,
        folder=tmp_path,
    )


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_bad_case_that_judges_is_told_before_the_training(tmp_path, part):
    write_pairs(tmp_path)
    by_part = {"train": ["0", "1", "2"], "validation": ["3", "4"], "test": ["5"]}
    (tmp_path / "tiny.yaml").write_text(
        TINY.replace("background, a, b", "background, a").replace(
            next(line for line in TINY.splitlines() if line.startswith("data:")),
            f"data: {{name: pairs, images: images, masks: masks}}\nsplit: {json.dumps({'name': 'lists', **by_part})}",
        )
    )
    bad = by_part[part][0]
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / f"masks/{bad}.bmp")
    printed = tool("train", "--config", "tiny.yaml", "run.dir=run", code=3, folder=tmp_path)
    assert f"case {bad}" in printed
    assert not (tmp_path / "run/checkpoints/last.pt").exists()
    tool("train", "--config", "tiny.yaml", "run.dir=late", "evaluation.read_first=false", code=3, folder=tmp_path)
    assert (tmp_path / "late/checkpoints/last.pt").exists()


@pytest.mark.parametrize("place", [0, 3])
def test_debug_prints_the_traceback_of_an_error(tmp_path, place):
    arguments = ["config", "validate", "--config", str(tmp_path / "no.yaml")]
    printed = tool(*arguments, code=2)
    assert "Traceback" not in printed
    arguments.insert(place, "--debug")
    printed = tool(*arguments, code=2)
    assert "Traceback (most recent call last)" in printed
    assert "no.yaml: cannot read the configuration" in printed.splitlines()[-1]
