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

Missing = Literal["perfect", "worst"]
DEFAULT_MARGIN = 0.005
DEFAULT_AGGREGATION = "class_case"
Rows = Any  # a DataFrame; the types of pandas are too vague for a type checker
RUN = ["loss", "seed", "fold"]
COUNTS = ["tp", "predicted", "reference"]
CHALLENGER = ["task", "case", "algorithm", "value"]


@dataclass(frozen=True)
class Metric:
    """Properties of a metric.

    Args:
        higher: Whether larger values are better.
        perfect: The value of a run that correctly predicts nothing, in a case in which other runs have a value.
        maximum: The largest possible value.
    """

    higher: bool
    perfect: float
    maximum: float

    @property
    def sign(self) -> int:
        """The factor that makes larger values better."""
        return 1 if self.higher else -1


OVERLAP, DISTANCE = Metric(True, 1.0, 1.0), Metric(False, 0.0, math.inf)
METRICS: dict[str, Metric] = {
    **dict.fromkeys(("dice", "iou", "boundary_iou", "nsd", "precision", "recall"), OVERLAP),
    **dict.fromkeys(("hd", "hd95", "assd"), DISTANCE),
}


def lacks_margin(metric: str, margin: float) -> bool:
    """Whether a distance metric still has the default margin, which is meant for overlaps and not for mm."""
    return not METRICS[metric].higher and margin == DEFAULT_MARGIN


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
        values: [R, N, C]; NaN if the case does not count for the class or is not among the cases of the run.
        present: As `values`, but also NaN if the class is absent from both prediction and reference for that run.
        counts: Pixel counts tp, predicted and reference, [R, N, C, 3]; None if the table has none.
        filled: Number of missing values that were filled in because other runs have a value.
        missing: Whether such values count as perfect or as worst.
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
    present: np.ndarray
    counts: np.ndarray | None
    filled: int
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
        return METRICS[self.metric].sign

    def of(self, loss: str) -> np.ndarray:
        """The values of the runs of a loss, [runs, N, C]."""
        return self.values[(self.runs["loss"] == loss).to_numpy()]

    def without(self, losses: Sequence[str]) -> Scores:
        """A copy without the runs of some losses; cases and classes stay the same."""
        selected = ~self.runs["loss"].isin(list(losses)).to_numpy()
        new_index = np.cumsum(selected) - 1
        return replace(
            self,
            runs=self.runs[selected].reset_index(drop=True),
            values=self.values[selected],
            present=self.present[selected],
            counts=None if self.counts is None else self.counts[selected],
            blocks=[(new_index[runs[selected[runs]]], cases) for runs, cases in self.blocks],
        )

    def losses_with_missing_folds(self) -> list[str]:
        """The losses without a run in some fold, if folds hold different cases."""
        block_losses = [set(self.runs["loss"].to_numpy()[runs]) for runs, _cases in self.blocks]
        return [loss for loss in self.losses if not all(loss in losses for losses in block_losses)]

    def case_means(self, loss: str) -> np.ndarray:
        """The mean of each case over classes and the runs of a loss, [N]; NaN if no class counts."""
        return counted_mean(self.of(loss), (0, 2))


