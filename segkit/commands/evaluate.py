"""The command `evaluate`: score checkpoints, or folders of predicted masks, and write tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from segkit.commands.checkpoints import check_different, checkpoint_files, single_checkpoint
from segkit.commands.decisions import NONE, chosen_decisions
from segkit.data.mask_encoding import AS_STORED
from segkit.evaluation.mask_folders import Encodings, score_folder
from segkit.evaluation.results import Origin, scores_json, write_results
from segkit.evaluation.scoring import build_scoring
from segkit.experiment.decision_file import default_file
from segkit.experiment.drawn_masks import MaskFolders
from segkit.experiment.evaluate_ensemble import joint_evaluation
from segkit.experiment.evaluate_run import (
    evaluated_cases,
    evaluated_part,
    progress,
    try_to_draw,
    write_evaluation,
    write_figures,
    write_overlays,
)
from segkit.experiment.evaluation_page import PAGE, DrawnCase, write_pages
from segkit.experiment.trained_ensemble import load_members, together
from segkit.experiment.trained_model import TrainedModel, load_trained
from segkit.inference.decisions import decided
from segkit.inference.predictor import ImagePredictor
from segkit.labels import Labels
from segkit.training.run_folder import Run
from segkit.utils.csv_tables import write_table
from segkit.utils.errors import RunError


def evaluate(
    checkpoints: Sequence[Path],
    overrides: Sequence[str],
    *,
    split: str | None,
    data: Path | None,
    out: Path | None,
    device: str | None,
    tta: bool = False,
    decisions: str | None = None,
    console: Console,
) -> dict[str, dict[str, Any]]:
    """Evaluate each of several checkpoints, see `evaluate_checkpoint`, and print their scores side by side.

    Returns the contents of scores.json by the name of the checkpoint.
    """
    from segkit.report.console import print_scores, print_side_by_side

    names = short_names(checkpoints)
    results = {}
    for name, path in names.items():
        folder = out / name if out is not None and len(names) > 1 else out
        results[name] = evaluate_checkpoint(
            path,
            overrides,
            split=split,
            data=data,
            out=folder,
            device=device,
            tta=tta,
            decisions=decisions,
            console=console,
        )
        print_scores(results[name], console)
    if len(results) > 1:
        table = print_side_by_side(results, console)
        if out is not None:
            write_table(out / "side_by_side.csv", table)
    return results


def short_names(paths: Sequence[Path]) -> dict[str, Path]:
    """A short unique name for each checkpoint: as many of the last parts of its path as needed, joined by dashes.

    The last.pt of a run is named after the run. Raises RunError if a checkpoint is given twice.
    """
    files = [single_checkpoint(path).resolve() for path in paths]
    check_different(files, paths)
    parts = [[part for part in file.with_suffix("").parts if part not in ("checkpoints", "last")] for file in files]
    length = next(length for length in range(1, 100) if len({tuple(names[-length:]) for names in parts}) == len(parts))
    return {"-".join(names[-length:]): path for names, path in zip(parts, paths, strict=True)}


def evaluate_checkpoint(
    path: Path,
    overrides: Sequence[str],
    *,
    split: str | None,
    data: Path | None,
    out: Path | None,
    device: str | None,
    tta: bool = False,
    decisions: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """Evaluate one checkpoint on a part of its own split, or on all cases of another folder with the same layout, and
    write tables and figures. Returns the contents of scores.json.

    path: a run folder, whose last.pt is evaluated and which holds the results, or a file, which needs `out`.
    tta: see `together`.
    decisions: see `chosen_decisions`. They are not applied to the results in the run folder.

    Raises RunError for options that exclude each other.
    """
    file = single_checkpoint(path)
    is_run = file != path
    _check_part(split, data)
    if out is None and (not is_run or data is not None):
        reason = "--data is not the run's own data" if is_run else f"{path} is not a run folder"
        raise RunError(f"{reason}: choose a folder for the scores with --out")
    changed = [text for text in overrides if text.startswith("evaluation.")] + _changes(tta, decisions)
    if out is None and changed:
        raise RunError(
            f"{changed[0]} differs from the run's own configuration; the scores in the run folder must follow that "
            "configuration, because comparisons read them: choose another folder with --out"
        )
    trained = load_trained(file, device, overrides)
    ensemble = together([trained], tta=tta)
    origin = replace(ensemble.origin, checkpoint=str(file.relative_to(path)) if is_run else str(file))
    if out is None and decisions is None and default_file(file).exists():
        console.print(f"{default_file(file)} is applied with --out only: it is no part of the run", markup=False)
        decisions = NONE
    predictor, origin = _decided(ensemble.predictor, origin, decisions, [trained], console)
    cases, part = evaluated_cases(trained, split, data)
    folder = out if out is not None else Run(path).evaluation(part)
    result = write_evaluation(
        predictor,
        cases,
        trained.labels,
        folder,
        split=part,
        origin=origin,
        config=trained.config,
        console=console,
        run=Run(path) if is_run else None,
        is_of_run=out is None and part == evaluated_part(trained.config, trained.split),
    )
    console.print(f"written to {folder}", markup=False)
    return result


def evaluate_ensemble(
    checkpoints: Sequence[Path],
    overrides: Sequence[str],
    *,
    loss: str | None,
    split: str | None,
    data: Path | None,
    out: Path | None,
    device: str | None,
    tta: bool = False,
    decisions: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """Evaluate several checkpoints as one model, see `joint_evaluation`, and write tables and figures.

    checkpoints, loss: see `checkpoint_files`. decisions: see `chosen_decisions`. Returns the contents of scores.json.
    """
    from segkit.report.console import print_scores

    _check_part(split, data)
    if out is None:
        raise RunError("an ensemble has no run folder: choose a folder for the scores with --out")
    members = load_members(checkpoint_files(checkpoints, loss), device, overrides)
    joint = joint_evaluation(members, split, data, tta=tta)
    predictor, origin = _decided(joint.predictor, joint.origin, decisions, members, console)
    result = write_evaluation(
        predictor,
        joint.cases,
        members[0].labels,
        out,
        split=joint.part,
        origin=origin,
        config=members[0].config,
        console=console,
    )
    print_scores(result, console)
    console.print(f"written to {out}", markup=False)
    return result


def _changes(tta: bool, decisions: str | None) -> list[str]:
    """The options that make an evaluation differ from that of the run."""
    return (["--tta"] if tta else []) + (["--decisions"] if decisions not in (None, NONE) else [])


def _decided(
    predictor: ImagePredictor,
    origin: Origin,
    decisions: str | None,
    members: Sequence[TrainedModel],
    console: Console,
) -> tuple[ImagePredictor, Origin]:
    """The predictor with decisions applied, and the origin that says so."""
    applied = chosen_decisions(decisions, members, origin.orientations, console)
    if applied is None:
        return predictor, origin
    return decided(predictor, applied.decisions), replace(origin, decisions=applied.to_json())


def _check_part(split: str | None, data: Path | None) -> None:
    if split is not None and data is not None:
        raise RunError("give either --split (a part of the run's own data) or --data (other data), not both")


def evaluate_predictions(
    predictions: Path,
    references: Path,
    labels: Labels,
    out: Path,
    *,
    console: Console,
    exclude: Sequence[str] = (),
    encodings: Encodings = (AS_STORED, AS_STORED),
    metrics: Sequence[str],
    rules: str,
    modes: Mapping[str, Any] | None = None,
    size_strata: int | Sequence[float] | None = None,
    group: str | None,
    images: Path | None = None,
) -> dict[str, Any]:
    """Score a folder of masks predicted by any tool, and print the scores. Returns the contents of scores.json.

    images: folder of the images, on which masks are drawn in pictures; they are found by the names of the cases.
    modes, size_strata: see `build_scoring`.

    encodings: how classes are encoded in the files of the predictions, and of the references. Raises RunError if they
    do not fit the labels.
    """
    from segkit.report.console import print_scores

    try:
        for encoding in encodings:
            encoding.check(labels)
        scoring = build_scoring(
            labels, metrics=metrics, rules=rules, exclude_classes=exclude, size_strata=size_strata, modes=modes
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    if out.resolve() in (predictions.resolve(), references.resolve()):
        raise RunError(f"{out} contains the masks: choose another folder for the scores with --out")
    shown = progress(f"evaluating {predictions}", console)
    scored = score_folder(predictions, references, labels, scoring, group=group, encodings=encodings, track=shown)
    result = scores_json(scored, labels, scoring, split=f"all of {predictions}", origin=None)
    out.mkdir(parents=True, exist_ok=True)
    write_results(out, scored, labels, result)  # before the figures, which may fail
    write_figures(scored, labels, out)
    print_scores(result, console)
    drawn: list[DrawnCase] = []
    folders = MaskFolders(predictions, references, labels, encodings, images)
    try_to_draw("overlays.png", lambda: drawn.extend(folders.drawn_cases(scored, exclude)))
    try_to_draw("overlays.png", lambda: write_overlays(drawn, labels, out / "overlays.png"))
    try_to_draw(PAGE, lambda: write_pages({out / PAGE: out.resolve().name}, scored, labels, result, drawn))
    console.print(f"written to {out}", markup=False)
    return result
