"""What is said of a layout, and the files that those who look for one see."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats import extension, is_image
from segkit.data.mask_encoding import packed_colours
from segkit.data.readers import stored_mask
from segkit.utils.errors import DataError

DEPTH, MOST_FOLDERS = 4, 5000  # of folders that are looked into
SAMPLED = 3  # masks read to see whether they are any
MOST_VALUES, MOST_COLOURS = 64, 64  # of a mask
MASK_WORDS = ("mask", "msk", "label", "annot", "seg", "gt", "manual", "truth", "target", "lesion")
DERIVED_WORDS = ("edge", "contour", "boundar", "pred", "vis", "overlay", "color", "instance", "object")
PARTS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "val"),
    "test": ("testing", "test"),
}


@dataclass(frozen=True)
class Layout:
    """A source with its options; why it is thought to be there; whether its cases come split.

    labels: the section, where the layout says what it is. masks: files whose values tell it otherwise. files: how many
    it explains, where that was counted. rows: of a table of cases, to be written for the source `manifest`, with paths
    relative to the folder that was looked into.
    """

    source: str
    options: dict[str, Any]
    why: list[str]
    split: bool = False
    labels: dict[str, Any] | None = None
    masks: list[Path] = field(default_factory=list)
    files: int = 0
    rows: list[dict[str, str]] = field(default_factory=list)


def looks_like_mask(path: Path) -> bool:
    try:
        stored, colours = stored_mask(path)
    except DataError:
        return True  # the check says what is wrong with it
    if extension(path) in (".jpg", ".jpeg"):
        grey = stored.max(0) if colours else stored
        return bool(np.mean((grey < 32) | (grey > 223)) > 0.95 and grey.std() > 0)
    if colours:
        return len(np.unique(packed_colours(stored))) <= MOST_COLOURS
    return len(np.unique(stored)) <= MOST_VALUES


def part_in(text: str) -> tuple[str, int, int] | None:
    """The part of a split that a path of folders names, and where in the text its word begins and ends: at the start of
    a name or after a separator, and not as `training` in `my-training-notes`."""
    for part, names in PARTS.items():
        for name in names:
            where = re.search(rf"(?:^|(?<=[/_. -])){name}(?![a-z]*ing\b)", text, re.IGNORECASE)
            if where:
                return part, where.start(), where.end()
    return None


def has_mask_word(text: str) -> bool:
    return any(word in text.lower() for word in MASK_WORDS)


def affixes(name: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """What a name has before or after one of those that are known."""
    for cut in range(1, len(name)):
        if name[:cut] in known:
            yield "", name[cut:]
        if name[cut:] in known:
            yield name[:cut], ""


def is_drawn(words: str) -> bool:
    """Whether names say that masks were drawn by hand: in DRIVE, HRF and others `mask` is the field of view."""
    return "manual" in words.lower()


def is_derived(words: str) -> bool:
    """Whether names say that masks were made of others, or are of objects."""
    return any(word in words.lower() for word in DERIVED_WORDS)


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def folders(root: Path) -> list[Path]:
    """The root and the folders below it that are no image themselves."""
    found, level = [root], [root]
    for _depth in range(DEPTH):
        level = [path for folder in level for path in subfolders(folder) if not is_image(path)]
        found += level
        if len(found) > MOST_FOLDERS:
            raise DataError(f"{root} has more than {MOST_FOLDERS} folders; inspect one of them, or use a manifest")
    return found


def images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []
