"""The verb `compare`: train every unit that is not finished, gather the long table, analyse and report it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from segkit import assemble
from segkit.checkpoint import load as load_checkpoint
from segkit.compare.claims import Claims
from segkit.compare.engines import ENGINES, Engine
from segkit.compare.gather import gather
from segkit.compare.guards import log_warnings, same_functions
from segkit.compare.plan import Design, Unit, check_overrides, make_design, write_plan
from segkit.compare.report import Analysis, Told, write_comparison
from segkit.compare.units import (
    Study,
    check_judged,
    choose_rates,
    config_of,
    failure,
    finished,
    finished_folders,
    foreground_of,
    make_sweep,
    make_units,
    rules_of,
    train_unit,
    unit_rows,
)
from segkit.config import ConfigError
from segkit.runs import Run


class UnitsFailed(Exception):
    """Some units of a comparison ended with an error."""

    exit_code = 1


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, beside the configuration.

    engine: `local` or `ray`. parallel: how many units at once, None for as many as there are GPUs, or else one for
    every four cores. wait: for units that other processes train; otherwise the report is left to the last of them.
    """

    out: Path
    engine: str = "local"
    parallel: int | None = None
    dry_run: bool = False
    wait: bool = True


def compare(path: Path, overrides: Sequence[str], asked: Asked, console: Console) -> None:
    """Train every loss with every seed and fold, gather the long table in cases.csv and analyse it.

    A unit that fails does not stop the others; they are listed, in comparison.json too, and in UnitsFailed at the end.
    """
    check_overrides(overrides)
    base = assemble.read(path, overrides)
    design = make_design(base)
    engine = _engine(asked, design)
    study = Study.of(path, overrides, design, base, asked.out)
    first = make_units(study)
    check_judged(first)
    trials = make_sweep(study, judged=first[0].part)
    if asked.dry_run:
        units = make_units(study, choose_rates(trials, design)) if trials and all(map(finished, trials)) else first
        print_units([*trials, *units], engine.parallel, console)
        return
    notes = same_functions(
        {label: config_of(first, label).loss for label in design.losses}, assemble.build_labels(base)
    )
    for note in notes:
        console.print(f"warning: {note}", style="yellow", markup=False, highlight=False)
    plan = write_plan(study.out, design, base, rules_of(base).to_dict(), study.digest, finished_folders(study.out))
    for change in plan["changes"]:
        console.print(
            f"the plan was changed after {change['finished_units']} finished units: {'; '.join(change['differences'])}",
            markup=False,
            highlight=False,
        )
    lost: dict[str, dict[str, str]] = {}
    rates: dict[str, float] = {}
    units = first
    if trials:
        engine.run([unit for unit in trials if not finished(unit)], train_unit, console)
        rates = choose_rates(trials, design)
        _note_lost(lost, [unit for unit in trials if not finished(unit)])
        units = make_units(study, rates)
    left = [unit for unit in units if not finished(unit)]
    if len(left) < len(units):
        console.print(f"finished before: {len(units) - len(left)} of {len(units)} units", highlight=False)
    engine.run(left, train_unit, console)
    undone = [unit for unit in units if not finished(unit)]
    if not asked.wait and any(failure(unit) is None for unit in undone):
        others = sum(failure(unit) is None for unit in undone)
        console.print(f"{others} units are trained by other processes; the last of them writes the report")
        return
    _note_lost(lost, undone)
    if len(undone) < len(units) or lost:
        known = Told(foreground_of(base), lost, rules_of(base).to_dict(), plan, notes, rates)
        _report([unit for unit in units if finished(unit)], design, known, study.out, console)
    if lost:
        failed = {name: reason for units_lost in lost.values() for name, reason in units_lost.items()}
        told = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
        raise UnitsFailed(
            f"{len(failed)} of {len(units) + len(trials)} units failed:{told}\nmend the cause and run the command again"
        )


def _note_lost(lost: dict[str, dict[str, str]], units: Sequence[Unit]) -> None:
    """By loss, which of the units came to no end, and why."""
    for unit in units:
        reason = failure(unit) or f"it came to no end, and nothing says why; see {unit.folder}"
        lost.setdefault(unit.loss, {})[unit.name] = reason


def _report(units: Sequence[Unit], design: Design, told: Told, out: Path, console: Console) -> None:
    """The long table of finished units, what it says, and the pages; by one process at a time."""
    with Claims().claimed(out / "report") as ours:
        if not ours:
            console.print(f"another process writes the report of {out}", markup=False)
        elif units:
            report(units, design, told, out, console)


def report(units: Sequence[Unit], design: Design, told: Told, out: Path, console: Console) -> None:
    """The long table of finished units, what it says, and the pages."""
    table = pd.concat([unit_rows(unit, design.metric) for unit in units], ignore_index=True)
    table.to_csv(out / "cases.csv", index=False)
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    for unit in units:
        logs.setdefault(unit.loss, []).append(Run(unit.folder).records())
    told = replace(told, notes=[*told.notes, *log_warnings(logs)])
    analysis = Analysis(
        design.metric, design.baseline, design.margin, design.family, design.again, design.tested_to_trained
    )
    write_comparison(table, out, analysis, told, lambda scores: gather(units, scores), console)


def _engine(asked: Asked, design: Design) -> Engine:
    engine = ENGINES[asked.engine](asked.parallel, wait=asked.wait)
    if design.minutes is not None and engine.parallel > 1:
        raise ConfigError("comparison.minutes is a fair budget only where units run one at a time: use --parallel 1")
    return engine


def print_units(units: Sequence[Unit], parallel: int, console: Console) -> None:
    """What a comparison consists of, how far it is, and how long the rest may take."""
    seconds = [load_checkpoint(Run(unit.folder).last)["time"]["training_seconds"] for unit in units if finished(unit)]
    left = 0
    for unit in units:
        state = (
            "finished" if finished(unit) else "failed" if failure(unit) else "begun" if unit.folder.exists() else "-"
        )
        left += state != "finished"
        console.print(f"{state:9} {unit.name:40} {unit.folder}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(units)} units, {left} to be trained", highlight=False)
    if seconds and left:
        minutes = left * sum(seconds) / len(seconds) / 60 / min(parallel, left)
        console.print(
            f"about {minutes:.2g} minutes of training, {parallel} at a time, by {len(seconds)} finished units",
            highlight=False,
        )
    elif left:
        console.print("how long that takes is known once the first unit is finished", highlight=False)
