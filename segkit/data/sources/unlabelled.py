"""Cases without masks, for prediction: a file, a folder of files, a table, or any layout that training reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.data.cases import Case
from segkit.data.formats import case_name, is_image
from segkit.data.readers import image_files
from segkit.data.sources.base import with_unique_names
from segkit.data.sources.cityscapes import IMAGE_ENDING
from segkit.data.sources.manifest import unlabelled_rows
from segkit.data.sources.msd_nnunet import channel_cases, unlabelled_listing
from segkit.data.sources.pairs import SPLIT, unlabelled_files
from segkit.labels import Labels

LISTING = "dataset.json"
TABLES = (".csv", ".json")


def unlabelled_cases(
    source: Path, labels: Labels, channels: int, name: str, options: Mapping[str, Any]
) -> Sequence[Case]:
    """The cases to predict, each with its image files; masks that may lie beside them are not read.

    source: an image file or DICOM series; a table as for the source `manifest`, or a dataset.json; or a folder: of
        images, with one file per channel (`case_0000`, `case_0001`), or with the layout of the training data.
    channels: the number of channels of the network.
    name, options: the source of the training data and its options.

    Raises DataError if there are no images, for a table that cannot be read, and for two images of the same name.
    """
    if source.is_file() and source.suffix.lower() in TABLES:
        return unlabelled_listing(source.parent) if source.name == LISTING else unlabelled_rows(source, labels)
    if not source.is_dir() or is_image(source):
        return [_single(file) for file in image_files(source)]
    if (source / LISTING).is_file():
        return unlabelled_listing(source)
    find = LAYOUTS.get(name)
    cases = [] if find is None else find(source, options)
    if not cases and (channels > 1 or name in ("msd", "nnunet")):
        cases = channel_cases(source, channels=None if name in ("msd", "nnunet") else channels)
    return cases or [_single(file) for file in image_files(source)]


def _single(file: Path) -> Case:
    return Case(case_name(file), "", images=(file,))


def _subfolder(folder: Path, name: str) -> Path:
    """The folder of images in a data set, or the folder itself if it holds the images."""
    return folder / name if (folder / name).is_dir() else folder


def _pairs(folder: Path, options: Mapping[str, Any]) -> list[Case]:
    """The images at the place and with the names that they have in the training data."""
    images, masks = Path(options["images"]), Path(options["masks"])
    relative = images.relative_to(os.path.commonpath([images, masks]))
    names = [(part, str(relative).replace(SPLIT, name)) for part, name in (options.get("splits") or {None: ""}).items()]
    places = [(part, folder / name) for part, name in names if (folder / name).is_dir()] or [(None, folder)]
    masks_beside = options["mask_pattern"] if images == masks else None
    return with_unique_names(
        [
            Case(case, case, part, (file,))
            for part, place in places
            for case, file in unlabelled_files(place, options["image_pattern"], masks_beside).items()
        ]
    )


def _voc(folder: Path, _options: Mapping[str, Any]) -> list[Case]:
    return [_single(file) for file in image_files(_subfolder(folder, "JPEGImages"))]


def _cityscapes(folder: Path, _options: Mapping[str, Any]) -> list[Case]:
    files = sorted(folder.rglob(f"*{IMAGE_ENDING}"))
    return [Case(file.name.removesuffix(IMAGE_ENDING), file.parent.name, images=(file,)) for file in files]


def _ade(folder: Path, options: Mapping[str, Any]) -> list[Case]:
    images = _subfolder(folder, "images")
    places = [(part, images / name) for part, name in (options.get("sets") or {}).items() if (images / name).is_dir()]
    return with_unique_names(
        [
            Case(case_name(file), case_name(file), part, (file,))
            for part, place in places or [(None, images)]
            for file in image_files(place)
        ]
    )


def _instances(folder: Path, options: Mapping[str, Any]) -> list[Case]:
    """One case per subfolder. Subfolders without an image hold other things."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {path.name: _matching(path, options["image"]) for path in folders}
    return [Case(name, "", images=images) for name, images in files.items() if images]


def _matching(folder: Path, pattern: str) -> tuple[Path, ...]:
    return tuple(path for path in sorted(folder.glob(pattern)) if is_image(path))


# by the source of the training data; each returns no cases if the folder does not have that layout
LAYOUTS: dict[str, Callable[[Path, Mapping[str, Any]], Sequence[Case]]] = {
    "pairs": _pairs,
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade": _ade,
    "instances": _instances,
}
