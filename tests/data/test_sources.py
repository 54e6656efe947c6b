"""Sources: the cases that are found, the errors that are raised, and the properties of synthetic cases."""

import inspect
import json
import os
import subprocess
import sys
import time
import typing
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segkit import Labels
from segkit.data import SOURCES, DataError, DecathlonSource, PairsSource, SyntheticSource
from segkit.data.class_counts import class_counts
from segkit.data.splits import kfold_split, lists_split, source_split

needs_data = pytest.mark.skipif("SEGKIT_DATA" not in os.environ, reason="SEGKIT_DATA does not name the real data")
DATA = Path(os.environ.get("SEGKIT_DATA", ""))

BINARY = Labels(["background", "vessel"], mode="binary")
THREE = Labels(["background", "anterior", "posterior"])
OVERLAPPING = Labels(["whole", "core"], mode="multilabel")
REGIONS = Labels(["whole", "core"], mode="multilabel", regions={"whole": [1, 3], "core": [3]})


def folder(tmp_path, images=(), masks=()):
    """Folders of small images with the given names."""
    for kind, files in (("images", images), ("masks", masks)):
        for name in files:
            path = tmp_path / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(4, dtype=np.uint8)).save(path)
    return {"labels": BINARY, "images": tmp_path / "images", "masks": tmp_path / "masks"}


def names(source):
    return [case.name for case in source.cases]


def test_options_are_a_schema():
    """Every option is keyword-only and has an annotation that can be resolved."""
    for source in SOURCES.values():
        parameters = inspect.signature(source).parameters.values()
        hints = typing.get_type_hints(source.__init__)
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
        assert {parameter.name for parameter in parameters} <= set(hints)


def test_importing_is_cheap():
    heavy = "{'monai', 'nibabel', 'SimpleITK', 'cv2', 'PIL', 'scipy', 'albumentations'}"
    check = f"import sys, segkit.data; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


# pairs


def test_pairs_by_name(tmp_path):
    options = folder(tmp_path, ["b.png", "a.x.JPG", "c.tif"], ["b.bmp", "a.x.png", "c.png"])
    for stray in ("images/Thumbs.db", "images/readme.txt", "images/._b.png", "masks/.DS_Store"):
        (tmp_path / stray).touch()
    source = PairsSource(**options)
    assert names(source) == ["a.x", "b", "c"]
    assert [case.group for case in source.cases] == names(source)
    assert source.cases[1].masks[0].path == tmp_path / "masks/b.bmp"
    raw = source.read(source.cases[1])
    np.testing.assert_array_equal(raw.mask, np.eye(4))
    assert raw.image.shape == (1, 4, 4)


def test_patterns(tmp_path):
    options = folder(tmp_path, ["a_rgb.png", "b_rgb.png", "a_depth.png"], ["x_a_gt1.png", "x_b_gt2.png"])
    source = PairsSource(**options, image_pattern="{case}_rgb.png", mask_pattern="x_{case}_gt*.*")
    assert names(source) == ["a", "b"]


def test_folders_for_each_case(tmp_path):
    options = folder(tmp_path, ["a/image.png", "b/image.png", "a/mask.png", "b/mask.png"])
    options["masks"] = options["images"]
    source = PairsSource(**options, image_pattern="{case}/image.*", mask_pattern="{case}/mask.*")
    assert names(source) == ["a", "b"]


def test_brackets_in_names_are_literal(tmp_path):
    options = folder(tmp_path, ["a [1].png", "b.png"], ["a [1].png"])
    assert names(PairsSource(**options, image_pattern="{case} [1].png", mask_pattern="{case} [1].png")) == ["a"]


def test_images_and_masks_in_one_folder(tmp_path):
    options = folder(tmp_path, ["a.png", "b.png", "a_mask.png", "b_mask.png"])
    options["masks"] = options["images"]
    assert names(PairsSource(**options, mask_pattern="{case}_mask.png")) == ["a", "b"]
    with pytest.raises(ValueError, match="different patterns"):
        PairsSource(**options)


def test_unpaired_files(tmp_path):
    options = folder(tmp_path, ["a.png", "b.png"], ["b.png", "c.png"])
    with pytest.raises(DataError, match=r"2 files(.|\n)*image without mask: .*a\.png\n  mask without image: .*c\.png"):
        PairsSource(**options)
    assert names(PairsSource(**options, unpaired="skip")) == ["b"]


