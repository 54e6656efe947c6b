"""Folders that are unusual or cannot be read: what `inspect` makes of them, and what it says."""

import io
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from segkit import Labels
from segkit.commands import data
from segkit.data import DataError
from segkit.data.inspection import detect_layout, infer_classes
from segkit.experiment.build import build_labels, build_source, load_config
from segkit.experiment.planning import extract_fingerprint, memory_limit, propose
from segkit.experiment.planning.proposal import sided_pairs

from support.command_line import tool
from support.layouts import classes, colours, save

NAMES = tuple(f"{letter}{number:02}" for letter in "pq" for number in range(4))


def inspected(root):
    """The written configuration and what was printed."""
    printed = io.StringIO()
    data.inspect(root, root / "segkit.yaml", memory=1.0, console=Console(file=printed, width=1000))
    return load_config(root / "segkit.yaml"), printed.getvalue()


def write_pairs(root, masks, images=colours):
    for name in NAMES:
        save(root / f"images/{name}.png", images(name))
        mask = masks(name)
        if mask.dtype == np.float32:
            (root / "masks").mkdir(exist_ok=True)
            np.save(root / f"masks/{name}.npy", mask)
        else:
            save(root / f"masks/{name}.png", mask)


def smoothed(name):
    """A disc of 255 with an edge of many grey values."""
    rows, columns = np.indices((48, 48)) - 23.7
    radius = 12 + ord(name[0]) % 3
    return np.clip(255 * (radius + 1.5 - np.hypot(rows, columns - 0.4)) / 3, 0, 255).astype(np.uint8)


def test_masks_with_smoothed_edges_are_masks(tmp_path):
    """Even if one of them has more distinct values than a mask of class numbers."""
    write_pairs(tmp_path, smoothed, lambda _name: np.random.default_rng(1).integers(0, 256, (48, 48, 3), np.uint8))
    assert len(np.unique(smoothed("p00"))) > 64
    config, _printed = inspected(tmp_path)
    assert config.data.args["threshold"] == 128
    source = build_source(config, build_labels(config))
    for case in source.cases:
        np.testing.assert_array_equal(source.read(case).mask, smoothed(case.name) >= 128)


def test_one_mask_of_many_values_says_threshold_once(tmp_path):
    write_pairs(tmp_path, smoothed, lambda _name: np.random.default_rng(1).integers(0, 256, (48, 48, 3), np.uint8))
    (tmp_path / "x.yaml").write_text(
        "labels: {names: [background, a]}\ndata: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold}\n"
    )
    done = tool("data", "check", "--config", "x.yaml", "--json", "c.json", folder=tmp_path, code=3)
    found = json.loads((tmp_path / "c.json").read_text())["findings"]
    errors = [finding["text"] for finding in found if finding["level"] == "error"]
    assert len(errors) == 1, done
    assert "`threshold: 128` under `data`" in errors[0]
    assert f"the same in {len(NAMES) - 1} more cases" in errors[0]


def objects(name):
    """Connected objects that are numbered from 1, as in GlaS."""
    mask = np.zeros((40, 40), np.uint8)
    for number in range(2 + int(name[-1])):
        mask[4 * number : 4 * number + 2, 5:9] = number + 1
    return mask


