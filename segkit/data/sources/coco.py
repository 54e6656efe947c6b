"""COCO annotations: polygons and run-length encodings, rasterised when a case is read."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segkit.data.cases import Case, RawCase, mask_dtype
from segkit.data.readers import background_value, read_image
from segkit.data.sources.base import group_reader, listed_file, sorted_cases, with_unique_names
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.optional import require
from segkit.utils.text import listed


class CocoSource:
    """The images of COCO annotation files, with masks drawn from their objects.

    images: the folder to which `file_name` is relative, or one folder for each of `train`, `validation` and `test`.
    annotations: the annotation file, or one file for each of `train`, `validation` and `test`.
    categories: maps category names to class names. A category that is not listed stands for the class of the same name.
    others: what to do with objects of categories without a class: `refuse` raises an error, `background` does not draw
        them, `ignore` marks their pixels as ignored.
    unannotated: whether images without objects are `background` only, or whether to `skip` them.
    group: a regular expression with one pair of brackets that extracts the group from the case name. The case name is
        the file name without its ending.

    If classes are exclusive, large objects are drawn first so that small ones remain visible. Crowd regions are ignored
    except where an object covers them; they require an `ignore_index`.

    Raises DataError for annotations that cannot be read, images that are missing or outside `images`, categories
    without a class, and crowd regions without `ignore_index`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        images: Path | dict[str, Path],
        annotations: Path | dict[str, Path],
        categories: dict[str, str] | None = None,
        others: Literal["refuse", "background", "ignore"] = "refuse",
        unannotated: Literal["background", "skip"] = "background",
        group: str | None = None,
    ):
        if labels.regions is not None:
            raise ValueError(
                "coco draws one mask per class and does not support regions; name the classes under `labels`"
            )
        self.labels = labels
        group_of = group_reader(group)
        self.objects: dict[Path, list[dict[str, Any]]] = {}  # by image file
        self.sizes: dict[Path, tuple[int, int]] = {}
        cases = []
        files = annotations if isinstance(annotations, Mapping) else {None: annotations}
        folders = _folders(images, files)
        for part, file in files.items():
            content = _read(Path(file))
            numbers = _numbers(content, labels, categories or {}, others, Path(file))
            if content["annotations"] and not any(entry.get("segmentation") for entry in content["annotations"]):
                raise DataError(
                    f"{file}: the objects have bounding boxes but no outlines; masks require `segmentation` entries"
                )
            by_image = defaultdict(list)
            for entry in content["annotations"]:
                if entry["category_id"] in numbers or entry.get("iscrowd"):
                    by_image[entry["image_id"]].append({**entry, "number": numbers.get(entry["category_id"])})
            for image in content["images"]:
                objects = by_image[image["id"]]
                if not objects and unannotated == "skip":
                    continue
                path = listed_file(image["file_name"], folders[part], Path(file))
                name = str(Path(image["file_name"]).with_suffix(""))
                _check_crowds(objects, labels, name, Path(file))
                self.objects[path], self.sizes[path] = objects, (image["height"], image["width"])
                cases.append(Case(name, group_of(name), part, (path,), stamp=_stamp(objects)))
        self.cases = sorted_cases(with_unique_names(cases), next(iter(folders.values())))

    def read(self, case: Case) -> RawCase:
        """Read the image of one case and draw its objects. Raises DataError."""
        pixels, spacing = read_image(case.images, case.name)
        size = self.sizes[case.images[0]]
        if pixels.shape[1:] != size:
            raise DataError(
                f"case {case.name}, file {case.images[0]}: expected the size {list(size)} stated in the "
                f"annotations, got {list(pixels.shape[1:])}; the file may be another version, or rotated by its EXIF "
                "orientation"
            )
        objects = sorted(
            self.objects[case.images[0]], key=lambda entry: (not entry.get("iscrowd"), -float(entry.get("area", 0)))
        )
        drawn = [(entry, _object_mask(entry, size, case)) for entry in objects]
        return RawCase(pixels, self._mask(drawn, size), spacing)

    def _mask(self, drawn: Sequence[tuple[dict[str, Any], np.ndarray]], size: tuple[int, int]) -> np.ndarray:
        labels = self.labels
        if labels.has_mask_channels:
            mask = np.zeros((len(labels.names), *size), mask_dtype(labels))
            for entry, plane in drawn:
                if entry.get("iscrowd") or entry["number"] is None:
                    mask[:, plane] = labels.ignore_index
                else:
                    mask[entry["number"], plane] = 1
            return mask
        mask = np.full(size, background_value(labels, "the annotations"), mask_dtype(labels))
        for entry, plane in drawn:
            is_ignored = entry.get("iscrowd") or entry["number"] is None
            mask[plane] = labels.ignore_index if is_ignored else entry["number"]
        return mask


