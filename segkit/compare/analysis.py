"""From a long table to comparison.json, the console, and the pages report.html and report.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console

from segkit.compare.across_datasets import over_datasets
from segkit.compare.aggregation import check_aggregation, class_scores
from segkit.compare.design import file_name
from segkit.compare.sanity_checks import identical_runs, noise_warnings, operating_point_warnings, rule_warnings
from segkit.compare.score_table import (
    CHALLENGER,
    DEFAULT_AGGREGATION,
    DEFAULT_MARGIN,
    METRICS,
    Missing,
    Scores,
    from_challenger,
    lacks_margin,
    read_rows,
    read_scores,
    to_challenger,
)
from segkit.compare.statistics import analyse_scores
from segkit.config import ConfigError
from segkit.report.comparison_page import Material, write_pages
from segkit.report.console import print_comparison, print_datasets
from segkit.report.datasets_page import write_datasets_pages
from segkit.utils.files import replace_text

FIGURES = "figures"  # a folder of the report's own


class TableError(ValueError):
    """A long table that cannot be analysed."""

    exit_code = 3


@dataclass(frozen=True)
class Analysis:
    """How losses are compared: the metric, how cases and classes become one number (`segkit.compare.aggregation`), the
    baseline (None: all pairs) and the margin of equivalence. again: the
    label under which the baseline is there once more, and what of. tested_to_trained, missing: see
    `segkit.compare.statistics.analyse`; None: values that lack are refused where nothing says what they mean."""

    metric: str = "dice"
    aggregation: str = DEFAULT_AGGREGATION
    baseline: str | None = None
    margin: float = DEFAULT_MARGIN
    family: Literal["all_pairs", "vs_baseline"] | None = None
    again: tuple[str, str] | None = None
    tested_to_trained: float | None = None
    missing: Missing | None = None

    def __post_init__(self) -> None:
        if self.family not in (None, "all_pairs", "vs_baseline"):
            raise ConfigError(f"expected --family all_pairs or vs_baseline, got {self.family}")
        if self.missing not in (None, "perfect", "worst"):
            raise ConfigError(f"expected --missing perfect or worst, got {self.missing}")
        if self.metric not in METRICS:
            raise ConfigError(f"expected --metric to be one of {', '.join(METRICS)}, got {self.metric}")
        try:
            check_aggregation(self.aggregation, self.metric)
        except ValueError as error:
            raise ConfigError(f"--aggregation: {error}") from error
        if lacks_margin(self.metric, self.margin):
            raise ConfigError(f"{self.metric} is in mm; say with --margin how many of them are of no interest")
        if self.family == "vs_baseline" and self.baseline is None:
            raise ConfigError("--family vs_baseline needs --baseline")

    @property
    def pairs(self) -> Literal["all_pairs", "vs_baseline"]:
        return self.family or ("all_pairs" if self.baseline is None else "vs_baseline")


@dataclass(frozen=True)
class ReportContext:
    """What a comparison knows beside its table.

    foreground: the classes that count; None: all but `background`. failed: names of units that came to no end, and why,
    by loss. rules: those that scored the table; None if nobody but the table itself knows. plan: see
    `segkit.compare.design`. notes: what was noticed before. rates: learning rates that were chosen; tried: the
    scores of all.
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
) -> None:
    """Analyse a long table that anyone may have made, or one in challengeR's four columns.

    Raises TableError if it is not there or does not fit, or lacks values that other runs have and neither the table nor
    `analysis.missing` says what that means.
    """
    if not path.is_file():
        raise TableError(f"expected a long table at {path}, found nothing")
    try:
        table: Any = read_rows(path)
        if set(CHALLENGER) <= set(table.columns):
            table = from_challenger(table, analysis.metric)
        names = table["dataset"].astype(str).unique() if "dataset" in table.columns else []
        if len(names) < 2:
            write_comparison(table, out, analysis, ReportContext(classes), no_material, console)
        else:
            _compare_datasets(table, names, out, analysis, console, classes)
    except ValueError as error:
        raise TableError(f"{path}: {error}") from error


def _compare_datasets(
    table: Any, names: Sequence[str], out: Path, analysis: Analysis, console: Console, classes: Sequence[str] | None
) -> None:
    """A comparison in a folder for each data set, and what all of them say together in datasets.json and a page."""
    results, folders = {}, folder_names(names)
    for name, folder in folders.items():
        console.rule(name)
        own = table[table["dataset"].astype(str) == name]
        results[name] = write_comparison(own, out / folder, analysis, ReportContext(classes), no_material, console)
    together = over_datasets(results, analysis.metric)
    (out / "datasets.json").write_text(json.dumps(together, indent=2, allow_nan=False) + "\n")
    write_datasets_pages(together, folders, out)
    console.rule(f"{len(names)} data sets")
    print_datasets(together, console)


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """A folder for each data set, below the comparison's and of its own, whatever the name is."""
    found: dict[str, str] = {}
    for name in names:
        folder = file_name(name)
        if not folder.strip(".") or folder.lower() in (FIGURES, *(other.lower() for other in found.values())):
            folder = f"{folder.replace('.', '-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        found[name] = folder
    return found