def test_many_unpaired_files_are_counted(tmp_path):
    options = folder(tmp_path, [f"{number}.png" for number in range(30)], ["7.png"])
    with pytest.raises(DataError, match=r"29 files(.|\n)*and 19 more\n.*`unpaired: skip`") as caught:
        PairsSource(**options)
    assert str(caught.value).count("image without mask") == 10


def test_annotators(tmp_path):
    masks = ["a_1_one.png", "b_one.png", "a_1_two.png", "b_two.png"]
    options = {**folder(tmp_path, ["a_1.png", "b.png"], masks), "mask_pattern": "{case}_{annotator}.png"}
    source = PairsSource(**options, annotator="two")
    assert [(case.name, case.masks[0].path.name) for case in source.cases] == [
        ("a_1", "a_1_two.png"),
        ("b", "b_two.png"),
    ]
    with pytest.raises(DataError, match=r"annotator to be one of one, two, got three"):
        PairsSource(**options, annotator="three")
    with pytest.raises(DataError, match=r"annotator to be one of one, two, got None"):
        PairsSource(**options)
    (tmp_path / "masks/b_one.png").unlink()
    with pytest.raises(DataError, match=r"image without mask: .*b\.png"):
        PairsSource(**options, annotator="one")


def test_annotator_with_underscore(tmp_path):
    options = folder(tmp_path, ["a.png"], ["a_rater_1.png", "a_rater_2.png"])
    source = PairsSource(**options, mask_pattern="{case}_{annotator}.png", annotator="rater_2")
    assert source.cases[0].masks[0].path.name == "a_rater_2.png"


def test_one_annotator_per_case_needs_no_choice(tmp_path):
    options = folder(tmp_path, ["a.png", "b.png"], ["a_x.png", "b_y.png"])
    assert names(PairsSource(**options, mask_pattern="{case}_{annotator}.png")) == ["a", "b"]


def test_two_files_for_one_case(tmp_path):
    with pytest.raises(DataError, match=r"case a has two files, .*a\.bmp and .*a\.png"):
        PairsSource(**folder(tmp_path, ["a.png"], ["a.png", "a.bmp"]))


def test_groups(tmp_path):
    options = folder(tmp_path, ["01L.png", "01R.png", "02L.png"], ["01L.png", "01R.png", "02L.png"])
    assert [case.group for case in PairsSource(**options, group=r"(\d+)").cases] == ["01", "01", "02"]
    with pytest.raises(DataError, match=r"case 02L: .*group '\(01\)'"):
        PairsSource(**options, group="(01)")
    with pytest.raises(ValueError, match="one pair of brackets"):
        PairsSource(**options, group=r"\d+")
    with pytest.raises(ValueError, match="to be a regular expression"):
        PairsSource(**options, group="(")


def test_splits_by_folder(tmp_path):
    files = ["train/a.png", "train/b.png", "val/c.png"]
    options = folder(tmp_path, files, [name.replace("/", "annot/") for name in files])
    options |= {"images": tmp_path / "images/{split}", "masks": tmp_path / "masks/{split}annot"}
    source = PairsSource(**options, splits={"train": "train", "validation": "val"})
    assert [(case.name, case.split) for case in source.cases] == [("a", "train"), ("b", "train"), ("c", "validation")]
    assert source_split(source.cases).validation == ("c",)
    with pytest.raises(ValueError, match=r"`{split}` in both images and masks together with splits"):
        PairsSource(**options)
    with pytest.raises(ValueError, match="splits with keys among train, validation, test, got val"):
        PairsSource(**options, splits={"val": "val"})
    with pytest.raises(DataError, match=r"case a is listed twice, .*train"):
        PairsSource(**options, splits={"train": "train", "test": "train"})


def test_equal_names_in_two_parts_are_two_cases(tmp_path):
    files = ["train/a.png", "train/b.png", "val/a.png"]
    options = folder(tmp_path, files, [name.replace("/", "annot/") for name in files])
    options |= {"images": tmp_path / "images/{split}", "masks": tmp_path / "masks/{split}annot"}
    source = PairsSource(**options, splits={"train": "train", "validation": "val"})
    assert [case.name for case in source.cases] == ["train/a", "train/b", "validation/a"]


