"""The options of `segkit predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import DecisionsOption, DeviceOption, TtaOption
from segkit.cli.output import JsonOption, QuietOption, command_output

WRITTEN = "Written beside the masks"


def predict(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="Run folder (its last.pt is used), or a .pt file. Repeat to average, or give a comparison's folder "
            "and --loss."
        ),
    ],
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
    loss: Annotated[
        str | None,
        typer.Option(help="With a comparison's folder as --checkpoint: average all its runs with this loss."),
    ] = None,
    tta: TtaOption = False,
    decisions: DecisionsOption = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing", help="Keep the masks that exist, to continue, or to share images with other processes."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict images again whose masks exist.")] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="The probability of each class, as NIfTI or NPZ.", rich_help_panel=WRITTEN
        ),
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="The entropy of each pixel and, of several checkpoints or with --tta, their disagreement.",
            rich_help_panel=WRITTEN,
        ),
    ] = False,
    overlays: Annotated[
        bool,
        typer.Option("--overlays", help="A picture of each image with its classes.", rich_help_panel=WRITTEN),
    ] = False,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Write a predicted mask for each image, on the image's own grid."""
    from segkit.commands.predict import PredictOptions
    from segkit.commands.predict import predict as run

    options = PredictOptions(
        checkpoint,
        input,
        output,
        loss=loss,
        overrides=overrides or [],
        device=device,
        tta=tta,
        decisions=decisions,
        probabilities=probabilities,
        uncertainty=uncertainty,
        overlays=overlays,
        skip_existing=skip_existing,
        overwrite=overwrite,
    )
    with command_output(quiet, written) as command:
        command.results = run(options, command.console)
