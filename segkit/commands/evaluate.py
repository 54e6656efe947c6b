"""The verb `evaluate`: checkpoints, or folders of masks, to tables and pictures. Training ends with it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from segkit.evaluation.mask_folders import score_folder
from segkit.evaluation.results import scores_json, write_results
from segkit.evaluation.scoring import build_scoring
from segkit.experiment.evaluate_run import (
    checkpoint_file,
    evaluated_cases,
    progress,
    write_evaluation,
    write_figures,
)
from segkit.experiment.trained_model import load_trained
from segkit.labels import Labels
from segkit.training.run_folder import Run
from segkit.utils.errors import RunError


def evaluate(
    given: Sequence[Path],
    overrides: Sequence[str],
    *,
    split: str | None,
    data: Path | None,
    out: Path | None,
    device: str | None,
    console: Console,
) -> None:
    """Evaluate checkpoints on a part of their own split, or on all of another folder of the same layout."""
    from segkit.report.console import print_scores, print_side_by_side

    names = short_names(given)
    results = {}
    for name, one in names.items():
        folder = None if out is None else out / name if len(names) > 1 else out
        results[name] = _evaluate(one, overrides, split=split, data=data, out=folder, device=device, console=console)
        print_scores(results[name], console)
    if len(results) > 1:
        table = print_side_by_side(results, console)
        if out is not None:
            table.to_csv(out / "side_by_side.csv", index=False)


def short_names(given: Sequence[Path]) -> dict[str, Path]:
    """A name for each checkpoint: the last parts of its path that tell it from the others, joined by a dash.

    A run's last.pt is called as the run. Raises RunError for a checkpoint that is given twice.
    """
    files = [checkpoint_file(path).resolve() for path in given]
    if len(set(files)) < len(files):
        raise RunError(f"expected different checkpoints, got one twice: {', '.join(map(str, given))}")
    parts = [[part for part in file.with_suffix("").parts if part not in ("checkpoints", "last")] for file in files]
    enough = next(number for number in range(1, 100) if len({tuple(one[-number:]) for one in parts}) == len(parts))
    return {"-".join(one[-enough:]): path for one, path in zip(parts, given, strict=True)}


def _evaluate(
    given: Path,
    overrides: Sequence[str],
    *,
    split: str | None,
    data: Path | None,
    out: Path | None,
    device: str | None,
    console: Console,
) -> dict[str, Any]:
    file = checkpoint_file(given)
    of_run = file != given
    if split is not None and data is not None:
        raise RunError("give --split, a part of the run's own data, or --data, all of other data; not both")
    if out is None and (not of_run or data is not None):
        reason = f"{given} is a file" if not of_run else "--data is not the run's own data"
        raise RunError(f"{reason}, so there is no place in a run folder for the scores: say with --out where to write")
    judged_otherwise = [text for text in overrides if text.startswith("evaluation.")]
    if out is None and judged_otherwise:
        raise RunError(
            f"{judged_otherwise[0]}: the scores in the run folder are by the run's own configuration, and comparisons "
            "read them; say with --out where to write others"
        )
    trained = load_trained(file, device, overrides)
    cases, part = evaluated_cases(trained, split, data)
    folder = out if out is not None else Run(given).evaluation(part)
    result = write_evaluation(
        trained.predictor,
        cases,
        trained.labels,
        folder,
        split=part,
        origin=replace(trained.origin, checkpoint=str(file.relative_to(given)) if of_run else str(file)),
        config=trained.config,
        console=console,
    )
    console.print(f"written to {folder}", markup=False)
    return result


def evaluate_predictions(
    predictions: Path,
    references: Path,
    labels: Labels,
    out: Path,
    *,
    console: Console,
    exclude: Sequence[str] = (),
    values: Mapping[int, int],
    metrics: Sequence[str],
    rules: str,
    tolerance: float | None,
    group: str | None,
) -> None:
    """Evaluate a folder of masks, whatever predicted them, and print the scores."""
    from segkit.report.console import print_scores

    try:
        scoring = build_scoring(
            labels, metrics=metrics, rules=rules, exclude_classes=exclude, modes={"tolerance_mm": tolerance}
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    if out.resolve() in (predictions.resolve(), references.resolve()):
        raise RunError(f"{out} holds masks: choose another folder for the scores with --out")
    shown = progress(f"evaluating {predictions}", console)
    scored = score_folder(predictions, references, labels, scoring, group=group, values=values, track=shown)
    result = scores_json(scored, labels, scoring, split=f"all of {predictions}", origin=None)
    out.mkdir(parents=True, exist_ok=True)
    write_figures(scored, labels, out)
    write_results(out, scored, labels, result)
    print_scores(result, console)
    console.print(f"written to {out}", markup=False)
