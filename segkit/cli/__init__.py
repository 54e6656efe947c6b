"""The `segkit` command. Heavy imports stay inside the functions to keep --help fast."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit._version import VERSION
from segkit.cli.compare import compare
from segkit.cli.config import config_app
from segkit.cli.data import data_app
from segkit.cli.doctor import doctor
from segkit.cli.evaluate import evaluate
from segkit.cli.export import export
from segkit.cli.imports import import_app
from segkit.cli.model import model_app
from segkit.cli.names import list_names
from segkit.cli.plugins import plugins
from segkit.cli.predict import predict
from segkit.cli.train import train
from segkit.cli.tune import tune
from segkit.utils.exit_codes import BUG, OUT_OF_MEMORY, USAGE, describe, exit_code

DEBUG = "--debug"
PACKAGE = Path(__file__).parents[1]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, evaluate, predict, tune, export, compare, plugins, doctor):
    app.command()(command)
app.command(name="list")(list_names)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.add_typer(import_app, name="import")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"segkit {VERSION}")
        raise typer.Exit


@app.callback()
def segkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[  # taken from anywhere on the command line by `main`
        bool, typer.Option(DEBUG, help="Print the traceback of every error; may also follow a command.")
    ] = False,
) -> None:
    """Train segmentation networks, evaluate checkpoints, and find out which losses really differ."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. An error becomes a message and an exit code; the traceback of a bug goes to a file.

    With --debug anywhere among the arguments, the traceback of any error is printed too.
    """
    warnings.showwarning = show_warning
    given = list(arguments) if arguments is not None else sys.argv[1:]
    try:
        app(args=[text for text in given if text != DEBUG])
    except Exception as error:
        if DEBUG in given:
            traceback.print_exception(error)
        try:
            _report(error)
        except MemoryError:
            os.write(sys.stderr.fileno(), b"error: out of memory\n")
            sys.exit(OUT_OF_MEMORY)


def _report(error: Exception) -> None:
    """Print the message of an error and exit."""
    code = exit_code(error)
    duplicate = code == USAGE and os.environ.get("RANK", "0") != "0"  # every process reports the same
    if not duplicate and not getattr(error, "silent", False):
        typer.echo(f"error: {describe(error)}", err=True)
    sys.exit(BUG if code is None else code)


def show_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """Print segkit's own warnings without a line of code: they are about the user's data and settings."""
    is_own = Path(filename).is_relative_to(PACKAGE)
    text = f"warning: {message}" if is_own else warnings.formatwarning(message, category, filename, lineno).rstrip()
    typer.echo(text, err=True)