def test_folders_without_files(tmp_path):
    options = folder(tmp_path, ["a.png"])
    with pytest.raises(DataError, match=r"the folder .*masks does not exist"):
        PairsSource(**options)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"expected masks named '{case}\.\*' in .*masks, found none"):
        PairsSource(**options)
    options["images"], options["masks"] = options["masks"], options["images"]
    with pytest.raises(DataError, match="expected images named"):
        PairsSource(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"image_pattern": "*.png"},
        {"mask_pattern": "{case}{case}.png"},
        {"image_pattern": "{case}_{annotator}.png"},
        {"annotator": "one"},
    ],
)
def test_invalid_patterns(tmp_path, options):
    with pytest.raises(ValueError, match=r"image_pattern|mask_pattern"):
        PairsSource(**folder(tmp_path, ["a.png"], ["a.png"]), **options)


def test_errors_while_reading_name_the_case(tmp_path):
    options = folder(tmp_path, ["a.png"], ["a.png"])
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(tmp_path / "masks/a.png")
    source = PairsSource(**options)
    with pytest.raises(DataError, match=r"case a, file .*masks/a\.png: .* 255 \(4 pixels\); .*`value_map: {255: 1}`"):
        source.read(source.cases[0])
    fixed = PairsSource(**options, value_map={255: 1})
    np.testing.assert_array_equal(fixed.read(fixed.cases[0]).mask, np.eye(4))


# the Decathlon


def decathlon(root, cases, labels=("background", "anterior", "posterior"), unlisted=()):
    import nibabel as nib

    for kind in ("imagesTr", "labelsTr"):
        (root / kind).mkdir(parents=True)
        for case in (*cases, *unlisted):
            array = np.random.default_rng(len(case)).integers(0, 3, (3, 4, 5)).astype(np.uint8)
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / kind / f"{case}.nii.gz")
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases]
    listing = {"labels": {str(number): name for number, name in enumerate(labels)}, "training": training}
    (root / "dataset.json").write_text(json.dumps(listing))
    return root


def test_msd(tmp_path):
    source = DecathlonSource(labels=THREE, root=decathlon(tmp_path, ["p2_b", "p1_a"]), group="(p.)_")
    assert [(case.name, case.group) for case in source.cases] == [("p1_a", "p1"), ("p2_b", "p2")]
    raw = source.read(source.cases[0])
    assert raw.image.shape == (1, 3, 4, 5)
    np.testing.assert_array_equal(raw.image[0], raw.mask)


def test_msd_unlisted_files(tmp_path):
    root = decathlon(tmp_path, ["a"], unlisted=["bb"])
    with pytest.raises(DataError, match=r"2 files(.|\n)*image that belongs to no case: .*imagesTr/bb\.nii\.gz"):
        DecathlonSource(labels=THREE, root=root)
    assert names(DecathlonSource(labels=THREE, root=root, unpaired="skip")) == ["a"]


