"""Small data folders in every layout that a source reads."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from segkit import Labels
from segkit.data.sources.cityscapes import CITYSCAPES_CLASSES

SIDES = (12, 10)


STREET = Labels(["background", "car", "tree"], ignore_index=255)


NAMES = ("a_1", "a_2", "b_1")


CITYSCAPES = Labels([f"class {number}" for number in range(19)], ignore_index=255)


@dataclass
class Layout:
    """A written data folder: the options of its source, the files of its first case, and the expected content."""

    name: str
    options: dict[str, Any]
    labels: Labels
    masks: dict[str, np.ndarray]
    image: Path | None
    mask: Path | None
    splits: set[str | None] = field(default_factory=lambda: {None})
    listing: Path | None = None  # the file that lists the paths of images


def colours(name):
    return np.random.default_rng([ord(letter) for letter in name]).integers(0, 256, (*SIDES, 3)).astype(np.uint8)


def classes(name, number=3):
    return np.random.default_rng([1, *map(ord, name)]).integers(0, number, SIDES).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    else:
        Image.fromarray(array).save(path)
    return path


def pairs(root):
    for name in NAMES:
        save(root / "images" / f"{name}.png", colours(name))
        save(root / "masks" / f"{name}.png", classes(name))
    options = {"images": root / "images", "masks": root / "masks", "group": "(.)_"}
    masks = {name: classes(name) for name in NAMES}
    return Layout("pairs", options, STREET, masks, root / "images/a_1.png", root / "masks/a_1.png")


def manifest_csv(root):
    rows = ["case,image,mask,group,split"]
    for name, part in zip(NAMES, ("train", "train", "test"), strict=True):
        save(root / f"pictures/{name}.png", colours(name))
        save(root / f"{name}_truth.png", classes(name))
        rows.append(f"{name},pictures/{name}.png,{name}_truth.png,{name[0]},{part}")
    listing = root / "table.csv"
    listing.write_text("\n".join(rows))
    masks = {name: classes(name) for name in NAMES}
    return Layout(
        "manifest", {"file": listing}, STREET, masks, root / "pictures/a_1.png", root / "a_1_truth.png",
        {"train", "test"}, listing,
    )  # fmt: skip


def manifest_json(root):
    """Two image files as channels, and one mask file per object."""
    rows = []
    for name in NAMES:
        for number in range(2):
            save(root / f"{name}_channel{number}.png", colours(name)[..., number])
        mask = classes(name)
        objects = {"car": [mask == 1], "tree": [(mask == 2) & (np.arange(10) < 5), (mask == 2) & (np.arange(10) >= 5)]}
        files = {
            kind: [
                save(root / f"{name}_{kind}{number}.png", plane * np.uint8(255)).name
                for number, plane in enumerate(planes)
            ]
            for kind, planes in objects.items()
        }
        images = [f"{name}_channel{number}.png" for number in range(2)]
        rows.append({"case": name, "image": images, "mask": files, "group": name[0]})
    listing = root / "table.json"
    listing.write_text(json.dumps(rows))
    masks = {name: classes(name) for name in NAMES}
    image, mask = root / "a_1_channel0.png", root / "a_1_car0.png"
    return Layout("manifest", {"file": listing}, STREET, masks, image, mask, listing=listing)


def msd(root):
    training = []
    for name in NAMES:
        files = {kind: f"./{folder}/{name}.nii.gz" for kind, folder in (("image", "imagesTr"), ("label", "labelsTr"))}
        save(root / files["image"], colours(name).astype(np.float32))
        save(root / files["label"], np.stack([classes(name)] * 3, -1))
        training.append(files)
    listing = root / "dataset.json"
    numbers = {"0": "background", "1": "car", "2": "tree"}
    listing.write_text(json.dumps({"labels": numbers, "training": training}))
    masks = {name: np.stack([classes(name)] * 3, -1) for name in NAMES}
    image, mask = root / "imagesTr/a_1.nii.gz", root / "labelsTr/a_1.nii.gz"
    return Layout("msd", {"root": root, "group": "(.)_"}, STREET, masks, image, mask, listing=listing)


def nnunet(root):
    """One image file per channel, regions, and an ignore value."""
    labels = Labels(["whole", "core"], mode="multilabel", ignore_index=3, regions={"whole": [1, 2], "core": [2]})
    for name in NAMES:
        for number in range(2):
            save(root / f"imagesTr/{name}_{number:04d}.nii.gz", colours(name).astype(np.float32) + number)
        save(root / f"labelsTr/{name}.nii.gz", np.stack([classes(name, 4)] * 3, -1))
    listing = {
        "channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz", "numTraining": 3,
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, "regions_class_order": [1, 2],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(listing))
    masks = {name: np.stack([classes(name, 4)] * 3, -1) for name in NAMES}
    image, mask = root / "imagesTr/a_1_0000.nii.gz", root / "labelsTr/a_1.nii.gz"
    return Layout("nnunet", {"root": root, "group": "(.)_"}, labels, masks, image, mask)


def voc(root):
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    masks = {}
    for name in NAMES:
        save(root / f"JPEGImages/{name}.jpg", colours(name))
        masks[name] = classes(name)
        masks[name][0] = 255  # as at the borders of objects
        image = Image.fromarray(masks[name], mode="P")
        image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        image.save(root / f"SegmentationClass/{name}.png")
    (lists / "train.txt").write_text("a_1\na_2\n")
    (lists / "val.txt").write_text("b_1\n")
    options = {"root": root, "sets": {"train": "train", "validation": "val"}, "group": "(.)_"}
    image, mask = root / "JPEGImages/a_1.jpg", root / "SegmentationClass/a_1.png"
    return Layout("voc", options, STREET, masks, image, mask, {"train", "validation"})


def cityscapes(root):
    masks = {}
    for name, part in zip(NAMES, ("train", "train", "val"), strict=True):
        save(root / f"leftImg8bit/{part}/{name[0]}/{name}_leftImg8bit.png", colours(name))
        stored = classes(name, 34)
        save(root / f"gtFine/{part}/{name[0]}/{name}_gtFine_labelIds.png", stored)
        masks[name] = np.full(SIDES, 255, np.uint8)
        for number, value in enumerate(CITYSCAPES_CLASSES):
            masks[name][stored == value] = number
    image = root / "leftImg8bit/train/a/a_1_leftImg8bit.png"
    mask = root / "gtFine/train/a/a_1_gtFine_labelIds.png"
    return Layout("cityscapes", {"root": root}, CITYSCAPES, masks, image, mask, {"train", "validation"})


def ade(root):
    for name, part in zip(NAMES, ("training", "training", "validation"), strict=True):
        save(root / f"images/{part}/{name}.jpg", colours(name))
        save(root / f"annotations/{part}/{name}.png", classes(name, 4))
    masks = {name: np.array([255, 0, 1, 2], np.uint8)[classes(name, 4)] for name in NAMES}
    options = {"root": root, "sets": {"train": "training", "validation": "validation"}}
    image, mask = root / "images/training/a_1.jpg", root / "annotations/training/a_1.png"
    return Layout("ade", options, STREET, masks, image, mask, {"train", "validation"})


def coco(root):
    """Compressed and uncompressed run-length encodings, and one crowd region per image."""
    images, annotations, masks = [], [], {}
    for number, name in enumerate(NAMES):
        save(root / f"pictures/{name}.png", colours(name))
        images.append({"id": number, "file_name": f"{name}.png", "height": SIDES[0], "width": SIDES[1]})
        masks[name] = classes(name)
        masks[name][:2] = 255
        for value, category in ((1, 7), (2, 9), (255, 7)):
            encoded = coco_mask.encode(np.asfortranarray((masks[name] == value).astype(np.uint8)))
            shape = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            if value == 2:
                flat = (masks[name] == value).ravel("F")
                ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]))).tolist()
                shape["counts"] = np.diff([0, *ends]).tolist()
            area = float((masks[name] == value).sum())
            annotation = {"segmentation": shape, "area": area, "iscrowd": int(value == 255), "category_id": category}
            annotations.append({"id": len(annotations), "image_id": number, **annotation})
    categories = [{"id": 7, "name": "car"}, {"id": 9, "name": "tree"}]
    listing = root / "annotations.json"
    listing.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    options = {"images": root / "pictures", "annotations": listing, "group": "(.)_"}
    return Layout("coco", options, STREET, masks, root / "pictures/a_1.png", None, listing=listing)


def instances(root):
    for name in NAMES:
        save(root / name / f"images/{name}.png", colours(name))
        for value, kind in ((1, "car"), (2, "tree")):
            for half in range(2):
                plane = (classes(name) == value) & ((np.arange(10) >= 5) == half)
                save(root / name / f"masks/{kind}_{half}.png", plane * np.uint8(255))
    (root / "c_1/masks").mkdir(parents=True)
    save(root / "c_1/images/c_1.png", colours("c_1"))
    options = {"root": root, "masks": {"car": "masks/car_*", "tree": "masks/tree_*"}, "group": "(.)_"}
    masks = {**{name: classes(name) for name in NAMES}, "c_1": np.zeros(SIDES, np.uint8)}
    return Layout("instances", options, STREET, masks, root / "a_1/images/a_1.png", root / "a_1/masks/car_0.png")


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    write.__name__: write
    for write in (pairs, manifest_csv, manifest_json, msd, nnunet, voc, cityscapes, ade, coco, instances)
}