def read_scores(
    table: Rows,
    metric: str,
    classes: Sequence[str] | None = None,
    missing: Missing = "perfect",
    aggregation: str = DEFAULT_AGGREGATION,
) -> Scores:
    """Check a long table and convert it to arrays; `segkit.compare.statistics.analyse` describes its format.

    Raises:
        ValueError: Columns, classes or cases of a run are missing, rows are repeated, or values are out of range.
    """
    rows = _checked_rows(table, metric, classes)
    order = _runs_in_order(rows)
    present = rows.pivot(index=RUN, columns=["case", "class"], values=metric).loc[order]
    runs = present.index.to_frame(index=False)
    has_row = rows.assign(row=1).pivot(index=RUN, columns=["case", "class"], values="row").notna().loc[order]
    fold_cases = _cases_of_folds(rows)
    _check_complete(has_row, fold_cases)
    case_names, class_names = rows["case"].unique().tolist(), rows["class"].unique().tolist()
    grid = pd.MultiIndex.from_product([case_names, class_names])
    shape = (len(runs), len(case_names), len(class_names))
    row_exists = has_row.reindex(columns=grid, fill_value=False).to_numpy().reshape(shape)
    present_values = present.reindex(columns=grid).to_numpy().reshape(shape)
    counted = np.zeros(shape, bool)
    blocks = []
    for cases in dict.fromkeys(fold_cases.values()):
        members = runs["fold"].map(lambda fold, cases=cases: fold_cases[fold] == cases).to_numpy()
        counted[members] = ~np.isnan(present_values[members]).all(0) & row_exists[members]
        blocks.append((np.flatnonzero(members), np.array([name in cases for name in case_names]).nonzero()[0]))
    if not counted.any():
        raise ValueError(f"expected at least one value of {metric}, found none")
    fill_value = _fill_value(metric, missing)
    values = np.where(counted, np.where(np.isnan(present_values), fill_value, present_values), np.nan)
    filled = int((counted & np.isnan(present_values)).sum())
    present_values = values if missing == "worst" else present_values
    group_of = rows.drop_duplicates("case").set_index("case")["group"]
    codes, groups = pd.factorize(group_of.loc[case_names])
    counts = _counts(rows, order, grid, shape)
    return Scores(
        *(metric, runs, class_names, case_names, codes, groups.tolist()),
        *(values, present_values, counts, filled, missing, blocks, aggregation),
    )


def _fill_value(metric: str, missing: Missing) -> float:
    """The value that replaces a missing one."""
    if missing == "perfect":
        return METRICS[metric].perfect
    if not METRICS[metric].higher:
        raise ValueError(f"{metric} has no worst value to replace missing ones; write the value into the table")
    return 0.0


def _runs_in_order(rows: Rows) -> pd.MultiIndex:
    """Losses in the order of the table, and their runs sorted by seed and fold."""
    first = {loss: position for position, loss in enumerate(rows["loss"].unique())}
    runs = rows[RUN].drop_duplicates().sort_values(["seed", "fold"])
    return pd.MultiIndex.from_frame(runs.sort_values("loss", key=lambda column: column.map(first), kind="stable"))