def test_msd_missing_files(tmp_path):
    root = decathlon(tmp_path, ["a", "b"])
    (root / "labelsTr/b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"\./labelsTr/b\.nii\.gz.* no such file"):
        DecathlonSource(labels=THREE, root=root)


@pytest.mark.parametrize("path", ["../outside.nii.gz", "imagesTr/../../outside.nii.gz", "/outside.nii.gz"])
def test_msd_stays_in_its_folder(tmp_path, path):
    root = decathlon(tmp_path / "root", ["a"])
    listing = json.loads((root / "dataset.json").read_text())
    listing["training"][0]["image"] = path
    (root / "dataset.json").write_text(json.dumps(listing))
    (tmp_path / "outside.nii.gz").touch()
    with pytest.raises(DataError, match="lies outside the folder"):
        DecathlonSource(labels=THREE, root=root)


def test_msd_classes(tmp_path):
    root = decathlon(tmp_path, ["a"])
    with pytest.raises(DataError, match=r"names 3 classes, background, anterior, posterior, but `labels` has 2"):
        DecathlonSource(labels=BINARY, root=root)
    merged = DecathlonSource(labels=BINARY, root=root, value_map={2: 1})
    assert set(np.unique(merged.read(merged.cases[0]).mask)) == {0, 1}
    listing = json.loads((root / "dataset.json").read_text())
    listing["labels"] = {"background": 0, "anterior": 1, "posterior": 2}  # the form of nnU-Net v2
    (root / "dataset.json").write_text(json.dumps(listing))
    DecathlonSource(labels=THREE, root=root)
    with pytest.raises(DataError, match=r"write `names: \[background, anterior, posterior\]` under `labels`"):
        DecathlonSource(labels=Labels(["background", "posterior", "anterior"]), root=root)
    swapped = {1: 2, 2: 1}
    DecathlonSource(labels=Labels(["background", "posterior", "anterior"]), root=root, value_map=swapped)
    DecathlonSource(labels=Labels(["background", "head", "tail"]), root=root)  # names of one's own


def test_regions_with_exchanged_names_are_refused(tmp_path):
    root = decathlon(tmp_path, ["a"])
    listing = json.loads((root / "dataset.json").read_text())
    listing["labels"] = {"background": 0, "whole": [1, 2], "core": [2]}
    (root / "dataset.json").write_text(json.dumps(listing))

    def source(**regions):
        labels = Labels(list(regions), mode="multilabel", regions=regions)
        return DecathlonSource(labels=labels, root=root)

    source(whole=[1, 2], core=[2])
    source(core=[2], whole=[2, 1])
    source(all=[1, 2], middle=[2])  # names of one's own
    with pytest.raises(DataError, match=r"write .*`regions: \{whole: \[1, 2\], core: \[2\]\}`"):
        source(whole=[2], core=[1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "`root` is the folder"),
        ("{", "cannot be read as JSON"),
        ("{}", '"training" to be a list'),
        ('{"training": [{"image": "x"}]}', "training, 0, label: is missing"),
        ('{"training": [{"image": "x", "label": 3}]}', "training, 0, label: expected a valid string, got 3"),
        ('{"training": []}', "found none"),
    ],
)
def test_invalid_msd_listings(tmp_path, content, message):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        DecathlonSource(labels=THREE, root=tmp_path)


# synthetic cases


SYNTHETIC = {
    "binary": (BINARY, {}),
    "binary_dense": (BINARY, {"foreground": 0.85}),
    "binary_sparse": (BINARY, {"foreground": 0.01}),
    "multiclass": (Labels(["background", "a", "b", "c"], ignore_index=255), {"foreground": 0.3, "channels": 2}),
    "no_background": (Labels([f"c{number}" for number in range(11)], ignore_index=11), {"foreground": 0.5}),
    "background_last": (Labels(["a", "b", "background"]), {}),
    "overlapping": (OVERLAPPING, {"foreground": 0.2}),
    "regions": (REGIONS, {"foreground": 0.2}),
    "volumes": (THREE, {"size": [24, 20, 16]}),
}


@pytest.fixture(params=SYNTHETIC)
def synthetic(request):
    labels, options = SYNTHETIC[request.param]
    source = SyntheticSource(labels=labels, train=24, **options)
    return source, [source.read(case) for case in source.cases], options


def test_synthetic_cases_are_valid(synthetic):
    source, raws, options = synthetic
    size = tuple(options.get("size", (96, 96)))
    allowed = {*source.labels.values, *([source.labels.ignore_index] if source.labels.ignore_index else [])}
    for raw in raws:
        assert raw.image.dtype == np.float32
        assert raw.image.shape == (options.get("channels", 1), *size)
        assert raw.mask.shape == ((len(source.labels.names), *size) if source.labels.has_mask_channels else size)
        assert raw.mask.dtype == np.dtype(str(source.labels.mask_dtype).split(".")[1])
        assert set(np.unique(raw.mask)) <= allowed
        assert np.isfinite(raw.image).all()
    if source.labels.ignore_index is not None:
        assert all(0 < (raw.mask == source.labels.ignore_index).mean() < 0.05 for raw in raws)
    assert class_counts((raw.mask for raw in raws), source.labels).all()


