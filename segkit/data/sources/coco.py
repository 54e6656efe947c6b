"""COCO annotations: polygons and run lengths, drawn when a case is read."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segkit.data.cases import Case, RawCase, mask_dtype
from segkit.data.readers import number_of_background, read_image
from segkit.data.sources.base import distinguished, group_reader, listed_file, sorted_cases
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.optional import require


class CocoSource:
    """The images of annotation files, with the objects of each drawn as a mask.

    images: the folder that `file_name` is relative to, or one for each of `train`, `validation` and `test`.
    annotations: the file, or one for each of `train`, `validation` and `test`.
    categories: class names of the labels for names of categories; one that is not named here means the class of its own
        name.
    others: objects of categories that mean no class: `refuse` them, `background` does not draw them, `ignore` has their
        pixels count nowhere.
    unannotated: images without any object: `background`, or `skip` them.
    group: a regular expression with one pair of brackets, which picks the group out of the case name, which is that of
        the file without its ending.

    Where classes exclude each other, large objects are drawn first, so that small ones stay to be seen. Crowd regions
    are ignored, unless an object covers them; the labels need an `ignore_index` for them.

    Raises DataError for annotations that cannot be read, images that are missing or outside `images`, categories that
    mean no class, and crowds without `ignore_index`.
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
            raise ValueError("coco draws classes, and labels has regions of numbers; name the classes instead")
        self.labels = labels
        group_of = group_reader(group)
        self.objects: dict[Path, list[dict[str, Any]]] = {}  # by the image
        self.sizes: dict[Path, tuple[int, int]] = {}
        cases = []
        files = annotations if isinstance(annotations, Mapping) else {None: annotations}
        folders = _folders(images, files)
        for part, file in files.items():
            content = _read(Path(file))
            numbers = _numbers(content, labels, categories or {}, others, Path(file))
            if content["annotations"] and not any(one.get("segmentation") for one in content["annotations"]):
                raise DataError(
                    f"{file}: its objects have boxes and no outlines, as for detection; masks need outlines"
                )
            by_image = defaultdict(list)
            for one in content["annotations"]:
                if one["category_id"] in numbers or one.get("iscrowd"):
                    by_image[one["image_id"]].append({**one, "number": numbers.get(one["category_id"])})
            for image in content["images"]:
                objects = by_image[image["id"]]
                if not objects and unannotated == "skip":
                    continue
                path = listed_file(image["file_name"], folders[part], Path(file))
                name = str(Path(image["file_name"]).with_suffix(""))
                _check_crowds(objects, labels, name, Path(file))
                self.objects[path], self.sizes[path] = objects, (image["height"], image["width"])
                cases.append(Case(name, group_of(name), part, (path,), stamp=_stamp(objects)))
        self.cases = sorted_cases(distinguished(cases), next(iter(folders.values())))

    def read(self, case: Case) -> RawCase:
        """The pixels of one case, and its objects drawn. Raises DataError."""
        pixels, spacing = read_image(case.images, case.name)
        size = self.sizes[case.images[0]]
        if pixels.shape[1:] != size:
            raise DataError(
                f"case {case.name}, file {case.images[0]}: expected the size {list(size)} that the annotations say, "
                f"got {list(pixels.shape[1:])}; the file may be turned by its EXIF entry, or another version"
            )
        objects = sorted(
            self.objects[case.images[0]], key=lambda one: (not one.get("iscrowd"), -float(one.get("area", 0)))
        )
        drawn = [(one, _drawn(one, size, case)) for one in objects]
        return RawCase(pixels, self._mask(drawn, size), spacing)

    def _mask(self, drawn: Sequence[tuple[dict[str, Any], np.ndarray]], size: tuple[int, int]) -> np.ndarray:
        labels = self.labels
        if labels.has_mask_channels:
            mask = np.zeros((len(labels.names), *size), mask_dtype(labels))
            for one, plane in drawn:
                if one.get("iscrowd") or one["number"] is None:
                    mask[:, plane] = labels.ignore_index
                else:
                    mask[one["number"], plane] = 1
            return mask
        mask = np.full(size, number_of_background(labels, "the annotations"), mask_dtype(labels))
        for one, plane in drawn:
            mask[plane] = labels.ignore_index if one.get("iscrowd") or one["number"] is None else one["number"]
        return mask


