"""The options of `segkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from segkit.cli.options import DecisionsOption, TtaOption, split_list
from segkit.cli.output import JsonOption, QuietOption, command_output


def export(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="Run folder (its last.pt is used), or a .pt file. Repeat to average, or give a comparison's folder "
            "and --loss."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the network, model.json and MODEL_CARD.md.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, such as data.root=/elsewhere or evaluation.window=[256,256].")
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, or torch for a file of torch.export.")] = "onnx",
    loss: Annotated[
        str | None, typer.Option(help="With a comparison's folder as --checkpoint: all its runs with this loss.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--input", help="Image or folder to compare on [default: validation cases].")
    ] = None,
    size: Annotated[str | None, typer.Option(help="The only image size, such as 256,256 [default: any size].")] = None,
    tta: TtaOption = False,
    decisions: DecisionsOption = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Write a network that runs without segkit, compared with the trained model on real images."""
    from segkit.commands.export import ExportOptions
    from segkit.commands.export import export as run

    if kind not in ("onnx", "torch"):
        raise typer.BadParameter(f"expected --format onnx or torch, got {kind}")
    options = ExportOptions(
        checkpoint,
        cast("Literal['onnx', 'torch']", kind),
        out,
        loss=loss,
        overrides=overrides or [],
        size=_sides(size),
        images=images,
        tta=tta,
        decisions=decisions,
    )
    with command_output(quiet, written) as command:
        command.results = run(options, command.console)


def _sides(text: str | None) -> list[int] | None:
    """`256,256` as numbers."""
    if text is None:
        return None
    try:
        return [int(side) for side in split_list(text)]
    except ValueError as error:
        raise typer.BadParameter(f"expected --size as whole numbers, 256,256, got {text}") from error