def test_synthetic_cases_have_the_foreground_fraction(synthetic):
    source, raws, options = synthetic
    background = source.labels.background_channel or 0
    fractions = [
        (raw.mask == 1).any(0).mean()
        if source.labels.has_mask_channels
        else ((raw.mask != background) & (raw.mask != source.labels.ignore_index)).mean()
        for raw in raws
    ]
    assert np.mean(fractions) == pytest.approx(options.get("foreground", 0.1), rel=0.25)


def test_overlapping_synthetic_classes_overlap():
    source = SyntheticSource(labels=OVERLAPPING, foreground=0.5)
    assert any((source.read(case).mask.sum(0) == 2).any() for case in source.cases[:10])


def test_synthetic_cases_depend_on_seed_and_number_only():
    def images(**options):
        source = SyntheticSource(labels=BINARY, size=[32, 32], **options)
        return {case.name: source.read(case).image for case in source.cases}

    few, many, other = images(train=2, test=2), images(train=9, test=3), images(train=2, seed=1)
    for name, image in few.items():
        np.testing.assert_array_equal(image, many[name])
        if name in other:
            assert np.abs(image - other[name]).max() > 0.1
    assert len({image.tobytes() for image in many.values()}) == len(many)


def test_synthetic_cases_have_parts():
    split = source_split(SyntheticSource(labels=BINARY, train=5, validation=2, test=0).cases)
    assert tuple(map(len, (split.train, split.validation, split.test))) == (5, 2, 0)


def test_a_threshold_does_not_find_synthetic_objects():
    """Even the best threshold of each case reaches a mean Dice below 0.5."""
    source = SyntheticSource(labels=BINARY)
    best = []
    for raw in (source.read(case) for case in source.cases[:20]):
        order = raw.mask.reshape(-1)[np.argsort(-raw.image.reshape(-1))].astype(float)
        best.append((2 * order.cumsum() / (np.arange(1, order.size + 1) + order.sum())).max())
    assert np.mean(best) < 0.5


@pytest.mark.parametrize(("size", "limit_ms"), [([96, 96], 10), ([48, 48, 48], 60)])
def test_synthetic_cases_are_generated_quickly(size, limit_ms):
    source = SyntheticSource(labels=THREE, size=size)

    def milliseconds(case):
        start = time.perf_counter()
        source.read(case)
        return 1000 * (time.perf_counter() - start)

    assert min(milliseconds(case) for case in source.cases[:10]) < limit_ms


@pytest.mark.parametrize(
    "options", [{"foreground": 0.9}, {"size": [96]}, {"size": [4, 96]}, {"noise": -1}, {"train": 0}]
)
def test_invalid_options_of_synthetic_cases(options):
    with pytest.raises(ValueError, match="expected"):
        SyntheticSource(labels=BINARY, **options)


# real data


@needs_data
def test_camvid():
    classes = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    source = PairsSource(
        labels=Labels(classes, ignore_index=11),
        images=DATA / "camvid/{split}",
        masks=DATA / "camvid/{split}annot",
        splits={"train": "train", "validation": "val", "test": "test"},
        group="^([^_]+)_",
    )
    with pytest.warns(UserWarning, match="more than one part"):
        split = source_split(source.cases)
    assert tuple(map(len, (split.train, split.validation, split.test))) == (123, 34, 59)
    raw = source.read(source.cases[0])
    assert raw.image.shape == (3, 360, 480)
    assert raw.mask.max() == 11
    counted = class_counts([raw.mask], source.labels)
    assert counted.sum() == (raw.mask != 11).sum()


@needs_data
@pytest.mark.parametrize("annotator", ["1stHO", "2ndHO"])
def test_chase(annotator):
    source = PairsSource(
        labels=BINARY,
        images=DATA / "chase_db1/images",
        masks=DATA / "chase_db1/manual",
        mask_pattern="{case}_{annotator}.png",
        annotator=annotator,
        group=r"Image_(\d+)",
    )
    assert len(source.cases) == 28
    assert len({case.group for case in source.cases}) == 14
    assert len(kfold_split(source.cases, folds=7).validation) == 4
    raw = source.read(source.cases[0])
    assert raw.image.shape == (3, 960, 999)
    assert 0.04 < raw.mask.mean() < 0.1


