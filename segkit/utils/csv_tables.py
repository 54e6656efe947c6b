"""Tables as CSV files: read within bounds, and written so that no name becomes a formula in a spreadsheet program."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from segkit.utils.files import replaced

BLANK_NUMBERS = frozenset(
    ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "None", "null", "NULL"),
)
CHUNK = 2**15  # rows that are held as text at a time
MAX_LINE = 2**20  # characters
MAX_NAME = 4096  # characters of a name, the longest path of common file systems
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
    with replaced(path) as temporary:
        table.to_csv(temporary, index=index, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)


def _neutral_if_text(value: Any) -> Any:
    return neutral(value) if isinstance(value, str) else value


def _holds_text(column: Frame) -> bool:
    return not pd.api.types.is_numeric_dtype(column.dtype)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_table(
    path: Path, text: Collection[str], choose: Callable[[Sequence[str]], Collection[str]] | None = None
) -> pd.DataFrame:
    """Read a CSV file; names become numbers into a list, so that the text of all rows is never in memory at once.

    Args:
        path: A file in UTF-8 with a header line and commas between the columns.
        text: The columns of names; all others are numbers. Names such as "1" or "None" stay text, and only empty names
            are missing.
        choose: A function from the header to the columns to read; None reads all.

    Returns:
        A table with categories for names, int64 for columns of whole numbers, and float64 for other columns.

    Raises:
        ValueError: The file is not such a table, or a number cannot be read; the message names row and column. The
            header is row 1.
    """
    _check_is_text_file(path)
    try:
        header, rows = _check_shape(path)
        wanted = set(header if choose is None else choose(header))
        _check_header(header, wanted)
        columns = {position: name for position, name in enumerate(header) if name in wanted}
        return _parse(path, columns, text, rows)
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


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of a file, the header first; a blank line is no row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from filter(None, csv.reader(_lines(file), strict=True))


def _check_shape(path: Path) -> tuple[list[str], int]:
    """The header and the number of rows, all of which have as many cells as the header.

    The parser of pandas is fast, but fills up and cuts rows of other lengths, and reads on after a missing quote.
    """
    rows = _rows(path)
    header = next(rows, None)
    if header is None:
        raise ValueError("expected a table with a header line, but the file is empty")
    if len(header) == 1 and (separator := next((sign for sign in ";\t|" if sign in header[0]), None)):
        raise ValueError(f"expected commas between the columns, got {separator!r} in the header")
    number, columns = 0, len(header)
    for cells in rows:
        number += 1
        if len(cells) != columns:
            raise ValueError(
                f"expected {columns} columns in every row, as in the header, got {len(cells)} in row {number + 1}; a "
                "row was cut, or a name with a comma has no quotes around it"
            )
    return [original(name.strip()) for name in header], number


def _parse(path: Path, columns: Mapping[int, str], text: Collection[str], rows: int) -> pd.DataFrame:
    """Read columns, given as position and name."""
    names = {position: _Names() for position, name in columns.items() if name in text}
    numbers: dict[int, list[np.ndarray]] = {position: [] for position in columns if position not in names}
    blanks: Any = {position: [""] if position in names else sorted(BLANK_NUMBERS) for position in columns}
    if not columns or not rows:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in columns.values()}, index=range(rows))
    chunks: Any = pd.read_csv(
        path,
        header=0,
        names=range(max(columns) + 1),
        usecols=list(columns),
        index_col=False,
        dtype=dict.fromkeys(names, object),
        keep_default_na=False,
        na_values=blanks,
        encoding="utf-8-sig",
        compression=None,
        chunksize=CHUNK,
    )
    number = 0
    with chunks, warnings.catch_warnings(action="ignore", category=pd.errors.DtypeWarning):  # such are read again
        for chunk in chunks:
            number += len(chunk)
            for position, column in names.items():
                column.add(chunk[position])
            for position, parts in numbers.items():
                parts.append(chunk[position].to_numpy())
    if number != rows:
        raise ValueError(f"expected {rows} rows, as there are lines, but {number} could be read")
    read: dict[str, Any] = {columns[position]: column.values(columns[position]) for position, column in names.items()}
    for position, parts in numbers.items():
        read[columns[position]] = _numbers(parts, path, position, columns[position])
    return pd.DataFrame({name: read[name] for name in columns.values()}, index=range(rows))


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


class _Names:
    """A column of names, as numbers into a list of the distinct ones."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._parts: list[np.ndarray] = [np.empty(0, np.int32)]

    def add(self, column: Frame) -> None:
        """Add the cells of further rows; a missing one is blank."""
        codes, texts = pd.factorize(column)
        numbers = [self._numbers.setdefault(text, len(self._numbers)) for text in texts]
        self._parts.append(np.array([*numbers, -1], np.int32)[codes])

    def values(self, name: str) -> Frame:
        """The column as categories; blank names are missing."""
        longest = max(map(len, self._numbers), default=0)
        if longest > MAX_NAME:
            raise ValueError(f"expected names of at most {MAX_NAME} characters, got {longest} in the column {name}")
        meant = [original(text) if text.strip() else None for text in self._numbers]
        distinct, categories = pd.factorize(pd.Series(meant, dtype=object))  # two texts may stand for one name
        codes = np.append(distinct, -1).astype(np.int32)[np.concatenate(self._parts)]
        return pd.Categorical.from_codes(codes, pd.Index(categories, dtype=object))


def _numbers(parts: Sequence[np.ndarray], path: Path, position: int, name: str) -> np.ndarray:
    """A column as int64 or float64; what pandas does not take for numbers is read again, cell by cell."""
    if all(part.dtype in (np.int64, np.float64) for part in parts):
        return np.concatenate(parts) if parts else np.empty(0)
    numbers = []
    for row, cells in enumerate(islice(_rows(path), 1, None), start=2):
        cell = cells[position]
        if not _is_number(cell):
            shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
            raise ValueError(f"expected a number in row {row}, column {name}, got {shown!r}")
        numbers.append(math.nan if cell in BLANK_NUMBERS else float(cell))
    return np.array(numbers, float)


def _is_number(cell: str) -> bool:
    if cell in BLANK_NUMBERS:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_0 as 10
