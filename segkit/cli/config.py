"""The commands `segkit config ...`."""

from __future__ import annotations

import sys

import typer

from segkit.cli.options import ConfigOption, Overrides

config_app = typer.Typer(help="Show, check and list configurations.", no_args_is_help=True, rich_markup_mode=None)


@config_app.command("show")
def show(config: ConfigOption, overrides: Overrides = None) -> None:
    """Print the resolved configuration with every default filled in."""
    from segkit.config import dump
    from segkit.experiment.build import load_config

    dump(load_config(config, overrides or []), sys.stdout)


@config_app.command("validate")
def validate(config: ConfigOption, overrides: Overrides = None) -> None:
    """Check a configuration and list all of its errors."""
    from segkit.experiment.build import load_config

    checked = load_config(config, overrides or [])
    typer.echo(f"{config}: valid, digest {checked.digest()}")


@config_app.command("list")
def list_shipped() -> None:
    """List the shipped configurations, which --config accepts by name."""
    from segkit.config.shipped import shipped_configs

    configs = shipped_configs()
    width = max(map(len, configs), default=0)
    for name, file in configs.items():
        comment = file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        typer.echo(f"{name:<{width}} {comment}")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON schema of configurations."""
    import json

    from segkit.config import schema as json_schema
    from segkit.experiment.build import TABLES

    typer.echo(json.dumps(json_schema(TABLES), indent=2))