def no_material(_scores: Scores) -> Material:
    """Of a table alone there is nothing beside its analysis."""
    return Material()


def write_comparison(
    table: pd.DataFrame,
    out: Path,
    analysis: Analysis,
    context: ReportContext,
    material: Callable[[Scores], Material],
    console: Console,
) -> dict[str, Any]:
    """Analyse, write comparison.json, challenger.csv and the pages, print. Returns the contents of comparison.json.

    material: what the pages show beside the analysis, from the scores that it is of.
    """
    tested = _tested(table, analysis)
    scores = read_scores(
        tested, analysis.metric, context.foreground, analysis.missing or "perfect", analysis.aggregation
    )
    if scores.filled and scores.counts is None and analysis.missing is None:
        raise ValueError(
            f"{scores.filled} values are missing where other runs have one; say whether the class was rightly not "
            "found there (--missing perfect) or there was no result (--missing worst)"
        )
    broken = [loss for loss in scores.lacking_folds() if loss in context.failed]
    if broken and len(broken) < len(scores.losses):  # else what is left is refused with its reason
        scores = scores.without(broken)
    result = _analysed(table, tested, scores, analysis, context)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "comparison.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    to_challenger(scores).to_csv(out / "challenger.csv", index=False)
    write_pages(result, scores, class_scores(scores), material(scores), out)
    print_comparison(result, console)
    console.print(f"written to {out}", markup=False)
    return result


def _analysed(table: Any, tested: Any, scores: Scores, analysis: Analysis, context: ReportContext) -> dict[str, Any]:
    """The contents of comparison.json."""
    again = None if analysis.again is None else analysis.again[0]  # which is in no family
    lost = {loss: list(units) for loss, units in context.failed.items() if loss != again}
    result = analyse_scores(
        scores,
        analysis.baseline,
        analysis.pairs,
        analysis.margin,
        failed=lost,
        tested_to_trained=analysis.tested_to_trained,
    )
    result["rules"] = dict(context.rules) if context.rules is not None else _rules_of(table)
    result["failed"] = {name: why for units in context.failed.values() for name, why in units.items()}
    result["plan"] = None if context.plan is None else dict(context.plan)
    tried = None if context.tried is None else context.tried.astype(object).where(context.tried.notna(), None)
    result |= {"learning_rates": dict(context.rates), "tried_rates": [] if tried is None else tried.to_dict("records")}
    result["noise_floor"] = _noise_floor(table, analysis, context) if analysis.again is not None else None
    result["warnings"] = [
        *context.notes,
        *result["warnings"],
        *identical_runs({loss: scores.of(loss) for loss in scores.losses}),
        *rule_warnings(result),
        *noise_warnings(result),
        *operating_point_warnings(tested, result["classes"]),
        *(f"failed: {run} ({why})" for run, why in result["failed"].items()),
        *(f"changed after the plan was written: {line}" for line in _changes(context.plan)),
    ]
    return result


def _tested(table: Any, analysis: Analysis) -> Any:
    """The table without the baseline's second appearance, which is in no family."""
    return table if analysis.again is None else table[table["loss"] != analysis.again[0]]


def _noise_floor(table: pd.DataFrame, analysis: Analysis, context: ReportContext) -> dict[str, Any] | None:
    """What the analysis says of one loss against itself; None where one of the two has no run."""
    assert analysis.again is not None
    again, once = analysis.again
    both: Any = table[table["loss"].isin([again, once])]
    if both["loss"].nunique() < 2:
        return None
    scores = read_scores(both, analysis.metric, context.foreground, aggregation=analysis.aggregation)
    if scores.lacking_folds():
        return None
    found = analyse_scores(
        scores,
        baseline=once,
        margin=analysis.margin,
        failed={loss: list(context.failed[loss]) for loss in (again, once) if loss in context.failed},
        tested_to_trained=analysis.tested_to_trained,
        resamples=0,
    )
    runs = {loss["name"]: len(loss["runs"]) for loss in found["losses"]}
    basis = {"cases": found["cases"], "groups": found["groups"], "runs": [runs[again], runs[once]]}
    return {**found["pairs"][0], **basis}


def _changes(plan: Mapping[str, Any] | None) -> list[str]:
    return [
        f"{line} (after {change['finished_units']} finished units)"
        for change in (plan or {}).get("changes", [])
        for line in change["differences"]
    ]


def _rules_of(table: pd.DataFrame) -> dict[str, Any]:
    """What a table says of the rules that scored it, in its column `rules`."""
    if "rules" not in table.columns:
        return {"id": None, "reason": "the table has no column `rules`"}
    names = sorted(set(table["rules"].astype(str)))
    return {"id": names[0]} if len(names) == 1 else {"id": None, "reason": f"rows by {', '.join(names)}"}
