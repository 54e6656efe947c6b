"""The command `segkit list`."""

from __future__ import annotations

from typing import Annotated

import typer

from segkit.cli.output import JsonOption, QuietOption, command_output


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="losses, models, metrics, data, splits, transforms, optimizers, schedules, weights (of loss terms) or "
            "trackers; without it, the number of each."
        ),
    ] = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """List the names that a configuration can use, with what each stands for."""
    from segkit.commands.names import list_names as run

    with command_output(quiet, written) as command:
        command.results = run(kind, command.console)
