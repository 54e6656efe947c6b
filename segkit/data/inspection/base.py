"""The description of a layout, and helpers for its detectors: words in file names, and files below a folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data import documents
from segkit.data.formats import is_image, is_lossy
from segkit.data.mask_encoding import packed_colours
from segkit.data.readers import stored_mask
from segkit.utils.errors import DataError

MAX_DEPTH, MAX_FOLDERS = 4, 5000  # of the folders that are searched
SAMPLED = 3  # masks that are read to see whether files are masks
MAX_VALUES, MAX_COLOURS = 64, 64  # distinct values and colours that a mask may have
MIN_NEAR = 0.9  # share of pixels near 0 and 255 from which other values are smoothed edges
MASK_WORDS = ("mask", "msk", "label", "annot", "seg", "gt", "manual", "truth", "target", "lesion")
DERIVED_WORDS = ("edge", "contour", "boundar", "pred", "vis", "overlay", "color", "instance", "object")
PARTS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "val"),
    "test": ("testing", "test"),
}


@dataclass(frozen=True)
class Layout:
    """The layout of a folder.

    Attributes:
        source: Name of the data source that reads it.
        options: Options of the source.
        reasons: Why the folder is assumed to have this layout.
        has_split: Whether the layout assigns its cases to training, validation and test.
        labels: The section `labels` of the configuration, if the layout defines the classes.
        masks: Masks whose values define the classes otherwise.
        file_count: How many files the layout accounts for, where that was counted.
        rows: Rows of a table of cases, to be written for the source `manifest`; paths are relative to the folder.
    """

    source: str
    options: dict[str, Any]
    reasons: list[str]
    has_split: bool = False
    labels: dict[str, Any] | None = None
    masks: list[Path] = field(default_factory=list)
    file_count: int = 0
    rows: list[dict[str, str]] = field(default_factory=list)


def looks_like_mask(path: Path) -> bool:
    """Whether a file has few distinct values or colours, or, with lossy compression, is nearly black and white."""
    try:
        stored, is_colour = stored_mask(path)
    except DataError:
        return True  # `segkit data check` reports the error
    grey = stored.max(0) if is_colour else stored
    if is_lossy(path):
        return _is_black_and_white(grey)
    if is_colour and not (stored == stored[:1]).all():
        return len(np.unique(packed_colours(stored))) <= MAX_COLOURS
    return len(np.unique(grey)) <= MAX_VALUES or _is_black_and_white(grey)


def _is_black_and_white(grey: np.ndarray) -> bool:
    """Whether nearly all pixels are near 0 or 255, as in masks with smoothed edges."""
    near = (grey < 32) | (grey > 223)
    return bool(grey.min() >= 0 and grey.max() > 223 and near.mean() > MIN_NEAR and grey.std() > 0)


def describe_values(path: Path) -> str | None:
    """Why a file is no mask of class numbers; None if that is unknown."""
    try:
        stored, is_colour = stored_mask(path)
    except DataError as error:
        return str(error)
    values = np.unique(stored)
    if is_colour and not (stored == stored[:1]).all():
        return f"{path} has {len(np.unique(packed_colours(stored)))} colours, like a photograph"
    if stored.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return f"{path} holds fractions between 0 and 1, like probabilities: threshold them, for example at 0.5"
    if len(values) > MAX_VALUES and values.max() - values.min() == len(values) - 1:
        return (
            f"{path} holds the {len(values)} numbers {values.min():g} to {values.max():g}, like one number per object "
            "(CellPose, StarDist): save 1 for all objects of a class"
        )
    return f"{path} holds {len(values)} different values, {values.min():g} to {values.max():g}"


def count_values(path: Path) -> int:
    """The number of distinct values or colours of a mask; 0 if it cannot be read."""
    try:
        stored, is_colour = stored_mask(path)
    except DataError:
        return 0
    return len(np.unique(packed_colours(stored) if is_colour else stored))


def find_part(text: str) -> tuple[str, int, int] | None:
    """The part of a split that a path names, and the start and end of its word in the text.

    The word has to be at the start of a name or after a separator, and must not be part of another word, such as
    `training` in `my-training-notes`.
    """
    for part, words in PARTS.items():
        for word in words:
            match = re.search(rf"(?:^|(?<=[/_. -])){word}(?![a-z]*ing\b)", text, re.IGNORECASE)
            if match:
                return part, match.start(), match.end()
    return None


def has_mask_word(text: str) -> bool:
    """Whether a name contains a word for masks, such as `label`."""
    return any(word in text.lower() for word in MASK_WORDS)


def affixes(name: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """The prefix and the suffix that a name has in addition to one of the known names; one of them is empty."""
    for position in range(1, len(name)):
        if name[:position] in known:
            yield "", name[position:]
        if name[position:] in known:
            yield name[:position], ""


def is_manual(words: str) -> bool:
    """Whether names indicate manual segmentations: in DRIVE, HRF and others, `mask` is the field of view."""
    return "manual" in words.lower()


def is_derived(words: str) -> bool:
    """Whether names indicate files derived from masks, such as edges, or instance masks."""
    return any(word in words.lower() for word in DERIVED_WORDS)


def read_json(file: Path) -> Any:
    """The content of a JSON file, or None if it cannot be read."""
    try:
        return documents.read_json(file)
    except DataError:
        return None


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def folders(root: Path) -> list[Path]:
    """The root and the folders below it, except DICOM series. Raises DataError for more than MAX_FOLDERS folders."""
    result, level = [root], [root]
    for _depth in range(MAX_DEPTH):
        level = [path for folder in level for path in subfolders(folder) if not is_image(path)]
        result += level
        if len(result) > MAX_FOLDERS:
            raise DataError(f"{root} has more than {MAX_FOLDERS} folders; inspect one of them, or use a manifest")
    return result


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, sorted; empty if the folder does not exist."""
    return sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []
