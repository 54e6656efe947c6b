"""The verb `compare`: train every unit that is not finished, gather the long table, analyse and report it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from segkit.compare.analysis import Analysis, ReportContext, write_comparison
from segkit.compare.design import Design, Unit, check_overrides, make_design, write_plan
from segkit.compare.executors import ENGINES, Engine
from segkit.compare.leases import Claims
from segkit.compare.lr_sweep import choose_rates, make_sweep, tried_rates
from segkit.compare.run_artifacts import gather
from segkit.compare.sanity_checks import log_warnings, rates_at_the_end, same_functions, unequal_steps
from segkit.compare.units import (
    Comparison,
    check_judged,
    config_of,
    failure,
    finished,
    finished_folders,
    foreground_of,
    make_units,
    rules_of,
    train_unit,
    unit_rows,
)
from segkit.config import Config, ConfigError
from segkit.experiment.build import build_labels, load_config
from segkit.metrics.rules import SEGKIT
from segkit.training.checkpoint import load as load_checkpoint
from segkit.training.run_folder import Run


class UnitsFailed(Exception):
    """Some units of a comparison ended with an error."""

    exit_code = 1


@dataclass(frozen=True)
class CompareOptions:
    """What the command line asks for, beside the configuration.

    engine: `local` or `ray`. parallel: how many units at once, None for as many as there are GPUs, or else one for
    every four cores. wait: for units that other processes train; otherwise the report is left to the last of them.
    """

    out: Path
    engine: str = "local"
    parallel: int | None = None
    dry_run: bool = False
    wait: bool = True


def compare(path: Path, overrides: Sequence[str], options: CompareOptions, console: Console) -> None:
    """Train every loss with every seed and fold, gather the long table in cases.csv and analyse it.

    A unit that fails does not stop the others; they are listed, in comparison.json too, and in UnitsFailed at the end.
    """
    check_overrides(overrides)
    base = load_config(path, overrides)
    design = make_design(base)
    engine = _engine(options, design)
    comparison = Comparison.of(path, overrides, design, base, options.out)
    units = make_units(comparison)
    check_judged(units)
    trials = make_sweep(comparison, judged=units[0].part)
    if options.dry_run:
        if trials and all(map(finished, trials)):
            units = make_units(comparison, choose_rates(tried_rates(trials, design), design.metric))
        print_units([*trials, *units], engine.parallel, console)
        return
    with _fair(comparison.out, design):
        _train_and_report(comparison, units, trials, engine, options, console)


@contextmanager
def _fair(out: Path, design: Design) -> Iterator[None]:
    """Minutes are a fair budget only where units run one at a time, those of all processes together."""
    if design.minutes is None:
        yield
        return
    with Claims().claimed(out / "minutes") as ours:
        if not ours:
            raise ConfigError(
                f"another process trains units of {out}, and comparison.minutes is a fair budget only where they run "
                "one at a time: wait for it, or use comparison.steps"
            )
        yield


def _train_and_report(
    comparison: Comparison,
    units: list[Unit],
    trials: list[Unit],
    engine: Engine,
    options: CompareOptions,
    console: Console,
) -> None:
    design, base = comparison.design, comparison.base
    out = comparison.out
    notes = _noticed(units, design, base, console)
    plan = write_plan(out, design, base, rules_of(base).to_dict(), comparison.digest, finished_folders(out))
    for change in plan["changes"]:
        console.print(
            f"the plan was changed after {change['finished_units']} finished units: {'; '.join(change['differences'])}",
            markup=False,
            highlight=False,
        )
    rates: dict[str, float] = {}
    tried: pd.DataFrame | None = None
    lost: list[Unit] = []
    if trials:
        engine.run([unit for unit in trials if not finished(unit)], train_unit, console)
        tried = tried_rates(trials, design)
        rates = choose_rates(tried, design.metric)
        broken = [unit for unit in trials if not finished(unit)]
        notes += rates_at_the_end(rates, design.sweep or ())
        notes += [f"no score of {unit.name}: {_reason(unit)}" for unit in broken if unit.loss in rates]
        lost += [unit for unit in broken if unit.loss not in rates]
        units = make_units(comparison, rates)
    left = [unit for unit in units if not finished(unit)]
    if len(left) < len(units):
        console.print(f"finished before: {len(units) - len(left)} of {len(units)} units", highlight=False)
    engine.run(left, train_unit, console)
    undone = [unit for unit in left if not finished(unit)]
    elsewhere = [unit for unit in undone if failure(unit) is None]
    if elsewhere and not options.wait:
        console.print(f"{len(elsewhere)} units are trained by other processes; the last of them writes the report")
        return
    lost += undone
    complete = [unit for unit in units if unit not in undone]
    if complete:
        context = ReportContext(
            foreground_of(base), _by_loss(lost), rules_of(base).to_dict(), plan, notes, rates, tried
        )
        _report(complete, design, context, out, console)
    if lost:
        failed = "".join(f"\n  {unit.name}: {_reason(unit)}" for unit in lost)
        raise UnitsFailed(
            f"{len(lost)} of {len({*units, *lost})} units failed:{failed}\nmend the cause and run the command again"
        )


def _noticed(units: Sequence[Unit], design: Design, base: Config, console: Console) -> list[str]:
    """Losses that are the same function, told before anything is trained."""
    losses = {label: config_of(units, label).loss for label in design.losses}
    notes = same_functions(losses, build_labels(base))
    if base.evaluation.rules != SEGKIT.name:
        notes.append(
            f"evaluation.rules: {base.evaluation.rules} is for the tables of the runs; losses are compared by "
            f"comparison.aggregation: {design.aggregation}, and a missed structure counts as a miss"
        )
    for note in notes:
        console.print(f"warning: {note}", style="yellow", markup=False, highlight=False)
    return notes


def _reason(unit: Unit) -> str:
    return failure(unit) or f"it came to no end, and nothing says why; see {unit.folder}"


def _by_loss(lost: Sequence[Unit]) -> dict[str, dict[str, str]]:
    """By loss, which units came to no end, and why."""
    found: dict[str, dict[str, str]] = {}
    for unit in lost:
        found.setdefault(unit.loss, {})[unit.name] = _reason(unit)
    return found


def _report(units: Sequence[Unit], design: Design, context: ReportContext, out: Path, console: Console) -> None:
    """The long table of finished units, what it says, and the pages; by one process at a time."""
    with Claims().claimed(out / "report") as ours:
        if ours:
            report(units, design, context, out, console)
        else:
            console.print(f"another process writes the report of {out}", markup=False)


def report(units: Sequence[Unit], design: Design, context: ReportContext, out: Path, console: Console) -> None:
    """The long table of finished units, what it says, and the pages."""
    table = pd.concat([unit_rows(unit, design.metric) for unit in units], ignore_index=True)
    table.to_csv(out / "cases.csv", index=False)
    logs = {unit: Run(unit.folder).records() for unit in units}
    by_loss = {loss: [lines for unit, lines in logs.items() if unit.loss == loss] for loss in design.losses}
    context = replace(context, notes=[*context.notes, *unequal_steps(by_loss), *log_warnings(by_loss)])
    analysis = Analysis(
        *(design.metric, design.aggregation, design.baseline),
        *(design.margin, design.family, design.again, design.tested_to_trained),
    )
    write_comparison(table, out, analysis, context, lambda scores: gather(logs, scores), console)


def _engine(options: CompareOptions, design: Design) -> Engine:
    if options.engine not in ENGINES:
        raise ConfigError(f"expected --engine to be one of {', '.join(ENGINES)}, got {options.engine}")
    engine = ENGINES[options.engine](options.parallel, wait=options.wait)
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
