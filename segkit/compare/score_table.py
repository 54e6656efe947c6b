"""The long table of a comparison: a row a loss, seed, fold, case and class; checked, and as arrays.

Runs are (loss, seed, fold). Where the folds hold different cases, each run is judged on those of its fold.
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
Rows = Any  # a DataFrame: pandas says too little of its types for a checker
RUN = ["loss", "seed", "fold"]
COUNTS = ["tp", "predicted", "reference"]
CHALLENGER = ["task", "case", "algorithm", "value"]


@dataclass(frozen=True)
class Metric:
    """higher: whether more of it is better. perfect: what a run counts that rightly finds nothing, where other runs
    found something. top: the largest value there can be."""

    higher: bool
    perfect: float
    top: float

    @property
    def sign(self) -> int:
        """What a value is multiplied with for more of it to be better."""
        return 1 if self.higher else -1


OVERLAP, DISTANCE = Metric(True, 1.0, 1.0), Metric(False, 0.0, math.inf)
METRICS: dict[str, Metric] = {
    **dict.fromkeys(("dice", "iou", "boundary_iou", "nsd", "precision", "recall"), OVERLAP),
    **dict.fromkeys(("hd", "hd95", "assd"), DISTANCE),
}


def lacks_margin(metric: str, margin: float) -> bool:
    """Whether nobody has said which differences are of no interest: the default is one of overlaps, not of mm."""
    return not METRICS[metric].higher and margin == DEFAULT_MARGIN


@dataclass(frozen=True)
class Scores:
    """The table as arrays, for R runs, N cases and C classes.

    runs: loss, seed and fold of each run. values: [R, N, C], NaN where a case is not counted for a class and where it
    is none of the run's. present: the same, but NaN too where the class is in neither for that run alone. counts:
    [R, N, C, 3], tp, predicted, reference; None if the table has none. group: the number of each case's group, [N].
    filled: values of other runs' cases that were missing, and what they count as, `missing`.
    aggregation: how cases and classes become the score of a run, see `segkit.compare.aggregation`.
    blocks: for each part of the runs that are judged on the same cases, the numbers of its runs and of its cases.
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
        return self.runs["loss"].unique().tolist()

    @property
    def sign(self) -> int:
        """See `Metric`."""
        return METRICS[self.metric].sign

    def of(self, loss: str) -> np.ndarray:
        """The values of the runs of a loss, [runs, N, C]."""
        return self.values[(self.runs["loss"] == loss).to_numpy()]

    def without(self, losses: Sequence[str]) -> Scores:
        """The same without the runs of some losses; cases and classes stay."""
        kept = ~self.runs["loss"].isin(list(losses)).to_numpy()
        number = np.cumsum(kept) - 1
        return replace(
            self,
            runs=self.runs[kept].reset_index(drop=True),
            values=self.values[kept],
            present=self.present[kept],
            counts=None if self.counts is None else self.counts[kept],
            blocks=[(number[runs[kept[runs]]], cases) for runs, cases in self.blocks],
        )

    def lacking_folds(self) -> list[str]:
        """The losses that have no run in some of the folds, where folds are judged on cases of their own."""
        of_block = [set(self.runs["loss"].to_numpy()[runs]) for runs, _cases in self.blocks]
        return [loss for loss in self.losses if not all(loss in found for found in of_block)]

    def case_means(self, loss: str) -> np.ndarray:
        """A case's mean over classes and the runs of a loss, [N]; NaN where nothing counts."""
        return counted_mean(self.of(loss), (0, 2))


