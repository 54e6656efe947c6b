"""Inspecting folders: layout and classes are detected, and the proposed configuration trains."""

import io
import json
import os
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from segkit import Labels
from segkit.commands import data
from segkit.data import SOURCES, DataError
from segkit.data.inspection import detect_layout, infer_classes
from segkit.experiment.build import build_labels, build_source, load_config
from segkit.report.contact_sheet import contact_sheet

from support.command_line import TINY, tool
from support.layouts import LAYOUTS, classes, colours, save

needs_data = pytest.mark.skipif("SEGKIT_DATA" not in os.environ, reason="SEGKIT_DATA does not name the real data")
DATA = Path(os.environ.get("SEGKIT_DATA", ""))
NAMES = tuple(f"{letter}{number:02}" for letter in "pq" for number in range(4))


def masks_of(root):
    """(layout, labels, masks by case name) as an inspection detects them."""
    layout = detect_layout(root)
    inferred = None if layout.labels is not None else infer_classes(layout.masks)
    labels = Labels(**(layout.labels if inferred is None else inferred.labels))
    source = SOURCES[layout.source](labels=labels, **layout.options, **({} if inferred is None else inferred.options))
    return layout, labels, {case.name: source.read(case).mask for case in source.cases}


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("ade", "instances", "coco")])
def test_layouts_are_detected(tmp_path, name):
    written = LAYOUTS[name](tmp_path)
    layout, _labels, masks = masks_of(tmp_path)
    assert layout.source == written.name
    assert layout.has_split == (written.splits != {None})
    assert layout.reasons
    for case, mask in written.masks.items():
        np.testing.assert_array_equal(masks[case], mask)


def test_parts_of_a_split_are_not_cases(tmp_path):
    """train/images, train/masks, val/images and val/masks have the structure of one folder per case."""
    for part in ("train", "val"):
        for name in NAMES:
            save(tmp_path / part / "images" / f"{name}.png", colours(name))
            save(tmp_path / part / "masks" / f"{name}.png", classes(name))
    layout, _labels, masks = masks_of(tmp_path)
    assert (layout.source, layout.has_split, len(masks)) == ("pairs", True, 2 * len(NAMES))
    assert not any("other masks" in reason for reason in layout.reasons)


def test_rare_class_is_found_and_smoothed_edges_are_not_classes(tmp_path):
    for number in range(120):
        save(tmp_path / "images" / f"{number}.png", colours(str(number)))
        save(
            tmp_path / "masks" / f"{number}.png",
            np.where(classes(str(number)) == 2, 3 if number != 77 else 2, 0).astype(np.uint8),
        )
    assert masks_of(tmp_path)[1].names == ("background", "class_2", "class_3")
    smooth = cv2.GaussianBlur(255 * classes("soft", 2).repeat(8, 0).repeat(8, 1), (5, 5), 0)
    inferred = infer_classes([save(tmp_path / "soft.png", smooth)])
    assert (inferred.options, inferred.labels) == ({"threshold": 128}, {"names": ["background", "foreground"]})
    greys = infer_classes([save(tmp_path / "greys.png", np.array([[0, 128, 255]], np.uint8))])
    assert "ignore_index" not in greys.labels
    assert greys.options == {"value_map": {128: 1, 255: 2}}


def test_a_folder_can_be_checked_and_planned_without_configuration(tmp_path):
    LAYOUTS["pairs"](tmp_path / "data")
    printed = tool("data", "check", "data", "--json", "check.json", folder=tmp_path)
    assert "layout pairs, 3 cases" in printed
    assert json.loads((tmp_path / "check.json").read_text())["read"] == 3
    tool("data", "plan", "data", folder=tmp_path)
    assert "patch:" in (tmp_path / "plan.yaml").read_text()
    for arguments in ([], ["nowhere"], ["data", "data"]):
        tool("data", "check", *arguments, code=2, folder=tmp_path)


