"""The long table of a comparison, with one row per loss, seed, fold, case and class: checks and conversion to arrays.

A run is one (loss, seed, fold). If folds hold different cases, each run is evaluated on the cases of its fold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from segkit.compare.table_checks import COUNTS, RUN, CheckedRows, Rows, as_numbers, check_rows, metric_properties
from segkit.utils.csv_tables import read_table

Missing = Literal["absent", "perfect", "worst"]
MISSING = {  # what --missing means
    "absent": "the class was correctly not predicted, and the case does not count for it",
    "perfect": "the same, and the case counts as perfect",
    "worst": "there is no result",
}
COUNTED = {  # by what missing values mean: which cases count for a class
    "absent": "a case does not count for a class that is in neither reference nor prediction of the run",
    "perfect": "a case without a value of the run counts as perfect if another run has one",
    "worst": "a case without a value of the run counts as worst if another run has one",
}
DEFAULT_MARGIN = 0.005
DEFAULT_AGGREGATION = "class_case"
CHALLENGER = ["task", "case", "algorithm", "value"]
TEXT = (*RUN, "case", "group", "class", "dataset", "task", "algorithm", "rules")  # even if they look like numbers or NA
MAX_CELLS = 2**28  # of the arrays [runs, cases, classes]


def lacks_margin(metric: str, margin: float) -> bool:
    """Whether a metric in mm or in errors still has the default margin, which is meant for scores up to 1."""
    return math.isinf(metric_properties(metric).maximum) and margin == DEFAULT_MARGIN


def unit_of(metric: str) -> str:
    """The unit of a metric that is no fraction."""
    return "mm, or pixels of images without a spacing" if metric_properties(metric).is_length else "errors"


def read_rows(path: Path) -> Rows:
    """Read all columns of a CSV file: names as text, and numbers.

    Raises:
        ValueError: The file is not a table, or a number cannot be read; the message names row and column.
    """
    table: Rows = read_table(path, TEXT)
    names = {name: table[name].astype(object).astype(str).where(table[name].notna()) for name in table if name in TEXT}
    numbers = {name: column.to_numpy() for name, column in _seeds_and_folds(table).items()}
    return table.assign(**names | numbers)


def read_score_rows(path: Path, metric: str) -> Rows:
    """Read the columns of a long table, or of a table with challengeR's columns, that a comparison needs.

    Names are categories, which take a byte or two per row.

    Raises:
        ValueError: As `read_rows`.
    """

    def choose(header: Sequence[str]) -> Sequence[str]:
        if set(CHALLENGER) <= set(header):
            return CHALLENGER
        return (*RUN, "case", "group", "class", "dataset", "rules", *COUNTS, metric)

    table: Rows = read_table(path, TEXT, choose)
    return table.assign(**_seeds_and_folds(table))


def _seeds_and_folds(table: Rows) -> dict[str, Any]:
    """The columns seed and fold, as numbers if all their entries are numbers."""
    return {name: as_numbers(table[name]) for name in ("seed", "fold") if name in table}


@dataclass(frozen=True)
class Scores:
    """The table as arrays, for R runs, N cases and C classes.

    Args:
        metric: The metric, a key of `METRICS`.
        runs: The loss, seed and fold of each run.
        classes: The names of the classes.
        cases: The names of the cases.
        group: The index of the group of each case, [N].
        groups: The names of the groups.
        values: [R, N, C]; NaN if the case does not count for the class in this run, since the class is in neither
            prediction nor reference, or if the case is not among those of the run.
        filled: As `values`, with the perfect score wherever another run with the same cases has a value.
        counts: Pixel counts tp, predicted and reference, [R, N, C, 3]; None if the table has none.
        number_missing: Number of missing values where another run has a value.
        missing: How such values count in `values`: not (`absent`), as perfect, or as worst.
        blocks: The indices of the runs and of the cases of each set of runs that share their cases.
        aggregation: How cases and classes become the score of a run; see `segkit.compare.aggregation`.
    """

    metric: str
    runs: Rows
    classes: list[str]
    cases: list[str]
    group: np.ndarray
    groups: list[str]
    values: np.ndarray
    filled: np.ndarray
    counts: np.ndarray | None
    number_missing: int
    missing: Missing
    blocks: list[tuple[np.ndarray, np.ndarray]]
    aggregation: str = DEFAULT_AGGREGATION

    @property
    def losses(self) -> list[str]:
        """The losses in the order of the table."""
        return self.runs["loss"].unique().tolist()

    @property
    def sign(self) -> int:
        """The factor that makes larger values better."""
        return metric_properties(self.metric).sign

    @property
    def always_counted(self) -> np.ndarray:
        """The cases that count for a class in every run that has the case, bool [N, C]."""
        counted = np.ones((len(self.cases), len(self.classes)), bool)
        for runs, cases in self.blocks:
            counted[cases] &= (~np.isnan(self.values[np.ix_(runs, cases)])).all(0)
        return counted

    def of(self, loss: str) -> np.ndarray:
        """The filled values of the runs of a loss, [runs, N, C]."""
        return self.filled[(self.runs["loss"] == loss).to_numpy()]

    def without(self, losses: Sequence[str]) -> Scores:
        """A copy without the runs of some losses; cases and classes stay the same."""
        selected = ~self.runs["loss"].isin(list(losses)).to_numpy()
        new_index = np.cumsum(selected) - 1
        return replace(
            self,
            runs=self.runs[selected].reset_index(drop=True),
            values=self.values[selected],
            filled=self.filled[selected],
            counts=None if self.counts is None else self.counts[selected],
            blocks=[(new_index[runs[selected[runs]]], cases) for runs, cases in self.blocks],
        )

    def losses_with_missing_folds(self) -> list[str]:
        """The losses without a run in some fold, if folds hold different cases."""
        block_losses = [set(self.runs["loss"].to_numpy()[runs]) for runs, _cases in self.blocks]
        return [loss for loss in self.losses if not all(loss in losses for losses in block_losses)]

    def case_means(self, loss: str) -> np.ndarray:
        """The mean of the filled values of each case over classes and the runs of a loss, [N]; NaN if there are none.

        Losses can be compared on a case where one of them correctly predicts nothing.
        """
        return counted_mean(self.of(loss), (0, 2))


def read_scores(
    table: Rows,
    metric: str,
    classes: Sequence[str] | None = None,
    missing: Missing = "absent",
    aggregation: str = DEFAULT_AGGREGATION,
) -> Scores:
    """Check a long table and convert it to arrays; `segkit.compare.statistics.analyse` describes its format.

    Raises:
        ValueError: Columns, classes or cases of a run are missing, rows are repeated, or values are out of range.
    """
    rows = check_rows(table, metric, classes)
    runs, run_of_row = _runs_in_order(rows)
    blocks = _blocks(rows, len(runs), run_of_row)
    _check_complete(rows, runs, run_of_row, blocks)
    shape = (len(runs), len(rows.cases.names), len(rows.classes.names))
    cell_of_row = np.ravel_multi_index((run_of_row, rows.cases.codes, rows.classes.codes), shape)
    values = np.full(shape, np.nan)
    values.flat[cell_of_row] = rows.values
    counted_in_any = np.zeros(shape, bool)
    for members, cases in blocks:
        block = np.ix_(members, cases)
        counted_in_any[block] = ~np.isnan(values[block]).all(0)
    if not counted_in_any.any():
        raise ValueError(f"expected at least one value of {metric}, found none")
    is_missing = counted_in_any & np.isnan(values)
    filled = np.where(is_missing, _fill_value(metric, missing), values)
    counts = None
    if rows.counts is not None:
        counts = np.zeros((*shape, len(COUNTS)))
        counts.reshape(-1, len(COUNTS))[cell_of_row] = rows.counts
    return Scores(
        *(metric, runs, rows.classes.names, rows.cases.names, rows.group_of_case(), rows.groups.names),
        *(values if missing == "absent" else filled, filled, counts),
        *(int(is_missing.sum()), missing, blocks, aggregation),
    )


def _fill_value(metric: str, missing: Missing) -> float:
    """The value that replaces a missing one."""
    if missing != "worst":
        return metric_properties(metric).perfect
    if not metric_properties(metric).higher:
        raise ValueError(f"{metric} has no worst value to replace missing ones; write the value into the table")
    return 0.0


def _runs_in_order(rows: CheckedRows) -> tuple[Rows, np.ndarray]:
    """The runs, as a table with the columns of `RUN`, and the number of the run of each row.

    Losses are in the order of the table, and their runs are sorted by seed and fold.
    """
    seed_order, fold_order = _ranks(rows.seeds.names), _ranks(rows.folds.names)
    shape = (len(rows.losses.names), len(seed_order), len(fold_order))
    place = np.ravel_multi_index((rows.losses.codes, seed_order[rows.seeds.codes], fold_order[rows.folds.codes]), shape)
    places, run_of_row = np.unique(place, return_inverse=True)
    loss, seed, fold = np.unravel_index(places, shape)
    seeds, folds = (
        np.array(column.names, dtype=None if _all_numbers(column.names) else object)[np.argsort(order)]
        for column, order in ((rows.seeds, seed_order), (rows.folds, fold_order))
    )
    names = np.array(rows.losses.names, dtype=object)
    return pd.DataFrame({"loss": names[loss], "seed": seeds[seed], "fold": folds[fold]}), run_of_row


def _ranks(names: Sequence[Any]) -> np.ndarray:
    """The place of each name in sorted order; numbers are sorted by value, and before text."""
    order = sorted(range(len(names)), key=lambda n: (isinstance(names[n], str), names[n]))
    return np.argsort(np.array(order, dtype=np.intp))


def _all_numbers(names: Sequence[Any]) -> bool:
    return not any(isinstance(name, str) for name in names)


def _blocks(rows: CheckedRows, runs: int, run_of_row: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The indices of the runs and of the cases of each set of runs that share their cases.

    The cases of a fold are those of all its runs together, so that missing cases of one run can be detected. Folds that
    overlap without being a k-fold partition are treated as one test set with missing cases.
    """
    cases, folds = len(rows.cases.names), len(rows.folds.names)
    pairs = np.unique(rows.folds.codes.astype(np.int64) * cases + rows.cases.codes)
    if len(pairs) % cases:  # no k-fold, possibly repeated
        return [(np.arange(runs), np.arange(cases))]
    fold_of_run = np.empty(runs, np.int64)
    fold_of_run[run_of_row] = rows.folds.codes
    order = np.argsort(fold_of_run, kind="stable")
    cases_of_fold = np.split(pairs % cases, np.searchsorted(pairs // cases, np.arange(1, folds)))
    runs_of_fold = np.split(order, np.searchsorted(fold_of_run[order], np.arange(1, folds)))
    members: dict[bytes, list[np.ndarray]] = {}
    for fold in np.argsort(_ranks(rows.folds.names)):
        members.setdefault(cases_of_fold[fold].tobytes(), []).append(runs_of_fold[fold])
    return [(np.sort(np.concatenate(parts)), np.frombuffer(key, np.int64)) for key, parts in members.items()]


def _check_complete(
    rows: CheckedRows, runs: Rows, run_of_row: np.ndarray, blocks: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Check that every run has a row for every case and class of its fold, and that the arrays fit into memory.

    A missing row differs from a row without a value, which says that the class is absent from prediction and reference.
    """
    classes = len(rows.classes.names)
    found = np.bincount(run_of_row, minlength=len(runs))
    for members, cases in blocks:
        incomplete = members[found[members] < len(cases) * classes]
        if len(incomplete):
            raise ValueError(_missing_rows(rows, runs.iloc[incomplete[0]], run_of_row == incomplete[0], cases))
    cells = len(runs) * len(rows.cases.names) * classes
    if cells > MAX_CELLS:
        raise ValueError(
            f"expected at most {MAX_CELLS} combinations of run, case and class, got {len(runs)} runs, "
            f"{len(rows.cases.names)} cases and {classes} classes; select fewer classes, or compare fewer losses at a "
            "time"
        )


def _missing_rows(rows: CheckedRows, run: Rows, of_run: np.ndarray, cases: np.ndarray) -> str:
    """The message for a run without rows for some of these cases and classes."""
    classes = len(rows.classes.names)
    present = rows.cases.codes[of_run].astype(np.int64) * classes + rows.classes.codes[of_run]
    wanted = (cases[:, None] * classes + np.arange(classes)).ravel()
    absent = np.setdiff1d(wanted, present)
    shown = [f"{rows.cases.names[cell // classes]} ({rows.classes.names[cell % classes]})" for cell in absent[:5]]
    return (
        f"expected the same cases and classes in every run, but loss {run['loss']}, seed {run['seed']}, fold "
        f"{run['fold']} has no row for {', '.join(shown)}{', ...' if len(absent) > 5 else ''}; evaluate all runs on "
        "one test set, or, for a repeated k-fold, number the folds of all repeats consecutively in the column `fold`"
    )


def from_challenger(table: Rows, metric: str) -> Rows:
    """Convert a table with challengeR's columns task, case, algorithm and value to a long table.

    Each algorithm becomes a loss with one run, and each task becomes a data set with one class.

    Raises:
        ValueError: A name is blank.
    """
    blank = [name for name in CHALLENGER[:3] if table[name].isna().any()]
    if blank:
        raise ValueError(f"expected a value in every row of the columns {blank}, found blanks")
    return pd.DataFrame(
        {
            "dataset": table["task"],
            "loss": table["algorithm"],
            "seed": 0,
            "fold": 0,
            "case": table["case"],
            "class": table["task"],
            metric: table["value"],
        }
    )


def to_challenger(scores: Scores) -> Rows:
    """Convert scores to challengeR's columns task, case, algorithm and value.

    Each class becomes a task and each loss an algorithm; the value is the mean of the filled values over the runs of
    the loss, because challengeR ranks algorithms on each case.
    """
    tables = []
    for loss in scores.losses:
        means = counted_mean(scores.of(loss), 0)
        for number, name in enumerate(scores.classes):
            tables.append(
                pd.DataFrame({"task": name, "case": scores.cases, "algorithm": loss, "value": means[:, number]})
            )
    return pd.concat(tables, ignore_index=True).dropna(subset=["value"])


def counted_mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean over some axes, ignoring NaN; NaN if all values are NaN."""
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(counted, values, 0.0).sum(axis) / np.where(counted.any(axis), counted.sum(axis), np.nan)
