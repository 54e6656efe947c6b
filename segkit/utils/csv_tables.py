"""Tables as CSV files: read within bounds, and written so that no name becomes a formula in a spreadsheet program."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

BLANK_NUMBERS = frozenset(
    ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "None", "null", "NULL"),
)
MAX_LINE = 2**20  # characters
MAX_NAME = 4096  # characters of a name, the longest path of common file systems
BATCH = 10_000  # rows that are held as text at a time
EXACT = 2.0**53  # whole numbers up to this one are exact in float64
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # the full-width signs start a formula, too
SIGNATURES = {
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"PK\x03\x04": "a spreadsheet or zip file: save the table as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save the table as CSV (UTF-8)",
    b"BZh": "a bzip2 file: unpack it first",
    b"\xfd7zXZ": "an xz file: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file: unpack it first",
    b"\xff\xfe": "UTF-16 text: save the table as CSV (UTF-8)",
    b"\xfe\xff": "UTF-16 text: save the table as CSV (UTF-8)",
}
Frame = Any  # the types of pandas are too vague for a type checker


# --- formulas --------------------------------------------------------------------------------------------------------


def neutral(name: str) -> str:
    """A name with an apostrophe before it if a spreadsheet program would take it for a formula.

    A name that has apostrophes before such a sign gets one more, so that `original` is exact.
    """
    return f"'{name}" if FORMULA.match(name) else name


def original(text: str) -> str:
    """The name from which `neutral` made this text."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def write_table(path: Path, table: pd.DataFrame, *, index: bool = False) -> None:
    """Write a CSV file atomically. Names in cells, header and index are neutralised (see `neutral`)."""
    table = table.rename(columns=_neutral_if_text)
    texts: Any = {name: column.map(_neutral_if_text) for name, column in table.items() if _holds_text(column)}
    table = table.assign(**texts)
    if index:
        table = table.rename(index=_neutral_if_text)
    # the writer leaves names with a carriage return unquoted, and readers take it for the end of a line
    returns = any(column.str.contains("\r", regex=False).any() for column in texts.values())
    temporary = path.with_name(f"{path.name}.tmp")
    table.to_csv(temporary, index=index, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)
    temporary.replace(path)


def _neutral_if_text(value: Any) -> Any:
    return neutral(value) if isinstance(value, str) else value


def _holds_text(column: Frame) -> bool:
    return not pd.api.types.is_numeric_dtype(column.dtype)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_table(
    path: Path, text: Collection[str], choose: Callable[[Sequence[str]], Collection[str]] | None = None
) -> pd.DataFrame:
    """Read a CSV file in batches, so that the text of all its rows is never in memory at once.

    Args:
        path: A file in UTF-8 with a header line and commas between the columns.
        text: The columns of names; all others are numbers. Names such as "1" or "None" stay text, and only empty names
            are missing.
        choose: A function from the header to the columns to read; None reads all.

    Returns:
        A table with categories for names, in the order of their first rows, int64 for columns of whole numbers from 0
        to 2^53, and float64 for other columns.

    Raises:
        ValueError: The file is not such a table, or a number cannot be read; the message names row and column. The
            header is row 1.
    """
    _check_is_text_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(file, text, choose)
    except UnicodeDecodeError as error:
        raise ValueError("expected text in UTF-8, found other bytes; save the table as CSV (UTF-8)") from error
    except csv.Error as error:
        raise ValueError(f"expected a table with commas and balanced quotes: {error}") from error


def _check_is_text_file(path: Path) -> None:
    """Refuse what is no regular file, which could block or never end, and files of known binary formats."""
    if not path.exists():
        raise ValueError("expected a table, but the file does not exist")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise ValueError(f"expected a table in a regular file, got {kind}")
    with path.open("rb") as file:
        first = file.read(8)
    for signature, meaning in SIGNATURES.items():
        if first.startswith(signature):
            raise ValueError(f"expected a table as plain text, got {meaning}")


