"""The options of `segkit tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import DeviceOption, TtaOption


def tune(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="Run folder (its last.pt is used), or a .pt file. Repeat to tune them as one model, or give a "
            "comparison's folder and --loss."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, such as data.root=/elsewhere or evaluation.window=[256,256].")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="With a comparison's folder as --checkpoint: all its runs with this loss.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="By which masks are judged: dice, iou, boundary_iou, nsd, hd95 or assd.")
    ] = "dice",
    tta: TtaOption = False,
    out: Annotated[
        Path | None, typer.Option(help="File for the decisions [default: last.decisions.json beside the checkpoint].")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Choose thresholds, temperature and post-processing on the validation cases.

    Written are all choices; applied by predict and evaluate are those that gain more than chance.
    """
    from rich.console import Console

    from segkit.commands.tune import tune as run

    run(checkpoint, overrides or [], loss=loss, metric=metric, tta=tta, out=out, device=device, console=Console())
