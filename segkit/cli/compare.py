"""The options of `segkit compare`, which trains losses and compares them, or analyses a table of scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.cli.options import Overrides, split_list

TRAINING, TABLE = "With --config", "With --from-table"


def compare(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of the experiment.", rich_help_panel=TRAINING)
    ] = None,
    overrides: Overrides = None,
    from_table: Annotated[
        Path | None,
        typer.Option(help="Table of scores (CSV) to analyse; nothing is trained.", rich_help_panel=TABLE),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("comparison"),
    metric: Annotated[str | None, typer.Option(help="dice, iou, nsd, hd95, ... [dice].")] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(help="How scores are averaged: class_case, case_class, groups, present, global, micro."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Compare every loss with this one [all pairs].")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Differences within +- this margin count as equivalent [0.005].")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Pairs to adjust p-values over: all_pairs or vs_baseline.")] = None,
    losses: Annotated[
        str | None, typer.Option(help="Comma-separated losses or recipes.", rich_help_panel=TRAINING)
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs per loss [3]; conclusions about losses need at least 3.", rich_help_panel=TRAINING
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Number of cross-validation folds.", rich_help_panel=TRAINING)
    ] = None,
    noise_floor: Annotated[
        bool,
        typer.Option("--noise-floor", help="Train the baseline twice to measure chance.", rich_help_panel=TRAINING),
    ] = False,
    engine: Annotated[str, typer.Option(help="local or ray.", rich_help_panel=TRAINING)] = "local",
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at the same time [number of GPUs, or a quarter of the cores].", rich_help_panel=TRAINING
        ),
    ] = None,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Exit when only runs of other processes are left.", rich_help_panel=TRAINING),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their expected time.", rich_help_panel=TRAINING)
    ] = False,
    missing: Annotated[
        str | None,
        typer.Option(help="Score for missing values: perfect or worst [error].", rich_help_panel=TABLE),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes to average over [all but background].", rich_help_panel=TABLE)
    ] = None,
) -> None:
    """Train each loss with several seeds under equal conditions and test which differences are real.

    Options left out here are taken from the section `comparison` of the configuration.
    """
    analysis = {
        "metric": metric,
        "aggregation": aggregation,
        "baseline": baseline,
        "margin": margin,
        "family": family,
    }
    training = {
        "--config": config,
        "--losses": losses,
        "--seeds": seeds,
        "--folds": folds,
        "--noise-floor": noise_floor,
        "--parallel": parallel,
        "--no-wait": no_wait,
        "--dry-run": dry_run,
        "--engine": engine != "local",
    }
    if from_table is not None:
        unused = [name for name, value in training.items() if value] + list(overrides or [])
        if unused:
            raise typer.BadParameter(f"{unused[0]} cannot be used with --from-table, which trains nothing")
        _analyse_table(from_table, out, analysis | {"missing": missing}, classes)
        return
    if missing is not None or classes is not None:
        raise typer.BadParameter("--missing and --classes can only be used with --from-table")
    if config is None:
        raise typer.BadParameter("give --config or --from-table")
    section = analysis | {
        "losses": None if losses is None else losses.split(","),
        "seeds": seeds,
        "folds": folds,
        "noise_floor": noise_floor or None,
    }
    chosen = [f"comparison.{key}={json.dumps(value)}" for key, value in section.items() if value is not None]
    _train_and_compare(config, [*(overrides or []), *chosen], out, engine, parallel, dry_run, not no_wait)


def _analyse_table(table: Path, out: Path, settings: Mapping[str, Any], classes: str | None) -> None:
    from rich.console import Console

    from segkit.compare.analysis import Analysis, compare_table

    analysis = Analysis(**{name: value for name, value in settings.items() if value is not None})
    compare_table(table, out, analysis, Console(), split_list(classes) if classes else None)


def _train_and_compare(config: Path, overrides: list[str], *options: Any) -> None:
    from rich.console import Console

    from segkit.commands.compare import CompareOptions
    from segkit.commands.compare import compare as run

    run(config, overrides, CompareOptions(*options), Console())