def read_scores(
    table: Rows,
    metric: str,
    classes: Sequence[str] | None = None,
    missing: Missing = "perfect",
    aggregation: str = DEFAULT_AGGREGATION,
) -> Scores:
    """Check a long table and take it apart; see `segkit.compare.statistics.analyse` for what it has to be.

    Raises ValueError if columns, cases of a run or classes are missing, rows repeated, or values out of range.
    """
    rows = _checked_rows(table, metric, classes)
    order = _runs_in_order(rows)
    present = rows.pivot(index=RUN, columns=["case", "class"], values=metric).loc[order]
    runs = present.index.to_frame(index=False)
    there = rows.assign(there=1).pivot(index=RUN, columns=["case", "class"], values="there").notna().loc[order]
    fold_cases = _cases_of_folds(rows)
    _check_complete(there, fold_cases)
    names, kinds = rows["case"].unique().tolist(), rows["class"].unique().tolist()
    grid = pd.MultiIndex.from_product([names, kinds])
    shape = (len(runs), len(names), len(kinds))
    of_run = there.reindex(columns=grid, fill_value=False).to_numpy().reshape(shape)
    of_run_present = present.reindex(columns=grid).to_numpy().reshape(shape)
    counted = np.zeros(shape, bool)
    blocks = []
    for cases in dict.fromkeys(fold_cases.values()):
        members = runs["fold"].map(lambda fold, cases=cases: fold_cases[fold] == cases).to_numpy()
        counted[members] = ~np.isnan(of_run_present[members]).all(0) & of_run[members]
        blocks.append((np.flatnonzero(members), np.array([name in cases for name in names]).nonzero()[0]))
    if not counted.any():
        raise ValueError(f"expected a class with a value of {metric} in some case, found none")
    values = np.where(counted, np.where(np.isnan(of_run_present), _filling(metric, missing), of_run_present), np.nan)
    filled = int((counted & np.isnan(of_run_present)).sum())
    of_run_present = values if missing == "worst" else of_run_present
    group_of = rows.drop_duplicates("case").set_index("case")["group"]
    codes, groups = pd.factorize(group_of.loc[names])
    counts = _counts(rows, order, grid, shape)
    return Scores(
        *(metric, runs, kinds, names, codes, groups.tolist()),
        *(values, of_run_present, counts, filled, missing, blocks, aggregation),
    )


def _filling(metric: str, missing: Missing) -> float:
    """What a missing value counts."""
    if missing == "perfect":
        return METRICS[metric].perfect
    if not METRICS[metric].higher:
        raise ValueError(f"{metric} has no worst value to count for what is missing; write one into the table")
    return 0.0


def _runs_in_order(rows: Rows) -> pd.MultiIndex:
    """Losses as they come first in the table, their seeds and folds from the smallest on."""
    first = {loss: place for place, loss in enumerate(rows["loss"].unique())}
    runs = rows[RUN].drop_duplicates().sort_values(["seed", "fold"])
    return pd.MultiIndex.from_frame(runs.sort_values("loss", key=lambda column: column.map(first), kind="stable"))


def _counts(rows: Rows, order: pd.MultiIndex, grid: pd.MultiIndex, shape: tuple[int, ...]) -> np.ndarray | None:
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
TEXT = ("loss", "case", "group", "class", "dataset", "task", "algorithm")  # also where they look like a number or NA


def read_rows(path: Path) -> Rows:
    """A CSV file. Names are text whatever they look like, but for empty ones, which are missing. Raises ValueError for
    an empty file."""
    try:
        names = pd.read_csv(path, nrows=0).columns
    except pd.errors.EmptyDataError as error:
        raise ValueError("expected a table with a header, the file is empty") from error
    numbers = {name: NO_NUMBER for name in names if name not in TEXT}
    blank = {name: [""] for name in names if name in TEXT}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values={**numbers, **blank})


def _checked_rows(table: Rows, metric: str, classes: Sequence[str] | None) -> Rows:
    if metric not in METRICS:
        raise ValueError(f"expected metric to be one of {', '.join(METRICS)}, got {metric!r}")
    absent = {"fold": 0, "group": table.get("case")}
    table = table.assign(**{name: value for name, value in absent.items() if name not in table})
    needed = [*RUN, "case", "group", "class", metric]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(f"expected columns {needed}, but {missing} are missing")
    _check_counted(table, metric)
    counts = COUNTS if set(COUNTS) <= set(table.columns) else []
    rows: Rows = table[[*needed, *counts]].astype({"class": str, metric: float})
    known = rows["class"].unique().tolist()
    wanted = [name for name in known if name != "background"] if classes is None else list(classes)
    if not wanted or not set(wanted) <= set(known):
        raise ValueError(f"expected rows of the classes {wanted or 'that are foreground'}, got rows of {known}")
    rows = rows[rows["class"].isin(wanted)]
    _check_values(rows, needed[:-1], metric)
    return rows


