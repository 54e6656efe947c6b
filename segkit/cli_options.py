"""Options that several verbs of the command line have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The YAML file of the experiment.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to it: key=value, for instance train.steps=100.")]
