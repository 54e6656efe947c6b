"""The options of `segkit evaluate`, which scores checkpoints or folders of predicted masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from segkit.cli.options import DecisionsOption, DeviceOption, TtaOption, split_list
from segkit.cli.output import JsonOption, QuietOption, command_output

if TYPE_CHECKING:
    from segkit.data.mask_encoding import MaskEncoding
    from segkit.labels import Labels, Mode

CHECKPOINTS, PREDICTIONS = "With --checkpoint", "With --predictions"


def evaluate(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run folder (its last.pt is used), or a .pt file, which needs --out. Repeat to compare, or to average "
            "with --ensemble."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, such as evaluation.metrics=[hd95] or data.root=/elsewhere.")
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="Folder of masks predicted by any tool.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated names, such as dice,hd95,nsd.")] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            help="Scoring rules (empty classes, averaging): segkit, nnunet, monai, torchmetrics, mmseg, smp, "
            "metrics_reloaded, brats2023."
        ),
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Classes to leave out of tables and means; their pixels still count.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(min=0, help="NSD tolerance in mm, or in pixels for 2D.")] = None,
    lesion_matching: Annotated[
        str | None, typer.Option(help="How lesions are matched: overlap, iou or brats [default: as in the rules].")
    ] = None,
    connectivity: Annotated[
        str | None, typer.Option(help="Of components: full (corners connect) or direct [default: as in the rules].")
    ] = None,
    size_strata: Annotated[
        str | None,
        typer.Option(
            help="Scores by size in the reference: a number of strata, or bounds such as 1,10 in ml (mm² in 2D)."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder [default: the run folder].")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, validation or test [default: as in the run].", rich_help_panel=CHECKPOINTS),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Evaluate all cases of another folder with the same layout.", rich_help_panel=CHECKPOINTS),
    ] = None,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble",
            help="Evaluate the checkpoints as one model: the mean of their probabilities; of a cross-validation, each "
            "case by the checkpoints of its fold.",
            rich_help_panel=CHECKPOINTS,
        ),
    ] = False,
    loss: Annotated[
        str | None,
        typer.Option(
            help="With a comparison's folder as --checkpoint: the ensemble of all its runs with this loss.",
            rich_help_panel=CHECKPOINTS,
        ),
    ] = None,
    tta: TtaOption = False,
    decisions: DecisionsOption = None,
    device: DeviceOption = None,
    references: Annotated[
        Path | None, typer.Option(help="Folder of the reference masks.", rich_help_panel=PREDICTIONS)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names in the order of their numbers: background,a,b.", rich_help_panel=PREDICTIONS),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="multiclass (default), binary, or multilabel: masks [K, ...] of 0 and 1.", rich_help_panel=PREDICTIONS
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            help="Overlapping classes as unions of values, whole:1+2,core:2, instead of --classes.",
            rich_help_panel=PREDICTIONS,
        ),
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(help="Ignored value of the reference masks.", rich_help_panel=PREDICTIONS)
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(help="Mask values to replace, in both folders: 255:1,7:0.", rich_help_panel=PREDICTIONS),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Of two classes, pixels with at least this value are the second one, in both folders.",
            rich_help_panel=PREDICTIONS,
        ),
    ] = None,
    prediction_values: Annotated[
        str | None, typer.Option(help="The same as --values, for predictions alone.", rich_help_panel=PREDICTIONS)
    ] = None,
    prediction_threshold: Annotated[
        float | None,
        typer.Option(
            help="The same as --threshold, for predictions alone, such as probabilities.", rich_help_panel=PREDICTIONS
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Regular expression on case names; its first group is the patient.", rich_help_panel=PREDICTIONS
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the images, on which cases are drawn [default: on black].", rich_help_panel=PREDICTIONS
        ),
    ] = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Score checkpoints, or a folder of predicted masks: cases.csv, scores.json, figures and a table."""
    from segkit.commands import evaluate as commands

    if bool(checkpoint) == bool(predictions):
        raise typer.BadParameter("give --checkpoint, or --predictions with --references, --classes and --out")
    if checkpoint:
        unsupported = {
            "--references": references,
            "--classes": classes,
            "--mode": mode,
            "--regions": regions,
            "--ignore": ignore,
            "--group": group,
            "--values": values,
            "--threshold": threshold,
            "--prediction-values": prediction_values,
            "--prediction-threshold": prediction_threshold,
            "--images": images,
        }
        _refuse(unsupported, "can only be used with --predictions; a checkpoint contains its own labels and data")
        settings = {
            "metrics": metrics and f"[{metrics}]",
            "rules": rules,
            "exclude_classes": exclude and f"[{exclude}]",
            "tolerance_mm": tolerance,
            "lesion_matching": lesion_matching,
            "connectivity": connectivity,
            "size_strata": None if size_strata is None else parse_strata(size_strata),
        }
        chosen = [
            *(overrides or []),
            *(f"evaluation.{name}={value}" for name, value in settings.items() if value is not None),
        ]
        where = {
            "split": split,
            "data": data,
            "out": out,
            "device": device,
            "tta": tta,
            "decisions": decisions,
        }
        with command_output(quiet, written) as command:
            where["console"] = command.console
            if ensemble or loss is not None:
                command.results = {"ensemble": commands.evaluate_ensemble(checkpoint, chosen, loss=loss, **where)}
            else:
                command.results = commands.evaluate(checkpoint, chosen, **where)
        return
    unsupported = {
        "--split": split,
        "--data": data,
        "--device": device,
        "--ensemble": ensemble or None,
        "--loss": loss,
        "--tta": tta or None,
        "--decisions": decisions,
        "key=value": overrides or None,
    }
    _refuse(unsupported, "cannot be used with --predictions: no network is run")
    if references is None or (classes is None and regions is None) or out is None:
        raise typer.BadParameter("--predictions also needs --references, --classes (or --regions) and --out")
    if regions is not None and (classes is not None or mode not in (None, "multilabel")):
        raise typer.BadParameter("--regions already defines overlapping classes: leave out --classes and --mode")
    assert predictions is not None
    described = {
        "exclude": split_list(exclude) if exclude else [],
        "encodings": _encodings(values, threshold, prediction_values, prediction_threshold, ignore),
        "metrics": split_list(metrics or "dice,iou"),
        "rules": rules or "segkit",
        "modes": {"tolerance_mm": tolerance, "lesion_matching": lesion_matching, "connectivity": connectivity},
        "size_strata": None if size_strata is None else parse_strata(size_strata),
        "group": group,
        "images": images,
    }
    names = _labels(classes, mode, regions, ignore)
    with command_output(quiet, written) as command:
        scores = commands.evaluate_predictions(
            predictions, references, names, out, **described, console=command.console
        )
        command.results = {predictions.name: scores}


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    conflicting = [name for name, value in options.items() if value is not None]
    if conflicting:
        raise typer.BadParameter(f"{', '.join(conflicting)} {reason}")