def _check_values(rows: Rows, keys: list[str], metric: str) -> None:
    empty = [column for column in keys if rows[column].isna().any()]
    if empty:
        raise ValueError(f"expected a value in every row of {empty}, found blanks")
    top, found = METRICS[metric].top, rows[metric].dropna()
    if not found.between(0, top).all() or np.isinf(found).any():
        hint = "; divide percentages by 100" if top == 1 else ""
        raise ValueError(f"expected {metric} from 0 to {top:g}, got {found.min():g} to {found.max():g}{hint}")
    repeated = rows[rows.duplicated([*RUN, "case", "class"])]
    if not repeated.empty:
        raise ValueError(f"expected one row a run, case and class, repeated is {repeated[keys].iloc[0].to_dict()}")
    torn = rows.groupby("case")["group"].nunique()
    if (torn > 1).any():
        raise ValueError(f"expected every case in one group, but case {torn.idxmax()!r} is in {torn.max()}")


def _check_counted(rows: Rows, metric: str) -> None:
    """A case without a value is one in which the class is in neither prediction nor reference; where the counts say
    otherwise, rules that do not count it would count as a perfect score here."""
    if not {"predicted", "reference"} <= set(rows.columns) or metric == "recall":
        return
    odd = rows[rows[metric].isna() & ((rows["predicted"] > 0) | (rows["reference"] > 0))]
    if len(odd):
        first = odd.iloc[0]
        raise ValueError(
            f"expected a value of {metric} wherever a class is in prediction or reference, got none for class "
            f"{first['class']} of case {first['case']} ({len(odd)} such rows); score the table by one rule first"
        )


def _cases_of_folds(rows: Rows) -> dict[Any, frozenset[str]]:
    """The cases of each fold; of any run in it, so that a run that lacks some is noticed.

    Folds that share cases without having the same ones are one test set of which runs lack cases.
    """
    by_fold = {fold: frozenset(cases) for fold, cases in rows.groupby("fold")["case"].unique().items()}
    every = frozenset(rows["case"])
    partition = sum(map(len, by_fold.values())) % len(every) == 0  # k-fold, once or several times over
    return by_fold if partition else dict.fromkeys(by_fold, every)


def _check_complete(there: Rows, fold_cases: dict[Any, frozenset[str]]) -> None:
    """A row that is not there is not the same as a class that is in neither: every run needs every case and class of
    its fold."""
    case_of = there.columns.get_level_values("case")
    for cases in dict.fromkeys(fold_cases.values()):
        of_fold = [fold_cases[fold] == cases for fold in there.index.get_level_values("fold")]
        block = there.loc[of_fold, case_of.isin(list(cases))]
        whole = block.all(axis=1)
        if whole.all():
            continue
        loss, seed, fold = block.index[~whole][0]
        lacking = block.columns[~block.loc[(loss, seed, fold)]]
        shown = ", ".join(f"{case} ({name})" for case, name in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise ValueError(
            f"expected the same cases and classes in every run, but loss {loss}, seed {seed}, fold {fold} lacks "
            f"{shown}; evaluate every run on one test set, or give each fold of each repeat of a k-fold a number of "
            "its own in the column `fold`"
        )


def from_challenger(table: Rows, metric: str) -> Rows:
    """The long table of one in challengeR's four columns task, case, algorithm, value: a run an algorithm, a data set
    and its one class a task."""
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
    """challengeR's four columns: a task a class, an algorithm a loss, the mean over its runs as value."""
    parts = []
    for loss in scores.losses:
        means = counted_mean(scores.of(loss), 0)
        for number, name in enumerate(scores.classes):
            parts.append(
                pd.DataFrame({"task": name, "case": scores.cases, "algorithm": loss, "value": means[:, number]})
            )
    return pd.concat(parts, ignore_index=True).dropna(subset=["value"])


def counted_mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean over some axes of what is not NaN; NaN where nothing is."""
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(counted, values, 0.0).sum(axis) / np.where(counted.any(axis), counted.sum(axis), np.nan)
