"""Damaged and hostile tables of scores, read as `segkit compare --from-table` reads them.

A table survives if it is analysed, or if a ValueError of one short message says what is wrong with it.
"""

import io
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from segkit.compare.analysis import Analysis, compare_table, read_for_comparison
from segkit.compare.score_table import read_scores

HEADER = ["loss", "seed", "fold", "case", "group", "class", "tp", "predicted", "reference", "dice", "rules"]
NAMES = (
    *("", " ", "nan", "None", "0", "01", "1.0", "-1", "1e400", "NaN", "inf", "-inf", "9" * 400, "1_0", "０", "0x10"),
    *("=cmd|' /C calc'!A0", "+1", "-x", "@SUM(A1)", "\tx", "\rx", "'=a", "''=a", 'a"b', "a,b", "a\nb", "a\x00b"),
    *("[x](http://e.org)", "<script>", "$x$", "\x1b[31m", "é", "漢", "\u202e", "_x", "x" * 5000, "background", "true"),
    *("9007199254740993", "18446744073709551616", "0.5", "1e-400", "2.5", "1e3", "+0", "1,5", "1;2", "%", "-0.0"),
)
INSERTED = (b'"', b",", b"\n", b"\r", b"\0", b"\xff", b";", b"\t", b"'", b"\x1a")
STARTS = (b"\x1f\x8b\x08", b"PK\x03\x04", b"BZh9", b"\xff\xfe", b"", b"\n\n")
METRICS = ("dice", "iou", "hd95", "recall")


def valid_table(generator: random.Random) -> list[list[str]]:
    """The cells of a valid table, with the header."""
    losses, seeds, cases, classes = (generator.randint(1, most) for most in (3, 3, 5, 3))
    rows = [list(HEADER)]
    for loss in range(losses):
        for seed in range(seeds):
            for case in range(cases):
                for name in range(classes):
                    tp, more, missed = (generator.choice((0, 0, 3, 50, 2**33)) for _ in range(3))
                    predicted, reference = tp + more, tp + missed
                    total = predicted + reference
                    dice = repr(2 * tp / total) if total else ""
                    counts = [str(tp), str(predicted), str(reference), dice]
                    names = [f"loss{loss}", str(seed), "0", f"case{case}", f"group{case // 2}", f"class{name}"]
                    rows.append([*names, *counts, "segkit-1"])
    return rows


def csv_bytes(rows: list[list[str]], quote: Callable[[str], str]) -> bytes:
    """The rows as CSV."""
    return "\n".join(",".join(map(quote, row)) for row in rows).encode("utf-8", "surrogatepass")


def quoted(cell: str) -> str:
    """A cell with quotes around it where it needs them."""
    return '"' + cell.replace('"', '""') + '"' if re.search(r'[",\r\n]', cell) else cell


def with_other_cells(rows: list[list[str]], generator: random.Random) -> bytes:
    """A table with some cells, or whole columns, replaced; cells of the header, too, now and then."""
    first = 0 if generator.random() < 0.1 else 1
    for _ in range(generator.choice((1, 1, 2, 5))):
        column, cell = generator.randrange(len(HEADER)), generator.choice(NAMES)
        whole = generator.random() < 0.3
        for row in rows[first:] if whole else [generator.choice(rows[first:])]:
            row[column] = cell
    return csv_bytes(rows, quoted)


def with_other_shape(rows: list[list[str]], generator: random.Random) -> bytes:
    """A table whose rows, columns or cells are dropped, repeated, shuffled, or cut."""
    for _ in range(generator.randint(1, 3)):
        kind, row = generator.randrange(8), generator.randrange(len(rows))
        column = generator.randrange(max(1, min(map(len, rows), default=1)))
        if kind == 0:
            del rows[row]
        elif kind == 1:
            rows.insert(row, list(rows[row]))
        elif kind == 2:
            rows = [[*cells[:column], *cells[column + 1 :]] for cells in rows]
        elif kind == 3:
            rows = [[*cells[:column], *cells[column : column + 1] * 2, *cells[column + 1 :]] for cells in rows]
        elif kind == 4:
            rows[row] = rows[row][: generator.randrange(len(rows[row]) + 1)]
        elif kind == 5:
            rows[row] = [*rows[row], generator.choice(NAMES)]
        elif kind == 6:
            generator.shuffle(rows)
        else:
            rows = rows[: generator.randint(0, 2)]
        rows = rows or [[]]
    return csv_bytes(rows, quoted)


