"""Checks of a long table, whose columns become numbers into lists of names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from segkit.utils.metric_names import DESCRIBED_PATTERNS, FACTS, MetricFacts, base_metric, metric_facts
from segkit.utils.text import did_you_mean

Rows = Any  # a DataFrame; the types of pandas are too vague for a type checker
RUN = ["loss", "seed", "fold"]
COUNTS = ["tp", "predicted", "reference"]
LARGEST_COUNT = 2.0**53  # up to which whole numbers, and so their sums, are exact in float64
WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


# one value per class and case, of which one direction is better
METRICS = tuple(name for name, facts in FACTS.items() if facts.higher is not None and name != "generalized_dice")


def metric_properties(metric: str) -> MetricFacts:
    """What is known of a metric by which losses can be compared. Raises ValueError for another one."""
    facts = metric_facts(metric)
    if facts is None or base_metric(metric) not in METRICS:
        expected = f"expected metric to be one of {', '.join((*METRICS, *DESCRIBED_PATTERNS))}"
        raise ValueError(f"{expected}, got {metric!r}{did_you_mean(metric, METRICS)}")
    return facts


@dataclass(frozen=True)
class Column:
    """A column as numbers into a list of its distinct entries, in the order of the rows; -1 is a blank."""

    codes: np.ndarray
    names: list[Any]

    @classmethod
    def of(cls, column: Any, *, text: bool = True) -> Column:
        """The column of a table; with `text`, entries become text."""
        codes, names = pd.factorize(column)
        names = names.tolist()
        if not text:
            return cls(codes.astype(np.int32), names)
        merged, texts = pd.factorize(np.array([str(name) for name in names], dtype=object))
        return cls(np.append(merged, -1).astype(np.int32)[codes], texts.tolist())

    def select(self, rows: np.ndarray) -> Column:
        """The entries of some rows, given as bool [rows]; names that no longer occur are dropped."""
        if rows.all():
            return self
        codes, used = pd.factorize(self.codes[rows], use_na_sentinel=False)
        codes = codes.astype(np.int32)
        blank = np.flatnonzero(used == -1)
        if not len(blank):
            return Column(codes, [self.names[number] for number in used])
        position = int(blank[0])
        names = [self.names[number] for number in used if number >= 0]
        return Column(np.where(codes == position, -1, codes - (codes > position)), names)


@dataclass(frozen=True)
class CheckedRows:
    """The rows of the classes that are compared.

    Args:
        losses, seeds, folds, cases, groups, classes: The columns of names.
        values: The metric, [rows]; NaN where it is missing.
        counts: Pixel counts tp, predicted and reference, [rows, 3]; None if the table lacks one of the columns.
    """

    losses: Column
    seeds: Column
    folds: Column
    cases: Column
    groups: Column
    classes: Column
    values: np.ndarray
    counts: np.ndarray | None

    def group_of_case(self) -> np.ndarray:
        """The number of the group of each case, [N]."""
        group = np.empty(len(self.cases.names), np.int64)
        group[self.cases.codes] = self.groups.codes
        return group

    def row(self, number: int) -> dict[str, Any]:
        """The names of one row."""
        columns = zip(
            (*RUN, "case", "group", "class"),
            (self.losses, self.seeds, self.folds, self.cases, self.groups, self.classes),
            strict=True,
        )
        return {name: column.names[column.codes[number]] for name, column in columns}


def check_rows(table: Rows, metric: str, classes: Sequence[str] | None) -> CheckedRows:
    """Check the columns of a table, and select the rows of some classes; None takes all except `background`.

    Raises:
        ValueError: A column or class is missing, an entry is blank or no number, a number is out of range, or a row is
            repeated.
    """
    metric_properties(metric)
    _check_columns(table, metric)
    values, counts = _numbers(table, metric), {name: _counts(table, name) for name in COUNTS if name in table.columns}
    group = table["group"] if "group" in table.columns else table["case"]
    named = {"loss": table["loss"], "case": table["case"], "group": group, "class": table["class"]}
    columns = {name: Column.of(column) for name, column in named.items()}
    columns["seed"] = Column.of(as_numbers(table["seed"]), text=False)
    columns["fold"] = (
        Column.of(as_numbers(table["fold"]), text=False)
        if "fold" in table.columns
        else Column(np.zeros(len(table), np.int32), [0])
    )
    _check_left_out_cases(columns, values, counts, metric)
    selected = _rows_of_classes(columns["class"], classes)
    columns = {name: column.select(selected) for name, column in columns.items()}
    _check_no_blanks(columns)
    stacked = np.stack([counts[name][selected] for name in COUNTS], -1) if set(COUNTS) <= set(counts) else None
    rows = CheckedRows(
        *(columns[name] for name in (*RUN, "case", "group", "class")), values=values[selected], counts=stacked
    )
    _check_range(rows.values, metric)
    _check_counts_agree(rows)
    _check_not_repeated(rows)
    _check_one_group_per_case(rows)
    return rows


def as_numbers(column: Rows) -> Rows:
    """A column of seeds or folds: whole numbers if all entries are, else numbers if all are, else text."""
    if pd.api.types.is_integer_dtype(column.dtype):
        return column
    codes, names = pd.factorize(column)
    texts = [f"{name:.0f}" if isinstance(name, float) and name.is_integer() else str(name) for name in names]
    if all(map(WHOLE.fullmatch, texts)):
        numbers: Any = np.array([int(text) for text in texts], np.int64)
    else:
        numbers = _finite(texts)
        numbers = np.array(texts, dtype=object) if numbers is None else numbers
    merged, distinct = pd.factorize(numbers)  # 1 and 01 are one number
    codes = np.append(merged, -1).astype(np.int32)[codes]
    return pd.Series(pd.Categorical.from_codes(codes, distinct), index=column.index)


def _finite(texts: Sequence[str]) -> np.ndarray | None:
    """The numbers that these texts stand for; None if one is no finite number."""
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _check_columns(table: Rows, metric: str) -> None:
    needed = ["loss", "seed", "case", "class", metric]
    names = list(table.columns)
    missing = [column for column in needed if column not in names]
    if missing:
        raise ValueError(f"expected columns {needed}, but {missing} are missing")
    repeated = [name for name in (*needed, "fold", "group", *COUNTS) if names.count(name) > 1]
    if repeated:
        raise ValueError(f"expected every column once, but {repeated} are repeated")
    if not len(table):
        raise ValueError("expected at least one row below the header, found none")


def _numbers(table: Rows, name: str) -> np.ndarray:
    """A column as float64; NaN where it is blank."""
    try:
        return table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected numbers in the column {name}: {error}") from error


def _counts(table: Rows, name: str) -> np.ndarray:
    """A column of pixel counts, as float64, which holds them exactly."""
    counts = _numbers(table, name)
    valid = (counts >= 0) & (counts <= LARGEST_COUNT) & (counts == np.floor(counts))
    if not valid.all():
        row = int(np.argmin(valid))
        got = "a blank" if math.isnan(counts[row]) else f"{counts[row]:.17g}"
        raise ValueError(
            f"expected whole numbers of pixels from 0 to 2^53 in the column {name}, got {got} for class "
            f"{table['class'].iloc[row]} of case {table['case'].iloc[row]}; without pixel counts, leave the column out"
        )
    return counts


def _check_left_out_cases(columns: dict[str, Column], values: np.ndarray, counts: Rows, metric: str) -> None:
    """Refuse tables scored by rules that leave out cases in which the class is predicted or in the reference.

    Here a missing value means that the class is absent from both.
    """
    if not {"predicted", "reference"} <= set(counts) or metric == "recall":
        return
    left_out = np.flatnonzero(np.isnan(values) & ((counts["predicted"] > 0) | (counts["reference"] > 0)))
    if len(left_out):
        name, case = (_shown_name(columns[key], left_out[0]) for key in ("class", "case"))
        raise ValueError(
            f"expected a value of {metric} wherever prediction or reference contains the class, got none for class "
            f"{name} of case {case} ({len(left_out)} such rows); score the table by rules that count these cases"
        )


def _shown_name(column: Column, row: int) -> str:
    code = int(column.codes[row])
    return "(blank)" if code < 0 else str(column.names[code])


def _rows_of_classes(column: Column, classes: Sequence[str] | None) -> np.ndarray:
    """The rows of the classes, bool [rows]. Rows without a class are among them, so that they can be refused."""
    selected = [name for name in column.names if name != "background"] if classes is None else list(classes)
    if not selected or not set(selected) <= set(column.names):
        shown = selected or "other than background"
        raise ValueError(f"expected rows of the classes {shown}, got {column.names}")
    return np.append(np.isin(np.array(column.names, dtype=object), selected), True)[column.codes]


def _check_no_blanks(columns: dict[str, Column]) -> None:
    incomplete = [name for name, column in columns.items() if (column.codes < 0).any()]
    if incomplete:
        raise ValueError(f"expected a value in every row of the columns {incomplete}, found blanks")


def _check_range(values: np.ndarray, metric: str) -> None:
    facts, values = metric_properties(metric), values[~np.isnan(values)]
    minimum, maximum = facts.minimum, facts.maximum
    if not ((values >= minimum) & (values <= maximum)).all() or np.isinf(values).any():
        hint = "; divide percentages by 100" if maximum == 1 and 1 < values.max() <= 100 else ""
        raise ValueError(
            f"expected {metric} from {minimum:g} to {maximum:g}, got {values.min():g} to {values.max():g}{hint}"
        )


def _check_counts_agree(rows: CheckedRows) -> None:
    if rows.counts is None:
        return
    wrong = np.flatnonzero(rows.counts[:, 0] > rows.counts[:, 1:].min(1))
    if len(wrong):
        tp, predicted, reference = rows.counts[wrong[0]]
        row = rows.row(int(wrong[0]))
        raise ValueError(
            f"expected tp to be at most predicted and reference, got {tp:.0f}, {predicted:.0f} and {reference:.0f} for "
            f"class {row['class']} of case {row['case']}"
        )


def _check_not_repeated(rows: CheckedRows) -> None:
    keys = pd.DataFrame({
        name: column.codes
        for name, column in zip("lsfnc", (rows.losses, rows.seeds, rows.folds, rows.cases, rows.classes), strict=True)
    })  # fmt: skip
    repeated = np.flatnonzero(keys.duplicated())
    if len(repeated):
        row = rows.row(int(repeated[0]))
        raise ValueError(f"expected one row per run, case and class, but this one is repeated: {row}")


def _check_one_group_per_case(rows: CheckedRows) -> None:
    group = rows.group_of_case()
    other = np.flatnonzero(group[rows.cases.codes] != rows.groups.codes)
    if len(other):
        case = rows.cases.codes[other[0]]
        number = len(np.unique(rows.groups.codes[rows.cases.codes == case]))
        name = rows.cases.names[case]
        raise ValueError(f"expected every case in one group, but case {name!r} is in {number} groups")
