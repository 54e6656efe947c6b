"""The verb `evaluate`: checkpoints, or folders of masks, to tables and pictures. Training ends with it too."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from torch import Tensor

from segkit import assemble
from segkit import evaluate as evaluation
from segkit.config import Config
from segkit.data.loaders import EvaluationSet
from segkit.data.splits import PARTS
from segkit.folders import score_folder
from segkit.labels import Labels
from segkit.predict import Predictor
from segkit.processes import ALONE, Processes
from segkit.runs import Run, RunError
from segkit.trained import Trained, load_trained

CONSOLE = Console()


def evaluate(
    given: Sequence[Path],
    overrides: Sequence[str],
    *,
    split: str | None,
    data: Path | None,
    out: Path | None,
    device: str | None,
) -> None:
    """Evaluate checkpoints on a part of their own split, or on all of another folder of the same layout."""
    from segkit.report.tables import print_scores, print_side_by_side

    names = short_names(given)
    results = {}
    for name, one in names.items():
        folder = None if out is None else out / name if len(names) > 1 else out
        results[name] = _evaluate(one, overrides, split=split, data=data, out=folder, device=device)
        print_scores(results[name], CONSOLE)
    if len(results) > 1:
        table = print_side_by_side(results, CONSOLE)
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
        console=CONSOLE,
    )
    CONSOLE.print(f"written to {folder}", markup=False)
    return result


def evaluated_cases(trained: Trained, split: str | None, data: Path | None) -> tuple[EvaluationSet, str]:
    """The cases to evaluate and what to call them."""
    if data is not None:
        return trained.other_data(data).evaluation_set("test"), f"all of {data}"
    own = trained.data()
    part = split or evaluated_part(trained.config, own.split)
    available = [name for name in PARTS if getattr(own.split, name)]
    if part not in available:
        raise RunError(f"expected --split to be one of {', '.join(available)}, got {part}")
    return own.evaluation_set(part), part


def evaluated_part(config: Config, split: Any) -> str:
    """`evaluation.split`, or else test if there is one, else validation, else train."""
    part = config.evaluation.split or next(part for part in ("test", "validation", "train") if getattr(split, part))
    if not getattr(split, part):
        raise RunError(f"the split has no {part} cases; choose evaluation.split among those it has")
    return part


def checkpoint_file(given: Path) -> Path:
    """A run folder stands for its last.pt."""
    return given if given.suffix == ".pt" else Run(given).last


def evaluate_predictions(
    predictions: Path,
    references: Path,
    classes: Sequence[str],
    out: Path,
    *,
    mode: Any = "multiclass",
    regions: Mapping[str, Sequence[int]] | None = None,
    ignore: int | None,
    exclude: Sequence[str] = (),
    values: Mapping[int, int],
    metrics: Sequence[str],
    rules: str,
    tolerance: float | None,
    group: str | None,
) -> None:
    """Evaluate a folder of masks, whatever predicted them, and print the scores."""
    from segkit.report.tables import print_scores

    try:
        labels = Labels(list(classes), mode, ignore_index=ignore, regions=regions)
        scoring = evaluation.build_scoring(
            labels, metrics=metrics, rules=rules, exclude_classes=exclude, modes={"tolerance_mm": tolerance}
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    if out.resolve() in (predictions.resolve(), references.resolve()):
        raise RunError(f"{out} holds masks: choose another folder for the scores with --out")
    shown = progress(f"evaluating {predictions}", CONSOLE)
    scored = score_folder(predictions, references, labels, scoring, group=group, values=values, track=shown)
    result = evaluation.scores(scored, labels, scoring, split=f"all of {predictions}", origin=None)
    out.mkdir(parents=True, exist_ok=True)
    write_figures(scored, labels, out)
    evaluation.write(out, scored, labels, result)
    print_scores(result, CONSOLE)
    CONSOLE.print(f"written to {out}", markup=False)


def write_evaluation(
    predictor: Predictor,
    cases: EvaluationSet,
    labels: Labels,
    folder: Path,
    *,
    split: str,
    origin: evaluation.Origin,
    config: Config,
    console: Console,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Predict and count every case, in all processes; write tables and pictures and, last, scores.json."""
    scoring = assemble.scoring_of(config, labels)
    shown = progress(f"evaluating {split}", console)
    with tempfile.TemporaryDirectory() as place:
        # which cases are drawn is known at the end; keeping masks in files costs less than predicting again
        def keep(number: int, mask: Tensor) -> None:
            np.save(Path(place) / f"{number}.npy", mask.cpu().numpy())

        kept = keep if config.evaluation.overlays else None
        scored = evaluation.score_cases(predictor, cases, labels, scoring, shown, group=processes.group, keep=kept)
        result = evaluation.scores(scored, labels, scoring, split=split, origin=origin)
        chosen = chosen_cases(cases, labels, scored.cases, Path(place), processes) if kept is not None else []
    if not processes.first:
        return result
    if config.evaluation.overlays:
        write_overlays(cases, labels, chosen, folder / "overlays.png")
        write_figures(scored, labels, folder)
    evaluation.write(folder, scored, labels, result)
    return result


def progress(what: str, console: Console) -> Any:
    """What shows how far a loop has come, where the output is a terminal."""

    def tracked(numbers: Any) -> Any:
        return track(numbers, what, console=console, disable=not console.is_terminal)

    return tracked


def write_figures(scored: evaluation.Scored, labels: Labels, folder: Path) -> None:
    """Pictures of the confusion matrix and of how honest the probabilities are, where there are such."""
    from segkit.report.figures import confusion_figure, reliability_figure

    if scored.matrix is not None:
        confusion_figure(scored.matrix, labels.names, folder / "confusion.png")
    if scored.calibration is not None:
        reliability_figure(scored.calibration, folder / "reliability.png")


Chosen = tuple[str, int, np.ndarray]  # the caption, the number of the case, its predicted mask


def chosen_cases(
    cases: EvaluationSet, labels: Labels, table: pd.DataFrame, masks: Path, processes: Processes
) -> list[Chosen]:
    """The worst, median and best case by mean foreground Dice, with their masks, which lie with the process that
    predicted them."""
    from segkit.report.overlays import choose_cases

    numbers = {case.name: number for number, case in enumerate(cases.cases)}
    chosen = {numbers[name]: f"{what}: {name}, Dice {dice:.3f}" for what, name, dice in choose_cases(table, labels)}
    mine = {number: np.load(file) for number in chosen if (file := masks / f"{number}.npy").exists()}
    predicted = {number: mask for part in processes.gathered(mine) for number, mask in part.items()}
    return [(caption, number, predicted[number]) for number, caption in chosen.items()]


def write_overlays(cases: EvaluationSet, labels: Labels, chosen: Sequence[Chosen], path: Path) -> None:
    """Pictures of chosen cases."""
    from segkit.report.overlays import overlay_figure

    rows = []
    for caption, number, predicted in chosen:
        raw = cases.raw(number)
        rows.append((caption, raw.image, raw.mask, predicted))
    if rows:
        overlay_figure(rows, labels, path)
