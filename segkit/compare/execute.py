"""The verb `compare`: train every unit that is not finished, gather the long table, analyse and report it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from segkit import assemble, judging, workflow
from segkit import evaluate as evaluation
from segkit.checkpoint import load as load_checkpoint
from segkit.compare.claims import Claims
from segkit.compare.engines import ENGINES, Engine
from segkit.compare.gather import gather
from segkit.compare.guards import same_functions
from segkit.compare.long_table import METRICS
from segkit.compare.plan import (
    SWEEP_SEED,
    Design,
    Unit,
    check_overrides,
    make_design,
    unit_folder,
    unit_overrides,
    write_plan,
)
from segkit.compare.report import Analysis, Told, write_comparison
from segkit.config import Config, ConfigError
from segkit.metrics.policies import SEGKIT, Rules
from segkit.metrics.table import scored
from segkit.runs import Run
from segkit.stopping import Diverged

COLUMNS = ["loss", "seed", "fold"]
FAILED = "failed.json"


class UnitsFailed(Exception):
    """Some units of a comparison ended with an error."""

    exit_code = 1


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, beside the configuration.

    engine: `local` or `ray`. parallel: how many units at once, None for as many as there are GPUs, or else one for
    every four cores.
    """

    out: Path
    engine: str = "local"
    parallel: int | None = None
    dry_run: bool = False


def compare(path: Path, overrides: Sequence[str], asked: Asked, console: Console) -> None:
    """Train every loss with every seed and fold, gather the long table in cases.csv and analyse it.

    A unit that fails does not stop the others; they are listed, in comparison.json too, and in UnitsFailed at the end.
    """
    check_overrides(overrides)
    base = assemble.read(path, overrides)
    design = make_design(base)
    engine = _engine(asked, design)
    first = make_units(path, overrides, design, base, asked.out)
    trials = make_sweep(path, overrides, design, base, asked.out, judged=first[0].part)
    if asked.dry_run:
        print_units([*trials, *first], console)
        return
    labels = assemble.build_labels(base)
    notes = same_functions({label: config_of(first, label).loss for label in design.losses}, labels)
    for note in notes:
        console.print(f"warning: {note}", style="yellow", markup=False, highlight=False)
    done = sum(map(finished, first))
    plan = write_plan(asked.out, design, base, rules_of(base).to_dict(), done)
    for change in plan["changes"]:
        console.print(
            f"the plan was changed after {change['finished_units']} finished units: {'; '.join(change['differences'])}",
            markup=False,
            highlight=False,
        )
    chosen = {}
    if trials:
        engine.run([unit for unit in trials if not finished(unit)], train_unit, console)
        chosen = choose_rates(trials, design)
    units = make_units(path, overrides, design, base, asked.out, chosen) if chosen else first
    left = [unit for unit in units if not finished(unit)]
    if len(left) < len(units):
        console.print(f"finished before: {len(units) - len(left)} of {len(units)} units", highlight=False)
    engine.run(left, train_unit, console)
    failed = {unit: reason for unit in units if (reason := failure(unit)) is not None}
    complete = [unit for unit in units if finished(unit)]
    if complete:
        lost: dict[str, dict[str, str]] = {}
        for unit, reason in failed.items():
            lost.setdefault(unit.loss, {})[unit.name] = reason
        known = Told(foreground_of(base), lost, rules_of(base).to_dict(), plan, notes, chosen)
        report(complete, design, known, asked.out, console)
    if failed:
        told = "".join(f"\n  {unit.name}: {reason}" for unit, reason in failed.items())
        raise UnitsFailed(
            f"{len(failed)} of {len(units)} units failed:{told}\nmend the cause and run the command again"
        )


def report(units: Sequence[Unit], design: Design, told: Told, out: Path, console: Console) -> None:
    """The long table of finished units, what it says, and the pages."""
    table = pd.concat([unit_rows(unit, design.metric) for unit in units], ignore_index=True)
    table.to_csv(out / "cases.csv", index=False)
    analysis = Analysis(design.metric, design.baseline, design.margin, design.family, design.again)
    write_comparison(table, out, analysis, told, lambda scores: gather(units, scores), console)


def _engine(asked: Asked, design: Design) -> Engine:
    engine = ENGINES[asked.engine](asked.parallel)
    if design.minutes is not None and engine.parallel > 1:
        raise ConfigError("comparison.minutes is a fair budget only where units run one at a time: use --parallel 1")
    return engine


def make_units(
    path: Path, overrides: Sequence[str], design: Design, base: Config, out: Path, rates: dict[str, float] | None = None
) -> list[Unit]:
    """Every loss with every seed and fold: these go round before losses do, so that a part is a fair comparison.

    rates: the learning rate of each loss, where one was chosen. Raises ConfigError if the configuration does not fit
    one of the losses, before anything is trained.
    """
    units = []
    for seed in design.seeds:
        for repeat, fold in _folds(design):
            for loss in design.losses:
                own = design.seed_of(loss, seed)
                given = [*overrides, *unit_overrides(design, base, loss, own, repeat, fold, _cache(out))]
                if rates:
                    given.append(f"optimizer.lr={rates[loss]!r}")
                units.append(_unit(path, given, loss, own, repeat * (design.folds or 1) + (fold or 0), out, "units"))
    if not design.folds:
        units = [replace(unit, fold=int(unit.config.split.args.get("fold", 0))) for unit in units]
    return units


