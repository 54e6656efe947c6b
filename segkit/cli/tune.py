"""The options of `segkit tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import DeviceOption, TtaOption
from segkit.cli.output import JsonOption, QuietOption, command_output


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
        str, typer.Option(help="Metric by which masks are scored: dice, iou, boundary_iou, nsd, hd95 or assd.")
    ] = "dice",
    tta: TtaOption = False,
    out: Annotated[
        Path | None, typer.Option(help="File for the decisions [default: last.decisions.json beside the checkpoint].")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Choose thresholds, temperature and post-processing on the validation cases.

    Written are all choices; applied by predict and evaluate are those that gain more than chance.
    """
    from segkit.commands.tune import tune as run

    chosen = {"loss": loss, "metric": metric, "tta": tta, "out": out, "device": device}
    with command_output(quiet, written) as command:
        command.results = run(checkpoint, overrides or [], **chosen, console=command.console).model_dump(mode="json")