def test_a_table_with_parts_for_some_rows_only_has_no_split(tmp_path):
    written = LAYOUTS["manifest_csv"](tmp_path)
    assert detect_layout(tmp_path).has_split
    lines = written.listing.read_text().splitlines()
    without = [f"{line.rpartition(',')[0]}," for line in lines[2:]]
    written.listing.write_text("\ufeff" + "\n".join([lines[0].upper(), lines[1], *without]))  # as Excel saves it
    layout, _labels, masks = masks_of(tmp_path)
    assert (layout.has_split, len(masks)) == (False, 3)


def test_unused_files_are_reported(tmp_path):
    LAYOUTS["pairs"](tmp_path)
    save(tmp_path / "more" / "x.png", colours("x"))
    printed = tool("data", "inspect", tmp_path, "--out", tmp_path / "my.yaml")
    assert "1 other images" in printed
    assert "more/x.png" in printed


def test_paths_are_relative_to_the_configuration(tmp_path):
    LAYOUTS["pairs"](tmp_path / "data")
    (tmp_path / "sub").mkdir()
    tool("data", "inspect", "data", "--out", "sub/my.yaml", folder=tmp_path)
    tool("data", "check", "--config", "sub/my.yaml", folder=tmp_path)


def test_instance_masks_without_classes(tmp_path):
    written = LAYOUTS["instances"](tmp_path)
    layout, _labels, masks = masks_of(tmp_path)
    assert layout.source == "instances"
    for case, mask in written.masks.items():
        np.testing.assert_array_equal(masks[case], mask > 0)


def test_coco_categories_become_classes(tmp_path):
    written = LAYOUTS["coco"](tmp_path)
    layout, labels, masks = masks_of(tmp_path)
    assert layout.source == "coco"
    assert labels.names == ("background", "car", "tree")
    for case, mask in written.masks.items():
        np.testing.assert_array_equal(masks[case], mask)


ARRANGEMENTS = {
    "two folders": ("images/{case}.png", "masks/{case}.png"),
    "suffix": ("img/{case}.jpg", "img_labels/{case}_seg.png"),
    "prefix": ("data/x/{case}.png", "data/y/gt_{case}.png"),
    "both have their own": ("images/image_{case}.png", "masks/mask_{case}.png"),
    "one folder": ("{case}.png", "{case}_mask.png"),
    "one folder, both with a word": ("{case}_sat.jpg", "{case}_mask.png"),
    "one folder, both with a word before": ("volume-{case}.png", "segmentation-{case}.png"),
    "parts above": ("{part}/images/{case}.png", "{part}/labels/{case}.png"),
    "parts below": ("images/{part}/{case}.png", "annotations/{part}/{case}.png"),
    "parts beside": ("{part}/{case}.png", "{part}annot/{case}.png"),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_pairs_are_detected_with_any_naming(tmp_path, arrangement):
    image, mask = ARRANGEMENTS[arrangement]
    parts = ["train"] * 5 + ["val"] * 3
    for name, part in zip(NAMES, parts, strict=True):
        save(tmp_path / image.format(case=name, part=part), colours(name))
        save(tmp_path / mask.format(case=name, part=part), classes(name))
    layout, labels, masks = masks_of(tmp_path)
    assert layout.source == "pairs"
    assert layout.has_split == ("{part}" in image)
    assert len(labels.names) == 3
    assert masks.keys() == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(masks[name], classes(name))


TABLES = {
    "folders in both": ("images/{folder}/{case}.png", "masks/{folder}/{case}.png"),
    "folders in both, with words": ("images/{folder}/image_{case}.png", "gt/{folder}/{case}-mask.png"),
    "images and masks in every folder": ("{folder}/images/{case}.png", "{folder}/labels/{case}.png"),
    "a suffix": ("{folder}/{case}.png", "{folder}/{case}_gt.png"),
    "two file formats": ("{folder}/{case}.jpg", "{folder}/{case}.png"),
    "one folder per case": ("cases/{case}/imaging.png", "cases/{case}/segmentation.png"),
    "parts with a word before": ("images_{part}/{folder}/{case}.png", "masks_{part}/{folder}/{case}.png"),
}


@pytest.mark.parametrize("arrangement", TABLES)
def test_other_arrangements_are_written_as_a_table(tmp_path, arrangement):
    image, mask = TABLES[arrangement]
    names = [f"{letter}{number:02}" for letter in "pqrs" for number in range(4)]
    for number, name in enumerate(names):
        fields = {"case": name, "folder": f"site {number % 3}", "part": "train" if number < 12 else "val"}
        save(tmp_path / "data" / image.format(**fields), large(name))
        save(tmp_path / "data" / mask.format(**fields), large_classes(name))
    save(tmp_path / "data" / "readme" / "logo.png", large("logo"))
    printed = tool("data", "inspect", "data", "--out", "my.yaml", "--memory", "1", folder=tmp_path)
    assert "layout manifest, 16 cases" in printed
    assert "1 other images below data" in printed
    assert "readme/logo.png" in printed
    config = load_config(tmp_path / "my.yaml")
    assert (config.split.name == "source") == ("{part}" in image)
    source = build_source(config, build_labels(config))
    assert {case.name.removeprefix("image_") for case in source.cases} == set(names)
    for case in source.cases:
        np.testing.assert_array_equal(source.read(case).mask, large_classes(case.name.removeprefix("image_")))
    if arrangement == "one folder per case":
        tool("train", "--config", "my.yaml", "train.steps=2", "train.validate_every={steps: 2}", folder=tmp_path)


def test_manual_segmentations_are_preferred_to_fields_of_view(tmp_path):
    """As in DRIVE, where file names also contain the part of the split."""
    for number, name in enumerate(f"{number:02}" for number in range(12)):
        part = "training" if number < 6 else "test"
        save(tmp_path / part / f"images/{name}_{part}.png", large(name))
        save(tmp_path / part / f"mask/{name}_{part}_mask.png", (large_classes("view") > 0) * np.uint8(255))
        save(tmp_path / part / f"1st_manual/{name}_manual1.png", large_classes(name))
    layout, _labels, masks = masks_of_table(tmp_path)
    assert layout.has_split
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, large_classes(name[:2]))