def make_sweep(
    path: Path, overrides: Sequence[str], design: Design, base: Config, out: Path, *, judged: str
) -> list[Unit]:
    """One run for each loss and learning rate, on the first fold, judged on the validation part.

    judged: the part that the comparison itself is judged on, which has to be another one.
    """
    if design.sweep is None:
        return []
    repeat, fold = _folds(design)[0]
    units = []
    for loss in design.losses:
        for rate in design.sweep:
            given = unit_overrides(design, base, loss, SWEEP_SEED, repeat, fold, _cache(out))
            given += [f"optimizer.lr={rate!r}", 'evaluation.split="validation"', "evaluation.overlays=false"]
            units.append(replace(_unit(path, [*overrides, *given], loss, SWEEP_SEED, 0, out, "sweep"), lr=rate))
    if judged != "test":
        raise ConfigError(
            f"comparison.sweep chooses learning rates on the validation part, which judges here too ({judged}); use a "
            "split with a test part, or comparison.folds"
        )
    return units


def _cache(out: Path) -> Path:
    """Where units keep the cases that they prepare."""
    return out.absolute() / "cache"


def _folds(design: Design) -> list[tuple[int, int | None]]:
    if design.folds is None:
        return [(0, None)]
    return [(repeat, fold) for repeat in range(design.repeats) for fold in range(design.folds)]


def _unit(path: Path, overrides: Sequence[str], loss: str, seed: int, fold: int, out: Path, kind: str) -> Unit:
    config = assemble.read(path, overrides)
    split = assemble.build_split(config)
    part = judging.evaluated_part(config, split)
    return Unit(loss, seed, fold, part, config, unit_folder(out, loss, config, split.content_hash, kind))


def config_of(units: Sequence[Unit], loss: str) -> Config:
    return next(unit.config for unit in units if unit.loss == loss)


def train_unit(unit: Unit, claims: Claims, since: float, console: Console) -> bool:
    """Train a unit, unless it is finished, has failed since the command was given, or another process is at it, which
    is what False says. How it failed is written into its folder."""
    if finished(unit) or _failed_since(unit, since):
        return True
    with claims.claimed(unit.folder) as ours:
        if not ours:
            return False
        if finished(unit) or _failed_since(unit, since):
            return True
        console.rule(unit.name)
        (unit.folder / FAILED).unlink(missing_ok=True)
        try:
            workflow.run_experiment(unit.config, Run(unit.folder), resume=True, console=console)
        except (ValueError, RuntimeError, MemoryError, Diverged) as error:
            _note_failure(unit, error)
            console.print(f"failed: {error}", style="red", markup=False)
    return True


def _note_failure(unit: Unit, error: BaseException) -> None:
    unit.folder.mkdir(parents=True, exist_ok=True)
    text = str(error) or type(error).__name__
    (unit.folder / FAILED).write_text(json.dumps({"error": text, "when": time.time()}) + "\n")


def failure(unit: Unit) -> str | None:
    """Why a unit failed; None if it did not."""
    file = unit.folder / FAILED
    return json.loads(file.read_text())["error"] if file.exists() else None


def _failed_since(unit: Unit, since: float) -> bool:
    file = unit.folder / FAILED
    return file.exists() and json.loads(file.read_text())["when"] >= since


def choose_rates(trials: Sequence[Unit], design: Design) -> dict[str, float]:
    """For each loss, the learning rate that did best on the validation part. Raises UnitsFailed where none did."""
    chosen, sign = {}, METRICS[design.metric].sign
    for loss in design.losses:
        scores = {}
        for unit in trials:
            if unit.loss == loss and finished(unit):
                score = _scores(unit)["mean"][design.metric]
                scores[unit.lr] = float("-inf") if score is None else sign * score
        if not scores:
            told = "".join(f"\n  {unit.name}: {failure(unit)}" for unit in trials if unit.loss == loss)
            raise UnitsFailed(f"no learning rate of the sweep came to an end for {loss}:{told}")
        chosen[loss] = max(scores, key=scores.__getitem__)
    return chosen


def unit_rows(unit: Unit, metric: str) -> pd.DataFrame:
    """The rows of a finished unit, scored by the one rule of the comparison, whatever the unit itself reports by."""
    folder = Run(unit.folder).evaluation(unit.part)
    table = pd.read_csv(folder / "cases.csv", dtype={"case": str, "group": str})
    rules = rules_of(unit.config)
    table = scored(table, tuple(dict.fromkeys(("dice", "iou", metric))), rules).assign(rules=rules.id)
    for place, (name, value) in enumerate(zip(COLUMNS, (unit.loss, unit.seed, unit.fold), strict=True)):
        table.insert(place, name, value)
    return table


def rules_of(config: Config) -> Rules:
    """The rules that all units of a comparison are scored by, without the classes that are left out."""
    return replace(SEGKIT, exclude_classes=tuple(config.evaluation.exclude_classes))


def foreground_of(config: Config) -> list[str]:
    labels, excluded = assemble.build_labels(config), config.evaluation.exclude_classes
    names = [labels.channel_names[channel] for channel in labels.foreground]
    return [name for name in names if name not in excluded]


def finished(unit: Unit) -> bool:
    """Whether the part that counts was evaluated with the last checkpoint of the whole training."""
    if not (Run(unit.folder).evaluation(unit.part) / "scores.json").is_file():
        return False
    content = _scores(unit)
    scoring = assemble.scoring_of(unit.config, assemble.build_labels(unit.config))
    whole = evaluation.is_of(content, scoring, content["step"])
    run = Run(unit.folder)
    return whole and content["checkpoint"] == str(run.last.relative_to(run.folder))


def _scores(unit: Unit) -> dict[str, Any]:
    return json.loads((Run(unit.folder).evaluation(unit.part) / "scores.json").read_text())


def print_units(units: Sequence[Unit], console: Console) -> None:
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
        mean = sum(seconds) / len(seconds)
        console.print(
            f"about {left * mean / 60:.0f} minutes of training, by {len(seconds)} finished units", highlight=False
        )
    elif left:
        console.print("how long that takes is known once the first unit is finished", highlight=False)
