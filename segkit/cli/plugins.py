"""The command `segkit plugins`."""

from __future__ import annotations

from typing import Annotated

import typer


def plugins(
    modules: Annotated[
        list[str] | None, typer.Argument(help="Modules to inspect in addition to the installed plugins.")
    ] = None,
) -> None:
    """List plugins and the losses, networks and data sources that they provide."""
    from segkit.experiment.plugins import describe_plugins

    described = describe_plugins(modules or [])
    if not described:
        typer.echo("no plugins are installed; a configuration names modules under `plugins`")
    for plugin in described:
        provided = "; ".join(f"{table}: {', '.join(names)}" for table, names in plugin.entries.items())
        typer.echo(f"{plugin.module}  {provided if plugin.error is None else f'error: {plugin.error}'}")
    if any(plugin.error for plugin in described if plugin.module in (modules or [])):
        raise typer.Exit(2)