def _folders(images: Path | Mapping[str, Path], files: Mapping[Any, Path]) -> dict[Any, Path]:
    """The folder of the images of each annotation file."""
    if not isinstance(images, Mapping):
        return dict.fromkeys(files, Path(images))
    if images.keys() != files.keys():
        raise ValueError(
            f"expected a folder of images for each annotation file, got images for {', '.join(images)} and annotations "
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
        raise DataError(f"{file}: expected lists under {', '.join(needed)}, as COCO has them")
    return content


def _numbers(
    content: Mapping[str, Any], labels: Labels, categories: Mapping[str, str], others: str, file: Path
) -> dict[int, int | None]:
    """The class number of each category; None where its pixels are to be ignored, and none where it is not drawn."""
    named = {one["id"]: str(one["name"]) for one in content["categories"]}
    wrong = [name for name in categories if name not in named.values()]
    strange = [name for name in categories.values() if name not in labels.names]
    if wrong or strange:
        raise DataError(
            f"{file}: expected categories from {', '.join(named.values())} to {', '.join(labels.names)}, got "
            f"{', '.join(wrong or strange)}"
        )
    numbers: dict[int, int | None] = {}
    used = {one["category_id"] for one in content["annotations"]}
    unknown = []
    for number, name in named.items():
        meant = categories.get(name, name)
        if meant in labels.names:
            numbers[number] = labels.names.index(meant)
        elif number in used:
            unknown.append(name)
    if unknown and others == "refuse":
        raise DataError(
            f"{file}: {len(unknown)} categories are no class of labels: {', '.join(unknown[:10])}; name them under "
            "`labels`, or write under `data` which class they mean, such as "
            f"`categories: {{{unknown[0]}: {labels.names[-1]}}}`, or `others: background` or `ignore`"
        )
    if unknown and others == "ignore":
        if labels.ignore_index is None:
            raise DataError(f"{file}: `others: ignore` needs `ignore_index: 255` under `labels`")
        numbers |= {number: None for number, name in named.items() if name in unknown}
    return numbers


def _check_crowds(objects: Sequence[Mapping[str, Any]], labels: Labels, name: str, file: Path) -> None:
    if labels.ignore_index is None and any(one.get("iscrowd") for one in objects):
        raise DataError(
            f"case {name}, {file}: it has crowd regions, to be ignored; write `ignore_index: 255` under `labels`"
        )


def _drawn(one: Mapping[str, Any], size: tuple[int, int], case: Case) -> np.ndarray:
    """The pixels of an object, bool [H, W]."""
    coco = require("pycocotools.mask", "coco", "drawing COCO annotations")
    shape = one.get("segmentation")
    try:
        if isinstance(shape, list):
            parts = [part for part in shape if len(part) >= 6]
            runs = coco.merge(coco.frPyObjects(parts, *size)) if parts else None
        elif isinstance(shape, Mapping) and isinstance(shape["counts"], list):
            runs = coco.frPyObjects(shape, *size)
        else:
            runs = shape
        plane = np.zeros(size, bool) if runs is None else coco.decode(runs).astype(bool)
    except Exception as error:  # the library raises whatever Python does on what is no outline
        raise DataError(
            f"case {case.name}: the outline of object {one.get('id')} cannot be drawn ({type(error).__name__}: {error})"
        ) from error
    if plane.shape != size:
        raise DataError(
            f"case {case.name}: expected object {one.get('id')} to be of {list(size)}, got {list(plane.shape)}"
        )
    return plane


def _stamp(objects: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()[:16]
