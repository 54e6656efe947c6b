"""Layouts that are told by the names of their folders and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.data.inspection.base import PARTS, SAMPLED, Layout, folders, images_in, part_in, read_json, subfolders
from segkit.data.inspection.mask_classes import SURVEYED
from segkit.data.readers import stored_mask
from segkit.data.sources.manifest import read_rows
from segkit.data.sources.public import CITYSCAPES_CLASSES
from segkit.utils.errors import DataError

CITYSCAPES_NAMES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def dataset_json(root: Path) -> Layout | None:
    content = read_json(root / "dataset.json")
    if not isinstance(content, dict):
        return None
    name = "nnunet" if "file_ending" in content else "msd" if isinstance(content.get("training"), list) else None
    if name is None:
        return None
    why = [f"dataset.json is that of {'nnU-Net' if name == 'nnunet' else 'the Medical Segmentation Decathlon'}"]
    return Layout(name, {"root": root}, why, labels=_labels_of_listing(content.get("labels")))


def _labels_of_listing(named: Any) -> dict[str, Any] | None:
    if not isinstance(named, dict) or not named:
        return None
    digits = all(str(key).isdigit() for key in named)
    numbers = {str(value): int(key) for key, value in named.items()} if digits else dict(named)
    labels: dict[str, Any] = {}
    if "ignore" in numbers:
        labels["ignore_index"] = int(numbers.pop("ignore"))
    if any(isinstance(value, list) for value in numbers.values()):
        regions = {
            name: list(value) if isinstance(value, list) else [int(value)]
            for name, value in numbers.items()
            if value not in (0, [0])
        }
        return {"names": list(regions), "mode": "multilabel", "regions": regions, **labels}
    return {"names": sorted(numbers, key=lambda name: numbers[name]), **labels}


def coco(root: Path) -> Layout | None:
    contents = {file: content for file in _listings(root) if _is_coco(content := read_json(file))}
    found: dict[str | None, tuple[Path, Path]] = {}  # the annotations and the images of each part
    for file in sorted(contents, key=lambda file: not file.name.startswith("instances")):
        part = _part_of(root, file)
        images = _folder_of(root, file, part, contents[file]["images"])
        if images is not None:
            found.setdefault(part, (file, images))
    if not found:
        return None
    split = "train" in found and len(found) > 1
    parts = [part for part in found if part is not None] if split else list(found)[:1]
    annotations, images = ({part: found[part][place] for part in parts} for place in (0, 1))
    options = {
        "images": images if len(set(images.values())) > 1 else images[parts[0]],
        "annotations": annotations if split else annotations[parts[0]],
    }
    why = [
        f"{file.relative_to(root)} lists images, annotations and categories, as COCO does"
        for file in annotations.values()
    ]
    labels = _labels_of_categories([contents[file] for file in annotations.values()])
    return Layout("coco", options, why, split, labels=labels)


def _listings(root: Path) -> list[Path]:
    return sorted([*root.glob("*.json"), *root.glob("*/*.json")])


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def _labels_of_categories(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The categories that have objects, in the order in which they are listed."""
    names: dict[str, None] = {}
    for content in contents:
        used = {one.get("category_id") for one in content["annotations"]}
        names |= dict.fromkeys(str(one["name"]) for one in content["categories"] if one["id"] in used)
    return {"names": ["background", *(name for name in names if name != "background")], "ignore_index": 255}


def _part_of(root: Path, path: Path) -> str | None:
    named = part_in(path.relative_to(root).as_posix())
    return named[0] if named else None


def _folder_of(root: Path, listing: Path, part: str | None, images: Sequence[Mapping[str, Any]]) -> Path | None:
    """The folder that holds the images of a listing: its own if they lie there, or else one of its part, or any."""
    names = [str(one.get("file_name")) for one in images[:SAMPLED]]
    places = [listing.parent, *sorted(folders(root), key=lambda folder: _part_of(root, folder) != part)]
    return next((folder for folder in places if names and all((folder / name).is_file() for name in names)), None)


