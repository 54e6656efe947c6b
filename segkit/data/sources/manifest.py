"""A table of cases, CSV or JSON, that lists the image and mask files of each case."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segkit.data.cases import Case, MaskFile, RawCase
from segkit.data.documents import Text, read_document, read_text
from segkit.data.formats import case_name
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.sources.base import FileSource, group_reader, listed_file, sorted_cases, with_empty_mask
from segkit.data.splits import PARTS
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed, one_line

PART_NAMES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
PART_NAMES |= {part: part for part in PARTS}
SEPARATOR = ";"  # between the files of a cell
SEPARATORS = ",;\t|"  # between the cells of a row
Cell = str | int | float | list[str] | dict[Text, str | list[str]] | None
KEYS = ("case", "image", "mask", "group", "split", "annotated", "weight")


class ManifestSource(FileSource):
    """The cases of a table with one row per case.

    The columns are `image` and `mask`, and optionally:

    - `case`: the case name; by default the name of the (first) image file.
    - `group`: the group; by default extracted from the case name by the option `group`.
    - `split`: `train`, `validation` or `test`.
    - `mask:NAME` in place of `mask`: the mask files of the class NAME. An empty cell means that the class is absent.
    - `weight`: a file with the weight of each pixel in the loss, on the grid of the image; empty for 1 everywhere.
    - `annotated`: for overlapping classes, the classes that were looked for in this case; all others are ignored.

    Several image files of a case are its channels, and several files of `mask:NAME` are the objects of one class. In
    CSV they are separated by `;`. In JSON they are a list, and `mask` may map class names to files.

    file: a CSV file, or a JSON file with a list of objects.
    root: the folder to which paths are relative and which they must not leave; by default the folder of the table.
    group: a regular expression that extracts the group from the case name, see `PairsSource`.
    value_map, colors, threshold, one_hot, nearest_color: see `segkit.data.mask_encoding.MaskEncoding`.

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
        super().__init__(labels, MaskEncoding(value_map, colors, threshold, one_hot, nearest_color), class_files=True)
        self.file = Path(file)
        self.root = self.file.parent if root is None else Path(root)
        group_of = group_reader(group)
        cases = []
        rows = read_rows(self.file)
        has_class_columns = any(key.startswith("mask:") or isinstance(row[key], dict) for row in rows for key in row)
        for number, row in enumerate(rows, 1):
            where = f"{self.file}, entry {number}"
            _check_keys(row, labels, where, may_be_empty=has_class_columns)
            images = tuple(self._path(text) for text in _files(row["image"]))
            name = str(row.get("case") or case_name(images[0]))
            group_name = str(row["group"]) if row.get("group") else group_of(name)
            if row.get("split") not in (None, *PARTS):
                raise DataError(
                    f"{where}: expected split to be one of {', '.join(PARTS)}, got {one_line(row['split'])}"
                )
            annotated = _annotated(row, labels, where)
            stamp = "" if annotated is None else f"annotated: {', '.join(annotated)}"
            weight = self._path(str(row["weight"])) if "weight" in row else None
            cases.append(Case(name, group_name, row.get("split"), images, self._masks(row), stamp, annotated, weight))
        self.cases = sorted_cases(cases, self.file)

    def _path(self, text: str) -> Path:
        return listed_file(text, self.root, self.file)

    def _masks(self, row: Mapping[str, Any]) -> tuple[MaskFile, ...]:
        files_of_class = row["mask"] if isinstance(row.get("mask"), Mapping) else {}
        files_of_class = {
            **files_of_class,
            **{key.removeprefix("mask:"): row[key] for key in row if key.startswith("mask:") and row[key]},
        }
        if files_of_class:
            return tuple(
                MaskFile(self._path(text), name) for name, files in files_of_class.items() for text in _files(files)
            )
        return tuple(MaskFile(self._path(text)) for text in _files(row["mask"])) if row.get("mask") else ()

    def read(self, case: Case) -> RawCase:
        """Read the pixels of one case; without any mask file, all classes are absent. Raises DataError."""
        return with_empty_mask(super().read(case), case, self.labels)