def _labels(classes: str | None, mode: str | None, regions: str | None, ignore: int | None) -> Labels:
    from segkit.labels import Labels
    from segkit.utils.errors import RunError

    unions = parse_regions(regions) if regions is not None else None
    names = split_list(classes or "") if unions is None else list(unions)
    default = "multiclass" if unions is None else "multilabel"
    try:
        return Labels(names, mode=cast("Mode", mode or default), ignore_index=ignore, regions=unions)
    except ValueError as error:
        raise RunError(str(error)) from error


def _encodings(
    values: str | None,
    threshold: float | None,
    prediction_values: str | None,
    prediction_threshold: float | None,
    ignore: int | None,
) -> tuple[MaskEncoding, MaskEncoding]:
    """The encodings of predictions and of references."""
    from segkit.data.mask_encoding import MaskEncoding

    if threshold is not None and ignore is not None:
        raise typer.BadParameter(
            f"--threshold would turn the ignored value {ignore} of the references into a class: use "
            "--prediction-threshold, and --values for the references"
        )
    both = MaskEncoding(parse_values(values), threshold=threshold)
    if prediction_values is None and prediction_threshold is None:
        return both, both
    return MaskEncoding(parse_values(prediction_values), threshold=prediction_threshold), both


def parse_regions(text: str) -> dict[str, list[int]]:
    """`whole:1+2+3,core:2+3` as lists of values."""
    try:
        pairs = [part.split(":") for part in split_list(text)]
        regions = {name: [int(value) for value in union.split("+")] for name, union in pairs}
        if len(regions) < len(pairs):
            raise ValueError("duplicate name")
        return regions
    except ValueError as error:
        raise typer.BadParameter(f"expected --regions as whole:1+2+3,core:2+3, each name once, got {text}") from error


def parse_strata(text: str) -> int | list[float]:
    """`3` as a number of strata, `1,10` or `5.` as bounds."""
    try:
        return int(text) if text.isdecimal() else [float(bound) for bound in split_list(text)]
    except ValueError as error:
        raise typer.BadParameter(f"expected --size-strata as 3 or 1,10, got {text}") from error


def parse_values(text: str | None) -> dict[int, int] | None:
    """`255:1,7:0` as numbers."""
    if text is None:
        return None
    try:
        pairs = [part.split(":") for part in split_list(text)]
        numbers = {int(value): int(number) for value, number in pairs}
        if len(numbers) < len(pairs):
            raise ValueError("duplicate value")
        return numbers
    except ValueError as error:
        raise typer.BadParameter(f"expected --values as 255:1,7:0, each value once, got {text}") from error
