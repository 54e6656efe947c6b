"""Run the units of a comparison on this machine, one after another; a finished unit is never run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from segkit import assemble, workflow
from segkit.compare.plan import Unit, check_losses, unit_folder
from segkit.compare.report import Analysis, write_comparison
from segkit.runs import Run

COLUMNS = ["loss", "seed", "fold"]


def compare(
    path: Path,
    overrides: Sequence[str],
    losses: Sequence[str],
    seeds: int,
    out: Path,
    analysis: Analysis,
    console: Console,
) -> None:
    """Train every loss with every seed, gather the long table in cases.csv and analyse it in comparison.json."""
    units = make_units(path, overrides, losses, seeds, out)
    table = execute(units, console)
    table.to_csv(out / "cases.csv", index=False)
    labels = assemble.build_labels(units[0].config)
    foreground = [labels.channel_names[channel] for channel in labels.foreground]
    write_comparison(table, out, analysis, foreground, console)


def make_units(path: Path, overrides: Sequence[str], losses: Sequence[str], seeds: int, out: Path) -> list[Unit]:
    """Every loss with seeds 0 to `seeds` - 1: seeds go round before losses do, so that a part is a fair comparison.

    Raises ConfigError if the configuration does not fit one of the losses, before anything is trained.
    """
    units = []
    for seed in range(seeds):
        for loss in check_losses(losses):
            config = assemble.read(path, [*overrides, f"loss={loss}", f"seed={seed}"])
            fold = int(config.split.args.get("fold", 0))
            units.append(Unit(loss, seed, fold, config, unit_folder(out, loss, config)))
    return units


def execute(units: Sequence[Unit], console: Console) -> pd.DataFrame:
    """Train and evaluate what is not finished, and gather the long table of all units."""
    tables = []
    for number, unit in enumerate(units, 1):
        console.rule(f"{unit.loss}, seed {unit.seed} ({number} of {len(units)})")
        tables.append(run_unit(unit, console))
    return pd.concat(tables, ignore_index=True)


def run_unit(unit: Unit, console: Console) -> pd.DataFrame:
    """The rows of one unit, trained now, continued where it was interrupted, or read if it is finished."""
    run = Run(unit.folder)
    finished = sorted(unit.folder.glob("evaluation/*/scores.json"))
    if not finished:
        workflow.run_experiment(unit.config, run, resume=True, console=console)
        finished = sorted(unit.folder.glob("evaluation/*/scores.json"))
    else:
        console.print(f"finished before: {unit.folder}")
    table = pd.read_csv(finished[0].parent / "cases.csv", dtype={"case": str, "group": str})
    for place, (name, value) in enumerate(zip(COLUMNS, (unit.loss, unit.seed, unit.fold), strict=True)):
        table.insert(place, name, value)
    return table