def unlabelled_rows(file: Path, labels: Labels) -> list[Case]:
    """The cases of a table without their masks, for prediction; only the column `image` is needed.

    Paths are relative to the folder of the table. Raises the errors of `ManifestSource`.
    """
    cases = []
    for number, row in enumerate(read_rows(file), 1):
        _check_keys(row, labels, f"{file}, entry {number}", may_be_empty=True)
        images = tuple(listed_file(text, file.parent, file) for text in _files(row["image"]))
        cases.append(Case(str(row.get("case") or case_name(images[0])), "", images=images))
    if not cases:
        raise DataError(f"expected images to predict in {file}, found none")
    return list(sorted_cases(cases, file))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a table, without empty cells. Raises DataError if the file cannot be read."""
    rows = read_document(file, list[dict[str, Cell]]) if file.suffix.lower() == ".json" else _csv_rows(file)
    return [{str(key): value for key, value in row.items() if value not in ("", None, [])} for row in rows]


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a CSV file. Headings are lowercased except `mask:NAME`; common names of parts are accepted."""
    text = read_text(file)
    heading = text.lstrip("\r\n").partition("\n")[0]
    separator = max(SEPARATORS, key=heading.count)
    try:
        cells = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(row)]
    except csv.Error as error:
        raise DataError(
            f"the table {file} cannot be read as CSV with cells of at most {csv.field_size_limit()} characters "
            f"({error})"
        ) from error
    if not cells:
        raise DataError(f"the table {file} is empty; expected a row of headings, such as image,mask")
    names = [name if ":" in name else name.strip().lower() for name in cells[0]]
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(f"the table {file} has two columns with the heading {one_line(twice[0])}; rename one of them")
    too_long = [number for number, row in enumerate(cells[1:], 1) if any(row[len(names) :])]
    if too_long:
        raise DataError(
            f"{file}, entry {too_long[0]}: expected at most {len(names)} cells, one per heading, got "
            f"{len(cells[too_long[0]])}; put text that holds {separator!r} into quotes"
        )
    rows = [dict(zip(names, row, strict=False)) for row in cells[1:]]
    for row in rows:
        part = row.get("split", "")
        row["split"] = PART_NAMES.get(part.strip().lower(), part)
    return rows


def _check_keys(row: Mapping[str, Any], labels: Labels, where: str, *, may_be_empty: bool) -> None:
    """Raise DataError for unknown columns, a row without image or mask, and unknown classes.

    may_be_empty: whether the table has a column per class, so that a row without masks has none of the classes.
    """
    classes = [key.removeprefix("mask:") for key in row if key.startswith("mask:")]
    classes += list(row["mask"]) if isinstance(row.get("mask"), Mapping) else []
    unknown = [key for key in row if key not in KEYS and not key.startswith("mask:")]
    if unknown:
        raise DataError(f"{where}: expected {', '.join(KEYS)} or mask:NAME, got {listed(list(map(one_line, unknown)))}")
    if "image" not in row or not ("mask" in row or classes or may_be_empty):
        raise DataError(f"{where}: expected an image and a mask, got {', '.join(row) or 'nothing'}")
    unknown_classes = [name for name in classes if name not in labels.names]
    if unknown_classes:
        raise DataError(
            f"{where}: expected masks of {', '.join(labels.names)}, got {listed(list(map(one_line, unknown_classes)))}"
        )


def _annotated(row: Mapping[str, Any], labels: Labels, where: str) -> tuple[str, ...] | None:
    """The annotated classes of a case; None if the row does not list them. Raises DataError."""
    if "annotated" not in row:
        return None
    names = tuple(_files(row["annotated"]))
    if not labels.has_mask_channels:
        raise DataError(
            f"{where}: `annotated` needs overlapping classes: a pixel of exclusive classes has to belong to one of "
            "them; write `mode: multilabel` under `labels`, without `regions`"
        )
    drawn = [key.removeprefix("mask:") for key in row if key.startswith("mask:")]
    if contradicting := [name for name in drawn if name not in names]:
        raise DataError(
            f"{where}: `annotated` leaves out {', '.join(contradicting)}, which has a mask; add or remove it"
        )
    unknown = [name for name in names if name not in labels.names]
    if unknown:
        raise DataError(
            f"{where}: expected annotated classes among {', '.join(labels.names)}, got {', '.join(unknown)}"
        )
    return names


def _files(cell: Any) -> list[str]:
    """The file names in a cell, which is a list in JSON and text in CSV."""
    if isinstance(cell, list):
        return [str(name) for name in cell]
    return [name.strip() for name in str(cell).split(SEPARATOR)]
