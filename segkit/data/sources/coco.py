"""COCO annotations: polygons and run-length encodings, rasterised when a case is read."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat

from segkit.data.cases import Case, RawCase, mask_dtype
from segkit.data.documents import Entry, FileName, Identifier, Text, read_document
from segkit.data.readers import background_value, read_image
from segkit.data.sources.base import group_reader, listed_file, sorted_cases, with_unique_names
from segkit.data.sources.coco_outlines import FIRST, LAST, object_runs
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.optional import require
from segkit.utils.text import listed, one_line

MIN_COORDINATES = 6  # of a polygon: three corners
MAX_SIDE = 1 << 24  # pixels
IGNORE_HINT = "write `ignore_index: 255` under `labels`"
Boxes = Literal["refuse", "ignore", "draw"]


def _polygons(value: Any) -> Any:
    """A list of polygons also for a single one, which some programs write as a flat list."""
    return [value] if isinstance(value, list) and value and isinstance(value[0], (int, float)) else value


def _pairs(polygon: list[float]) -> list[float]:
    if len(polygon) % 2:
        raise ValueError(f"pairs of coordinates, got {len(polygon)} numbers")
    return polygon


def _runs(encoding: dict[str, Any]) -> dict[str, Any]:
    """A run-length encoding with two sizes, and with numbers or compressed text as counts. It is returned unchanged."""
    size, counts = encoding.get("size"), encoding.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(_is_count(side) and side <= MAX_SIDE for side in size)):
        raise ValueError(
            f"a size of two numbers of at most {MAX_SIDE} in a run-length encoding, got {one_line(size, 40)}"
        )
    is_text = isinstance(counts, str) and all(FIRST <= ord(character) <= LAST for character in counts)
    if not is_text and not (isinstance(counts, list) and all(map(_is_count, counts))):
        raise ValueError(
            f"counts of whole numbers or of compressed text in a run-length encoding, got {one_line(counts, 40)}"
        )
    return encoding


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


Polygon = Annotated[list[FiniteFloat], AfterValidator(_pairs)]
Outline = Annotated[list[Polygon] | Annotated[dict[str, Any], AfterValidator(_runs)], BeforeValidator(_polygons)]
Side = Annotated[int, Field(ge=0, le=MAX_SIDE)]


class CocoImage(Entry):
    id: Identifier
    file_name: FileName
    width: Side | None = None
    height: Side | None = None


class CocoObject(Entry):
    image_id: Identifier
    category_id: Identifier
    id: Identifier | None = None
    segmentation: Outline | None = None
    bbox: list[FiniteFloat] | None = None
    iscrowd: bool | None = None

    @property
    def box(self) -> list[float] | None:
        """Left, top, width and height; None for a box without area."""
        is_box = self.bbox is not None and len(self.bbox) == 4 and min(self.bbox[2:]) > 0
        return self.bbox if is_box else None

    @property
    def outline(self) -> list[list[float]] | dict[str, Any] | None:
        """Polygons of at least three corners, or a run-length encoding; None without an outline."""
        if isinstance(self.segmentation, list):
            return [polygon for polygon in self.segmentation if len(polygon) >= MIN_COORDINATES] or None
        return self.segmentation or None


class CocoCategory(Entry):
    id: Identifier
    name: Text


class CocoFile(Entry):
    images: list[CocoImage]
    annotations: list[CocoObject]
    categories: list[CocoCategory]


class CocoSource:
    """The images of COCO annotation files, with masks drawn from their objects.

    images: the folder to which `file_name` is relative, or one folder for each of `train`, `validation` and `test`.
    annotations: the annotation file, or one file for each of `train`, `validation` and `test`.
    categories: maps category names to class names. A category that is not listed stands for the class of the same name.
    others: what to do with objects of categories without a class: `refuse` raises an error, `background` does not draw
        them, `ignore` marks their pixels as ignored.
    boxes: what to do with objects that have a bounding box but no outline: `refuse` raises an error, `ignore` marks the
        pixels of the box as ignored, `draw` draws the box.
    unannotated: whether images without objects are `background` only, or whether to `skip` them.
    group: a regular expression with one pair of brackets that extracts the group from the case name. The case name is
        the file name without its ending.

    Coordinates belong to the picture as viewers show it, turned by its EXIF orientation. If classes are exclusive,
    objects of many pixels are drawn first so that small ones remain visible, whatever `area` says. Crowd regions are
    ignored except where an object covers them. Whatever is ignored requires an `ignore_index`.

    Raises DataError for annotations that cannot be read, images that are missing, listed twice or outside `images`,
    objects of images or categories that are not listed, categories without a class, and crowd regions without
    `ignore_index`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        images: Path | dict[str, Path],
        annotations: Path | dict[str, Path],
        categories: dict[str, str] | None = None,
        others: Literal["refuse", "background", "ignore"] = "refuse",
        boxes: Boxes = "refuse",
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
        self.sizes: dict[Path, tuple[int | None, int | None]] = {}
        cases = []
        files = annotations if isinstance(annotations, Mapping) else {None: annotations}
        folders = _folders(images, files)
        for part, file in files.items():
            content = read_document(Path(file), CocoFile)
            _check_identifiers(content, Path(file))
            numbers = _numbers(content, labels, categories or {}, others, Path(file))
            _check_outlines(content, numbers, boxes, Path(file))
            objects_of = _objects_by_image(content, numbers, boxes)
            for image in content.images:
                objects = objects_of[image.id]
                if not objects and unannotated == "skip":
                    continue
                path = listed_file(image.file_name, folders[part], Path(file))
                name = str(_below(image.file_name, path, folders[part]).with_suffix(""))
                _check_ignored(objects, labels, name, Path(file))
                self.objects[path], self.sizes[path] = objects, (image.height, image.width)
                cases.append(Case(name, group_of(name), part, (path,), stamp=_stamp(objects)))
        self.cases = sorted_cases(with_unique_names(cases, group), next(iter(folders.values())))

    def read(self, case: Case) -> RawCase:
        """Read the image of one case and draw its objects. Raises DataError."""
        pixels, spacing = read_image(case.images, case.name)
        size = (int(pixels.shape[1]), int(pixels.shape[2]))
        stated = self.sizes[case.images[0]]
        if pixels.ndim != 3 or any(side not in (None, actual) for side, actual in zip(stated, size, strict=True)):
            raise DataError(
                f"case {case.name}, file {case.images[0]}: expected the size {list(stated)} stated in the annotations, "
                f"got {list(pixels.shape[1:])}; the file may be another version, or the annotations may not follow "
                "its EXIF orientation, by which viewers turn it"
            )
        coco = require("pycocotools.mask", "coco", "drawing COCO annotations")
        # run lengths, since the planes of all objects together may not fit into memory
        drawn = [(entry, object_runs(entry, size, case)) for entry in self.objects[case.images[0]]]
        drawn.sort(key=lambda item: (not item[0]["below"], -int(coco.area(item[1]))))
        planes = ((entry, coco.decode(runs).astype(bool)) for entry, runs in drawn)
        return RawCase(pixels, self._mask(planes, size), spacing)

    def _mask(self, drawn: Iterable[tuple[dict[str, Any], np.ndarray]], size: tuple[int, int]) -> np.ndarray:
        labels = self.labels
        if labels.has_mask_channels:
            mask = np.zeros((len(labels.names), *size), mask_dtype(labels))
            for entry, plane in drawn:
                planes = slice(None) if entry["number"] is None else entry["number"]
                mask[planes, plane] = labels.ignore_index if entry["ignored"] else 1
            return mask
        mask = np.full(size, background_value(labels, "the annotations"), mask_dtype(labels))
        for entry, plane in drawn:
            mask[plane] = labels.ignore_index if entry["ignored"] else entry["number"]
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


