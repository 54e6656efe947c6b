"""Analysis of a long table: writes comparison.json, report.html and report.md, and prints the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console

from segkit.compare.across_datasets import over_datasets
from segkit.compare.aggregation import check_aggregation, class_scores, run_scores
from segkit.compare.design import file_name
from segkit.compare.disagreement import disagreement
from segkit.compare.sanity_checks import aggregation_warnings, identical_runs, noise_warnings, operating_point_warnings
from segkit.compare.score_table import (
    CHALLENGER,
    DEFAULT_AGGREGATION,
    DEFAULT_MARGIN,
    MISSING,
    Missing,
    Scores,
    from_challenger,
    lacks_margin,
    read_score_rows,
    read_scores,
    to_challenger,
    unit_of,
)
from segkit.compare.statistics import analyse_scores
from segkit.compare.table_checks import metric_properties
from segkit.config import ConfigError
from segkit.report.comparison_page import Material, write_pages
from segkit.report.console import print_comparison, print_datasets
from segkit.report.datasets_page import write_datasets_pages
from segkit.report.figure_text import shortened
from segkit.utils.csv_tables import write_table
from segkit.utils.files import replace_text

FIGURES = "figures"  # a folder that the report itself uses
NO_SCORE = "no score, since its cases contain none of the classes and it predicts none"


class TableError(ValueError):
    """A long table that cannot be analysed."""

    exit_code = 3


@dataclass(frozen=True)
class Analysis:
    """How losses are compared; `segkit.compare.statistics.analyse` describes the settings that are not listed here.

    Args:
        baseline: The loss with which the others are compared; None compares all pairs.
        family: None for `vs_baseline` with a baseline and `all_pairs` without one.
        repeated_baseline: The label of the repeated baseline and the label of the original, for a noise floor.
        missing: None refuses tables with ambiguous missing values.
    """

    metric: str = "dice"
    aggregation: str = DEFAULT_AGGREGATION
    baseline: str | None = None
    margin: float = DEFAULT_MARGIN
    family: Literal["all_pairs", "vs_baseline"] | None = None
    repeated_baseline: tuple[str, str] | None = None
    test_train_ratio: float | None = None
    missing: Missing | None = None

    def __post_init__(self) -> None:
        if self.family not in (None, "all_pairs", "vs_baseline"):
            raise ConfigError(f"expected --family all_pairs or vs_baseline, got {self.family}")
        if self.missing is not None and self.missing not in MISSING:
            raise ConfigError(f"expected --missing {', '.join(MISSING)}, got {self.missing}")
        try:
            metric_properties(self.metric)
        except ValueError as error:
            raise ConfigError(f"--metric: {error}") from error
        try:
            check_aggregation(self.aggregation, self.metric)
        except ValueError as error:
            raise ConfigError(f"--aggregation: {error}") from error
        if lacks_margin(self.metric, self.margin):
            raise ConfigError(
                f"{self.metric} is in {unit_of(self.metric)}: set --margin to the difference in this unit that is "
                "practically equivalent"
            )
        if self.family == "vs_baseline" and self.baseline is None:
            raise ConfigError("--family vs_baseline needs --baseline")

    @property
    def pairs(self) -> Literal["all_pairs", "vs_baseline"]:
        """The family of pairs, with the default filled in."""
        return self.family or ("all_pairs" if self.baseline is None else "vs_baseline")


@dataclass(frozen=True)
class ReportContext:
    """The contents of the report that are not in the table.

    Args:
        foreground: The classes to average over; None takes all except `background`.
        failed: For each loss, the names of the failed units and the reason.
        rules: The rules by which the table was scored; None to read them from the table.
        plan: The contents of plan.json.
        notes: Warnings from before the analysis.
        rates: The learning rates that a sweep chose.
        tried: The scores of all learning-rate trials.
    """

    foreground: Sequence[str] | None = None
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rules: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    tried: pd.DataFrame | None = None


def compare_table(
    path: Path, out: Path, analysis: Analysis, console: Console, classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Analyse a long table (CSV) from any source, or a table with challengeR's four columns.

    Returns the contents of comparison.json, or of datasets.json for several data sets.

    Args:
        path: The table.
        out: The output folder.
        analysis: How losses are compared.
        console: Receives the result.
        classes: The classes to average over; None takes all except `background`.

    Raises:
        TableError: The file does not exist, its contents are invalid, or values are missing and neither the table nor
            `analysis.missing` specifies how to score them.
    """
    try:
        tables = read_for_comparison(path, analysis.metric)
        if len(tables) > 1:
            return _compare_datasets(tables, out, analysis, console, classes)
        table = next(iter(tables.values()))
        return write_comparison(table, out, analysis, ReportContext(classes), no_material, console)
    except ValueError as error:
        raise TableError(f"{path}: {error}") from error