@needs_data
def test_isbi():
    options = {"labels": BINARY, "images": DATA / "isbi2012/images", "masks": DATA / "isbi2012/labels"}
    source = PairsSource(**options, value_map={0: 1, 255: 0})
    assert len(source.cases) == 30
    assert 0.15 < source.read(source.cases[0]).mask.mean() < 0.3
    plain = PairsSource(**options)
    with pytest.raises(DataError, match=r"`value_map: {255: 1}`"):
        plain.read(plain.cases[0])


@needs_data
def test_hippocampus():
    source = DecathlonSource(labels=THREE, root=DATA / "hippocampus")
    assert len(source.cases) == 200
    floating = next(case for case in source.cases if case.name == "hippocampus_243")
    raw = source.read(floating)
    assert raw.mask.dtype == np.uint8
    assert raw.spacing == (1.0, 1.0, 1.0)
    assert raw.image.shape == (1, *raw.mask.shape)


@needs_data
def test_hippocampus_unpaired_files(tmp_path):
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "hippocampus_001.nii.gz").symlink_to(DATA / "hippocampus" / kind / "hippocampus_001.nii.gz")
    for stray, kind in (("118_image_without_label", "imagesTr"), ("010_label_without_image", "labelsTr")):
        file = f"hippocampus_{stray}.nii.gz"
        (tmp_path / kind / file).symlink_to(DATA / "hippocampus/stray" / file)
    listing = json.loads((DATA / "hippocampus/dataset.json").read_text())
    listing["training"] = listing["training"][:1]
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(DataError, match=r"2 files(.|\n)*118_image_without_label(.|\n)*010_label_without_image"):
        DecathlonSource(labels=THREE, root=tmp_path)
    with pytest.raises(DataError, match=r"image without mask: .*118(.|\n)*mask without image: .*010"):
        PairsSource(labels=THREE, images=tmp_path / "imagesTr", masks=tmp_path / "labelsTr")


# several masks of one image


def numbered(tmp_path, further=((slice(8, 10), 1),), **options):
    """Two images with masks; the first has further masks `a_mask_1.png`, `a_mask_2.png`, ... beside `a_mask.png`."""
    for name in "ab":
        for ending, rows in (("", slice(0, 0)), ("_mask", slice(0, 2))):
            array = np.zeros((10, 10), np.uint8)
            array[rows] = 1
            Image.fromarray(array).save(tmp_path / f"{name}{ending}.png")
    for number, (rows, value) in enumerate(further, 1):
        array = np.zeros((10, 10), np.uint8)
        array[rows] = value
        Image.fromarray(array).save(tmp_path / f"a_mask_{number}.png")
    return PairsSource(
        labels=options.pop("labels", BINARY), images=tmp_path, masks=tmp_path, mask_pattern="{case}_mask.*", **options
    )


def test_further_masks_are_refused_united_or_skipped(tmp_path):
    with pytest.raises(DataError, match=r"1 masks look like further masks .*a_mask_1\.png beside a_mask\.png.*unite"):
        numbered(tmp_path)
    united, skipped = (numbered(tmp_path, numbered_masks=choice) for choice in ("unite", "skip"))
    assert names(united) == names(skipped) == ["a", "b"]
    rows = np.arange(10)[:, None] * np.ones((1, 10))
    np.testing.assert_array_equal(united.read(united.cases[0]).mask, (rows < 2) | (rows >= 8))
    np.testing.assert_array_equal(skipped.read(skipped.cases[0]).mask, rows < 2)
    np.testing.assert_array_equal(united.read(united.cases[1]).mask, rows < 2)


def test_masks_of_several_classes_are_united_unless_they_contradict(tmp_path):
    labels = Labels(["background", "a", "b"])
    further = [(slice(8, 10), 2), (slice(1, 3), 1)]
    source = numbered(tmp_path, further, labels=labels, numbered_masks="unite")
    mask = source.read(source.cases[0]).mask
    assert mask[:, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 2, 2]
    source = numbered(tmp_path, [(slice(1, 3), 2)], labels=labels, numbered_masks="unite")
    with pytest.raises(DataError, match=r"a_mask_1\.png: expected one class per pixel, but 10 pixels"):
        source.read(source.cases[0])