def test_object_numbers_are_foreground_and_no_classes(tmp_path):
    write_pairs(tmp_path, objects, lambda _name: np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8))
    config, printed = inspected(tmp_path)
    assert config.labels.names == ["background", "foreground"]
    assert "one connected object" in printed
    source = build_source(config, build_labels(config))
    for case in source.cases:
        np.testing.assert_array_equal(source.read(case).mask, objects(case.name) > 0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda _name: np.random.default_rng(0).random((12, 10)).astype(np.float32), "fractions between 0 and 1, like"),
        (lambda _name: np.arange(120).reshape(12, 10).astype(np.uint8), "120 numbers 0 to 119, like one number per"),
        (colours, "colours, like a photograph"),
    ],
)
def test_why_masks_of_the_same_name_are_no_masks(tmp_path, mask, message):
    write_pairs(tmp_path, mask)
    with pytest.raises(DataError, match=rf"8 names match in images and masks, but .*{message}"):
        detect_layout(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.heic", "", r"1 \.heic \(convert with `magick"),
        ("data.zip", "", r"1 \.zip \(unpack them\)"),
        (
            "a.json",
            '{"shapes": [], "imagePath": "a.png"}',
            r"1 files such as a\.json are annotations of labelme: .*2voc",
        ),
        ("t.csv", "picture,target\na.png,b.png\n", r"names files in the columns picture, target: rename"),
    ],
)
def test_what_else_lies_in_a_folder_is_named(tmp_path, name, content, message):
    save(tmp_path / "a.png", colours("a"))
    save(tmp_path / "b.png", colours("b"))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        detect_layout(tmp_path)


def write_voc(root, names, values, **files):
    for name in names:
        save(root / f"JPEGImages/{name}.{files.get('ending', 'jpg')}", colours(name))
        save(root / f"{files.get('masks', 'SegmentationClass')}/{name}.png", values(name))


def test_voc_folders_with_classes_of_their_own(tmp_path):
    write_voc(tmp_path, NAMES, classes)
    assert detect_layout(tmp_path).labels is None  # inferred from the masks
    config, _printed = inspected(tmp_path)
    assert config.labels.names == ["background", "class_1", "class_2"]


def test_voc_itself_keeps_its_classes(tmp_path):
    write_voc(tmp_path, [f"2007_{number:06}" for number in range(8)], classes)
    assert len(detect_layout(tmp_path).labels["names"]) == 21


def test_voc_folders_of_labelme(tmp_path):
    write_voc(tmp_path, NAMES, classes, ending="png", masks="SegmentationClassPNG")
    (tmp_path / "class_names.txt").write_text("_background_\ncar\ntree\n")
    config, printed = inspected(tmp_path)
    labels = build_labels(config)
    assert config.labels.names == ["_background_", "car", "tree"]
    assert labels.background_channel == 0
    source = build_source(config, labels)
    for case in source.cases:
        np.testing.assert_array_equal(source.read(case).mask, classes(case.name))
    assert "class_names.txt" in printed


def test_voc_lists(tmp_path):
    write_voc(tmp_path, NAMES, classes)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, cases in (("train", NAMES[:4]), ("val", NAMES[4:6]), ("test", NAMES[6:])):
        (lists / f"{name}.txt").write_text("\n".join(cases))
    config, _printed = inspected(tmp_path)
    source = build_source(config, build_labels(config))
    assert {case.split for case in source.cases} == {"train", "validation", "test"}
    (lists / "val.txt").write_text("\n".join(NAMES[3:6]))
    with pytest.raises(DataError, match=rf"{NAMES[3]} is in the lists train\.txt and val\.txt"):
        build_source(config, build_labels(config))


def test_numbered_masks_of_two_values_are_united(tmp_path):
    for name in NAMES:
        save(tmp_path / f"{name}.png", colours(name))
        save(tmp_path / f"{name}_mask.png", (classes(name, 2) * 255).astype(np.uint8))
    save(tmp_path / "p00_mask_1.png", np.full((12, 10), 255, np.uint8))
    config, printed = inspected(tmp_path)
    assert config.data.args["numbered_masks"] == "unite"
    assert "p00_mask_1.png: they are added to it" in printed
    source = build_source(config, build_labels(config))
    assert source.read(source.cases[0]).mask.all()


def test_numbers_without_leading_zeros_pair(tmp_path):
    for number in range(1, 13):
        save(tmp_path / f"images/{number:03}.png", colours(str(number)))
        save(tmp_path / f"masks/{number}.png", classes(str(number)))
    config, _printed = inspected(tmp_path)
    source = build_source(config, build_labels(config))
    assert len(source.cases) == 12
    for case in source.cases:
        assert int(case.masks[0].path.stem) == int(case.images[0].stem)


def test_bids_derivatives(tmp_path):
    for number in range(1, 7):
        subject = f"sub-{number:02}"
        image = np.random.default_rng(number).random((6, 7, 8)).astype(np.float32)
        folder = tmp_path / subject / "anat"
        below = tmp_path / "derivatives/labels" / subject / "anat"
        for path, array in (
            (folder / f"{subject}_T1w.nii.gz", image),
            (below / f"{subject}_T1w_seg-manual.nii.gz", (image > 0.5).astype(np.uint8)),
        ):
            path.parent.mkdir(parents=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    config, printed = inspected(tmp_path)
    assert "BIDS" in printed
    source = build_source(config, build_labels(config))
    assert len(source.cases) == 6
    raw = source.read(source.cases[0])
    np.testing.assert_array_equal(raw.mask, raw.image[0] > 0.5)


def test_missing_masks_are_counted(tmp_path):
    write_pairs(tmp_path, classes)
    save(tmp_path / "images/r00.png", colours("r00"))
    _config, printed = inspected(tmp_path)
    assert "1 images have no mask and are left out" in printed


def test_a_folder_without_a_readable_mask_says_why(tmp_path):
    write_pairs(tmp_path, classes)
    for path in (tmp_path / "masks").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 8 masks can be read: .*empty"):
        infer_classes(sorted((tmp_path / "masks").iterdir()))


# check and plan


def test_data_can_be_checked_and_planned_before_anything_else_is_decided(tmp_path):
    write_pairs(tmp_path, classes)
    (tmp_path / "x.yaml").write_text(
        "labels: {names: [background, a, b]}\ndata: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold}\n"
    )
    tool("data", "check", "--config", "x.yaml", folder=tmp_path)
    tool("data", "preview", "--config", "x.yaml", "--out", "x.png", folder=tmp_path)
    tool("data", "plan", "--config", "x.yaml", "--out", "y.yaml", folder=tmp_path)
    assert load_config(tmp_path / "y.yaml").model.name == "unet"
    done = tool("train", "--config", "x.yaml", folder=tmp_path, code=2)
    assert "missing required key 'model'" in done


def test_checking_a_folder_names_no_temporary_file(tmp_path):
    write_pairs(tmp_path, classes)
    done = tool("data", "check", ".", folder=tmp_path)
    assert "/tmp/tmp" not in done.replace(str(tmp_path), "")
    assert "no problems found" in done
    assert list(tmp_path.glob("*.yaml")) == []


def test_check_says_what_augmentation_does(tmp_path):
    write_pairs(tmp_path, classes)
    (tmp_path / "x.yaml").write_text(
        "labels: {names: [background, a, b]}\ndata: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold}\n"
        "augment: {engine: albumentations, transforms: [{name: brightness_contrast, brightness: 20, p: 1}]}\n"
    )
    done = tool("data", "check", "--config", "x.yaml", "--json", "c.json", folder=tmp_path)
    content = json.loads((tmp_path / "c.json").read_text())
    assert "percentiles 0.5, 50 and 99.5" in content["augmentation"]
    assert "augmentation moves the mean intensity" in done
    weak = ("augment.transforms=[brightness_contrast]",)
    assert "augmentation moves" not in tool("data", "check", "--config", "x.yaml", *weak, folder=tmp_path)


@pytest.mark.parametrize(("bright", "intensity"), [(0, "dataset"), (3, "zscore")])
def test_colour_images_are_normalised_together_only_if_they_are_alike(tmp_path, bright, intensity):
    def image(name):
        offset = 180 if int(name[-1]) < bright else 20
        return (offset + np.random.default_rng(ord(name[0])).integers(0, 40, (12, 10, 3))).astype(np.uint8)

    write_pairs(tmp_path, classes, image)
    config, _printed = inspected(tmp_path)
    assert config.preprocess.intensity == intensity
    text = (tmp_path / "segkit.yaml").read_text()
    assert "% of the variance lies between the images" in text


def test_the_share_of_patches_on_foreground_is_the_real_one(tmp_path):
    """A quarter of the cases has foreground, and there is little of it."""

    def mask(name):
        plane = np.zeros((96, 96), np.uint8)
        plane[:3, :3] = name[-1] == "0"
        return plane

    write_pairs(tmp_path, mask, lambda _name: np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8))
    labels = Labels(["background", "a"])
    (tmp_path / "x.yaml").write_text(
        "labels: {names: [background, a]}\ndata: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold}\n"
    )
    source = build_source(load_config(tmp_path / "x.yaml", data_only=True), labels)
    fingerprint = extract_fingerprint(source, labels)
    assert fingerprint.with_foreground == 0.25
    proposal = propose(fingerprint, labels, memory_limit(0.02, "cpu"))  # too little memory for whole images
    assert proposal.sections["sampling"]["foreground_cases"] == 0.5
    assert proposal.sections["sampling"]["foreground"] == 0.33
    # 0.5 of the samples are drawn from cases with foreground, a quarter of the others have some, a third is centred
    assert "21 % of all patches" in proposal.reasons["sampling.foreground"][0]


@pytest.mark.parametrize(
    ("names", "pairs", "single"),
    [
        (["background", "left kidney", "right kidney"], [["left kidney", "right kidney"]], []),
        (["background", "kidney_left", "kidney_right", "liver"], [["kidney_left", "kidney_right"]], []),
        (["background", "left ventricle"], [], ["left ventricle"]),
        (["background", "cleft", "bright"], [], []),
    ],
)
def test_left_and_right_classes(names, pairs, single):
    assert sided_pairs(names) == (pairs, single)


def test_a_plan_mirrors_left_and_right_classes_by_exchanging_them(tmp_path):
    write_pairs(tmp_path, classes)
    text = "data: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold}\n"
    for names, expected in (
        ("[background, left eye, right eye]", [["left eye", "right eye"]]),
        ("[background, left eye, nose]", None),
    ):
        (tmp_path / "x.yaml").write_text(f"labels: {{names: {names}}}\n{text}")
        (tmp_path / "y.yaml").unlink(missing_ok=True)
        tool("data", "plan", "--config", "x.yaml", "--out", "y.yaml", folder=tmp_path)
        augment = load_config(tmp_path / "y.yaml").augment
        flips = [transform.name for transform in augment.transforms if "flip" in transform.name]
        assert bool(flips) == (expected is not None)
        assert [list(pair) for pair in augment.swap_on_flip] == (expected or [])


def test_a_picture_mask_of_transparency_alone_is_named(tmp_path):
    from segkit.data.readers import read_mask

    alpha = np.zeros((8, 8, 4), np.uint8)
    alpha[:4, :, 3] = 255
    Image.fromarray(alpha).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"only the transparency differs.*-alpha extract"):
        read_mask(tmp_path / "x.png", Labels(["background", "a"]))


def test_test_images_are_not_paired_with_training_masks(tmp_path):
    """As in a widely copied U-Net repository: 0.png, 1.png, ... in each of train/image, train/label and test."""
    for number in range(12):
        save(tmp_path / f"train/image/{number}.png", colours(f"a{number}"))
        save(tmp_path / f"train/label/{number}.png", classes(f"a{number}"))
        save(tmp_path / f"test/{number}.png", colours(f"b{number}"))
    config, _printed = inspected(tmp_path)
    source = build_source(config, build_labels(config))
    assert {case.images[0].parent.name for case in source.cases} == {"image"}
    assert len(source.cases) == 12


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1}]},
            r"a\.json: categories, 0 \(id 1\), name: is missing",
        ),
        (
            "a.json",
            {"images": [{"id": 1, "file_name": "x\\a.png"}], "annotations": [], "categories": []},
            r"a\.json has the form of COCO, but none of its images, such as x\\a\.png, .*path of Windows",
        ),
        ("a.json", {"images": [3], "annotations": [], "categories": []}, r"a\.json: images, 0: expected"),
        (
            "dataset.json",
            {"file_ending": ".png", "channel_names": {"0": "x"}, "labels": {"background": "zero"}},
            r"dataset\.json: labels: expected a number, or a list of numbers, for the class background, got 'zero'",
        ),
        ("dataset.json", {"training": [{"image": 3}]}, r"dataset\.json: training, 0, image: expected a valid string"),
    ],
)
def test_fields_of_listings_are_named_by_an_inspection(tmp_path, name, content, message):
    save(tmp_path / "a.png", colours("a"))
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        detect_layout(tmp_path)


def test_anatomy_is_not_taken_for_object_numbers(tmp_path):
    """One connected region of each class in every mask, as in hearts: the classes are the same in all masks."""

    def heart(name):
        mask = np.zeros((40, 40), np.uint8)
        for number in range(1, 4):
            mask[8 * number : 8 * number + 5, 5 + ord(name[0]) % 3 : 20] = number
        return mask

    write_pairs(tmp_path, heart, lambda _name: np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8))
    config, _printed = inspected(tmp_path)
    assert config.labels.names == ["background", "class_1", "class_2", "class_3"]


def test_numbered_masks_in_several_folders(tmp_path):
    for folder in ("benign", "malignant"):
        for number in range(6):
            save(tmp_path / folder / f"{folder} ({number}).png", colours(f"{folder}{number}"))
            save(tmp_path / folder / f"{folder} ({number})_mask.png", np.zeros((12, 10), np.uint8))
    lesion = np.zeros((12, 10), np.uint8)
    lesion[3:6, 2:5] = 255
    save(tmp_path / "benign/benign (2)_mask.png", lesion)
    save(tmp_path / "benign/benign (2)_mask_1.png", lesion[::-1])
    config, printed = inspected(tmp_path)
    assert "benign (2)_mask_1.png: they are added to it" in printed
    source = build_source(config, build_labels(config))
    (case,) = [case for case in source.cases if len(case.masks) == 2]
    np.testing.assert_array_equal(source.read(case).mask, (lesion + lesion[::-1]) > 0)


def test_bids_masks_without_the_suffix_of_their_image(tmp_path):
    for number in range(1, 5):
        subject = f"sub-{number:02}"
        image = np.random.default_rng(number).random((6, 7, 8)).astype(np.float32)
        for path, array in (
            (tmp_path / subject / "anat" / f"{subject}_T1w.nii.gz", image),
            (
                tmp_path / "derivatives/manual" / subject / "anat" / f"{subject}_label-lesion_mask.nii.gz",
                (image > 0.5).astype(np.uint8),
            ),
        ):
            path.parent.mkdir(parents=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    config, _printed = inspected(tmp_path)
    source = build_source(config, build_labels(config))
    assert len(source.cases) == 4
    raw = source.read(source.cases[0])
    np.testing.assert_array_equal(raw.mask, raw.image[0] > 0.5)


def test_odd_cells_of_a_table_do_not_stop_an_inspection(tmp_path):
    save(tmp_path / "a.png", colours("a"))
    (tmp_path / "t.csv").write_text("a,b\n.,**x\n")
    with pytest.raises(DataError, match="none of the known layouts"):
        detect_layout(tmp_path)


@pytest.mark.parametrize("transform", ["{name: affine, axis: 2, p: 1}", "{name: flip, axes: [2], p: 1}"])
def test_transforms_of_volumes_on_pictures_are_named(tmp_path, transform):
    write_pairs(tmp_path, classes)
    (tmp_path / "x.yaml").write_text(
        "labels: {names: [background, a, b]}\ndata: {name: pairs, images: images, masks: masks}\nsplit: {name: kfold}\n"
        f"augment: {{engine: monai, transforms: [{transform}]}}\n"
    )
    printed = tool("data", "preview", "--config", "x.yaml", "--out", "x.png", folder=tmp_path, code=2)
    assert "a transform does not support an image" in printed


def test_cases_that_all_have_one_fault_are_counted(tmp_path):
    write_pairs(tmp_path, lambda name: np.minimum(classes(name), 1))
    for path in (tmp_path / "images").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - 20])
    done = tool("data", "check", ".", "--json", "c.json", folder=tmp_path, code=3)
    (finding,) = json.loads((tmp_path / "c.json").read_text())["findings"]
    assert "truncated" in finding["text"]
    assert "(and the same in 7 more cases)" in finding["text"]
    assert "0 readable" in done