def _counts(rows: Rows, order: pd.MultiIndex, grid: pd.MultiIndex, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixel counts [R, N, C, 3]; None if one of their columns is missing."""
    if not set(COUNTS) <= set(rows.columns):
        return None
    columns = [
        rows.pivot(index=RUN, columns=["case", "class"], values=name)
        .loc[order]
        .reindex(columns=grid)
        .to_numpy()
        .reshape(shape)
        for name in COUNTS
    ]
    return np.nan_to_num(np.stack(columns, -1).astype(float))


NO_NUMBER = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "None", "null", "NULL"]
TEXT = ("loss", "case", "group", "class", "dataset", "task", "algorithm")  # even if they look like numbers or NA


def read_rows(path: Path) -> Rows:
    """Read a table from a CSV file. Names such as "1" or "None" stay text, and only empty names are missing.

    Raises:
        ValueError: The file is empty.
    """
    try:
        names = pd.read_csv(path, nrows=0).columns
    except pd.errors.EmptyDataError as error:
        raise ValueError("expected a table with a header line, but the file is empty") from error
    numbers = {name: NO_NUMBER for name in names if name not in TEXT}
    blank = {name: [""] for name in names if name in TEXT}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values={**numbers, **blank})


def _checked_rows(table: Rows, metric: str, classes: Sequence[str] | None) -> Rows:
    if metric not in METRICS:
        raise ValueError(f"expected metric to be one of {', '.join(METRICS)}, got {metric!r}")
    defaults = {"fold": 0, "group": table.get("case")}
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table})
    needed = [*RUN, "case", "group", "class", metric]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(f"expected columns {needed}, but {missing} are missing")
    _check_left_out_cases(table, metric)
    counts = COUNTS if set(COUNTS) <= set(table.columns) else []
    rows: Rows = table[[*needed, *counts]].astype({"class": str, metric: float})
    available = rows["class"].unique().tolist()
    selected = [name for name in available if name != "background"] if classes is None else list(classes)
    if not selected or not set(selected) <= set(available):
        raise ValueError(f"expected rows of the classes {selected or 'other than background'}, got {available}")
    rows = rows[rows["class"].isin(selected)]
    _check_values(rows, needed[:-1], metric)
    return rows


def _check_values(rows: Rows, keys: list[str], metric: str) -> None:
    incomplete = [column for column in keys if rows[column].isna().any()]
    if incomplete:
        raise ValueError(f"expected a value in every row of the columns {incomplete}, found blanks")
    maximum, values = METRICS[metric].maximum, rows[metric].dropna()
    if not values.between(0, maximum).all() or np.isinf(values).any():
        hint = "; divide percentages by 100" if maximum == 1 else ""
        raise ValueError(f"expected {metric} from 0 to {maximum:g}, got {values.min():g} to {values.max():g}{hint}")
    repeated = rows[rows.duplicated([*RUN, "case", "class"])]
    if not repeated.empty:
        row = repeated[keys].iloc[0].to_dict()
        raise ValueError(f"expected one row per run, case and class, but this one is repeated: {row}")
    groups_per_case = rows.groupby("case")["group"].nunique()
    if (groups_per_case > 1).any():
        case, number = groups_per_case.idxmax(), groups_per_case.max()
        raise ValueError(f"expected every case in one group, but case {case!r} is in {number} groups")


def _check_left_out_cases(rows: Rows, metric: str) -> None:
    """Refuse tables scored by rules that leave out cases in which the class is predicted or in the reference.

    Here a missing value means that the class is absent from both, and it may count as perfect.
    """
    if not {"predicted", "reference"} <= set(rows.columns) or metric == "recall":
        return
    left_out = rows[rows[metric].isna() & ((rows["predicted"] > 0) | (rows["reference"] > 0))]
    if len(left_out):
        first = left_out.iloc[0]
        raise ValueError(
            f"expected a value of {metric} wherever prediction or reference contains the class, got none for class "
            f"{first['class']} of case {first['case']} ({len(left_out)} such rows); score the table by rules that "
            "count these cases"
        )


def _cases_of_folds(rows: Rows) -> dict[Any, frozenset[str]]:
    """The cases of each fold: those of all its runs together, so that missing cases of one run can be detected.

    Folds that overlap without being a k-fold partition are treated as one test set with missing cases.
    """
    by_fold = {fold: frozenset(cases) for fold, cases in rows.groupby("fold")["case"].unique().items()}
    all_cases = frozenset(rows["case"])
    is_partition = sum(map(len, by_fold.values())) % len(all_cases) == 0  # a k-fold, possibly repeated
    return by_fold if is_partition else dict.fromkeys(by_fold, all_cases)


def _check_complete(has_row: Rows, fold_cases: dict[Any, frozenset[str]]) -> None:
    """Check that every run has a row for every case and class of its fold.

    A missing row differs from a row without a value, which says that the class is absent from prediction and reference.
    """
    case_of = has_row.columns.get_level_values("case")
    for cases in dict.fromkeys(fold_cases.values()):
        of_fold = [fold_cases[fold] == cases for fold in has_row.index.get_level_values("fold")]
        block = has_row.loc[of_fold, case_of.isin(list(cases))]
        complete = block.all(axis=1)
        if complete.all():
            continue
        loss, seed, fold = block.index[~complete][0]
        absent = block.columns[~block.loc[(loss, seed, fold)]]
        shown = ", ".join(f"{case} ({name})" for case, name in absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise ValueError(
            f"expected the same cases and classes in every run, but loss {loss}, seed {seed}, fold {fold} has no row "
            f"for {shown}; evaluate all runs on one test set, or, for a repeated k-fold, number the folds of all "
            "repeats consecutively in the column `fold`"
        )


def from_challenger(table: Rows, metric: str) -> Rows:
    """Convert a table with challengeR's columns task, case, algorithm and value to a long table.

    Each algorithm becomes a loss with one run, and each task becomes a data set with one class.
    """
    return pd.DataFrame(
        {
            "dataset": table["task"].astype(str),
            "loss": table["algorithm"].astype(str),
            "seed": 0,
            "fold": 0,
            "case": table["case"].astype(str),
            "class": table["task"].astype(str),
            metric: table["value"].astype(float),
        }
    )


def to_challenger(scores: Scores) -> Rows:
    """Convert scores to challengeR's columns task, case, algorithm and value.

    Each class becomes a task and each loss an algorithm; the value is the mean over the runs of the loss.
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