def test_images_are_not_derived_from_masks(tmp_path):
    for name in NAMES:
        for folder, array in (("images", large(name)), ("masks", large_classes(name)), ("edges", large_classes("e"))):
            save(tmp_path / folder / f"{name}.png", array)
    layout = detect_layout(tmp_path)
    assert (layout.options["images"].name, layout.options["masks"].name) == ("images", "masks")
    assert any("other masks of the same images" in reason and "edges" in reason for reason in layout.reasons)


BESIDE = {
    "words in both, in batches": ("batch {folder}/volume-{case}.png", "batch {folder}/segmentation-{case}.png"),
    "suffixes in both": (
        "{folder}_train/{folder}_{case}_image.png",
        "{folder}_train/{folder}_{case}_label.png",
    ),
    "one folder per case, named like its image": ("train/{case}/{case}.png", "train/{case}/GT.png"),
    "two annotators in one folder": ("{case}.png", "{case}_1stHO.png"),
    "parts and sites": ("Train/{folder}/images_png/{case}.png", "Train/{folder}/masks_png/{case}.png"),
    "GIF masks": ("images/{case}.png", "manual/{case}_manual1.gif"),
}


@pytest.mark.parametrize("arrangement", BESIDE)
def test_masks_are_detected_among_other_files(tmp_path, arrangement):
    image, mask = BESIDE[arrangement]
    for number, name in enumerate(NAMES):
        fields = {"case": name, "folder": "ab"[number % 2]}
        save(tmp_path / image.format(**fields), large(name))
        save(tmp_path / mask.format(**fields), large_classes(name))
        if "1stHO" in mask:
            save(tmp_path / f"{name}_2ndHO.png", large_classes(name + "2"))
    layout = detect_layout(tmp_path)
    if layout.rows:
        _layout, _labels, masks = masks_of_table(tmp_path)
    else:
        _layout, _labels, masks = masks_of(tmp_path)
    assert len(masks) == len(NAMES)
    for case, stored in masks.items():
        name = next(name for name in NAMES if name in case)
        np.testing.assert_array_equal(stored, large_classes(name))


