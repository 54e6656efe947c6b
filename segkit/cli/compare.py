"""Command-line options of `segkit compare`, which trains and compares losses or analyses a table of scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segkit.cli.completion import complete_config
from segkit.cli.options import Overrides, split_list
from segkit.cli.output import JsonOption, QuietOption, command_output

if TYPE_CHECKING:
    from rich.console import Console

TRAINING, TABLE = "With --config", "With --from-table"


def compare(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="YAML file of the experiment.",
            rich_help_panel=TRAINING,
            autocompletion=complete_config,
        ),
    ] = None,
    overrides: Overrides = None,
    from_table: Annotated[
        Path | None,
        typer.Option(help="Table of scores (CSV) to analyse; nothing is trained.", rich_help_panel=TABLE),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("comparison"),
    metric: Annotated[str | None, typer.Option(help="Metric: dice, iou, nsd, hd95, ... [dice].")] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(help="The average: class_case, case_class, groups, absent_perfect, global or micro [class_case]."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Compare every loss with this one [all pairs].")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Differences within +- this margin are practically equivalent [0.005].")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Pairs to compare: all_pairs or vs_baseline [vs_baseline with --baseline].")
    ] = None,
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
        typer.Option(
            "--noise-floor",
            help="Train the baseline with a second set of seeds to measure random variation.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    engine: Annotated[str, typer.Option(help="Where to train: local or ray.", rich_help_panel=TRAINING)] = "local",
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of runs to train at a time [number of GPUs, or a quarter of the CPU cores].",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait",
            help="Exit instead of waiting for runs that other processes are training.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and estimate the training time.", rich_help_panel=TRAINING)
    ] = False,
    missing: Annotated[
        str | None,
        typer.Option(
            help="Meaning of missing values: absent, perfect or worst [refuse the table].", rich_help_panel=TABLE
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Comma-separated classes to average over [all except background].", rich_help_panel=TABLE),
    ] = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Train each loss with several seeds under equal conditions and test which differences are significant.

    Options that are not given are taken from the section `comparison` of the configuration.
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
            raise typer.BadParameter(f"{unused[0]} cannot be combined with --from-table, because nothing is trained")
        with command_output(quiet, written) as command:
            command.results = _analyse_table(from_table, out, analysis | {"missing": missing}, classes, command.console)
        return
    if missing is not None or classes is not None:
        raise typer.BadParameter("--missing and --classes need --from-table")
    if config is None:
        raise typer.BadParameter("expected --config or --from-table")
    section = analysis | {
        "losses": None if losses is None else losses.split(","),
        "seeds": seeds,
        "folds": folds,
        "noise_floor": noise_floor or None,
    }
    chosen = [f"comparison.{key}={json.dumps(value)}" for key, value in section.items() if value is not None]
    from segkit.commands.compare import CompareOptions
    from segkit.commands.compare import compare as run

    options = CompareOptions(out, engine, parallel, dry_run, not no_wait)
    with command_output(quiet, written) as command:
        command.results = run(config, [*(overrides or []), *chosen], options, command.console)


def _analyse_table(
    table: Path, out: Path, settings: Mapping[str, Any], classes: str | None, console: Console
) -> dict[str, Any]:
    from segkit.compare.analysis import Analysis, compare_table

    analysis = Analysis(**{name: value for name, value in settings.items() if value is not None})
    return compare_table(table, out, analysis, console, split_list(classes) if classes else None)
