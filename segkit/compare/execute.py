"""Run the units of a comparison on this machine, one after another; a finished unit is never run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from segkit import assemble, judging, workflow
from segkit import evaluate as evaluation
from segkit.compare.plan import Unit, check_losses, check_overrides, unit_folder
from segkit.compare.report import Analysis, write_comparison
from segkit.config import Config
from segkit.metrics.policies import SEGKIT, Rules
from segkit.metrics.table import scored
from segkit.runs import Run
from segkit.stopping import Diverged, Interrupted

COLUMNS = ["loss", "seed", "fold"]


class UnitsFailed(Exception):
    """Some units of a comparison ended with an error."""

    exit_code = 1


def compare(
    path: Path,
    overrides: Sequence[str],
    losses: Sequence[str],
    seeds: int,
    out: Path,
    analysis: Analysis,
    console: Console,
) -> None:
    """Train every loss with every seed, gather the long table in cases.csv and analyse it in comparison.json.

    A unit that fails does not stop the others; they are listed, in comparison.json too, and in UnitsFailed at the end.
    """
    units = make_units(path, overrides, check_losses(losses, analysis.baseline), seeds, out)
    table, failed = execute(units, console)
    told = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
    if table is not None:
        table.to_csv(out / "cases.csv", index=False)
        labels = assemble.build_labels(units[0].config)
        excluded = units[0].config.evaluation.exclude_classes
        names = [labels.channel_names[channel] for channel in labels.foreground]
        foreground = [name for name in names if name not in excluded]
        write_comparison(table, out, analysis, foreground, console, failed, rules_of(units[0].config).to_dict())
    if failed:
        raise UnitsFailed(
            f"{len(failed)} of {len(units)} units failed:{told}\nmend the cause and run the command again"
        )


def make_units(path: Path, overrides: Sequence[str], losses: Sequence[str], seeds: int, out: Path) -> list[Unit]:
    """Every loss with seeds 0 to `seeds` - 1: seeds go round before losses do, so that a part is a fair comparison.

    Raises ConfigError if the configuration does not fit one of the losses, before anything is trained.
    """
    check_overrides(overrides)
    units = []
    for seed in range(seeds):
        for loss in losses:
            config = assemble.read(path, [*overrides, f"loss={loss}", f"seed={seed}"])
            split = assemble.build_split(config)
            part = judging.evaluated_part(config, split)
            folder = unit_folder(out, loss, config, split.content_hash)
            units.append(Unit(loss, seed, int(config.split.args.get("fold", 0)), part, config, folder))
    return units


def execute(units: Sequence[Unit], console: Console) -> tuple[pd.DataFrame | None, dict[str, str]]:
    """Train and evaluate what is not finished. Returns the long table of the units that did, and why others did not."""
    tables, failed = [], {}
    for number, unit in enumerate(units, 1):
        console.rule(f"{unit.loss}, seed {unit.seed} ({number} of {len(units)})")
        try:
            tables.append(run_unit(unit, console))
        except Interrupted:
            raise
        except (ValueError, RuntimeError, Diverged) as error:
            failed[f"{unit.loss}, seed {unit.seed}"] = str(error)
            console.print(f"failed: {error}", style="red", markup=False)
    return (pd.concat(tables, ignore_index=True) if tables else None), failed


def run_unit(unit: Unit, console: Console) -> pd.DataFrame:
    """The rows of one unit, trained now, continued where it was interrupted, or read if it is finished."""
    run = Run(unit.folder)
    folder = run.evaluation(unit.part)
    if finished(unit):
        console.print(f"finished before: {unit.folder}", markup=False)
    else:
        workflow.run_experiment(unit.config, run, resume=True, console=console)
    table = pd.read_csv(folder / "cases.csv", dtype={"case": str, "group": str})
    # whatever rules the unit reports by, all units of a comparison are scored by one
    rules = rules_of(unit.config)
    table = scored(table, ("dice", "iou"), rules).assign(rules=rules.id)
    for place, (name, value) in enumerate(zip(COLUMNS, (unit.loss, unit.seed, unit.fold), strict=True)):
        table.insert(place, name, value)
    return table


def rules_of(config: Config) -> Rules:
    """The rules that all units of a comparison are scored by, without the classes that are left out."""
    return replace(SEGKIT, exclude_classes=tuple(config.evaluation.exclude_classes))


def finished(unit: Unit) -> bool:
    """Whether the part that counts was evaluated with the last checkpoint of the whole training."""
    run = Run(unit.folder)
    scores = run.evaluation(unit.part) / "scores.json"
    if not scores.is_file():
        return False
    content = json.loads(scores.read_text())
    scoring = assemble.scoring_of(unit.config, assemble.build_labels(unit.config))
    whole = evaluation.is_of(content, scoring, content["step"])
    return whole and content["checkpoint"] == str(run.last.relative_to(run.folder))