def _folders(images: Path | Mapping[str, Path], files: Mapping[Any, Path]) -> dict[Any, Path]:
    """The image folder of each annotation file."""
    if not isinstance(images, Mapping):
        return dict.fromkeys(files, Path(images))
    if images.keys() != files.keys():
        raise ValueError(
            f"expected one folder of images per annotation file, got images for {', '.join(images)} and annotations "
            f"for {', '.join(map(str, files))}"
        )
    return {part: Path(folder) for part, folder in images.items()}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the annotations {file} cannot be read: {error}") from error
    needed = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in needed):
        raise DataError(f"{file}: expected lists under {', '.join(needed)}, as in COCO")
    return content


def _numbers(
    content: Mapping[str, Any], labels: Labels, categories: Mapping[str, str], others: str, file: Path
) -> dict[int, int | None]:
    """Map each category to its class number, or to None if its pixels are ignored. Omits categories not to draw."""
    category_names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    unknown_categories = [name for name in categories if name not in category_names.values()]
    unknown_classes = [name for name in categories.values() if name not in labels.names]
    if unknown_categories or unknown_classes:
        raise DataError(
            f"{file}: expected categories from {', '.join(category_names.values())} to {', '.join(labels.names)}, got "
            f"{', '.join(unknown_categories or unknown_classes)}"
        )
    numbers: dict[int, int | None] = {}
    used = {entry["category_id"] for entry in content["annotations"]}
    without_class = []
    for number, name in category_names.items():
        class_name = categories.get(name, name)
        if class_name in labels.names:
            numbers[number] = labels.names.index(class_name)
        elif number in used:
            without_class.append(name)
    if without_class and others == "refuse":
        raise DataError(
            f"{file}: {len(without_class)} categories have no class in labels: {listed(without_class, limit=10)}; add "
            "them under `labels`, or map them to classes under `data`, such as "
            f"`categories: {{{without_class[0]}: {labels.names[-1]}}}`, or write `others: background` or "
            "`others: ignore`"
        )
    if without_class and others == "ignore":
        if labels.ignore_index is None:
            raise DataError(f"{file}: `others: ignore` requires `ignore_index: 255` under `labels`")
        numbers |= {number: None for number, name in category_names.items() if name in without_class}
    return numbers


def _check_crowds(objects: Sequence[Mapping[str, Any]], labels: Labels, name: str, file: Path) -> None:
    if labels.ignore_index is None and any(entry.get("iscrowd") for entry in objects):
        raise DataError(
            f"case {name}, {file}: crowd regions have to be ignored; write `ignore_index: 255` under `labels`"
        )


def _object_mask(entry: Mapping[str, Any], size: tuple[int, int], case: Case) -> np.ndarray:
    """The pixels of an object, bool [H, W]. Raises DataError if its outline cannot be drawn or has another size."""
    coco = require("pycocotools.mask", "coco", "drawing COCO annotations")
    outline = entry.get("segmentation")
    try:
        if isinstance(outline, list):
            polygons = [polygon for polygon in outline if len(polygon) >= 6]
            runs = coco.merge(coco.frPyObjects(polygons, *size)) if polygons else None
        elif isinstance(outline, Mapping) and isinstance(outline["counts"], list):
            runs = coco.frPyObjects(outline, *size)
        else:
            runs = outline
        plane = np.zeros(size, bool) if runs is None else coco.decode(runs).astype(bool)
    except Exception as error:  # the library raises exceptions of any type for invalid outlines
        raise DataError(
            f"case {case.name}: the outline of object {entry.get('id')} cannot be drawn "
            f"({type(error).__name__}: {error})"
        ) from error
    if plane.shape != size:
        raise DataError(
            f"case {case.name}: expected the mask of object {entry.get('id')} to have the size {list(size)}, "
            f"got {list(plane.shape)}"
        )
    return plane


def _stamp(objects: Sequence[Mapping[str, Any]]) -> str:
    """A digest of the objects of a case, see `Case.stamp`."""
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()[:16]
