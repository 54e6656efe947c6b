"""The commands `segkit model ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from segkit.cli.options import ConfigOption, Overrides
from segkit.cli.output import JsonOption, QuietOption, command_output

model_app = typer.Typer(help="Describe networks.", no_args_is_help=True, rich_markup_mode=None)


@model_app.callback()
def model() -> None:
    """Describe networks."""


@model_app.command("summary")
def model_summary(
    config: ConfigOption,
    overrides: Overrides = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Image channels [default: as in the first case, which is read].")
    ] = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Print stages, parameters, multiply-adds and the memory of a training step of a configuration's network."""
    from segkit.commands import model as commands

    with command_output(quiet, written) as out:
        out.results = commands.summary(config, overrides or [], channels=channels, console=out.console).to_json()