def test_further_masks_in_a_folder_of_their_own(tmp_path):
    """`images/a.png` with `masks/a.png` and `masks/a_1.png`, or with `masks/a_1.png` and `masks/a_2.png` alone."""
    options = folder(tmp_path / "x", ["a.png", "b.png"], ["a.png", "a_1.png", "b.png"])
    with pytest.raises(DataError, match="1 masks look like further masks"):
        PairsSource(**options)
    source = PairsSource(**options, numbered_masks="unite")
    assert [len(case.masks) for case in source.cases] == [2, 1]
    options = folder(tmp_path / "y", ["a.png", "b.png"], ["a_1.png", "a_2.png", "b_1.png"])
    source = PairsSource(**options, mask_pattern="{case}_1.*", numbered_masks="unite")
    assert [len(case.masks) for case in source.cases] == [2, 1]


def test_numbered_cases_are_no_further_masks(tmp_path):
    options = folder(tmp_path, ["a.png", "a_1.png"], ["a_mask.png", "a_1_mask.png"])
    assert names(PairsSource(**options, mask_pattern="{case}_mask.*")) == ["a", "a_1"]
    assert names(PairsSource(**folder(tmp_path / "x", ["a.png", "a_1.png"], ["a.png", "a_1.png"]))) == ["a", "a_1"]


# names


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_pair_in_both_unicode_forms(tmp_path, forms):
    """macOS stores accents as separate characters, other systems do not."""
    image, mask = (unicodedata.normalize(form, "Hüfte") for form in forms)
    source = PairsSource(**folder(tmp_path, [f"{image}.png"], [f"{mask}.png"]))
    assert names(source) == [unicodedata.normalize("NFC", "Hüfte")]
    (tmp_path / "table.csv").write_text(f"image,mask\nimages/{mask}.png,masks/{image}.png\n")
    listed = SOURCES["manifest"](labels=BINARY, file=tmp_path / "table.csv")
    assert listed.read(listed.cases[0]).mask.shape == (4, 4)


def test_names_in_folders_patterns_groups_and_splits_have_both_forms(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Hüfte") for form in ("NFC", "NFD"))
    folder(tmp_path, [f"{decomposed}/{decomposed}_1.png"], [f"{decomposed}_1.png"])
    (tmp_path / "t.csv").write_text(f"image,mask\nimages/{composed}/{composed}_1.png,masks/{composed}_1.png\n")
    source = SOURCES["manifest"](labels=BINARY, file=tmp_path / "t.csv", group=f"({decomposed})_")
    assert (names(source), source.cases[0].group) == ([f"{composed}_1"], composed)
    assert lists_split(source.cases, train=[f"{decomposed}_1"]).train == (f"{composed}_1",)
    options = folder(tmp_path / "x", [f"{composed}_1.png"], [f"{decomposed}_1.png"])
    paired = PairsSource(**options, image_pattern=f"{decomposed}_{{case}}.*", mask_pattern=f"{composed}_{{case}}.*")
    assert names(paired) == ["1"]


def test_windows_paths_in_a_table_are_named(tmp_path):
    folder(tmp_path, ["a.png"], ["a.png"])
    (tmp_path / "table.csv").write_text("image,mask\nimages\\a.png,masks\\a.png\n")
    with pytest.raises(DataError, match=r"path of Windows: write / for"):
        SOURCES["manifest"](labels=BINARY, file=tmp_path / "table.csv")


def test_the_same_numbers_in_each_part_are_different_groups(tmp_path):
    for part in ("train", "val"):
        folder(tmp_path / part, ["0.png", "1.png"], ["0.png", "1.png"])
    options = {"images": tmp_path / "{split}/images", "masks": tmp_path / "{split}/masks"}
    source = PairsSource(labels=BINARY, **options, splits={"train": "train", "validation": "val"})
    assert len({case.group for case in source.cases}) == len(source.cases) == 4
    named = PairsSource(labels=BINARY, **options, splits={"train": "train", "validation": "val"}, group="(.*)")
    assert {case.group for case in named.cases} == {"0", "1"}  # somebody said so


@pytest.mark.parametrize("channels", ["R G B", "rgb_to_0_1 rgb_to_0_1 rgb_to_0_1", "red green blue"])
def test_rgb_pictures_of_nnunet(tmp_path, channels):
    """nnU-Net reads three channels from one colour picture `_0000`, whatever it calls them."""
    for name in ("a", "b"):
        for place, array in (("imagesTr", np.zeros((4, 4, 3))), ("labelsTr", np.eye(4))):
            (tmp_path / place).mkdir(exist_ok=True)
            number = "_0000" if place == "imagesTr" else ""
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / place / f"{name}{number}.png")
    listing = {
        "channel_names": dict(zip("012", channels.split(), strict=True)),
        "labels": {"background": 0, "vessel": 1},
    }
    (tmp_path / "dataset.json").write_text(json.dumps({**listing, "numTraining": 2, "file_ending": ".png"}))
    source = SOURCES["nnunet"](labels=Labels(["background", "vessel"]), root=tmp_path)
    raw = source.read(source.cases[0])
    assert (names(source), raw.image.shape, int(raw.mask.sum())) == (["a", "b"], (3, 4, 4), 4)