def test_one_mask_per_organ_in_a_subfolder(tmp_path):
    """As in TotalSegmentator: masks of one patient must not become images of another."""
    for name in NAMES:
        save(tmp_path / f"{name}/ct.png", large(name))
        for organ in ("liver", "spleen"):
            save(tmp_path / f"{name}/segmentations/{organ}.png", (large_classes(name + organ) > 1) * np.uint8(255))
    layout, labels, masks = masks_of_table(tmp_path)
    assert labels.names == ("liver", "spleen")
    assert any("may overlap" in reason for reason in layout.reasons)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, [large_classes(name + organ) > 1 for organ in labels.names])


def test_versions_of_a_mask_are_not_classes(tmp_path):
    for name in NAMES:
        save(tmp_path / f"{name}/imaging.png", large(name))
        for version in ("or", "maj"):
            save(tmp_path / f"{name}/{version}_seg.png", large_classes(name + version))
    assert [set(row) for row in detect_layout(tmp_path).rows] == [{"case", "image", "mask"}] * len(NAMES)


def test_several_images_of_a_patient_are_not_channels(tmp_path):
    for folder in range(3):
        for name in NAMES[:4]:
            save(tmp_path / f"p{folder}/images/{name}.png", large(f"{folder}{name}"))
            save(tmp_path / f"p{folder}/masks/{name}.png", large_classes(f"{folder}{name}"))
    layout = detect_layout(tmp_path)
    assert (layout.source, len(layout.rows)) == ("manifest", 12)
    assert any("patients" in reason and "`group`" in reason for reason in layout.reasons)


def test_studies_of_one_patient_are_one_group(tmp_path):
    for patient in range(11):
        for study in range(2):
            name = f"p{patient}/s{study}/im"
            save(tmp_path / f"{name}.png", large(name))
            save(tmp_path / f"{name}_mask.png", large_classes(name))
    assert {row["group"] for row in detect_layout(tmp_path).rows} == {f"p{patient}" for patient in range(11)}


def test_a_known_layout_in_a_subfolder(tmp_path):
    LAYOUTS["voc"](tmp_path / "VOCdevkit" / "VOC2012")
    layout = detect_layout(tmp_path)
    assert (layout.source, layout.reasons[0]) == ("voc", "in VOCdevkit/VOC2012")


def test_a_folder_of_data_sets_of_nnunet(tmp_path):
    LAYOUTS["nnunet"](tmp_path / "raw" / "Dataset001_Foo")
    layout = detect_layout(tmp_path / "raw")
    assert (layout.source, layout.reasons[0]) == ("nnunet", "in Dataset001_Foo")
    assert layout.labels == detect_layout(tmp_path / "raw" / "Dataset001_Foo").labels
    LAYOUTS["msd"](tmp_path / "raw" / "Task04_Bar")
    with pytest.raises(DataError, match=r"2 data sets with a dataset\.json, Dataset001_Foo, Task04_Bar: give one"):
        detect_layout(tmp_path / "raw")


def test_a_data_set_of_nnunet_beside_other_images_is_left_alone(tmp_path):
    LAYOUTS["nnunet"](tmp_path / "raw" / "old" / "Dataset001_Foo")
    for number in range(6):
        save(tmp_path / f"raw/images/c{number}.png", large(f"c{number}"))
        save(tmp_path / f"raw/masks/c{number}.png", large_classes(f"c{number}"))
    assert detect_layout(tmp_path / "raw").source == "pairs"
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "sub" / "dataset.json").write_text('{"file_ending": 3}')
    LAYOUTS["pairs"](tmp_path / "other")
    assert detect_layout(tmp_path / "other").source == "pairs", "a damaged dataset.json is not that of the data"


