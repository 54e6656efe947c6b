"""Inspecting a folder: which known layout its files have, and which classes its masks hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from segkit.data.cases import Case
from segkit.data.formats import extension
from segkit.data.inspection import case_table, image_mask_pairs, known_layouts
from segkit.data.inspection.base import Layout, folders, images_in, read_json, subfolders
from segkit.data.inspection.mask_classes import MaskClasses, infer_classes
from segkit.data.sources.manifest import read_rows
from segkit.utils.errors import DataError
from segkit.utils.text import listed

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
TOOLS = {  # formats that are not read, and what converts them
    ".heic": "convert with `magick IN.heic OUT.png`",
    ".exr": "convert with `magick IN.exr OUT.tif`",
    ".svg": "convert with `magick IN.svg OUT.png`",
    ".pdf": "convert with `pdftoppm -png IN.pdf OUT`",
    ".h5": "convert with h5py and numpy.save",
    ".hdf5": "convert with h5py and numpy.save",
    ".zarr": "convert with zarr and numpy.save",
    ".czi": "convert with Bio-Formats (bfconvert IN.czi OUT.tif)",
    ".lif": "convert with Bio-Formats (bfconvert IN.lif OUT.tif)",
    ".nd2": "convert with Bio-Formats (bfconvert IN.nd2 OUT.tif)",
    ".svs": "convert with OpenSlide or libvips (vips dzsave)",
    ".ndpi": "convert with OpenSlide or libvips (vips dzsave)",
    ".geojson": "convert with rasterio.features.rasterize",
    ".shp": "convert with `gdal_rasterize`",
    ".zip": "unpack them",
    ".tar": "unpack them",
    ".tgz": "unpack them",
    ".7z": "unpack them",
    ".rar": "unpack them",
    ".minc": "convert with `mnc2nii`",
    ".mnc": "convert with `mnc2nii`",
    ".tfrecord": "convert with TensorFlow and numpy.save",
}
LABELME_KEYS = {"shapes", "imagePath"}  # of the JSON files that labelme writes


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
    inside = _inside(root)
    if inside is not None:
        return inside
    layouts = [layout for detect in BY_FILE_NAMES if (layout := detect(root)) is not None]
    if layouts:
        return max(layouts, key=lambda layout: layout.file_count)
    raise DataError(_no_layout_message(root))


def _inside(root: Path) -> Layout | None:
    """The data set of nnU-Net or the Decathlon in a subfolder; None if there is none, or if images lie beside it.

    Raises DataError if there are several.
    """
    found: dict[Path, Layout] = {}
    for folder in _archive_folders(root):
        with suppress(DataError):  # a dataset.json of another kind, or a damaged one
            layout = known_layouts.dataset_json(folder)
            if layout is not None:
                found[folder] = layout
    if not found:
        return None
    beside = [folder for folder in folders(root) if not any(folder.is_relative_to(inside) for inside in found)]
    if any(images_in(folder) for folder in beside):
        return None
    if len(found) > 1:
        names = listed([str(folder.relative_to(root)) for folder in found], limit=5)
        raise DataError(f"{root} has {len(found)} data sets with a dataset.json, {names}: give one of these folders")
    ((folder, layout),) = found.items()
    return replace(layout, reasons=[f"in {folder.relative_to(root)}", *layout.reasons])


def _no_layout_message(root: Path) -> str:
    image_counts = Counter(extension(path) for folder in folders(root) for path in images_in(folder))
    images = ", ".join(f"{count} {ending or 'DICOM series'}" for ending, count in image_counts.most_common())
    counts = Counter(path.suffix.lower() for folder in folders(root) for path in folder.iterdir() if path.is_file())
    counts.update(folder.suffix.lower() for folder in folders(root) if folder.suffix)
    unsupported = [f"{counts[ending]} {ending} ({tool})" for ending, tool in TOOLS.items() if counts[ending]]
    notes = [f"There are files that segkit does not read: {'; '.join(unsupported)}."] if unsupported else []
    notes += _annotation_notes(root)
    reason = image_mask_pairs.why_no_pairs(root)
    problem = reason or "no masks match images by name"
    return (
        f"{root} has none of the known layouts: it holds {images or 'no image of a known format'}, and {problem}. "
        f"{''.join(f'{note} ' for note in notes)}List the files of each case in a table with the columns image and "
        "mask, and write `data: {name: manifest, file: cases.csv}`"
    )


def _annotation_notes(root: Path) -> list[str]:
    """Sentences about tables and annotations that are nearly of a form that is read."""
    notes = []
    labelme = [file for file in root.rglob("*.json") if _is_labelme(file)]
    if labelme:
        notes.append(
            f"{len(labelme)} files such as {labelme[0].name} are annotations of labelme: convert them with its "
            "labelme2voc.py or labelme2coco.py."
        )
    for file in sorted(root.glob("*.csv")):
        columns = _columns_of_files(file)
        if columns:
            notes.append(
                f"The table {file.name} names files in the columns {', '.join(columns)}: rename the one with the "
                "images to image and the one with the masks to mask, and keep of the others only case, group and split."
            )
    return notes


def _is_labelme(file: Path) -> bool:
    content = read_json(file)
    return isinstance(content, dict) and content.keys() >= LABELME_KEYS


def _columns_of_files(file: Path) -> list[str]:
    """The columns of a table whose first cells are names of existing files."""
    try:
        rows = read_rows(file)
    except DataError:
        return []
    cells = rows[0].items() if rows else []
    names = {path.name for folder in folders(file.parent) for path in folder.iterdir()}
    return [column for column, cell in cells if isinstance(cell, str) and PureWindowsPath(cell).name in names - {""}]


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