def read_for_comparison(path: Path, metric: str) -> dict[str, Any]:
    """The rows of each data set of a table; a table without data sets is one, without a name.

    Raises:
        ValueError: The file is not such a table.
    """
    table: Any = read_score_rows(path, metric)
    if set(CHALLENGER) <= set(table.columns):
        table = from_challenger(table, metric)
    names = _dataset_names(table)
    return {name: table[table["dataset"] == name] for name in names} if len(names) > 1 else {"": table}


def _dataset_names(table: Any) -> list[str]:
    """The data sets of a table with a column `dataset`, in the order of its rows."""
    if "dataset" not in table.columns:
        return []
    blank = table["dataset"].isna()
    if blank.any() and not blank.all():
        raise ValueError(f"expected a data set in every row of the column dataset, found {blank.sum()} blanks")
    return table["dataset"].dropna().unique().tolist()


def _compare_datasets(
    tables: Mapping[str, Any], out: Path, analysis: Analysis, console: Console, classes: Sequence[str] | None
) -> dict[str, Any]:
    """Compare losses on each data set in a folder of its own, then across data sets."""
    results, folders = {}, folder_names(list(tables))
    for name, folder in folders.items():
        console.rule(shortened(name))
        context = ReportContext(classes)
        results[name] = write_comparison(tables[name], out / folder, analysis, context, no_material, console)
    overall = over_datasets(results, analysis.metric)
    replace_text(out / "datasets.json", json.dumps(overall, indent=2, allow_nan=False) + "\n")
    write_datasets_pages(overall, folders, out)
    console.rule(f"{len(tables)} data sets")
    print_datasets(overall, console)
    return overall


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """A distinct, valid folder name for each data set."""
    folders: dict[str, str] = {}
    for name in names:
        folder = file_name(name)
        if not folder.strip(".") or folder.lower() in (FIGURES, *(other.lower() for other in folders.values())):
            folder = f"{folder.replace('.', '-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        folders[name] = folder
    return folders


def no_material(_scores: Scores) -> Material:
    """No material, for a table without run folders."""
    return Material()


def write_comparison(
    table: pd.DataFrame,
    out: Path,
    analysis: Analysis,
    context: ReportContext,
    material: Callable[[Scores], Material],
    console: Console,
) -> dict[str, Any]:
    """Analyse a table, write comparison.json, challenger.csv and the pages, and print the result.

    Args:
        table: The long table.
        out: The output folder.
        analysis: How losses are compared.
        context: The contents of the report that are not in the table.
        material: A function from the scores to the other contents of the pages.
        console: Receives the result.

    Returns:
        The contents of comparison.json.
    """
    compared = _without_repeated_baseline(table, analysis)
    scores = read_scores(
        compared, analysis.metric, context.foreground, analysis.missing or "absent", analysis.aggregation
    )
    if scores.number_missing and scores.counts is None and analysis.missing is None:
        raise ValueError(
            f"{scores.number_missing} values are missing where other runs have a value; say what they mean:"
            + "".join(f"\n  --missing {name}: {meaning}" for name, meaning in MISSING.items())
        )
    unscored = scores.runs[np.isnan(run_scores(scores))]
    context = replace(context, failed=_failures(context.failed, unscored))
    incomplete = {loss for loss in scores.losses_with_missing_folds() if loss in context.failed} | {*unscored["loss"]}
    if incomplete and len(incomplete) < len(scores.losses):  # otherwise the analysis raises an error with the reason
        scores = scores.without(sorted(incomplete))
    result = _result(table, compared, scores, analysis, context)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "comparison.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_table(out / "challenger.csv", to_challenger(scores))
    write_pages(result, scores, class_scores(scores), disagreement(scores), material(scores), out)
    print_comparison(result, console)
    console.print(f"results written to {out}", markup=False)
    return result