# classes that are not annotated everywhere


def partly_annotated(tmp_path, rows, labels=OVERLAPPING):
    """A manifest with a mask of each class: `whole` covers rows 0 to 4, `core` rows 2 to 3."""
    for name, part in (("image", slice(0, 0)), ("whole", slice(0, 5)), ("core", slice(2, 4))):
        array = np.zeros((8, 8), np.uint8)
        array[part] = 1
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,mask:whole,mask:core,annotated", *rows]))
    return SOURCES["manifest"](labels=labels, file=tmp_path / "cases.csv")


def test_an_empty_cell_is_an_absent_class_and_annotated_says_otherwise(tmp_path):
    rows = ["a,image.png,whole.png,,", "b,image.png,whole.png,,whole", "c,image.png,whole.png,core.png,whole;core"]
    source = partly_annotated(tmp_path, rows)
    absent, ignored, both = (source.read(case).mask for case in source.cases)
    assert absent[1].max() == 0
    assert (ignored[1] == OVERLAPPING.padding_value).all()
    assert (ignored[0] == absent[0]).all()
    assert both[1].sum() == 2 * 8
    stamps = [case.stamp for case in source.cases]
    assert len(set(stamps)) == 3  # a cached case is read again when the column changes


def test_classes_that_are_not_annotated_reach_neither_loss_nor_score(tmp_path):
    from segkit.losses import build_loss
    from segkit.metrics import count

    source = partly_annotated(tmp_path, ["b,image.png,whole.png,,whole"])
    mask = torch.from_numpy(source.read(source.cases[0]).mask)[None]
    logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for name in ("cross_entropy", "dice", "focal", "lovasz_softmax"):
        (gradient,) = torch.autograd.grad(build_loss(name, OVERLAPPING)(logits, mask), logits)
        assert gradient[:, 0].any()
        assert not gradient[:, 1].any()
    counts = count((logits > 0).to(torch.uint8), mask, OVERLAPPING)
    assert counts[0, 0].sum() > 0
    assert counts[0, 1].sum() == 0


def test_a_case_without_any_class(tmp_path):
    rows = ["a,image.png,,,", "b,image.png,,,whole", "c,image.png,whole.png,,"]
    source = partly_annotated(tmp_path, rows)
    none, partly, _whole = (source.read(case).mask for case in source.cases)
    assert not none.any()
    assert not partly[0].any()
    assert (partly[1] == OVERLAPPING.padding_value).all()
    exclusive = SOURCES["manifest"](labels=Labels(["background", "whole", "core"]), file=_without_last(tmp_path))
    assert not exclusive.read(exclusive.cases[0]).mask.any()


def _without_last(tmp_path):
    """The table without the column `annotated`."""
    file = tmp_path / "other.csv"
    rows = (tmp_path / "cases.csv").read_text().splitlines()
    file.write_text("\n".join(row.rpartition(",")[0] for row in rows))
    return file


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (OVERLAPPING, "whole", r"`annotated` leaves out core, which has a mask"),
        (OVERLAPPING, "whole;core;edge", r"entry 1: expected annotated classes among whole, core, got edge"),
        (Labels(["background", "whole", "core"]), "whole", r"needs overlapping classes: .*mode: multilabel"),
    ],
)
def test_annotated_classes_that_do_not_fit_are_named(tmp_path, labels, names, message):
    with pytest.raises(DataError, match=message):
        partly_annotated(tmp_path, [f"a,image.png,whole.png,core.png,{names}"], labels)
