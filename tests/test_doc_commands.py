"""Every command of the documentation is run, in the order of its page, on small data and with short trainings."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segkit

from support.command_line import tool, write_pairs
from support.nnunet_dataset import write_dataset, write_plans
from support.pages import blocks

pytestmark = pytest.mark.usefixtures("without_figures")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = ("log.md", "reliability.md", "device.md")  # what was run once, on large data or other machines
# installation is done by .ci/run, and launchers of several processes or machines have tests of their own
COMMAND = re.compile(r"(segkit (?!\[)|python tools/(train|evaluate|predict|compare)\.py )")
SMALL = """\
labels: {names: [background, a]}
data: {name: pairs, images: my-images/images, masks: my-images/masks}
split: {name: kfold, folds: 3}
augment: {engine: albumentations, transforms: [horizontal_flip]}
loader: {batch: 2}
model: {name: unet, widths: [4, 8]}
loss: dice_ce
optimizer: {name: adamw, lr: 1e-2}
train: {steps: 2}
evaluation: {overlays: false}
"""
# what stands for data and trainings that are too large, or for the name of a run
REPLACED = (
    (r"(?<=--config )(quickstart|hippocampus|FILE|configs/\w+\.yaml)", "small.yaml"),
    (r"(?<= )(train\.(epochs|steps)=\d+)", "train.steps=2"),
    (r"--seeds \d", "--seeds 1"),
    (r"--parallel \d", "--parallel 1"),
    (r"--losses \w+,\w+,\w+", "--losses dice,dice_ce"),
    (r"runs/[\w-]+-0123456789ab", "RUN"),
    (r"data\.root=/mnt/task04", "data.images=my-images/images data.masks=my-images/masks"),
    (r"/shared/", "shared/"),
    (r"=\[8,16\]", "=[4,8]"),
    (r"\[evaluation.window=\[512,512\] \.\.\.\]|\[key=value \.\.\.\] \[--channels N\]", ""),  # of a grammar
)


def commands(page):
    """The commands of segkit in the blocks of a page without a language, each on one line, without comments."""
    text = re.sub(r"\\\n\s*", " ", "\n".join(blocks(page, ("", "bash", "sh"))))
    lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&& ")]
    return [part for part in parts if COMMAND.match(part)]


def arguments(command):
    """The words of a command after `segkit`, for small data."""
    command = re.sub(r"^(segkit|python tools/(\w+)\.py)\s+", lambda match: f"{match[2]} " if match[2] else "", command)
    for pattern, replacement in REPLACED:
        command = re.sub(pattern, replacement, command)
    return shlex.split(command)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A folder with what the pages name: images, masks, runs and a comparison."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "my-images").mkdir()
    write_pairs(folder / "my-images")
    shutil.copytree(folder / "my-images", folder / "DIR")
    shutil.copytree(folder / "my-images" / "images", folder / "images")
    (folder / "MASKS").mkdir()
    for number in range(3):
        classes = np.random.default_rng(number).integers(0, 3, (16, 16), dtype=np.uint8)
        Image.fromarray(classes).save(folder / "MASKS" / f"{number}.png")
    for name in ("small.yaml", "my.yaml"):
        (folder / name).write_text(SMALL)
    tool("train", "--config", "small.yaml", "run.dir=RUN", folder=folder)
    for name in ("RUN_A", "RUN_B", "RUN_C"):
        shutil.copytree(folder / "RUN", folder / name)
    losses = ("--losses", "dice_ce", "--seeds", "1", "--folds", "2", "--out", "COMPARISON")
    tool("compare", "--config", "small.yaml", *losses, folder=folder)
    shutil.copyfile(folder / "COMPARISON" / "cases.csv", folder / "cases.csv")
    write_dataset(folder / "nnUNet_raw" / "Dataset001_Lesions")
    preprocessed = folder / "nnUNet_preprocessed" / "Dataset001_Lesions"
    preprocessed.mkdir(parents=True)
    write_plans(preprocessed)
    (preprocessed / "splits_final.json").write_text('[{"train": ["c0", "c1", "c2"], "val": ["c3"]}]')
    return folder


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in NOTEBOOKS and commands(page)],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_commands_of_a_page_run(page, workspace, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder)
    for command in commands(page):
        _prepare(command, folder)
        tool(*arguments(command), *_limit(command, folder), folder=folder)


def _limit(command, folder):
    """A short training by a configuration that a command of the page has planned."""
    planned = re.match(r"segkit (train|compare) .*?(my|lesions)\.yaml", command)
    is_planned = planned is not None and (folder / f"{planned[2]}.yaml").read_text() != SMALL
    return ["train.max_steps=2"] if is_planned else []


def test_no_command_is_overlooked():
    assert len(commands(ROOT / "README.md")) == 8
    assert sum(len(commands(page)) for page in PAGES if page.name not in NOTEBOOKS) > 50


def _prepare(command, folder):
    """Remove what an earlier command of the page has written where this one writes, as another reader would have it."""
    for option in ("--output", "--out"):
        if match := re.search(rf"{option} (\S+)", command):
            target = folder / re.sub(r"^/", "", match[1])
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


PLACES = (  # names in the blocks, and what stands for them
    ("configs/quickstart.yaml", "small.yaml"),
    ("train.epochs=8", "train.steps=2"),
    ("runs/quickstart-4d3ab3e47fb5", "RUN"),
    ('"runs/a", "runs/b"', '"RUN_A", "RUN_B"'),
    ("images/case_07.png", "images/0.bmp"),
    ("volume, spacing=(3.0, 0.8, 0.8)", "array, spacing=(1.0, 1.0)"),
    ('"dice", "dice_ce", "cross_entropy"], seeds=3', '"dice", "dice_ce"], seeds=1'),
)


@pytest.mark.parametrize("page", ["docs/how_to/python.md", "docs/how_to/predict.md"])
def test_python_blocks_of_a_page_run(page, workspace, tmp_path, monkeypatch):
    """In one namespace, with arrays for those that the reader has."""
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder)
    monkeypatch.chdir(folder)
    masks = [np.full((8, 8), number, np.uint8) for number in range(3)]
    logits = torch.zeros(2, 3, 8, 8, requires_grad=True)
    names = {
        "array": np.zeros((16, 16), np.float32),
        "predictions": masks,
        "references": masks,
        "spacings": [(1.0, 1.0)] * 3,
        "names": ["a", "b", "c"],
        "patients": ["a", "a", "c"],
        "batches": [(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8))],
        "network": lambda _image: logits,
        "segkit": segkit,
    }
    for block in blocks(ROOT / page, ("python",)):
        for written, small in PLACES:
            block = block.replace(written, small)
        exec(compile(block, page, "exec"), names)