def _parse(
    file: TextIO, text: Collection[str], choose: Callable[[Sequence[str]], Collection[str]] | None
) -> pd.DataFrame:
    rows = csv.reader(_lines(file), strict=True)
    header = next((row for row in rows if row), None)
    if header is None:
        raise ValueError("expected a table with a header line, but the file is empty")
    header = [original(name.strip()) for name in header]
    wanted = set(header if choose is None else choose(header))
    columns = {
        position: _Names(name) if name in text else _Numbers(name)
        for position, name in enumerate(header)
        if name in wanted
    }
    _check_header(header, wanted)
    first_row = 2
    while batch := list(islice(rows, BATCH)):
        batch = [row for row in batch if row]  # a blank line is no row
        _check_widths(batch, len(header), first_row)
        cells = list(zip(*batch, strict=True))
        for position, column in columns.items():
            column.add(cells[position] if cells else (), first_row)
        first_row += len(batch)
    return pd.DataFrame({column.name: column.values() for column in columns.values()})


def _lines(file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise ValueError(f"expected lines of fewer than {MAX_LINE} characters, got a longer one in line {number}")
        if "\0" in line:
            raise ValueError(f"expected text, found a zero byte in line {number}; the file is damaged or not a table")
        yield line


def _check_header(header: Sequence[str], wanted: Collection[str]) -> None:
    repeated = sorted({name for name in wanted if header.count(name) > 1})
    if repeated:
        raise ValueError(f"expected every column once, but the header repeats {', '.join(repeated)}")


def _check_widths(batch: Sequence[Sequence[str]], columns: int, first_row: int) -> None:
    if {*map(len, batch)} <= {columns}:
        return
    row, cells = next((first_row + number, len(row)) for number, row in enumerate(batch) if len(row) != columns)
    raise ValueError(
        f"expected {columns} columns in every row, as in the header, got {cells} in row {row}; a row was cut, or a "
        "name with a comma has no quotes around it"
    )


class _Names:
    """A column of names, as numbers into a list of distinct names."""

    def __init__(self, name: str):
        self.name = name
        self._numbers: dict[str, int] = {}
        self._parts: list[np.ndarray] = []

    def add(self, cells: Sequence[str], first_row: int) -> None:
        """Add the cells of further rows, the first of which is `first_row`."""
        numbers, before = self._numbers, len(self._numbers)
        self._parts.append(np.array([numbers.setdefault(cell, len(numbers)) for cell in cells], np.int32))
        for name in islice(numbers, before, None):
            if len(name) > MAX_NAME:
                row = first_row + cells.index(name)
                raise ValueError(
                    f"expected names of at most {MAX_NAME} characters, got {len(name)} in row {row}, column {self.name}"
                )

    def values(self) -> Frame:
        """The column as categories; blank names are missing."""
        names = pd.Series([original(name) if name.strip() else None for name in self._numbers], dtype=object)
        distinct, categories = pd.factorize(names)  # two texts may stand for one name
        codes = np.concatenate([np.empty(0, np.int32), *self._parts])
        return pd.Categorical.from_codes(distinct[codes] if len(distinct) else codes, list(categories))


class _Numbers:
    """A column of numbers."""

    def __init__(self, name: str):
        self.name = name
        self._whole = True
        self._parts: list[np.ndarray] = []

    def add(self, cells: Sequence[str], first_row: int) -> None:
        """Add the cells of further rows, the first of which is `first_row`."""
        try:
            if any("_" in cell for cell in cells):
                raise ValueError("Python reads 1_0 as 10")
            values = np.array([math.nan if cell in BLANK_NUMBERS else float(cell) for cell in cells])
        except ValueError:
            row, cell = next((first_row + n, cell) for n, cell in enumerate(cells) if not _is_number(cell))
            shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
            raise ValueError(f"expected a number in row {row}, column {self.name}, got {shown!r}") from None
        self._whole = self._whole and "".join(cells).isdecimal() and all(cells) and values.max(initial=0) <= EXACT
        self._parts.append(values)

    def values(self) -> np.ndarray:
        """The column as int64 or float64."""
        numbers = np.concatenate([np.empty(0), *self._parts])
        return numbers.astype(np.int64) if self._whole and len(numbers) else numbers


def _is_number(cell: str) -> bool:
    if cell in BLANK_NUMBERS:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