def _check_identifiers(content: CocoFile, file: Path) -> None:
    """Raise DataError for images and categories listed twice, and for objects of any that are not listed."""
    named = {"images": "file_name", "categories": "name"}
    for key, name in named.items():
        names_of: dict[Any, set[str]] = defaultdict(set)
        counts = Counter(entry.id for entry in getattr(content, key))
        for entry in getattr(content, key):
            names_of[entry.id].add(getattr(entry, name))
        twice = [number for number, count in counts.items() if count > 1]
        if key == "categories":  # the same category listed again is no contradiction
            twice = [number for number in twice if len(names_of[number]) > 1]
        if twice:
            shown = listed([f"id {number} ({', '.join(sorted(names_of[number]))})" for number in twice], limit=3)
            raise DataError(
                f"{file}: {len(twice)} ids are listed more than once under {key}: {shown}; if files were merged, give "
                f"the {key} of one of them other ids"
            )
    for key, field in (("categories", "category_id"), ("images", "image_id")):
        known = {entry.id for entry in getattr(content, key)}
        unknown = [entry for entry in content.annotations if getattr(entry, field) not in known]
        if unknown:
            shown = listed([f"object {entry.id} of {field} {getattr(entry, field)}" for entry in unknown], limit=3)
            raise DataError(
                f"{file}: {len(unknown)} objects belong to {key} that are not listed: {shown}; add them under {key}, "
                "or remove these objects"
            )
    repeated = [number for number, count in Counter(entry.id for entry in content.annotations).items() if count > 1]
    if repeated := [number for number in repeated if number is not None]:
        warnings.warn(
            f"{file}: {len(repeated)} object ids occur more than once, such as {repeated[0]}; all objects are drawn. "
            "If files were merged, the image ids may be mixed up, too",
            stacklevel=3,
        )


