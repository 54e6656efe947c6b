"""Which layout a folder has, told from what lies in it, and which classes its masks hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from segkit.data.cases import Case
from segkit.data.formats import extension
from segkit.data.inspection import case_table, image_mask_pairs, known_layouts
from segkit.data.inspection.base import Layout, folders, images_in, subfolders
from segkit.data.inspection.mask_classes import Classes, survey
from segkit.utils.errors import DataError

__all__ = ["Classes", "Layout", "find_layout", "survey", "unused"]

# the first that fits is taken; of the last two, the one that explains more files
BY_NAME: tuple[Callable[[Path], Layout | None], ...] = (
    known_layouts.dataset_json,
    known_layouts.coco,
    known_layouts.voc,
    known_layouts.cityscapes,
    known_layouts.ade,
    known_layouts.manifest,
    known_layouts.instances,
)
BY_PAIRING: tuple[Callable[[Path], Layout | None], ...] = (image_mask_pairs.pairs, case_table.table)
# of folders below, those that nothing else can be taken for
BELOW = (known_layouts.voc, known_layouts.cityscapes, known_layouts.ade, known_layouts.instances)
UNREADABLE = (".webp", ".heic", ".svg", ".pdf", ".mat", ".h5", ".hdf5", ".czi", ".svs")


def find_layout(root: Path) -> Layout:
    """The layout of a folder. Raises DataError, with what was found instead, if it is none that is known."""
    if not root.is_dir():
        raise DataError(f"expected a folder of data at {root}, found none")
    for place in (root, *_below(root)):
        for detect in BY_NAME if place == root else BELOW:
            layout = detect(place)
            if layout is not None:
                where = [] if place == root else [f"in {place.relative_to(root)}"]
                return replace(layout, why=[*where, *layout.why])
    paired_ones = [layout for detect in BY_PAIRING if (layout := detect(root)) is not None]
    if paired_ones:
        return max(paired_ones, key=lambda layout: layout.files)
    found = Counter(extension(path) for folder in folders(root) for path in images_in(folder))
    shown = ", ".join(f"{number} {ending or 'DICOM series'}" for ending, number in found.most_common())
    others = Counter(path.suffix.lower() for folder in folders(root) for path in folder.iterdir() if path.is_file())
    unread = ", ".join(f"{others[ending]} {ending}" for ending in UNREADABLE if others[ending])
    convert = f" {unread} cannot be read, convert them to PNG or NIfTI." if unread else ""
    raise DataError(
        f"{root} has none of the known layouts; it holds {shown or 'no image of a known format'}, but no masks that "
        f"pair with images by name.{convert} List the files of each case in a table with the columns image and mask, "
        "and write `data: {name: manifest, file: cases.csv}`"
    )


def _below(root: Path) -> list[Path]:
    """The folders in it and in those, in which archives often hold the data."""
    first = subfolders(root)
    return first + [path for folder in first for path in subfolders(folder)]


def unused(root: Path, cases: Sequence[Case]) -> list[Path]:
    """Images and masks below a folder that no case has."""
    used = {file.resolve() for case in cases for file in case.files}
    inside = {file for file in used if file.is_dir()}
    return [
        path
        for folder in folders(root)
        if folder.resolve() not in inside
        for path in images_in(folder)
        if path.is_file() and path.resolve() not in used
    ]
