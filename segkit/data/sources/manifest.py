"""A table of cases, CSV or JSON: which files are the image and the mask of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from segkit.data.cases import Case, MaskFile
from segkit.data.formats import case_name
from segkit.data.mask_encoding import MaskCode
from segkit.data.sources.base import FileSource, group_reader, listed_file, sorted_cases
from segkit.data.splits import PARTS
from segkit.labels import Labels
from segkit.utils.errors import DataError

PART_WORDS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
PART_WORDS |= {part: part for part in PARTS}
SEPARATOR = ";"  # between the files of a cell
KEYS = ("case", "image", "mask", "group", "split")


class ManifestSource(FileSource):
    """The cases of a table, a row each, with the columns `image`, `mask` and, as you like, `case`, `group`, `split`.

    file: CSV, or JSON with a list of objects. Several image files of a case are its channels, those of a column
    `mask:NAME` the objects of one class. In a CSV file they are separated by `;`; in JSON they are a list, and `mask`
    may be an object from class names to files. Paths are relative to `root`, the folder of the table if not given, and
    may not leave it.

    case: without it the name of the (first) image file. group: without the column a regular expression may pick it from
    the name, see `pairs`. split: `train`, `validation` or `test`.

    Raises DataError for a table that cannot be read, unknown columns, and files that are missing or outside `root`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        file: Path,
        root: Path | None = None,
        group: str | None = None,
        value_map: dict[int, int] | None = None,
        colors: dict[str, list[int]] | None = None,
        threshold: float | None = None,
        one_hot: bool = False,
        nearest_color: bool = False,
    ):
        super().__init__(labels, MaskCode(value_map, colors, threshold, one_hot, nearest_color), files_of_classes=True)
        self.file = Path(file)
        self.root = self.file.parent if root is None else Path(root)
        group_of = group_reader(group)
        cases = []
        for number, row in enumerate(read_rows(self.file), 1):
            place = f"{self.file}, entry {number}"
            _check_keys(row, labels, place)
            images = tuple(self._path(text) for text in _files(row["image"]))
            name = str(row.get("case") or case_name(images[0]))
            group_name = str(row["group"]) if row.get("group") else group_of(name)
            if row.get("split") not in (None, *PARTS):
                raise DataError(f"{place}: expected split to be one of {', '.join(PARTS)}, got {row['split']}")
            cases.append(Case(name, group_name, row.get("split"), images, self._masks(row)))
        self.cases = sorted_cases(cases, self.file)

    def _path(self, text: str) -> Path:
        return listed_file(text, self.root, self.file)

    def _masks(self, row: Mapping[str, Any]) -> tuple[MaskFile, ...]:
        named = row["mask"] if isinstance(row.get("mask"), Mapping) else {}
        named = {
            **named,
            **{key.removeprefix("mask:"): row[key] for key in row if key.startswith("mask:") and row[key]},
        }
        if named:
            return tuple(MaskFile(self._path(text), name) for name, files in named.items() for text in _files(files))
        return tuple(MaskFile(self._path(text)) for text in _files(row["mask"]))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a table, without what is empty in them."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig")) if file.suffix.lower() == ".json" else _csv_rows(file)
    except (OSError, ValueError) as error:
        raise DataError(f"the table {file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: expected a list of objects with the keys {', '.join(KEYS)}")
    return [{str(key): value for key, value in row.items() if value not in ("", None, [])} for row in rows]


def _csv_rows(file: Path) -> list[Any]:
    """Headings in any case, but for the class in `mask:NAME`; parts of a split as they are often called."""
    table: Any = pd.read_csv(file, dtype=str, keep_default_na=False, sep=None, engine="python", encoding="utf-8-sig")
    table = table.fillna("").rename(columns=lambda name: name if ":" in name else name.strip().lower())
    if "split" in table:
        table["split"] = table["split"].map(lambda part: PART_WORDS.get(part.strip().lower(), part))
    return table.to_dict("records")


def _check_keys(row: Mapping[str, Any], labels: Labels, place: str) -> None:
    classes = [key.removeprefix("mask:") for key in row if key.startswith("mask:")]
    classes += list(row["mask"]) if isinstance(row.get("mask"), Mapping) else []
    unknown = [key for key in row if key not in KEYS and not key.startswith("mask:")]
    if unknown:
        raise DataError(f"{place}: expected {', '.join(KEYS)} or mask:NAME, got {', '.join(unknown)}")
    if "image" not in row or not ("mask" in row or classes):
        raise DataError(f"{place}: expected an image and a mask, got {', '.join(row) or 'nothing'}")
    strange = [name for name in classes if name not in labels.names]
    if strange:
        raise DataError(f"{place}: expected masks of {', '.join(labels.names)}, got one of {', '.join(strange)}")


def _files(given: Any) -> list[str]:
    return (
        [str(one) for one in given] if isinstance(given, list) else [one.strip() for one in str(given).split(SEPARATOR)]
    )
