"""The command `predict`: every layout, one bad image among good ones, memory, full disks, and what a kill leaves."""

import errno
import gc
import json
import os
import weakref

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import segkit
from segkit.commands.prediction_record import RECORD
from segkit.data.readers import read_image
from segkit.models.unet import UNet

from support.command_line import TINY, tool

CHANNELS = """\
labels: {names: [background, a]}
data: {name: nnunet, root: set}
split: {name: kfold, folds: 2}
augment: {engine: albumentations, transforms: []}
loader: {batch: 2}
model: {name: unet, widths: [4, 8]}
loss: dice_ce
optimizer: {name: sgd}
train: {steps: 1}
evaluation: {overlays: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a network for grey images in three classes."""
    folder = tmp_path_factory.mktemp("grey")
    (folder / "tiny.yaml").write_text(TINY.replace("steps: 8, ", "steps: 1, ") + "evaluation: {overlays: false}\n")
    tool("train", "--config", "tiny.yaml", "run.dir=run", folder=folder)
    return folder / "run"


@pytest.fixture(scope="module")
def channels(tmp_path_factory):
    """The folder of a run of a network for images whose two channels are two files each, and the images by case."""
    folder = tmp_path_factory.mktemp("channels")
    random = np.random.default_rng(0)
    images = {f"case{number}": random.integers(0, 255, (2, 16, 20)).astype(np.uint8) for number in range(4)}
    for name, image in images.items():
        for number, plane in enumerate(image):
            save(folder / "set" / "imagesTr" / f"{name}_{number:04d}.png", plane)
        save(folder / "set" / "labelsTr" / f"{name}.png", (image[0] > 127).astype(np.uint8))
    listing = {"channel_names": {"0": "x", "1": "y"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}
    (folder / "set" / "dataset.json").write_text(json.dumps(listing | {"numTraining": 4}))
    (folder / "tiny.yaml").write_text(CHANNELS)
    tool("train", "--config", "tiny.yaml", "run.dir=run", folder=folder)
    return folder, images


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def grey(seed, size=(20, 24)):
    return np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8)