def test_damaged_cases_do_not_stop_an_inspection(tmp_path):
    LAYOUTS["pairs"](tmp_path / "data")
    image = sorted(path for path in (tmp_path / "data").rglob("*.*") if "image" in str(path))[0]
    image.write_bytes(image.read_bytes()[:40])
    printed = tool("data", "inspect", "data", "--out", "my.yaml", folder=tmp_path)
    assert "1 of 3 cases cannot be read" in printed
    assert image.name in tool("data", "check", "--config", "my.yaml", code=3, folder=tmp_path)


def values_in(folder, array):
    return infer_classes([save(folder / "x.png", array.astype(np.uint8))])


def test_smoothed_missing_and_unusual_backgrounds(tmp_path):
    smooth = values_in(tmp_path, np.array([[0, 1, 2], [253, 254, 255]]))
    assert smooth.options == {"threshold": 128}
    without = values_in(tmp_path, np.array([[1, 2], [3, 3]]))
    assert without.labels["names"] == ["class_1", "class_2", "class_3"]
    assert without.options == {"value_map": {1: 0, 2: 1, 3: 2}}
    reversed_background = values_in(tmp_path, np.array([[0, 128], [255, 255]]))
    assert any("255 has more pixels" in reason for reason in reversed_background.reasons)


def test_masks_are_detected_by_content_without_a_mask_word(tmp_path):
    for name in NAMES:
        for part in ("train", "val"):
            save(tmp_path / part / f"{name}/a/1.png", large(name + part))
            save(tmp_path / part / f"{name}/b/1.png", large_classes(name + part))
    layout, _labels, masks = masks_of_table(tmp_path)
    assert layout.has_split
    assert len(masks) == 2 * len(NAMES)
    np.testing.assert_array_equal(masks[f"val/{NAMES[0]}/a/1"], large_classes(NAMES[0] + "val"))


def test_one_mask_per_class_in_the_folder_of_a_case(tmp_path):
    for name in NAMES:
        save(tmp_path / f"{name}/ct.png", large(name))
        for organ in ("liver", "tumour"):
            save(tmp_path / f"{name}/{organ}_mask.png", (large_classes(name + organ) > 1) * np.uint8(255))
    _layout, labels, masks = masks_of_table(tmp_path)
    assert (labels.names, labels.mode) == (("liver", "tumour"), "multilabel")
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, [large_classes(name + organ) > 1 for organ in labels.names])


def masks_of_table(folder):
    """(layout, labels, masks by case name) of a folder for which `inspect` writes a table of cases."""
    data.inspect(folder, folder / "my.yaml", memory=1.0, console=Console(file=io.StringIO()))
    config = load_config(folder / "my.yaml")
    labels = build_labels(config)
    source = build_source(config, labels)
    (folder / "my_cases.csv").rename(folder / "cases.txt")
    return detect_layout(folder), labels, {case.name: source.read(case).mask for case in source.cases}


def large(name):
    return np.random.default_rng(list(name.encode())).integers(0, 256, (24, 24, 3)).astype(np.uint8)


def large_classes(name):
    return np.random.default_rng(list(name.encode())).integers(0, 3, (24, 24)).astype(np.uint8)


@pytest.mark.parametrize("mask", ["{case}/{case}_seg.nii.gz", "labelsTr/{case}.nii.gz"])
def test_one_file_per_channel(tmp_path, mask):
    """As in BraTS, with one folder per case, and in nnU-Net's folders without dataset.json."""
    image = "{case}/{case}_{name}.nii.gz" if "{case}/" in mask else "imagesTr/{case}_000{number}.nii.gz"
    names = [f"B_{number}" for number in range(5)]
    for name in names:
        for number, channel in enumerate(("flair", "t1", "t1ce")):
            voxels = np.full((4, 5, 6), 10 * number, np.float32) + np.arange(6)
            write_volume(tmp_path / image.format(case=name, name=channel, number=number), voxels)
        write_volume(tmp_path / mask.format(case=name), np.arange(120).reshape(4, 5, 6).astype(np.uint8) % 3)
    layout = detect_layout(tmp_path)
    assert (layout.source, len(layout.rows)) == ("manifest", 5)
    assert [len(row["image"].split(";")) for row in layout.rows] == [3] * 5
    data.inspect(tmp_path, tmp_path / "a.yaml", memory=1.0, console=Console(file=io.StringIO()))
    config = load_config(tmp_path / "a.yaml")
    source = build_source(config, build_labels(config))
    assert [case.name for case in source.cases] == names
    assert source.read(source.cases[0]).image[:, 0, 0, 0].tolist() == [0, 10, 20]


