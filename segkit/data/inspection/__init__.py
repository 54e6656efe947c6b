"""Inspecting a folder: which known layout its files have, and which classes its masks hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from segkit.data.cases import Case
from segkit.data.formats import extension
from segkit.data.inspection import case_table, image_mask_pairs, known_layouts
from segkit.data.inspection.base import Layout, folders, images_in, subfolders
from segkit.data.inspection.mask_classes import MaskClasses, infer_classes
from segkit.utils.errors import DataError

__all__ = ["Layout", "MaskClasses", "detect_layout", "infer_classes", "unused_files"]

Detector = Callable[[Path], Layout | None]

# tried in this order; the first that recognises the folder is used
KNOWN: tuple[Detector, ...] = (
    known_layouts.dataset_json,
    known_layouts.coco,
    known_layouts.voc,
    known_layouts.cityscapes,
    known_layouts.ade,
    known_layouts.manifest,
    known_layouts.instances,
)
# tried on subfolders: only layouts that cannot be mistaken for another one
KNOWN_IN_SUBFOLDERS: tuple[Detector, ...] = (
    known_layouts.voc,
    known_layouts.cityscapes,
    known_layouts.ade,
    known_layouts.instances,
)
# both are tried; the one that accounts for more files is used
BY_FILE_NAMES: tuple[Detector, ...] = (image_mask_pairs.pairs, case_table.table)
UNSUPPORTED = (".webp", ".heic", ".svg", ".pdf", ".mat", ".h5", ".hdf5", ".czi", ".svs")


def detect_layout(root: Path) -> Layout:
    """Detect the layout of a folder. Raises DataError, with a summary of the files, if no known layout matches."""
    if not root.is_dir():
        raise DataError(f"expected a folder of data at {root}, found none")
    for folder in (root, *_archive_folders(root)):
        for detect in KNOWN if folder == root else KNOWN_IN_SUBFOLDERS:
            layout = detect(folder)
            if layout is not None:
                location = [] if folder == root else [f"in {folder.relative_to(root)}"]
                return replace(layout, reasons=[*location, *layout.reasons])
    layouts = [layout for detect in BY_FILE_NAMES if (layout := detect(root)) is not None]
    if layouts:
        return max(layouts, key=lambda layout: layout.file_count)
    raise DataError(_no_layout_message(root))


def _no_layout_message(root: Path) -> str:
    image_counts = Counter(extension(path) for folder in folders(root) for path in images_in(folder))
    images = ", ".join(f"{count} {ending or 'DICOM series'}" for ending, count in image_counts.most_common())
    counts = Counter(path.suffix.lower() for folder in folders(root) for path in folder.iterdir() if path.is_file())
    unsupported = ", ".join(f"{counts[ending]} {ending}" for ending in UNSUPPORTED if counts[ending])
    convert = f" {unsupported} cannot be read; convert them to PNG or NIfTI." if unsupported else ""
    return (
        f"{root} has none of the known layouts: it holds {images or 'no image of a known format'}, but no masks that "
        f"match images by name.{convert} List the files of each case in a table with the columns image and mask, "
        "and write `data: {name: manifest, file: cases.csv}`"
    )


def _archive_folders(root: Path) -> list[Path]:
    """The subfolders of the first and second level, where unpacked archives often keep the data."""
    first_level = subfolders(root)
    return first_level + [path for folder in first_level for path in subfolders(folder)]


def unused_files(root: Path, cases: Sequence[Case]) -> list[Path]:
    """The images and masks below a folder that belong to no case."""
    used = {file.resolve() for case in cases for file in case.files}
    series = {file for file in used if file.is_dir()}
    return [
        path
        for folder in folders(root)
        if folder.resolve() not in series
        for path in images_in(folder)
        if path.is_file() and path.resolve() not in used
    ]