def masks_in(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def predict(run, source, output, *options, code=0):
    return tool("predict", "--checkpoint", run, "--input", source, "--output", output, *options, code=code)


@pytest.mark.parametrize("layout", ["folder of channels", "table", "dataset.json", "folder with dataset.json"])
def test_channels_in_several_files(channels, tmp_path, layout):
    """The masks are those of the stacked channels, and have the names that `evaluate` pairs with the references."""
    folder, images = channels
    rows = "".join(f"{name},imagesTr/{name}_0000.png;imagesTr/{name}_0001.png\n" for name in images)
    (folder / "set" / "table.csv").write_text(f"case,image\n{rows}")
    sources = {"folder of channels": "imagesTr", "table": "table.csv", "dataset.json": "dataset.json"}
    predict(folder / "run", folder / "set" / sources.get(layout, ""), tmp_path / "out")
    model = segkit.load(folder / "run")
    written = masks_in(tmp_path / "out")
    assert sorted(written) == [f"{name}.png" for name in images]
    for name, image in images.items():
        np.testing.assert_array_equal(written[f"{name}.png"], model.predict(image.astype(np.float32) / 255))
    arguments = ["--references", folder / "set" / "labelsTr", "--classes", "background,a", "--out", tmp_path / "scores"]
    tool("evaluate", "--predictions", tmp_path / "out", *arguments)
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["cases"] == 4


def test_a_case_without_one_of_its_channels_is_named(channels, tmp_path):
    folder, images = channels
    for name, image in images.items():
        for number, plane in enumerate(image):
            if (name, number) != ("case1", 0):
                save(tmp_path / "in" / f"{name}_{number:04d}.png", plane)
    printed = predict(folder / "run", tmp_path / "in", tmp_path / "out", code=3)
    assert "1 of 4 images have no mask" in printed
    assert "case1_0000.png: the file does not exist" in printed
    assert sorted(masks_in(tmp_path / "out")) == ["case0.png", "case2.png", "case3.png"]
    printed = predict(folder / "run", tmp_path / "in" / "case0_0000.png", tmp_path / "one", code=3)
    assert "case0_0000.png: expected an image with 2 channels" in printed
    assert "`case_0000`, `case_0001`" in printed


def write_bad(folder, name):
    """A file that the network for grey pictures cannot take."""
    path = folder / name
    if name == "colour.png":
        save(path, np.repeat(grey(1)[..., None], 3, 2))
    elif name == "volume.nii.gz":
        nib.save(nib.Nifti1Image(np.zeros((6, 7, 8), np.float32), np.eye(4)), path)
    elif name == "nan.npy":
        np.save(path, np.full((8, 8), np.nan, np.float32))
    else:
        save(folder / "whole.png", grey(2))
        path.write_bytes((folder / "whole.png").read_bytes()[:200])
        (folder / "whole.png").unlink()


BAD = {
    "colour.png": "expected an image with 1 channels and 2 spatial axes, as in training, got 3 and 2; save it in grey",
    "volume.nii.gz": "expected an image with 1 channels and 2 spatial axes, as in training, got 1 and 3",
    "nan.npy": "expected finite pixel values, got 64",
    "cut.png": "the PNG file is truncated",
}


def test_bad_images_do_not_stop_the_others(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "z.png"):
        save(tmp_path / "in" / name, grey(3))
    for name in BAD:
        write_bad(tmp_path / "in", name)
    save(tmp_path / "out" / "cut.png", grey(4))
    printed = predict(run, tmp_path / "in", tmp_path / "out", "--overwrite", code=3)
    assert "2 masks written" in printed
    assert "4 of 6 images have no mask" in printed
    lines = {name: line for line in printed.splitlines() for name in BAD if f"file {tmp_path / 'in' / name}: " in line}
    assert [name for name in BAD if BAD[name] not in lines[name]] == [], printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", RECORD, "z.png"]
    model = segkit.load(run)
    for name in ("a.png", "z.png"):
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "out" / name)), model.predict(tmp_path / "in" / name)
        )


def network_that(monkeypatch, on_large):
    """The network does something else for images wider than 30 pixels."""
    plain = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x: on_large(x) if x.shape[-1] > 30 else plain(self, x))


def test_output_that_is_not_finite_is_an_error_that_names_the_case(run, tmp_path, monkeypatch):
    save(tmp_path / "in" / "a.png", grey(0))
    save(tmp_path / "in" / "b.png", grey(0, (20, 40)))
    network_that(monkeypatch, lambda image: torch.full((len(image), 3, *image.shape[2:]), float("nan")))
    printed = predict(run, tmp_path / "in", tmp_path / "out", code=3)
    assert "b.png: expected finite logits from the network, got NaN or infinity at 800 pixels" in printed
    assert sorted(masks_in(tmp_path / "out")) == ["a.png"]
    printed = tool("evaluate", "--checkpoint", run, "--out", tmp_path / "scores", code=3)  # images of 32 x 32
    assert "case test_0000: expected finite logits" in printed
    assert not (tmp_path / "scores" / "scores.json").exists()
    with pytest.raises(segkit.utils.errors.DataError, match="finite logits"):
        segkit.load(run).predict(np.zeros((20, 40), np.float32))


def test_running_out_of_memory_names_the_file_and_the_option(run, tmp_path, monkeypatch):
    save(tmp_path / "in" / "a.png", grey(0, (20, 40)))
    save(tmp_path / "in" / "b.png", grey(0))
    network_that(monkeypatch, lambda _image: torch.empty(2**56))
    printed = predict(run, tmp_path / "in", tmp_path / "out", code=4)
    assert "a.png: out of memory while predicting an image of 20 x 40 pixels" in printed
    assert "evaluation.window=[10, 20]" in printed
    assert "DefaultCPUAllocator" not in printed
    assert sorted(masks_in(tmp_path / "out")) == ["b.png"]
    predict(run, tmp_path / "in", tmp_path / "out", "evaluation.window=[10,20]", "--skip-existing")
    assert sorted(masks_in(tmp_path / "out")) == ["a.png", "b.png"]
    printed = tool("evaluate", "--checkpoint", run, "--out", tmp_path / "scores", code=4)
    assert "case test_0000: out of memory" in printed


