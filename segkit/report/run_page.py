"""The page of a run or of an evaluation: report.html, which answers how good the predictions are, and how they came
about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segkit.report.case_views import CaseView
from segkit.report.charts import Chart, Line, Tick, ticks, widened
from segkit.report.evaluation_figures import MAX_ANNOTATED_CLASSES, MAX_CLASSES, most_confused, share_label
from segkit.report.html import write_html
from segkit.report.score_notes import basis, caveats, heading, number
from segkit.report.size_table import size_columns, size_rows
from segkit.utils.metric_names import metric_facts

MOST_CLASSES = 40  # rows of the distributions
MOST_DOTS = 400  # cases of a class that are drawn
MOST_ROWS = 1000  # cases of the table
COLOURS = 6  # of the page


@dataclass(frozen=True)
class Setting:
    """A value of the configuration that differs from the default. default: in words; None if there is none."""

    name: str
    value: str
    default: str | None


@dataclass(frozen=True)
class RunMaterial:
    """The contents of a page besides the scores; each is optional.

    confusion: pixels [K, K], reference in rows, and the names of the classes.
    views: pictures of the worst, the median and the best case. legend: their colours by meaning.
    records: of the log of the training.
    settings: what differs from the defaults. config: the whole configuration as YAML.
    facts: what else is known of the run, as names and values. again: commands that repeat it, with what they do.
    """

    confusion: tuple[np.ndarray, Sequence[str]] | None = None
    views: Sequence[CaseView] = ()
    legend: Sequence[tuple[str, str]] = ()
    records: Sequence[Mapping[str, Any]] = ()
    settings: Sequence[Setting] = ()
    config: str | None = None
    facts: Sequence[tuple[str, str]] = ()
    again: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Cell:
    """A cell of a table. value: by which its column is sorted; None for a text, or if there is no number."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Distribution:
    """The scores of a class over the cases.

    dots: place and height in percent, and the case. median: its place in percent. summary: in words.
    worst: the case and its score.
    """

    name: str
    dots: Sequence[tuple[float, float, str]]
    median: float
    summary: str
    worst: str


@dataclass(frozen=True)
class Distributions:
    """The scores of all classes, above one scale."""

    rows: Sequence[Distribution]
    ticks: Sequence[Tick]


@dataclass(frozen=True)
class Confusion:
    """Shares of the pixels of each reference class. rows: name, and for each predicted class share, text and title."""

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[float, str, str]]]]
    of: int


def write_run_page(
    title: str,
    scores: Mapping[str, Any],
    cases: pd.DataFrame,
    foreground: Sequence[str],
    material: RunMaterial,
    path: Path,
) -> None:
    """Write the page to a file.

    title: what was evaluated, such as the name of the run.
    scores: contents of scores.json. cases: the table of cases.
    foreground: the names of the foreground classes.
    """
    main = _per_class(scores)[0]
    averaged = averaged_classes(scores, main, foreground)
    shown = shown_classes(scores, main, averaged)
    values = {
        "title": title,
        "headline": headline(scores, main),
        "basis": basis(scores),
        "caveats": caveats(scores),
        "charts": training_charts(material.records),
        "columns": class_columns(scores),
        "classes": class_rows(scores),
        "mean": mean_row(scores),
        "of_cases": [
            [Cell(heading(name)), *(_number(score.get(key)) for key in ("mean", "median")), Cell(str(score["cases"]))]
            for name, score in scores.get("of_cases", {}).items()
        ],
        "size_columns": size_columns(scores, _per_class(scores)),
        "sizes": [[Cell(*cell) for cell in row] for row in size_rows(scores, _per_class(scores))],
        "metric": heading(main),
        "distributions": distributions(cases, main, shown),
        "case_columns": ["case", *shown, "mean"],
        "cases": case_rows(cases, main, shown, averaged),
        "left_out": len(averaged) - len(shown),
        "shown_cases": MOST_ROWS,
        "confusion": None if material.confusion is None else confusion(*material.confusion),
        "reliability": reliability_charts(scores.get("calibration")),
        "calibration": calibration_rows(scores.get("calibration")),
        "material": material,
        "cost": cost(material.records),
    }
    write_html("run", values, path)


def headline(scores: Mapping[str, Any], metric: str) -> str:
    """The main score with its interval, over which cases."""
    mean, interval = scores["mean"].get(metric), scores["mean_intervals"].get(metric, {}).get("ci95")
    cases = f"{scores['cases']} case{'s' * (scores['cases'] != 1)} of {scores['split']}"
    if mean is None:
        return f"No {heading(metric)} for {cases}: {scores['mean_reason'].get(metric, 'nothing was counted')}"
    ends = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    return f"{heading(metric)} {mean:.3f}{ends}, {cases}"


