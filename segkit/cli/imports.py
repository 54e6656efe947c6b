"""The commands `segkit import ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import_app = typer.Typer(help="Take over the settings of other tools.", no_args_is_help=True, rich_markup_mode=None)


@import_app.callback()
def imports() -> None:
    """Take over the settings of other tools."""


@import_app.command("nnunet")
def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder with plans and dataset.json: in nnUNet_preprocessed, or of a trained model."),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder in nnUNet_raw with imagesTr and labelsTr [default: FOLDER].")
    ] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Configuration of the plans [default: 3d_fullres, or 2d].")
    ] = None,
    plans: Annotated[str | None, typer.Option(help="Name of the plans, if the folder has several.")] = None,
    fold: Annotated[int, typer.Option(min=0, help="Fold of splits_final.json.")] = 0,
    out: Annotated[Path, typer.Option(help="Configuration to write.")] = Path("nnunet.yaml"),
) -> None:
    """Write a configuration that trains as nnU-Net would by its plans."""
    from rich.console import Console

    from segkit.commands.import_plans import import_nnunet as run

    options = {"images": images, "configuration": configuration, "plans": plans, "fold": fold}
    run(folder, out, **options, console=Console())