def write_volume(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def test_patients_become_groups_and_a_failed_inspection_writes_nothing(tmp_path):
    for number in range(12):
        for frame in (1, 7):
            save(tmp_path / f"data/p{number:02}/f{frame}.png", large(f"{number} {frame}"))
            save(tmp_path / f"data/p{number:02}/f{frame}_gt.png", large_classes(f"{number} {frame}"))
    layout = detect_layout(tmp_path / "data")
    assert len({row["group"] for row in layout.rows}) == 12
    assert len({row["case"] for row in layout.rows}) == 24
    (tmp_path / "my_cases.csv").write_text("kept")
    assert "already exists" in tool("data", "inspect", "data", "--out", "my.yaml", code=2, folder=tmp_path)
    assert (tmp_path / "my_cases.csv").read_text() == "kept"
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ],
)
def test_coco_with_several_parts(tmp_path, train, val):
    LAYOUTS["coco"](tmp_path / "one")
    listing = next((tmp_path / "one").rglob("*.json"))
    content = json.loads(listing.read_text())
    places = ("train", "valid") if train.startswith("train") else ("train2017", "val2017")
    for file, place in zip((train, val), places, strict=True):
        (tmp_path / "two" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / file).write_text(json.dumps(content))
        for image in content["images"]:
            image_file = next((tmp_path / "one").rglob(Path(image["file_name"]).name))
            target = tmp_path / "two" / place / image["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image_file.read_bytes())
    (tmp_path / "two" / "annotations").mkdir(exist_ok=True)
    (tmp_path / "two" / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    layout, labels, masks = masks_of(tmp_path / "two")
    assert (layout.source, layout.has_split, len(masks)) == ("coco", True, 2 * len(content["images"]))
    assert labels.names == ("background", "car", "tree")
    tool("data", "inspect", "two", "--out", "elsewhere/my.yaml", folder=tmp_path)
    checked = tool("data", "check", "--config", "elsewhere/my.yaml", code=3, folder=tmp_path)
    assert "6 readable; 3 train, 3 validation" in checked  # an error, since every image is in both parts
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    (tmp_path / "two" / train).write_text(json.dumps(content))
    with pytest.raises(DataError, match="neither an outline nor a bounding box"):
        masks_of(tmp_path / "two")


PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 90, 200]], np.uint8)
CODES = {
    "0 and 255": (lambda mask: (mask > 0) * np.uint8(255), lambda mask: mask > 0, {"value_map": {255: 1}}),
    "0 and 1": (lambda mask: (mask > 0) * np.uint8(1), lambda mask: mask > 0, {}),
    "gaps": (lambda mask: np.array([0, 7, 40], np.uint8)[mask], lambda mask: mask, {"value_map": {7: 1, 40: 2}}),
    "ignored": (lambda mask: np.array([0, 1, 255], np.uint8)[mask], lambda mask: np.array([0, 1, 255])[mask], {}),
    "16 bits": (lambda mask: np.array([0, 1, 2], np.uint16)[mask], lambda mask: mask, {}),
    "colours": (lambda mask: PALETTE[mask], lambda mask: np.array([0, 2, 1])[mask], {"colors"}),
}


