"""Detectors of public layouts, which are recognised by the names of their folders and files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkit.data.documents import checked, read_text
from segkit.data.inspection.base import PARTS, SAMPLED, Layout, find_part, folders, images_in, read_json, subfolders
from segkit.data.inspection.mask_classes import SURVEYED
from segkit.data.readers import stored_mask
from segkit.data.sources.base import windows_hint
from segkit.data.sources.cityscapes import CITYSCAPES_CLASSES
from segkit.data.sources.coco import CocoFile, CocoImage
from segkit.data.sources.manifest import read_rows
from segkit.data.sources.msd_nnunet import read_listing
from segkit.labels import BACKGROUND, means_background
from segkit.utils.errors import DataError

CITYSCAPES_NAMES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


VOC_MASKS = ("SegmentationClass", "SegmentationClassPNG")  # the second as older versions of labelme write it
VOC_SETS = {"train": "train", "validation": "val", "test": "test"}  # part of the split: list of case names
VOC_IMAGE = re.compile(r"\d{4}_\d{6}")  # such as 2007_000032


def dataset_json(root: Path) -> Layout | None:
    """A folder with the `dataset.json` of nnU-Net or of the Medical Segmentation Decathlon."""
    content = read_json(root / "dataset.json")
    if not isinstance(content, dict):
        return None
    if "file_ending" in content or isinstance(content.get("training"), list):
        read_listing(root / "dataset.json")  # raises DataError for fields that are not as they should be
    if "file_ending" in content:
        source, project = "nnunet", "nnU-Net"
    elif isinstance(content.get("training"), list):
        source, project = "msd", "the Medical Segmentation Decathlon"
    else:
        return None
    reasons = [f"dataset.json has the format of {project}"]
    return Layout(source, {"root": root}, reasons, labels=_labels_of_dataset_json(content.get("labels")))


def _labels_of_dataset_json(entry: Any) -> dict[str, Any] | None:
    """The section `labels` for the entry `labels`, which maps numbers to names, or names to numbers or regions."""
    if not isinstance(entry, dict) or not entry:
        return None
    keys_are_numbers = all(str(key).isdigit() for key in entry)
    numbers = {str(value): int(key) for key, value in entry.items()} if keys_are_numbers else dict(entry)
    numbers = {name: int(value) if isinstance(value, str) else value for name, value in numbers.items()}
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
    """A folder with COCO annotation files, one for all images or one per part of the split."""
    found = {file: content for file in _json_files(root) if _is_coco(content := read_json(file))}
    contents = {file: checked(content, CocoFile, file) for file, content in found.items()}
    files_of_part: dict[str | None, tuple[Path, Path]] = {}  # annotation file, folder of images
    for file in sorted(contents, key=lambda file: not file.name.startswith("instances")):
        part = _part_of(root, file)
        images = _image_folder(root, file, part, contents[file].images)
        if images is not None:
            files_of_part.setdefault(part, (file, images))
    if contents and not files_of_part:
        file, content = next(iter(contents.items()))
        name = content.images[0].file_name if content.images else "none"
        raise DataError(
            f"{file} has the form of COCO, but none of its images, such as {name}, is below {root}{windows_hint(name)}"
        )
    if not files_of_part:
        return None
    has_split = "train" in files_of_part and len(files_of_part) > 1
    parts = [part for part in files_of_part if part is not None] if has_split else list(files_of_part)[:1]
    annotations = {part: files_of_part[part][0] for part in parts}
    images = {part: files_of_part[part][1] for part in parts}
    options: dict[str, Any] = {
        "images": images if len(set(images.values())) > 1 else images[parts[0]],
        "annotations": annotations if has_split else annotations[parts[0]],
    }
    reasons = [
        f"{file.relative_to(root)} has the lists images, annotations and categories of COCO"
        for file in annotations.values()
    ]
    names = _used_categories([contents[file] for file in annotations.values()])
    if others := {name: BACKGROUND for name in names if name != BACKGROUND and means_background(name)}:
        options["categories"] = others
    labels = {"names": [BACKGROUND, *(name for name in names if not means_background(name))], "ignore_index": 255}
    return Layout("coco", options, reasons, has_split, labels=labels)


def _json_files(root: Path) -> list[Path]:
    return sorted([*root.glob("*.json"), *root.glob("*/*.json")])


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def _used_categories(contents: Sequence[CocoFile]) -> list[str]:
    """The categories that have objects, in the order of the annotation files."""
    names: dict[str, None] = {}
    for content in contents:
        used = {annotation.category_id for annotation in content.annotations}
        names |= dict.fromkeys(category.name for category in content.categories if category.id in used)
    return list(names)


def _part_of(root: Path, path: Path) -> str | None:
    """The part of the split that a path below the root names."""
    match = find_part(path.relative_to(root).as_posix())
    return match[0] if match else None


def _image_folder(root: Path, file: Path, part: str | None, images: Sequence[CocoImage]) -> Path | None:
    """The image folder of an annotation file: its own folder, otherwise a folder of its part, otherwise any other."""
    names = [image.file_name for image in images[:SAMPLED]]
    candidates = [file.parent, *sorted(folders(root), key=lambda folder: _part_of(root, folder) != part)]
    return next((folder for folder in candidates if names and all((folder / name).is_file() for name in names)), None)


def voc(root: Path) -> Layout | None:
    """PASCAL VOC: the folders JPEGImages and SegmentationClass, also as labelme and CVAT write them."""
    folder = next((name for name in VOC_MASKS if images_in(root / name)), None)
    if not (root / "JPEGImages").is_dir() or folder is None:
        return None
    masks = images_in(root / folder)
    lists = root / "ImageSets" / "Segmentation"
    sets = {part: name for part, name in VOC_SETS.items() if (lists / f"{name}.txt").is_file()}
    has_split = "train" in sets and len(sets) > 1
    options: dict[str, Any] = {"root": root, **({"sets": sets} if sets else {})}
    if folder != VOC_MASKS[0]:
        options["masks"] = folder
    reasons = [f"the folders JPEGImages and {folder} are those of PASCAL VOC"]
    names = _listed_names(root)
    if names is not None:
        reasons.append("the class names are those of class_names.txt")
        return Layout("voc", options, reasons, has_split, {"names": names, "ignore_index": 255})
    if sum(VOC_IMAGE.fullmatch(path.stem) is not None for path in masks) > len(masks) / 2:
        return Layout("voc", options, reasons, has_split, {"names": list(VOC_NAMES), "ignore_index": 255})
    reasons.append("the files are not named like those of PASCAL VOC, so the classes are taken from the masks")
    return Layout("voc", options, reasons, has_split, masks=masks)


def _listed_names(root: Path) -> list[str] | None:
    """The class names in the class_names.txt of labelme, without the one for ignored pixels."""
    file = root / "class_names.txt"
    if not file.is_file():
        return None
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    return [name for name in names if name != "__ignore__"]


def cityscapes(root: Path) -> Layout | None:
    """Cityscapes: the folders leftImg8bit and gtFine."""
    if not (root / "leftImg8bit").is_dir() or not (root / "gtFine").is_dir():
        return None
    sets = {
        part: name for part, name in (("train", "train"), ("validation", "val")) if (root / "gtFine" / name).is_dir()
    }
    assert len(CITYSCAPES_NAMES) == len(CITYSCAPES_CLASSES)
    reasons = ["the folders leftImg8bit and gtFine are those of Cityscapes"]
    labels = {"names": list(CITYSCAPES_NAMES), "ignore_index": 255}
    return Layout("cityscapes", {"root": root, "sets": sets}, reasons, True, labels)


def ade(root: Path) -> Layout | None:
    """ADE20K: the folders images and annotations, whose files begin with `ADE_`."""
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
    # at least the 150 classes of the benchmark, since a few masks hold only some of them
    class_count = max(150, *(int(stored_mask(path)[0].max()) for path in files[:SURVEYED]))
    options: dict[str, Any] = {"root": root, **({"sets": sets} if sets else {})}
    reasons = ["images and annotations with files that begin with ADE_ are those of ADE20K, where 0 is ignored"]
    labels = {"names": [f"class_{number}" for number in range(1, class_count + 1)], "ignore_index": 255}
    return Layout("ade", options, reasons, bool(sets), labels)


def manifest(root: Path) -> Layout | None:
    """A CSV or JSON table of cases with the columns `image` and `mask`, or one column `mask:CLASS` per class."""
    for file in sorted([*root.glob("*.csv"), *root.glob("*.json")]):
        try:
            rows = read_rows(file)
        except DataError:
            continue
        columns = {key for row in rows for key in row}
        classes = {key.removeprefix("mask:") for key in columns if key.startswith("mask:")}
        classes |= {str(name) for row in rows if isinstance(row.get("mask"), dict) for name in row["mask"]}
        if "image" in columns and ("mask" in columns or classes):
            masks = [] if classes else [root / str(row["mask"]) for row in rows if isinstance(row.get("mask"), str)]
            return Layout(
                "manifest",
                {"file": file},
                [f"{file.name} is a table with the columns {', '.join(sorted(columns))}"],
                all(row.get("split") for row in rows),
                {"names": ["background", *sorted(classes - {"background"})]} if classes else None,
                [path for path in masks if path.is_file()],
            )
    return None


def instances(root: Path) -> Layout | None:
    """One folder per case, with its image in `images` and one mask file per object in `masks`."""
    cases = [folder for folder in subfolders(root) if (folder / "images").is_dir() and (folder / "masks").is_dir()]
    if {folder.name.lower() for folder in cases} <= {word for words in PARTS.values() for word in words}:
        return None  # the folders are parts of a split, not cases
    all_have_one_image = all(len(images_in(folder / "images")) == 1 for folder in cases[:SURVEYED])
    some_have_several_masks = any(len(images_in(folder / "masks")) > 1 for folder in cases[:SURVEYED])
    if len(cases) < 2 or not all_have_one_image or not some_have_several_masks:
        return None
    reasons = [f"{len(cases)} folders have an image in images and one mask file per object in masks"]
    options = {"root": root, "masks": {"object": "masks/*"}}
    return Layout("instances", options, reasons, labels={"names": ["background", "object"]})
