"""Scores by the size of a class, as tables for the console and for pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from segkit.report.figure_text import printable
from segkit.report.score_notes import heading, number

UNITS = {"ml": "ml", "mm2": "mm²"}
METRICS_PER_TABLE = 2


def size_tables(scores: Mapping[str, Any], names: Sequence[str]) -> Iterator[Table]:
    """Console tables of the contents of scores.json, none wider than 80 characters.

    names: the classes to list. Metrics other than Dice and IoU are in tables of their own.
    """
    by_size = scores.get("by_size")
    if by_size is None:
        return
    metrics = [metric for metric in scores["mean"] if metric not in ("dice", "iou")]
    groups = [metrics[start : start + METRICS_PER_TABLE] for start in range(0, len(metrics), METRICS_PER_TABLE)]
    for group in [["dice", "iou"], *groups]:
        table = Table(title=f"by size in the reference ({UNITS[by_size['unit']]})", title_justify="left")
        table.add_column("class", overflow="fold")
        for column in ("size", "cases", "missed", *_columns(group)):
            table.add_column(column, justify="right", no_wrap=True)
        for name in names:
            for stratum in by_size["classes"][name]["strata"]:
                numbers = [cell for metric in group for cell in _cells(stratum[metric], metric)]
                row = [size_text(stratum), str(stratum["cases"]), str(stratum["missed"]), *numbers]
                table.add_row(escape(printable(name)), *row)
            table.add_section()
        yield table


def _columns(metrics: Sequence[str]) -> list[str]:
    return [column for metric in metrics for column in (heading(metric), "95 % CI")[: 2 if metric == "dice" else 1]]


def _cells(score: Mapping[str, Any], metric: str) -> list[str]:
    """The mean and, of Dice, its interval."""
    return [number(score["mean"]), *([interval_text(score["ci95"])] if metric == "dice" else [])]


def size_text(stratum: Mapping[str, Any]) -> str:
    """The bounds of a stratum, such as `up to 1`, `1 to 10` or `over 10`."""
    low, high = stratum["above"], stratum["up_to"]
    if high is None:
        return f"over {_size(low)}" if low else "all"
    return f"{_size(low)} to {_size(high)}" if low else f"up to {_size(high)}"


def _size(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def interval_text(ends: Sequence[float] | None) -> str:
    """An interval, or a dash without one."""
    return "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def size_columns(scores: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """The heads of the columns of a page; empty without scores by size."""
    if "by_size" not in scores:
        return []
    columns = ["class", f"size ({UNITS[scores['by_size']['unit']]})", "cases", "missed"]
    for metric in metrics:
        columns += [heading(metric), f"95 % interval of {heading(metric)}"]
    return columns


def size_rows(scores: Mapping[str, Any], metrics: Sequence[str]) -> list[list[tuple[str, float | None]]]:
    """The rows of a page: texts, with the value by which each column is sorted."""
    rows = []
    for name, of_class in scores.get("by_size", {}).get("classes", {}).items():
        for stratum in of_class["strata"]:
            row: list[tuple[str, float | None]] = [(name, None), (size_text(stratum), stratum["above"])]
            row += [(str(stratum[key]), stratum[key]) for key in ("cases", "missed")]
            for metric in metrics:
                score = stratum[metric]
                ends = score["ci95"]
                row += [
                    (number(score["mean"]), score["mean"]),
                    (interval_text(ends), None if ends is None else ends[0]),
                ]
            rows.append(row)
    return rows