@pytest.mark.parametrize("code", CODES)
def test_classes_are_inferred_from_values(tmp_path, code):
    stored, decoded, options = CODES[code]
    for name in NAMES:
        save(tmp_path / f"images/{name}.png", colours(name))
        (tmp_path / "masks").mkdir(exist_ok=True)
        array = stored(classes(name))
        cv2.imwrite(str(tmp_path / f"masks/{name}.png"), array[..., ::-1] if array.ndim == 3 else array)
    inferred = infer_classes(detect_layout(tmp_path).masks)
    assert inferred.options.keys() == set(options)
    assert inferred.options == options or code == "colours"
    assert (inferred.labels.get("ignore_index") == 255) == (code == "ignored")
    _layout, _labels, masks = masks_of(tmp_path)
    for name in NAMES:
        np.testing.assert_array_equal(masks[name], decoded(classes(name)))


def test_jpeg_masks_get_a_threshold(tmp_path):
    for number, name in enumerate(NAMES):
        save(
            tmp_path / f"images/{name}.jpg",
            np.random.default_rng(number).integers(0, 256, (64, 64, 3)).astype(np.uint8),
        )
        mask = np.zeros((64, 64), np.uint8)
        mask[10 + number : 40, 10:50] = 255
        save(tmp_path / f"masks/{name}.jpg", mask)
    assert infer_classes(detect_layout(tmp_path).masks).options == {"threshold": 128}
    assert all(mask.sum() == (30 - number) * 40 for number, mask in enumerate(masks_of(tmp_path)[2].values()))


def test_folders_without_masks(tmp_path):
    for name in NAMES:
        save(tmp_path / f"a/{name}.png", colours(name))
    with pytest.raises(DataError, match=r"known layouts.* 8 \.png.*manifest"):
        detect_layout(tmp_path)
    with pytest.raises(DataError, match="found none"):
        detect_layout(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pairs", "msd", "nnunet", "voc"])
def test_the_written_configuration_trains_unchanged(tmp_path, name):
    (tmp_path / "data").mkdir()
    LAYOUTS[name](tmp_path / "data")
    printed = tool("data", "inspect", "data", "--out", "start.yaml", "--memory", "1", folder=tmp_path)
    assert f"layout {name}" in printed
    text = (tmp_path / "start.yaml").read_text()
    assert "# " in text
    assert str(tmp_path) not in text  # relative paths, so that data and configuration can be moved together
    tool("train", "--config", "start.yaml", "train.steps=2", "train.validate_every={steps: 2}", folder=tmp_path)
    assert "already exists" in tool("data", "inspect", "data", "--out", "start.yaml", code=2, folder=tmp_path)


def test_thick_slices_get_anisotropic_strides_and_train(tmp_path):
    """Downsampled in-plane first, as in nnU-Net; with deep supervision, sliding windows and varying image sizes."""
    generator = np.random.default_rng(0)
    for number in range(6):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            voxels = generator.integers(0, 2 if folder == "masks" else 255, (40, 36 + number, 5)).astype(np.uint8)
            nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 4.0, 1.0])), tmp_path / folder / f"{number}.nii.gz")
    tool("data", "inspect", ".", "--out", "thick.yaml", "--memory", "1", folder=tmp_path)
    config = load_config(tmp_path / "thick.yaml")
    assert config.sampling.patch[2] == 5
    assert config.model.args["strides"] == [[2, 2, 1], [2, 2, 1], [2, 2, 1]]
    assert config.augment.transforms[0].args["axis"] == 2
    text = (tmp_path / "thick.yaml").read_text()
    assert "spacing 0.8 x 0.8 x 4:" in text
    short = ["train.steps=2", "train.validate_every={steps: 2}", "model.widths=[4,4,4,4]", "run.dir=out"]
    more = [
        "model.deep_supervision=true",
        "evaluation.window=[17,18,3]",
        "train.accumulate=2",
        "sampling.patch=[17,18,3]",
    ]
    tool("train", "--config", "thick.yaml", *short, *more, folder=tmp_path)
    tool("evaluate", "--checkpoint", "out", folder=tmp_path)