def _result(table: Any, compared: Any, scores: Scores, analysis: Analysis, context: ReportContext) -> dict[str, Any]:
    """The contents of comparison.json."""
    repeated = None if analysis.repeated_baseline is None else analysis.repeated_baseline[0]
    failed = {loss: list(units) for loss, units in context.failed.items() if loss != repeated}
    result = analyse_scores(
        scores,
        analysis.baseline,
        analysis.pairs,
        analysis.margin,
        failed=failed,
        test_train_ratio=analysis.test_train_ratio,
    )
    result["rules"] = dict(context.rules) if context.rules is not None else _rules_of(table)
    result["failed"] = {name: reason for units in context.failed.values() for name, reason in units.items()}
    result["plan"] = None if context.plan is None else dict(context.plan)
    tried = None if context.tried is None else context.tried.astype(object).where(context.tried.notna(), None)
    result |= {"learning_rates": dict(context.rates), "tried_rates": [] if tried is None else tried.to_dict("records")}
    result["noise_floor"] = _noise_floor(table, analysis, context) if repeated is not None else None
    result["warnings"] = [
        *context.notes,
        *result["warnings"],
        *identical_runs({loss: scores.of(loss) for loss in scores.losses}),
        *aggregation_warnings(result),
        *noise_warnings(result),
        *operating_point_warnings(compared, result["classes"]),
        *(f"failed: {unit} ({reason})" for unit, reason in result["failed"].items()),
        *(f"changed after the plan was written: {change}" for change in _changes(context.plan)),
    ]
    return result


def _failures(failed: Mapping[str, Mapping[str, str]], unscored: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The failed runs of each loss, {loss: {run: reason}}, with those that have no score."""
    failures = {loss: dict(runs) for loss, runs in failed.items()}
    for run in unscored.to_dict("records"):
        name = f"{run['loss']}, seed {run['seed']}, fold {run['fold']}"
        failures.setdefault(run["loss"], {})[name] = NO_SCORE
    return failures


def _without_repeated_baseline(table: Any, analysis: Analysis) -> Any:
    """The table without the repeated baseline, which belongs to no family of pairs."""
    return table if analysis.repeated_baseline is None else table[table["loss"] != analysis.repeated_baseline[0]]


def _noise_floor(table: pd.DataFrame, analysis: Analysis, context: ReportContext) -> dict[str, Any] | None:
    """The comparison of the baseline with itself; None if one of the two sets of runs is missing or incomplete."""
    assert analysis.repeated_baseline is not None
    repeated, original = analysis.repeated_baseline
    both: Any = table[table["loss"].isin([repeated, original])]
    if both["loss"].nunique() < 2:
        return None
    scores = read_scores(both, analysis.metric, context.foreground, aggregation=analysis.aggregation)
    if scores.losses_with_missing_folds() or np.isnan(run_scores(scores)).any():
        return None
    result = analyse_scores(
        scores,
        baseline=original,
        margin=analysis.margin,
        failed={loss: list(context.failed[loss]) for loss in (repeated, original) if loss in context.failed},
        test_train_ratio=analysis.test_train_ratio,
        resamples=0,
    )
    runs = {loss["name"]: len(loss["runs"]) for loss in result["losses"]}
    basis = {"cases": result["cases"], "groups": result["groups"], "runs": [runs[repeated], runs[original]]}
    return {**result["pairs"][0], **basis}


def _changes(plan: Mapping[str, Any] | None) -> list[str]:
    """The changes of the plan, each with the number of units that had finished."""
    return [
        f"{difference} (after {change['finished_units']} finished units)"
        for change in (plan or {}).get("changes", [])
        for difference in change["differences"]
    ]


def _rules_of(table: pd.DataFrame) -> dict[str, Any]:
    """The rules by which a table was scored, from its column `rules`."""
    if "rules" not in table.columns:
        return {"id": None, "reason": "the table has no column `rules`"}
    names = table["rules"].unique()
    known = sorted(str(name) for name in names if not pd.isna(name))
    if not known:
        return {"id": None, "reason": "the column `rules` of the table is empty"}
    if len(known) < len(names):
        reason = f"some rows have no entry in the column `rules`, others {', '.join(known)}"
        return {"id": None, "reason": reason}
    return (
        {"id": known[0]}
        if len(known) == 1
        else {"id": None, "reason": f"rows were scored by different rules: {', '.join(known)}"}
    )
