"""The options of `segkit train`."""

from __future__ import annotations

from typing import Annotated

import typer

from segkit.cli.options import ConfigOption, Overrides
from segkit.cli.output import JsonOption, QuietOption, command_output


def train(
    config: ConfigOption,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="Configuration key that may differ from the run being resumed.")
    ] = None,
    overfit: Annotated[
        int | None,
        typer.Option(min=1, help="Overfit this number of fixed batches without augmentation, as a sanity check."),
    ] = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Train a network, then evaluate its last checkpoint."""
    from segkit.commands.train import train as run

    with command_output(quiet, written) as out:
        changes = {"resume": resume, "allow": allow or [], "overfit": overfit}
        scores, folder = run(config, overrides or [], **changes, console=out.console)
        out.results = {"run": str(folder), "scores": scores}