def test_class_weights_are_suggested_for_imbalanced_classes(tmp_path):
    masks = [np.zeros((20, 20), np.uint8) for _ in range(4)]
    for number, mask in enumerate(masks):
        mask[:2, : 2 + number] = 1
        mask[10:] = 2 if number % 2 else 0
        save(tmp_path / f"images/{number}.png", np.full((20, 20, 3), 9 + number, np.uint8))
        save(tmp_path / f"masks/{number}.png", mask)
    tool("data", "inspect", ".", "--out", "my.yaml", folder=tmp_path)
    stacked = np.stack(masks)
    shares = [(stacked == number).sum() / stacked[(stacked == number).any((1, 2))].size for number in range(3)]
    shown = ", ".join(
        f"{name} {np.median(shares) / share:.2g}"
        for name, share in zip(("background", "class_1", "class_2"), shares, strict=True)
    )
    assert f"weights from these cases: {shown}" in " ".join(
        (tmp_path / "my.yaml").read_text().replace("\n#", "").split()
    )


def test_a_plan_keeps_labels_data_and_split(tmp_path):
    LAYOUTS["pairs"](tmp_path)
    data.inspect(tmp_path, tmp_path / "a.yaml", memory=1.0, console=Console(file=io.StringIO()))
    tool("data", "plan", "--config", "a.yaml", "labels.names=[sky,car,tree]", "--out", "b.yaml", folder=tmp_path)
    first, second = (load_config(tmp_path / f"{name}.yaml") for name in "ab")
    assert second.labels.names == ["sky", "car", "tree"]
    assert second.data == first.data
    assert second.sampling == first.sampling


def test_a_preview_shows_the_input_of_the_network(tmp_path, monkeypatch):
    """The cases as stored, and the samples of the first epochs."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    drawn = []
    monkeypatch.setattr(
        data, "contact_sheet", lambda rows, *rest, **more: drawn.append(rows) or contact_sheet(rows, *rest, **more)
    )
    options = ("--cases", "3", "--samples", "2", "--out", "sheet.png")
    tool("data", "preview", "--config", "tiny.yaml", *options, folder=tmp_path)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 3 * 200
        assert len(np.unique(np.array(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    (rows,) = drawn
    assert [len(samples) for _name, samples in rows] == [3, 3, 3]
    config = load_config(tmp_path / "tiny.yaml")
    labels = build_labels(config)
    source = build_source(config, labels)
    for name, samples in rows:
        raw = source.read(next(case for case in source.cases if case.name == name))
        np.testing.assert_array_equal(samples[0][1], raw.mask)
        for _image, mask in samples[1:]:  # flips are the only augmentation
            assert any(np.array_equal(mask, other) for other in (raw.mask, raw.mask[:, ::-1]))


@needs_data
@pytest.mark.parametrize(
    ("name", "source", "cases", "classes"),
    [
        ("camvid", "pairs", 216, 12),
        ("chase_db1", "pairs", 28, 2),
        ("isbi2012", "pairs", 30, 2),
        ("hippocampus", "msd", 200, 3),
    ],
)
def test_real_folders(name, source, cases, classes):
    layout = detect_layout(DATA / name)
    assert layout.source == source
    labels = layout.labels or infer_classes(layout.masks).labels
    assert len(labels["names"]) == classes
    options = {} if layout.labels else infer_classes(layout.masks).options
    assert len(SOURCES[source](labels=Labels(**labels), **layout.options, **options).cases) == cases


@needs_data
@pytest.mark.parametrize(("name", "source"), [("voc_palette", "voc"), ("coco", "coco"), ("ade20k", "ade")])
def test_real_files_of_public_data_sets(name, source):
    layout, labels, masks = masks_of(DATA / "formats" / name)
    assert layout.source == source
    assert len(masks) == 3
    if name == "coco":
        listing = json.loads((DATA / "formats/coco/annotations.json").read_text())
        assert set(labels.names) <= {"background", *(category["name"] for category in listing["categories"])}
    for case, mask in masks.items():
        if name == "ade20k":
            stored = np.array(Image.open(DATA / f"formats/ade20k/annotations/{case}.png")).astype(int)
            np.testing.assert_array_equal(mask, np.where(stored == 0, 255, stored - 1))