@pytest.mark.parametrize("override", ["data.root=/x", "evaluation.metrics=[dice]", "train.steps=3"])
def test_only_what_changes_a_prediction_can_be_changed(run, tmp_path, override):
    save(tmp_path / "a.png", grey(0))
    printed = predict(run, tmp_path / "a.png", tmp_path / "out", override, code=2)
    assert "evaluation.window, evaluation.overlap, evaluation.threshold" in printed
    assert override in printed
    assert not (tmp_path / "out").exists()


def test_masks_are_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    """A full disk ends the command with one sentence; the masks before it are complete, the next start cleans up."""
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", grey(5))
    synchronise, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:  # the record and the first mask
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synchronise(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        printed = predict(run, tmp_path / "in", tmp_path / "out", code=2)
    assert "b.png cannot be written" in printed
    assert "No space left on device" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", RECORD]
    leftover = tmp_path / "out" / ".tmp-00000000-1-0.png"
    with monkeypatch.context() as patch:  # a process of this machine that no longer runs
        patch.setattr("segkit.utils.files._host", lambda: "00000000")
        patch.setattr("psutil.pid_exists", lambda _number: False)
        leftover.write_bytes(b"half a mask")
        predict(run, tmp_path / "in", tmp_path / "out", "--skip-existing")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png", RECORD]


@pytest.mark.parametrize(("name", "code"), [("file", 2), ("file/folder", 2), ("nothing", 3), ("empty", 3)])
def test_folders_that_cannot_be_used(run, tmp_path, name, code):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "a.png", grey(0))
    is_output = name.startswith("file")
    source, output = (tmp_path / "a.png", tmp_path / name) if is_output else (tmp_path / name, tmp_path / "out")
    printed = predict(run, source, output, code=code)
    assert str(tmp_path / name) in printed
    assert "--output" in printed or not is_output


def test_masks_of_one_name_are_refused_before_anything_is_written(run, tmp_path):
    for name in ("x.png", "y.png"):
        save(tmp_path / name, grey(0))
    (tmp_path / "table.csv").write_text("case,image\nsite/1,x.png\nsite_1,y.png\n")
    printed = predict(run, tmp_path / "table.csv", tmp_path / "out", code=3)
    assert "site_1.png" in printed
    assert "x.png" in printed
    assert "y.png" in printed
    assert not (tmp_path / "out").exists()
    (tmp_path / "table.csv").write_text("case,image\n../../1,x.png\n")
    assert "stays in its folder" in predict(run, tmp_path / "table.csv", tmp_path / "out", code=3)
    assert not (tmp_path / "out").exists()


def test_images_that_fail_do_not_stay_in_memory(run, tmp_path, monkeypatch):
    """Their errors are kept until the end, and with a traceback each of them would keep its pixels."""
    for number in range(8):
        save(tmp_path / "in" / f"{number}.png", np.zeros((16, 16, 3), np.uint8))  # in colour, for a network for grey
    alive, references = [], []

    def read(*arguments):
        gc.collect()
        alive.append(sum(reference() is not None for reference in references))
        image, spacing = read_image(*arguments)
        references.append(weakref.ref(image))
        return image, spacing

    monkeypatch.setattr("segkit.commands.predict.read_image", read)
    printed = predict(run, tmp_path / "in", tmp_path / "out", code=3)
    assert "8 of 8 images have no mask" in printed
    assert max(alive) <= 2


def test_an_image_that_a_killed_process_was_about_to_take_is_predicted(run, tmp_path, monkeypatch):
    """It has made the file of the lease and not yet written its name into it."""
    monkeypatch.setattr("segkit.utils.leases.EMPTY_SECONDS", 0.3)
    monkeypatch.setattr("segkit.commands.prediction_jobs.LOOK_SECONDS", 0.1)
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", np.zeros((16, 16), np.uint8))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".1.png.lease").touch()
    assert "3 masks written" in predict(run, tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png", RECORD]
