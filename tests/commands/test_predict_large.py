"""Images above a size are predicted in pieces, to the same masks."""

import errno
import os

import nibabel as nib
import numpy as np
import pytest
import tifffile

from segkit.commands.prediction_record import RECORD
from segkit.data import pieces, readers

from support.command_line import TINY, tool

VOLUMES = """\
labels: {names: [background, a]}
data: {name: pairs, images: set/images, masks: set/masks}
split: {name: kfold, folds: 2}
preprocess: {intensity: percentile, spacing: [1.0, 1.0, 1.5]}
augment: {engine: monai, transforms: []}
sampling: {patch: [16, 16, 16]}
loader: {batch: 1}
model: {name: unet, widths: [4, 8]}
loss: dice_ce
optimizer: {name: adamw, lr: 1e-2}
train: {steps: 4}
evaluation: {overlays: false}
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "tiny.yaml").write_text(TINY + "evaluation: {overlays: false, window: [32, 32]}\n")
    tool("train", "--config", "tiny.yaml", "run.dir=run", folder=folder)
    (folder / "in").mkdir()
    random = np.random.default_rng(0)
    for name, options in (("a", {"tile": (32, 32), "compression": "zlib"}), ("b", {})):
        array = random.integers(0, 255, (90, 75)).astype(np.uint8)
        tifffile.imwrite(folder / "in" / f"{name}.tif", array, **options)
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    random = np.random.default_rng(1)
    affine = np.array([[0, 0, 1.5, 4], [-1.0, 0, 0, 5], [0, 0.8, 0, 6], [0, 0, 0, 1]])
    for kind in ("images", "masks"):
        (folder / "set" / kind).mkdir(parents=True)
    for number in range(4):
        array = random.integers(0, 900, (30, 26, 22)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, affine), folder / "set" / "images" / f"{number}.nii.gz")
        nib.save(nib.Nifti1Image((array > 500).astype(np.uint8), affine), folder / "set" / "masks" / f"{number}.nii.gz")
    (folder / "config.yaml").write_text(VOLUMES)
    tool("train", "--config", "config.yaml", "run.dir=run", folder=folder)
    return folder


def predicted(folder, source, output, *options):
    tool("predict", "--checkpoint", folder / "run", "--input", source, "--output", output, *options)


@pytest.mark.parametrize("options", [(), ("--probabilities", "--overlays")])
def test_pictures(pictures, tmp_path, monkeypatch, options):
    predicted(pictures, pictures / "in", tmp_path / "whole", *options)
    monkeypatch.setattr(pieces, "LARGE", 1000)
    predicted(pictures, pictures / "in", tmp_path / "pieces", *options)
    names = sorted(path.name for path in (tmp_path / "pieces").iterdir() if path.is_file())
    assert names == ["a.tif", "b.png", RECORD], "a tiled image has a tiled mask"
    for name in ("a.tif", "b.png"):
        found, expected = (readers.read_image(tmp_path / kind / name)[0] for kind in ("pieces", "whole"))
        assert (found == expected).mean() > 0.999  # statistics of intensities differ in the last bit
    with tifffile.TiffFile(tmp_path / "pieces" / "a.tif") as file:
        assert file.pages[0].is_tiled
    assert [path.name for path in (tmp_path / "pieces").glob(".*")] == []


def test_volumes_on_another_grid(volumes, tmp_path, monkeypatch):
    predicted(volumes, volumes / "set" / "images", tmp_path / "whole")
    monkeypatch.setattr(pieces, "LARGE", 1000)
    predicted(volumes, volumes / "set" / "images", tmp_path / "pieces")
    for number in range(4):
        found, expected = (nib.load(tmp_path / kind / f"{number}.nii.gz") for kind in ("pieces", "whole"))
        np.testing.assert_allclose(found.affine, expected.affine)
        assert (np.asarray(found.dataobj) == np.asarray(expected.dataobj)).mean() > 0.999


def test_an_image_that_is_large_on_the_grid_of_the_network_is_prepared_in_pieces(volumes, tmp_path, monkeypatch):
    """10 x 9 x 8 voxels of 3 mm are 30 x 27 x 16 on the grid of the network."""
    array = np.random.default_rng(2).integers(0, 900, (10, 9, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([3, 3, 3, 1])), tmp_path / "coarse.nii.gz")
    predicted(volumes, tmp_path / "coarse.nii.gz", tmp_path / "whole")
    prepared = []
    monkeypatch.setattr(
        "segkit.experiment.trained_ensemble.network_pieces",
        lambda source, *args: (prepared.append(source.shape), pieces.network_pieces(source, *args))[1],
    )
    monkeypatch.setattr(pieces, "LARGE", 4 * 10 * 9 * 8)
    predicted(volumes, tmp_path / "coarse.nii.gz", tmp_path / "pieces")
    assert prepared == [(1, 10, 9, 8)]
    found, expected = (nib.load(tmp_path / kind / "coarse.nii.gz") for kind in ("pieces", "whole"))
    assert (np.asarray(found.dataobj) == np.asarray(expected.dataobj)).mean() > 0.99


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_no_room_for_a_temporary_file_is_told_before_pixels_are_written(kind, request, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = request.getfixturevalue(kind)
    source = folder / "in" / "a.tif" if kind == "pictures" else folder / "set" / "images" / "0.nii.gz"
    monkeypatch.setattr(pieces, "LARGE", 1000)
    monkeypatch.setattr(os, "posix_fallocate", full)
    arguments = ["--checkpoint", folder / "run", "--input", source, "--output", tmp_path / "out"]
    printed = tool("predict", *arguments, code=2)
    assert source.name in printed
    assert "No space left on device" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORD]


def test_a_mask_of_a_large_picture_can_be_evaluated(pictures, tmp_path, monkeypatch):
    """An image above the limit of pixels, its mask, which is a TIFF for that reason, and the scores of the mask."""
    image = tmp_path / "in" / "b.tif"
    image.parent.mkdir()
    image.write_bytes((pictures / "in" / "b.tif").read_bytes())
    for module in ("raster", "tiff"):
        monkeypatch.setattr(f"segkit.data.formats.{module}.MAX_PIXELS", 90 * 75 - 1)
    monkeypatch.setattr(pieces, "LARGE", 1000)
    predicted(pictures, image, tmp_path / "masks")
    arguments = ["--predictions", tmp_path / "masks", "--references", tmp_path / "masks", "--out", tmp_path / "scores"]
    printed = tool("evaluate", *arguments, "--classes", "background,a,b")
    assert "1.0000" in printed


def test_a_damaged_image_among_large_ones_leaves_nothing_behind(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", 1000)
    (tmp_path / "in").mkdir()
    content = (pictures / "in" / "a.tif").read_bytes()
    (tmp_path / "in" / "a.tif").write_bytes(content)
    (tmp_path / "in" / "cut.tif").write_bytes(content[: len(content) // 2])
    arguments = ["--checkpoint", pictures / "run", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    printed = tool("predict", *arguments, code=3)
    assert "cut.tif" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.tif", RECORD]
