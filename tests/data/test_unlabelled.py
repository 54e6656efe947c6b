"""The cases to predict, in every layout that training reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit import Labels
from segkit.data import SOURCES
from segkit.data.sources.unlabelled import LAYOUTS, unlabelled_cases
from segkit.utils.errors import DataError

LABELS = Labels(["background", "a"], ignore_index=255)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / name)


def found(folder, name="synthetic", channels=1, **options):
    """The names of the cases and of their files, relative to the folder."""
    cases = unlabelled_cases(folder, LABELS, channels, name, options)
    root = folder if folder.is_dir() else folder.parent
    return {case.name: [str(path.relative_to(root)) for path in case.images] for case in cases}


def pairs(folder, **options):
    defaults = {"image_pattern": "{case}.*", "mask_pattern": "{case}.*"}
    return defaults | {"images": folder / "images", "masks": folder / "masks"} | options


# layout of a data set: files, options, and the cases that are predicted
IN_LAYOUT = {
    "pairs": (
        ["images/a.png", "images/b.png", "masks/a.png"],
        pairs,
        {"a": ["images/a.png"], "b": ["images/b.png"]},
    ),
    "pairs in one folder": (
        ["a_img.png", "a_mask.png", "b_img.png", "notes.png"],
        lambda folder: pairs(
            folder, images=folder, masks=folder, image_pattern="{case}_img.*", mask_pattern="{case}_mask.*"
        ),
        {"a": ["a_img.png"], "b": ["b_img.png"]},
    ),
    "pairs with masks that have a suffix": (
        ["a.png", "a_mask.png"],
        lambda folder: pairs(folder, images=folder, masks=folder, mask_pattern="{case}_mask.*"),
        {"a": ["a.png"]},
    ),
    "pairs with parts": (
        ["x/train/a.png", "y/train/a.png", "x/val/b.png"],
        lambda folder: pairs(
            folder,
            images=folder / "x" / "{split}",
            masks=folder / "y" / "{split}",
            splits={"train": "train", "validation": "val"},
        ),
        {"a": ["x/train/a.png"], "b": ["x/val/b.png"]},
    ),
    "voc": (
        ["JPEGImages/a.jpg", "SegmentationClass/a.png"],
        lambda _folder: {},
        {"a": ["JPEGImages/a.jpg"]},
    ),
    "cityscapes": (
        ["leftImg8bit/val/bonn/b_1_leftImg8bit.png", "gtFine/val/bonn/b_1_gtFine_labelIds.png"],
        lambda _folder: {},
        {"b_1": ["leftImg8bit/val/bonn/b_1_leftImg8bit.png"]},
    ),
    "ade": (
        ["images/training/a.jpg", "images/validation/b.jpg", "annotations/training/a.png"],
        lambda _folder: {"sets": {"train": "training", "validation": "validation"}},
        {"a": ["images/training/a.jpg"], "b": ["images/validation/b.jpg"]},
    ),
    "instances": (
        ["a/images/x.png", "a/images/y.png", "a/masks/1.png", "b/images/z.png", "notes/1.txt.png"],
        lambda _folder: {"image": "images/*"},
        {"a": ["a/images/x.png", "a/images/y.png"], "b": ["b/images/z.png"]},
    ),
}


@pytest.mark.parametrize("layout", IN_LAYOUT)
def test_folders_with_the_layout_of_the_training_data(tmp_path, layout):
    files, options, expected = IN_LAYOUT[layout]
    touch(tmp_path, *files)
    assert found(tmp_path, layout.split()[0], **options(tmp_path)) == expected


@pytest.mark.parametrize("name", sorted({*SOURCES} - {"instances", "cityscapes"}))
def test_a_plain_folder_and_a_single_file_are_taken_whatever_the_training_data_were(tmp_path, name):
    touch(tmp_path, "a.png", "b.jpg")
    elsewhere = Path("/elsewhere")
    options = pairs(elsewhere) if name == "pairs" else {}
    assert found(tmp_path, name, **options) == {"a": ["a.png"], "b": ["b.jpg"]}
    assert found(tmp_path / "a.png", name, **options) == {"a": ["a.png"]}


def test_every_layout_of_the_training_is_known():
    """Those that are not listed hold plain images, or are read from a table or a dataset.json."""
    assert {*LAYOUTS} | {"manifest", "msd", "nnunet", "coco", "synthetic"} == {*SOURCES}


def test_files_of_channels_are_cases(tmp_path):
    touch(tmp_path, "a_0000.png", "a_0001.png", "b_0000.png", "b_0001.png")
    expected = {name: [f"{name}_0000.png", f"{name}_0001.png"] for name in "ab"}
    assert found(tmp_path, "nnunet") == expected
    assert found(tmp_path, "manifest", channels=2) == expected
    # a network with one channel that was trained on plain files takes each file
    assert len(found(tmp_path, "manifest", channels=1)) == 4
    (tmp_path / "b_0000.png").unlink()
    assert found(tmp_path, "nnunet") == expected  # the file that is missing fails when it is read


def test_tables_need_no_masks(tmp_path):
    touch(tmp_path, "x/a.png", "x/b.png", "m.png")
    (tmp_path / "t.csv").write_text("case,image,mask\none,x/a.png;x/b.png,m.png\n,x/b.png,\n")
    assert found(tmp_path / "t.csv") == {"one": ["x/a.png", "x/b.png"], "b": ["x/b.png"]}
    (tmp_path / "t.json").write_text(json.dumps([{"image": ["x/a.png"]}]))
    assert found(tmp_path / "t.json") == {"a": ["x/a.png"]}
    (tmp_path / "t.csv").write_text("image\nx/a.png;x/b.png\nm.png\n")
    assert found(tmp_path / "t.csv") == {"a": ["x/a.png", "x/b.png"], "m": ["m.png"]}
    for text, message in (
        ("image\nnone.png\n", "none.png"),
        ("picture\nx/a.png\n", "expected case, image"),
        ("case,image\na,\n", "expected an image"),
        ("image\n../secret.png\n", "outside the folder"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            found(tmp_path / "t.csv")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_listing_with_training_and_test_cases(tmp_path, as_file):
    touch(tmp_path, "imagesTr/a.png", "labelsTr/a.png", "imagesTs/b.png", "imagesTs/c.png")
    training = [{"image": "./imagesTr/a.png", "label": "./labelsTr/a.png"}]
    listing = {"training": training, "test": ["./imagesTs/b.png", {"image": "imagesTs/c.png"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    source = tmp_path / "dataset.json" if as_file else tmp_path
    assert found(source) == {"a": ["imagesTr/a.png"], "b": ["imagesTs/b.png"], "c": ["imagesTs/c.png"]}


def test_a_listing_of_channels_without_cases(tmp_path):
    touch(tmp_path, *(f"imagesT{part}_000{channel}.png" for part in ("r/a", "s/b") for channel in (0, 1)))
    listing = {"channel_names": {"0": "x", "1": "y"}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    expected = {
        "a": ["imagesTr/a_0000.png", "imagesTr/a_0001.png"],
        "b": ["imagesTs/b_0000.png", "imagesTs/b_0001.png"],
    }
    assert found(tmp_path) == expected


def test_nothing_to_predict_is_an_error(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        for name in SOURCES:
            options = pairs(tmp_path) if name == "pairs" else {"image": "*"} if name == "instances" else {}
            with pytest.raises(DataError, match=str(source)):
                found(source, name, **options)
