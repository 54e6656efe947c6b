"""The commands `segkit model ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import ConfigOption, Overrides

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
    written: Annotated[Path | None, typer.Option("--json", help="JSON file for the numbers.")] = None,
) -> None:
    """Print stages, parameters, multiply-adds and the memory of a training step of a configuration's network."""
    from rich.console import Console

    from segkit.commands import model as commands

    commands.summary(config, overrides or [], channels=channels, written=written, console=Console())
