"""The options of `segkit train` and `segkit predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import ConfigOption, DeviceOption, Overrides


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
) -> None:
    """Train a network, then evaluate its last checkpoint."""
    from rich.console import Console

    from segkit.commands.train import train as run

    run(config, overrides or [], resume=resume, allow=allow or [], overfit=overfit, console=Console())


def predict(
    checkpoint: Annotated[Path, typer.Option(help="Run folder (its last.pt is used), or a .pt file.")],
    input: Annotated[
        Path,
        typer.Option(
            help="Image, folder of images, folder with the layout of the training data, table, or dataset.json."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the predicted masks.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="evaluation.window=[256,256], evaluation.overlap=0.25 or evaluation.threshold=0.3."),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Write a predicted mask for each image, on the image's own grid."""
    from rich.console import Console

    from segkit.commands.predict import predict as run

    run(checkpoint, input, output, overrides or [], device=device, console=Console())
