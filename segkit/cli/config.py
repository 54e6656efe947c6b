"""The commands `segkit config ...`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.cli.completion import complete_config
from segkit.cli.options import ConfigOption, Overrides

config_app = typer.Typer(help="Show, check and list configurations.", no_args_is_help=True, rich_markup_mode=None)


OriginsOption = Annotated[bool, typer.Option("--origins", help="Print one line per value, with where it comes from.")]
Compared = Annotated[
    str,
    typer.Argument(help="YAML file, name of a shipped configuration, or run folder.", autocompletion=complete_config),
]


@config_app.command("show")
def show(config: ConfigOption, origins: OriginsOption = False, overrides: Overrides = None) -> None:
    """Print the resolved configuration with every default filled in."""
    from segkit.config import dump
    from segkit.config.origins import origins as origins_of
    from segkit.config.shipped import config_file
    from segkit.experiment.build import load_config

    checked = load_config(config, overrides or [])
    if not origins:
        dump(checked, sys.stdout)
        return
    found = origins_of(checked, config_file(config), overrides or [])
    _print_columns([(key, _text(value), origin) for key, value, origin in found])


@config_app.command("diff")
def diff(first: Compared, second: Compared) -> None:
    """Print the values in which two configurations differ, and whether they are the same experiment."""
    from segkit.config.origins import differing
    from segkit.experiment.build import load_config

    configs = [load_config(_config_of(name), []) for name in (first, second)]
    digests = [config.digest() for config in configs]
    rows = [(key, _text(before), _text(after)) for key, before, after in differing(*configs)]
    _print_columns([("", first, second), *rows] if rows else [])
    same = "the same experiment" if digests[0] == digests[1] else "different experiments"
    typer.echo(f"{len(rows)} differences; {same}, hashes {digests[0]} and {digests[1]}")


def _config_of(name: str) -> Path:
    """The configuration of a run folder, or the name of a file or shipped configuration."""
    return Path(name) / "config.yaml" if Path(name).is_dir() else Path(name)


def _text(value: Any) -> str:
    """A value as in YAML, on one line; a dash where there is none."""
    import json

    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_columns(rows: Sequence[tuple[str, str, str]]) -> None:
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for first, second, third in rows:
        typer.echo(f"{first:<{widths[0]}}  {second:<{widths[1]}}  {third}")


@config_app.command("validate")
def validate(config: ConfigOption, overrides: Overrides = None) -> None:
    """Check a configuration and list all of its errors."""
    from segkit.experiment.build import load_config

    checked = load_config(config, overrides or [])
    typer.echo(f"{config}: valid, hash {checked.digest()}")


@config_app.command("list")
def list_shipped() -> None:
    """List the shipped configurations, which --config accepts by name."""
    from segkit.config.shipped import shipped_configs

    configs = shipped_configs()
    width = max(map(len, configs), default=0) + 2
    for name, file in configs.items():
        comment = file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        columns = shutil.get_terminal_size().columns
        text = textwrap.fill(comment, columns, initial_indent=f"{name:<{width}}", subsequent_indent=" " * width)
        typer.echo(text)


@config_app.command("schema")
def schema(
    out: Annotated[Path | None, typer.Option(help="File to write [default: standard output].")] = None,
) -> None:
    """Print the JSON Schema of configuration files, with which editors complete and check them."""
    from segkit.experiment.plugins import load_plugins
    from segkit.experiment.schema_file import schema_text

    load_plugins([])  # those that are installed
    if out is None:
        typer.echo(schema_text(), nl=False)
    else:
        from segkit.utils.files import replace_text

        replace_text(out, schema_text())
        typer.echo(f"written to {out}; files beside it name it by the line # yaml-language-server: $schema={out.name}")