def voc(root: Path) -> Layout | None:
    if not (root / "JPEGImages").is_dir() or not (root / "SegmentationClass").is_dir():
        return None
    lists = root / "ImageSets" / "Segmentation"
    sets = {
        part: name for part, name in (("train", "train"), ("validation", "val")) if (lists / f"{name}.txt").is_file()
    }
    options: dict[str, Any] = {"root": root, **({"sets": sets} if sets else {})}
    why = ["JPEGImages and SegmentationClass are those of PASCAL VOC"]
    labels = {"names": list(VOC_NAMES), "ignore_index": 255}
    return Layout("voc", options, why, bool(sets), labels)


def cityscapes(root: Path) -> Layout | None:
    if not (root / "leftImg8bit").is_dir() or not (root / "gtFine").is_dir():
        return None
    sets = {
        part: name for part, name in (("train", "train"), ("validation", "val")) if (root / "gtFine" / name).is_dir()
    }
    assert len(CITYSCAPES_NAMES) == len(CITYSCAPES_CLASSES)
    labels = {"names": list(CITYSCAPES_NAMES), "ignore_index": 255}
    why = ["leftImg8bit and gtFine are those of Cityscapes"]
    return Layout("cityscapes", {"root": root, "sets": sets}, why, True, labels=labels)


def ade(root: Path) -> Layout | None:
    images, masks = root / "images", root / "annotations"
    if not images.is_dir() or not masks.is_dir():
        return None
    sets = {
        part: name
        for part, name in (("train", "training"), ("validation", "validation"))
        if (images / name).is_dir() and (masks / name).is_dir()
    }
    files = [path for name in (sets.values() or ("",)) for path in images_in(masks / name)]
    if not files or not all(path.name.startswith("ADE_") for path in files[:SAMPLED]):
        return None
    # which numbers a few masks hold says little of 150 classes
    highest = max(150, *(int(stored_mask(path)[0].max()) for path in files[:SURVEYED]))
    labels = {"names": [f"class_{number}" for number in range(1, highest + 1)], "ignore_index": 255}
    why = ["images and annotations whose files begin with ADE_ are those of ADE20K, where 0 is to be ignored"]
    return Layout("ade", {"root": root, **({"sets": sets} if sets else {})}, why, bool(sets), labels=labels)


def manifest(root: Path) -> Layout | None:
    for file in sorted([*root.glob("*.csv"), *root.glob("*.json")]):
        try:
            rows = read_rows(file)
        except DataError:
            continue
        keys = {key for row in rows for key in row}
        classes = {key.removeprefix("mask:") for key in keys if key.startswith("mask:")}
        classes |= {str(name) for row in rows if isinstance(row.get("mask"), dict) for name in row["mask"]}
        if "image" in keys and ("mask" in keys or classes):
            files = [] if classes else [root / str(row["mask"]) for row in rows if isinstance(row.get("mask"), str)]
            return Layout(
                "manifest",
                {"file": file},
                [f"{file.name} is a table with the columns {', '.join(sorted(keys))}"],
                all(row.get("split") for row in rows),
                {"names": ["background", *sorted(classes - {"background"})]} if classes else None,
                [path for path in files if path.is_file()],
            )
    return None


def instances(root: Path) -> Layout | None:
    """Folders that each have a folder with one image and one with several masks."""
    cases = [folder for folder in subfolders(root) if (folder / "images").is_dir() and (folder / "masks").is_dir()]
    if {folder.name.lower() for folder in cases} <= {word for words in PARTS.values() for word in words}:
        return None  # parts of a split, and no cases
    single = [len(images_in(folder / "images")) == 1 for folder in cases[:SURVEYED]]
    several = any(len(images_in(folder / "masks")) > 1 for folder in cases[:SURVEYED])
    if len(cases) < 2 or not all(single) or not several:
        return None
    why = [f"{len(cases)} folders have an image in images and a file an object in masks"]
    labels = {"names": ["background", "object"]}
    return Layout("instances", {"root": root, "masks": {"object": "masks/*"}}, why, labels=labels)
