"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.completion import complete_config, complete_override

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="YAML file, or the name of a shipped configuration.", autocompletion=complete_config
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Configuration overrides, such as train.steps=100.", autocompletion=complete_override),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps [default: as in the checkpoint].")]

TtaOption = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Average over the flips and right-angle turns that the training allowed (test-time augmentation).",
    ),
]

DecisionsOption = Annotated[
    str | None,
    typer.Option(
        help="File of segkit tune to apply, or none [default: the one beside a single checkpoint].",
    ),
]


def split_list(text: str) -> list[str]:
    """`a, b` as a list of names."""
    return [part.strip() for part in text.split(",")]
