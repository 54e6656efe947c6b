"""The command `compare`: train all unfinished units, collect the long table, analyse it and write the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from segkit.compare.analysis import Analysis, ReportContext, write_comparison
from segkit.compare.design import PLAN, Design, Unit, check_overrides, make_design, write_plan
from segkit.compare.executors import EXECUTORS, Executor
from segkit.compare.lr_sweep import choose_rates, make_sweep, tried_rates
from segkit.compare.run_artifacts import gather
from segkit.compare.sanity_checks import (
    boundary_rates,
    log_warnings,
    same_functions,
    stopped_by_max_steps,
    unequal_steps,
)
from segkit.compare.unit_results import (
    RUNS,
    failure,
    failure_code,
    finished,
    finished_folders,
    foreground_classes,
    is_complete,
    repair,
    rules_of,
    runs_table,
    unit_rows,
    unit_scores,
)
from segkit.compare.units import Comparison, check_evaluation_cases, config_of, few_groups, make_units, train_unit
from segkit.config import Config, ConfigError
from segkit.experiment.build import build_labels, load_config
from segkit.metrics.rules import SEGKIT
from segkit.training.checkpoint import load as load_checkpoint
from segkit.training.run_folder import Run
from segkit.utils.console import warn
from segkit.utils.csv_tables import write_table
from segkit.utils.errors import RunError
from segkit.utils.exit_codes import BUG
from segkit.utils.files import remove_leftovers
from segkit.utils.leases import Leases
from segkit.utils.text import listed


class UnitsFailed(Exception):
    """Some units of a comparison failed.

    codes: the exit code that each would have as a single training, if it is known.
    results: the content of comparison.json, if there is one.

    The exit code is theirs if they agree, and 1 otherwise.
    """

    def __init__(self, message: str, codes: Iterable[int | None], results: dict[str, Any] | None):
        super().__init__(message)
        self.results = results
        distinct = set(codes)
        self.exit_code = (distinct.pop() if len(distinct) == 1 else None) or BUG


@dataclass(frozen=True)
class CompareOptions:
    """Options of the command besides the configuration.

    Args:
        out: The output folder.
        engine: The executor, `local` or `ray`.
        parallel: Number of units at a time; None for the number of GPUs, or a quarter of the CPU cores without a GPU.
        dry_run: Whether to list the units only.
        wait: Whether to wait for units that other processes are training. Without waiting, the last process to finish
            writes the report.
    """

    out: Path
    engine: str = "local"
    parallel: int | None = None
    dry_run: bool = False
    wait: bool = True


def compare(path: Path, overrides: Sequence[str], options: CompareOptions, console: Console) -> dict[str, Any] | None:
    """Train every loss with every seed and fold, write the long table to cases.csv and analyse it.

    A failing unit does not stop the others. Returns the content of comparison.json, the units of a dry run, or None if
    another process writes the report.

    Args:
        path: The YAML file of the experiment.
        overrides: Overrides, `key=value`.
        options: The options of the command.
        console: Receives progress and results.

    Raises:
        ConfigError: The configuration or an option is invalid.
        UnitsFailed: Some units failed; raised after the report was written.
    """
    check_overrides(overrides)
    base = load_config(path, overrides)
    design = make_design(base)
    executor = _executor(options, design)
    comparison = Comparison.of(path, overrides, design, base, options.out)
    units = make_units(comparison)
    check_evaluation_cases(units)
    for note in few_groups(comparison, units):
        warn(note, console)
    trials = make_sweep(comparison, evaluated_part=units[0].part)
    if options.dry_run:
        if trials and all(map(finished, trials)):
            units = make_units(comparison, choose_rates(tried_rates(trials, design), design.metric))
        print_units([*trials, *units], executor.parallel, console)
        return {"units": [{"name": unit.name, "state": _state(unit)} for unit in [*trials, *units]]}
    comparison.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(comparison.out)
    repair([*trials, *units], console)
    with _exclusive_time_budget(comparison.out, design):
        rules = rules_of(base).to_dict(("dice", "iou", design.metric))
        plan = write_plan(
            comparison.out,
            design,
            comparison.base,
            rules,
            comparison.digest,
            comparison.initial_weights,
            finished_folders(comparison.out),
        )
        with _vanishing_reported(comparison.out):
            return _train_and_report(comparison, plan, units, trials, executor, options, console)


@contextmanager
def _vanishing_reported(out: Path) -> Iterator[None]:
    """Replace an error by one that names the cause, if the output folder with its plan is gone."""
    try:
        yield
    except Exception as error:
        if (out / PLAN).exists():
            raise
        raise RunError(
            f"{out} was deleted or renamed while the comparison ran: rename it back and run the same command again, "
            "which continues, or run it again to start from the beginning"
        ) from error


@contextmanager
def _exclusive_time_budget(out: Path, design: Design) -> Iterator[None]:
    """Keep other processes from training units, if the budget is in minutes.

    Such a budget is fair only if units are trained one at a time, over all processes.
    """
    if design.minutes is None:
        yield
        return
    with Leases().acquire(out / "minutes") as acquired:
        if not acquired:
            raise ConfigError(
                f"another process is training units of {out}; with comparison.minutes they must be trained one at a "
                "time to have a fair budget: wait for that process, or use comparison.steps"
            )
        yield


def _train_and_report(
    comparison: Comparison,
    plan: dict[str, Any],
    units: list[Unit],
    trials: list[Unit],
    executor: Executor,
    options: CompareOptions,
    console: Console,
) -> dict[str, Any] | None:
    design, base = comparison.design, comparison.base
    out = comparison.out
    notes = _warn_before_training(units, design, base, console)
    if plan.get("finished_units"):
        notes.append(f"the plan was written after {plan['finished_units']} units had finished, not before the first")
    for change in plan["changes"]:
        console.print(
            f"note: the plan was changed after {change['finished_units']} finished units: "
            f"{'; '.join(change['differences'])}",
            markup=False,
            highlight=False,
        )
    rates: dict[str, float] = {}
    tried: pd.DataFrame | None = None
    failed: list[Unit] = []
    if trials:
        executor.run([unit for unit in trials if not finished(unit)], train_unit, console)
        tried = tried_rates(trials, design)
        rates = choose_rates(tried, design.metric)
        failed_trials = [unit for unit in trials if not finished(unit)]
        notes += boundary_rates(rates, design.sweep or ())
        notes += [f"no score for {unit.name}: {_reason(unit)}" for unit in failed_trials if unit.loss in rates]
        failed += [unit for unit in failed_trials if unit.loss not in rates]
        units = make_units(comparison, rates)
    remaining = [unit for unit in units if not finished(unit)]
    if len(remaining) < len(units):
        console.print(f"already finished: {len(units) - len(remaining)} of {len(units)} units", highlight=False)
    executor.run(remaining, train_unit, console)
    unfinished = [unit for unit in remaining if not finished(unit)]
    running = [unit for unit in unfinished if failure(unit) is None]
    if running and not options.wait:
        console.print(
            f"other processes are still training {len(running)} of {len(units)} units; the last of them to finish "
            "writes the report",
            highlight=False,
        )
        return None
    failed += unfinished
    complete = [unit for unit in units if unit not in unfinished]
    results = None
    if complete:
        context = ReportContext(
            foreground_classes(base),
            _by_loss(failed),
            rules_of(base).to_dict(("dice", "iou", design.metric)),
            plan,
            notes,
            rates,
            tried,
        )
        results = _report(complete, design, context, out, console)
    if failed:
        reasons = "".join(f"\n  {unit.name}: {_reason(unit)}" for unit in failed)
        raise UnitsFailed(
            f"{len(failed)} of {len({*units, *failed})} units failed:{reasons}\n"
            "fix the cause and run the same command again",
            map(failure_code, failed),
            results,
        )
    return results


def _warn_before_training(units: Sequence[Unit], design: Design, base: Config, console: Console) -> list[str]:
    """Print and return warnings about losses that are the same function and about scoring rules."""
    losses = {label: config_of(units, label).loss for label in design.losses}
    notes = same_functions(losses, build_labels(base))
    if base.evaluation.rules != SEGKIT.name:
        notes.append(
            f"evaluation.rules: {base.evaluation.rules} applies to reports of single runs only; the comparison uses "
            f"segkit's rules, by which missed structures count, and comparison.aggregation: {design.aggregation}"
        )
    for note in notes:
        warn(note, console)
    return notes


def _reason(unit: Unit) -> str:
    return failure(unit) or f"it did not finish and recorded no error; see {unit.folder}"


def _by_loss(failed: Sequence[Unit]) -> dict[str, dict[str, str]]:
    """For each loss, the names of its failed units and the reason."""
    reasons: dict[str, dict[str, str]] = {}
    for unit in failed:
        reasons.setdefault(unit.loss, {})[unit.name] = _reason(unit)
    return reasons


def _report(
    units: Sequence[Unit], design: Design, context: ReportContext, out: Path, console: Console
) -> dict[str, Any] | None:
    """Write the report, unless another process is writing it."""
    with Leases().acquire(out / "report") as acquired:
        if acquired:
            return report(units, design, context, out, console)
        console.print(f"another process is writing the report of {out}", markup=False)
        return None


def report(
    units: Sequence[Unit], design: Design, context: ReportContext, out: Path, console: Console
) -> dict[str, Any]:
    """Write the long table of finished units, analyse it, write the pages and return the content of comparison.json."""
    table = pd.concat([unit_rows(unit, design.metric) for unit in units], ignore_index=True)
    write_table(out / "cases.csv", table)
    write_table(out / RUNS, runs_table(units, out))
    logs = {unit: Run(unit.folder).records() for unit in units}
    incomplete = [unit.name for unit, records in logs.items() if not is_complete(unit, records)]
    if incomplete:
        note = f"log.jsonl of {listed(incomplete)} is damaged or incomplete: curves and training warnings lack it"
        warn(note, console)
        context = replace(context, notes=[*context.notes, note])
    by_loss = {loss: [records for unit, records in logs.items() if unit.loss == loss] for loss in design.losses}
    stopped = stopped_by_max_steps([unit_scores(unit) for unit in units])
    context = replace(context, notes=[*context.notes, *stopped, *unequal_steps(by_loss), *log_warnings(by_loss)])
    analysis = Analysis(
        *(design.metric, design.aggregation, design.baseline),
        *(design.margin, design.family, design.repeated_baseline, design.test_train_ratio),
    )
    return write_comparison(table, out, analysis, context, lambda scores: gather(logs, scores), console)


def _executor(options: CompareOptions, design: Design) -> Executor:
    if options.engine not in EXECUTORS:
        raise ConfigError(f"expected --engine to be one of {', '.join(EXECUTORS)}, got {options.engine}")
    executor = EXECUTORS[options.engine](options.parallel, wait=options.wait)
    if design.minutes is not None and executor.parallel > 1:
        raise ConfigError(
            "with comparison.minutes, units must be trained one at a time to have a fair budget: use --parallel 1"
        )
    return executor


def print_units(units: Sequence[Unit], parallel: int, console: Console) -> None:
    """Print the units of a comparison with their state, and an estimate of the remaining training time."""
    states = [_state(unit) for unit in units]
    for unit, state in zip(units, states, strict=True):
        console.print(f"{state:9} {unit.name:40} {unit.folder}", markup=False, highlight=False, soft_wrap=True)
    finished_units = [unit for unit, state in zip(units, states, strict=True) if state == "finished"]
    remaining = len(units) - len(finished_units)
    console.print(f"{len(units)} units, {remaining} to be trained", highlight=False)
    if not remaining:
        return
    if not finished_units:
        console.print("the training time can be estimated once the first unit is finished", highlight=False)
        return
    seconds = [load_checkpoint(Run(unit.folder).last)["time"]["training_seconds"] for unit in finished_units]
    minutes = remaining * sum(seconds) / len(seconds) / 60 / min(parallel, remaining)
    console.print(
        f"about {minutes:.2g} minutes of training with {parallel} at a time, estimated from {len(seconds)} finished "
        "units",
        highlight=False,
    )


def _state(unit: Unit) -> str:
    if finished(unit):
        return "finished"
    if failure(unit):
        return "failed"
    return "started" if unit.folder.exists() else "-"