def _numbers(
    content: CocoFile, labels: Labels, categories: Mapping[str, str], others: str, file: Path
) -> dict[Any, int | None]:
    """Map each category to its class number, or to None if its pixels are ignored. Omits categories not to draw."""
    category_names = {entry.id: entry.name for entry in content.categories}
    unknown_categories = [name for name in categories if name not in category_names.values()]
    unknown_classes = [name for name in categories.values() if name not in labels.names]
    if unknown_categories or unknown_classes:
        raise DataError(
            f"{file}: expected categories from {', '.join(category_names.values())} to {', '.join(labels.names)}, got "
            f"{', '.join(unknown_categories or unknown_classes)}"
        )
    numbers: dict[Any, int | None] = {}
    used = {entry.category_id for entry in content.annotations}
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
            raise DataError(f"{file}: `others: ignore` requires an ignored value; {IGNORE_HINT}")
        numbers |= {number: None for number, name in category_names.items() if name in without_class}
    return numbers


def _check_outlines(content: CocoFile, numbers: Mapping[Any, int | None], boxes: Boxes, file: Path) -> None:
    """Raise DataError for objects to draw that have no outline, unless their boxes are used."""
    drawn = [entry for entry in content.annotations if entry.iscrowd or entry.category_id in numbers]
    without = [entry for entry in drawn if entry.outline is None]
    without_either = [entry for entry in without if entry.box is None]
    if without_either:
        shown = listed([str(entry.id) for entry in without_either], limit=5)
        raise DataError(
            f"{file}: {len(without_either)} objects have neither an outline nor a bounding box: {shown}; correct or "
            "remove them"
        )
    lost = without if boxes == "refuse" else []
    if not lost:
        return
    shown = listed([str(entry.id) for entry in lost], limit=5)
    if len(lost) == len(drawn):
        what = f"the objects have bounding boxes but no outlines ({len(lost)} objects)"
    else:
        what = f"{len(lost)} of {len(drawn)} objects have a bounding box but no outline: {shown}"
    raise DataError(
        f"{file}: {what}; masks require `segmentation` entries. Write `boxes: ignore` under `data` to ignore the "
        "pixels of such boxes, or `boxes: draw` if they are rectangles that fill their objects"
    )


def _objects_by_image(
    content: CocoFile, numbers: Mapping[Any, int | None], boxes: Boxes
) -> dict[Any, list[dict[str, Any]]]:
    """The objects to draw of each image: what to draw, and their class number, None if their pixels are ignored."""
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in content.annotations:
        if not entry.iscrowd and entry.category_id not in numbers:
            continue
        number = None if entry.iscrowd else numbers[entry.category_id]
        is_box = entry.outline is None and boxes == "ignore"
        by_image[entry.image_id].append(
            {"id": entry.id, "outline": entry.outline, "box": entry.box, "number": number}
            # what is ignored as a whole lies below everything that was outlined
            | {"ignored": number is None or is_box, "below": bool(entry.iscrowd) or is_box}
        )
    return by_image


def _check_ignored(objects: Sequence[Mapping[str, Any]], labels: Labels, name: str, file: Path) -> None:
    if labels.ignore_index is None and any(entry["ignored"] for entry in objects):
        raise DataError(f"case {name}, {file}: crowd regions and boxes have to be ignored; {IGNORE_HINT}")


def _below(name: str, path: Path, folder: Path) -> Path:
    """The path of an image relative to the folder of images, as it is listed unless that leaves it meanwhile."""
    if os.path.isabs(name) or ".." in Path(name).parts:
        return Path(os.path.relpath(path, folder))
    return Path(name)


def _stamp(objects: Sequence[Mapping[str, Any]]) -> str:
    """A digest of the objects of a case, see `Case.stamp`."""
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()[:16]