# --- curves -----------------------------------------------------------------------------------------------------------


def training_charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The loss and the validation scores over the steps; each score that is no fraction has a chart of its own."""
    steps = [record for record in records if record["kind"] == "step"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    losses = [("training", _points(steps, lambda record: record.get("loss")), False)]
    losses += [("validation", _points(epochs, lambda record: record.get("validation_loss")), True)]
    scores: dict[str, list[tuple[str, list[tuple[float, float]], bool]]] = {}
    for name in dict.fromkeys(name for record in epochs for name in record.get("validation", {})):
        facts = metric_facts(name)
        title = "Validation" if facts is None or facts.maximum == 1 else f"Validation: {heading(name)}"
        points = _points(epochs, lambda record, name=name: record.get("validation", {}).get(name))
        scores.setdefault(title, []).append((heading(name), points, True))
    charts = []
    mean = "mean over cases, then classes"
    for title, y_name, found in (("Loss", "mean", losses), *((title, mean, lines) for title, lines in scores.items())):
        lines = [
            Line(name, colour % COLOURS, points, dots) for colour, (name, points, dots) in enumerate(found) if points
        ]
        if lines:
            charts.append(Chart(title, "step", y_name, lines))
    return charts


def _points(records: Sequence[Mapping[str, Any]], value: Any) -> list[tuple[float, float]]:
    found = [(float(record["step"]), value(record)) for record in records]
    return [(step, float(number)) for step, number in found if number is not None]


# --- classes and cases ------------------------------------------------------------------------------------------------


def _per_class(scores: Mapping[str, Any]) -> list[str]:
    """The metrics that every class has."""
    return [metric for metric in scores["metrics"] if metric in scores["mean"]]


def class_columns(scores: Mapping[str, Any]) -> list[str]:
    columns = ["class"]
    for metric in _per_class(scores):
        columns += [heading(metric), f"95 % interval of {heading(metric)}", f"median {heading(metric)}"]
    return [*columns, "cases", "missed", "spurious"]


def class_rows(scores: Mapping[str, Any]) -> list[list[Cell]]:
    metrics = _per_class(scores)
    rows = []
    for name, score in scores["classes"].items():
        row = [Cell(name)]
        for metric in metrics:
            row += [_number(score[metric]["mean"]), _interval(score[metric].get("ci95"))]
            row += [_number(score[metric].get("median"))]
        counts = score[metrics[0]] if metrics else {}
        rows.append([*row, *(Cell(str(counts[key]), counts[key]) for key in ("cases", "missed", "spurious"))])
    return rows


def mean_row(scores: Mapping[str, Any]) -> list[Cell]:
    row = [Cell("mean")]
    metrics = _per_class(scores)
    for metric in metrics:
        interval = scores["mean_intervals"].get(metric, {}).get("ci95")
        row += [_number(scores["mean"][metric]), _interval(interval), Cell("")]
    counts = scores["mean_counts"][metrics[0]] if metrics else {}
    texts = [f"{counts.get('pairs', 0)} in all", *(str(counts.get(key, 0)) for key in ("missed", "spurious"))]
    return [*row, *map(Cell, texts)]


def _number(value: float | None) -> Cell:
    return Cell(number(value), value)


def _interval(ends: Sequence[float] | None) -> Cell:
    return Cell("-") if ends is None else Cell(f"{ends[0]:.3f} to {ends[1]:.3f}", ends[0])


def averaged_classes(scores: Mapping[str, Any], metric: str, foreground: Sequence[str]) -> list[str]:
    """The classes over which the mean is taken."""
    return [name for name in scores["classes"] if metric in scores["rules"]["background"] or name in foreground]


def shown_classes(scores: Mapping[str, Any], metric: str, averaged: Sequence[str]) -> list[str]:
    """Those of the averaged classes that are shown, of many those with the lowest scores."""
    means = {name: score[metric]["mean"] for name, score in scores["classes"].items() if name in averaged}
    lowest = sorted(means, key=lambda name: math.inf if means[name] is None else means[name])[:MOST_CLASSES]
    return [name for name in means if name in lowest]


def distributions(cases: pd.DataFrame, metric: str, classes: Sequence[str]) -> Distributions | None:
    """The scores of the cases for each class; None if there are none."""
    table: Any = cases
    counted = table[table["class"].isin(classes) & np.isfinite(table[metric])]
    if counted.empty:
        return None
    low, high = widened(counted[metric].min(), counted[metric].max())
    rows = []
    for name in classes:
        ranked = counted[counted["class"] == name].sort_values([metric, "case"])
        if len(ranked):
            rows.append(_distribution(name, ranked["case"].tolist(), ranked[metric].to_numpy(float), low, high))
    return Distributions(rows, [Tick(100 * place, text) for place, text in ticks(low, high)])


def _distribution(name: str, cases: Sequence[str], values: np.ndarray, low: float, high: float) -> Distribution:
    """cases, values: the worst first."""
    drawn = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_DOTS)).round().astype(int))
    places, median = 100 * (values - low) / (high - low), float(np.median(values))
    dots = [
        (float(places[row]), 20 + 60 * _spread(rank), f"{cases[row]}: {values[row]:.3f}")
        for rank, row in enumerate(drawn)
    ]
    worst = f"{cases[0]} {values[0]:.3f}"
    return Distribution(name, dots, 100 * (median - low) / (high - low), f"median {median:.3f}, worst {worst}", worst)


def _spread(rank: int) -> float:
    """Heights from 0 to 1 at which neighbours do not cover each other."""
    return rank * 0.618034 % 1


def case_rows(cases: pd.DataFrame, metric: str, classes: Sequence[str], averaged: Sequence[str]) -> list[list[Cell]]:
    """The score of each case for each class, the case with the worst mean over the averaged classes first."""
    table: Any = cases.pivot_table(index="case", columns="class", values=metric, dropna=False)
    wide, means = table.reindex(columns=list(classes)), table.reindex(columns=list(averaged)).mean(axis=1)
    order = means.sort_values(kind="stable").index[:MOST_ROWS]
    return [[Cell(str(case)), *(_finite(value) for value in wide.loc[case]), _finite(means[case])] for case in order]


def _finite(value: float) -> Cell:
    return Cell("-") if math.isnan(value) else Cell(f"{value:.3f}", float(value))


# --- confusion and calibration ----------------------------------------------------------------------------------------


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Confusion:
    """The confusion matrix; of many classes, those with the most wrongly predicted pixels."""
    chosen = most_confused(matrix, MAX_CLASSES)
    totals = matrix.sum(1)
    has_numbers = len(chosen) <= MAX_ANNOTATED_CLASSES
    rows = []
    for row in chosen:
        cells = []
        for column in chosen:
            share = float(matrix[row, column] / totals[row]) if totals[row] else 0.0
            text = share_label(share) if has_numbers and totals[row] else ""
            cells.append((share, text, f"{names[row]} predicted as {names[column]}: {matrix[row, column]:,} pixels"))
        rows.append((names[row], cells))
    return Confusion([names[number] for number in chosen], rows, len(names))


def reliability_charts(calibration: Mapping[str, Any] | None) -> list[Chart]:
    """Accuracy over confidence for each region."""
    if calibration is None:
        return []
    charts = []
    for region, rows in calibration["reliability"].items():
        lines = []
        by_pixels = sorted(rows, key=lambda name: -sum(rows[name]["pixels"]))[:COLOURS]
        for colour, name in enumerate(by_pixels):
            row = rows[name]
            bins = zip(row["confidence"], row["accuracy"], strict=True)
            points = [(x, y) for x, y in bins if x is not None and y is not None]
            if points:
                lines.append(Line(name, colour, points, has_dots=True))
        if lines:
            charts.append(Chart(f"{region} pixels", "confidence", "accuracy", lines, (0, 1), (0, 1), diagonal=True))
    return charts


def calibration_rows(calibration: Mapping[str, Any] | None) -> list[list[Cell]]:
    """Brier score and negative log-likelihood of each region."""
    if calibration is None:
        return []
    return [
        [Cell(region), _number(values["brier"]), _number(values["nll"])]
        for region, values in calibration["regions"].items()
    ]


# --- cost -------------------------------------------------------------------------------------------------------------


def cost(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Steps, throughput, memory and the time of the validations, from the log."""
    steps = [record for record in records if record["kind"] == "step"]
    if not steps:
        return []
    times = [record.get("time", {}) for record in steps]
    epochs = [record for record in records if record["kind"] == "epoch"]
    seconds = [record.get("time", {}).get("validation_seconds") for record in epochs]
    validation = [value for value in seconds if value is not None]
    rates = [time["images_per_second"] for time in times if "images_per_second" in time]
    waiting = [time["waiting_for_data"] for time in times if "waiting_for_data" in time]
    memory = [time["memory_peak_mb"] for time in times if time.get("memory_peak_mb") is not None]
    found = [("steps", f"{steps[-1]['step']:,} ({steps[-1]['epoch']:.1f} epochs)")]
    if rates:
        found.append(("images a second", f"{np.median(rates):.1f} (median)"))
    if waiting:
        found.append(("waiting for data", f"{100 * np.median(waiting):.0f} % of the time (median)"))
    if memory:
        found.append(("peak memory, of the GPU if there is one", f"{max(memory) / 1000:.2f} GB"))
    if validation:
        found.append(("validation", f"{sum(validation):.0f} s in {len(validation)} validations"))
    return found