def with_other_bytes(rows: list[list[str]], generator: random.Random) -> bytes:
    """A table whose bytes are flipped, cut, repeated, encoded otherwise, or packed."""
    content = bytearray(csv_bytes(rows, quoted))
    for _ in range(generator.choice((1, 1, 3, 20))):
        kind, place = generator.randrange(7), generator.randrange(len(content) + 1)
        if kind == 0 and content:
            content[place - 1] ^= 1 << generator.randrange(8)
        elif kind == 1:
            content[place:place] = generator.choice(
                (b'"', b",", b"\n", b"\r", b"\0", b"\xff", b";", b"\t", b"'", b"\x1a")
            )
        elif kind == 2:
            del content[place : place + generator.choice((1, 10, 1000))]
        elif kind == 3:
            content[place:place] = content[place : place + generator.choice((10, 1000))]
        elif kind == 4:
            return content.decode("utf-8", "replace").encode(generator.choice(("utf-16", "utf-8-sig", "utf-32")))
        elif kind == 5:
            return generator.choice(STARTS) + bytes(content)
        else:
            content[place:place] = generator.randbytes(generator.choice((1, 8, 200)))
    return bytes(content)


DAMAGES = {"cells": with_other_cells, "shape": with_other_shape, "bytes": with_other_bytes}


def outcome(action: Callable[[], object], content: bytes) -> str | None:
    """None if the action succeeds or refuses the table with a clear message, otherwise what went wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            action()
        except ValueError as error:
            return unclear(str(error), content)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]} for {content[:400]!r}"
    return None


def unclear(message: str, content: bytes) -> str | None:
    """What is wrong with a message, which must say what was expected and must not be a library's own."""
    if "expected" not in message and "need" not in message and "missing" not in message:
        return f"unclear message {message[:200]!r} for {content[:400]!r}"
    if len(message) > 2000:
        return f"message of {len(message)} characters, {message[:100]!r}, for {content[:400]!r}"
    return None


def read(folder: Path, tries: int, seed: int, kind: str) -> Iterator[str | None]:
    """Read damaged tables and check their scores."""
    generator, file = random.Random(f"{kind}{seed}"), folder / "table.csv"
    for _ in range(tries):
        content = DAMAGES[kind](valid_table(generator), generator)
        file.write_bytes(content)
        metric = generator.choice(METRICS)

        def check(metric: str = metric) -> None:
            for rows in read_for_comparison(file, metric).values():
                read_scores(rows, metric)

        yield outcome(check, content)


def analysed(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Analyse tables with damaged cells, and write the report."""
    generator, file = random.Random(seed), folder / "table.csv"
    for _ in range(tries):
        content = with_other_cells(valid_table(generator), generator)
        file.write_bytes(content)
        settings = Analysis(missing=generator.choice((None, "absent", "perfect", "worst")))
        console = Console(file=io.StringIO(), width=100)
        result = outcome(lambda: compare_table(file, folder / "out", settings, console), content)  # noqa: B023
        yield result


FAULTS: dict[str, Callable[[Path, int, int], Iterator[str | None]]] = {
    "tables with other cells": lambda folder, tries, seed: read(folder, tries, seed, "cells"),
    "tables with other rows and columns": lambda folder, tries, seed: read(folder, tries, seed, "shape"),
    "tables with damaged bytes": lambda folder, tries, seed: read(folder, tries, seed, "bytes"),
    "reports on tables with other cells": analysed,
}
