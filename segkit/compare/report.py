"""From a long table to comparison.json and a table on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console

from segkit.compare.statistics import METRICS, analyse
from segkit.config import ConfigError
from segkit.report.tables import print_comparison


class TableError(ValueError):
    """A long table that cannot be analysed."""

    exit_code = 3


@dataclass(frozen=True)
class Analysis:
    """How losses are compared: the metric, the baseline (None: all pairs) and the margin of equivalence."""

    metric: str = "dice"
    baseline: str | None = None
    margin: float = 0.005

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"expected --metric to be one of {', '.join(METRICS)}, got {self.metric}")

    @property
    def family(self) -> Literal["all_pairs", "vs_baseline"]:
        return "all_pairs" if self.baseline is None else "vs_baseline"


def compare_table(path: Path, out: Path, analysis: Analysis, console: Console) -> None:
    """Analyse a long table that anyone may have made. Raises TableError if it is not there or does not fit."""
    if not path.is_file():
        raise TableError(f"expected a long table at {path}, found nothing")
    table = pd.read_csv(path, dtype={"case": str, "group": str})
    try:
        write_comparison(table, out, analysis, None, console)
    except ValueError as error:
        raise TableError(f"{path}: {error}") from error


def write_comparison(
    table: pd.DataFrame,
    out: Path,
    analysis: Analysis,
    foreground: Sequence[str] | None,
    console: Console,
    failed: Mapping[str, str] | None = None,
    rules: Mapping[str, Any] | None = None,
) -> None:
    """Analyse, write comparison.json, print.

    foreground: the classes that count; None: all but `background`. failed: runs that ended with an error, and why.
    rules: those that scored the table; None if nobody but the table itself knows.
    """
    result = analyse(
        table,
        metric=analysis.metric,
        baseline=analysis.baseline,
        family=analysis.family,
        margin=analysis.margin,
        classes=foreground,
    )
    result["rules"] = dict(rules) if rules is not None else _rules_of(table)
    result["failed"] = dict(failed or {})
    result["warnings"] += [
        f"not in the comparison, because it failed: {run} ({why})" for run, why in result["failed"].items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    print_comparison(result, console)
    console.print(f"written to {out}")


def _rules_of(table: pd.DataFrame) -> dict[str, Any]:
    """What a table says of the rules that scored it, in its column `rules`."""
    if "rules" not in table.columns:
        return {"id": None, "reason": "the table has no column `rules`"}
    names = sorted(set(table["rules"].astype(str)))
    return {"id": names[0]} if len(names) == 1 else {"id": None, "reason": f"rows by {', '.join(names)}"}
