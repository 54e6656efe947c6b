"""Evaluate a trained model and write tables and pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from torch import Tensor

from segkit.config import Config
from segkit.data.cases import Case
from segkit.data.datasets import EvaluationSet
from segkit.data.formats import FORMATS, format_name
from segkit.data.splits import PARTS
from segkit.evaluation.results import CaseScores, Origin, scores_json, write_results
from segkit.evaluation.scorer import score_cases
from segkit.experiment.build import scoring_of
from segkit.experiment.evaluation_page import PAGE, DrawnCase, write_pages
from segkit.experiment.trained_model import TrainedModel
from segkit.inference.predictor import ImagePredictor
from segkit.labels import Labels
from segkit.training.run_folder import Run
from segkit.utils.distributed import SINGLE_PROCESS, Processes
from segkit.utils.errors import RunError
from segkit.utils.files import remove_leftovers, replace_text, temporary_folder
from segkit.utils.progress import tracked

PICTURES = ("overlays.png", "confusion.png", "reliability.png", PAGE)
DRAWING = "drawing"  # exists while results are written and pictures drawn
MAX_KILLS = 5  # while drawing, after which an evaluation is complete without pictures


def evaluated_cases(trained: TrainedModel, split: str | None, data: Path | None) -> tuple[EvaluationSet, str]:
    """The cases to evaluate, and a name for them."""
    if data is not None:
        return trained.other_data(data).evaluation_set("test"), f"all of {data}"
    part = chosen_part(trained, split)
    return trained.data().evaluation_set(part), part


def chosen_part(trained: TrainedModel, split: str | None) -> str:
    """The part of the split to evaluate: the given one, which must have cases, or that of `evaluated_part`."""
    part = split or evaluated_part(trained.config, trained.split)
    available = [name for name in PARTS if getattr(trained.split, name)]
    if part not in available:
        raise RunError(f"expected --split to be one of {', '.join(available)}, got {part}")
    return part


def evaluated_part(config: Config, split: Any) -> str:
    """The part to evaluate: `evaluation.split`, otherwise test, validation or train, the first that has cases."""
    part = config.evaluation.split or next(part for part in ("test", "validation", "train") if getattr(split, part))
    if not getattr(split, part):
        raise RunError(f"evaluation.split: {part}, but the split has no {part} cases; choose another part")
    return part


def checkpoint_file(path: Path) -> Path:
    """A checkpoint file; for a run folder, its last.pt."""
    return path if path.suffix == ".pt" else Run(path).last


def write_evaluation(
    predictor: ImagePredictor,
    cases: EvaluationSet,
    labels: Labels,
    folder: Path,
    *,
    split: str,
    origin: Origin,
    config: Config,
    console: Console,
    run: Run | None = None,
    is_of_run: bool = False,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Predict and score every case, in all processes; write the tables and scores.json, then the pictures and the page.

    run: the run folder of the evaluated checkpoint, whose log the page shows.
    is_of_run: whether this is the evaluation of the run, whose page is written too.

    Returns the contents of scores.json. A picture or page that cannot be drawn is a warning.
    """
    scoring = scoring_of(config, labels)
    shown = progress(f"evaluating {split}", console)
    with temporary_folder() as temporary:
        # the cases to draw are known only at the end; keeping masks in files is cheaper than predicting again
        keep = _MaskKeeper(temporary) if config.evaluation.overlays else None
        scored = score_cases(predictor, cases, labels, scoring, shown, group=processes.group, keep=keep)
        result = scores_json(scored, labels, scoring, split=split, origin=origin)
        table: Any = scored.cases
        reported = table[~table["class"].isin(result["rules"]["exclude_classes"])]
        chosen = chosen_cases(cases, labels, reported, temporary, processes) if keep is not None else []
    if not processes.is_first:
        return result
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    pages = _pages(folder, split, run, is_of_run=is_of_run)
    for file in (*map(folder.joinpath, PICTURES), *pages):  # of an earlier evaluation
        file.unlink(missing_ok=True)
    with _drawing(folder) if config.evaluation.overlays else nullcontext():
        write_results(folder, scored, labels, result)
        drawn: list[DrawnCase] = []
        if config.evaluation.overlays:
            try_to_draw("overlays.png", lambda: drawn.extend(drawn_cases(cases, chosen)))
            try_to_draw("overlays.png", lambda: write_overlays(drawn, labels, folder / "overlays.png"))
            write_figures(scored, labels, folder)
        try_to_draw(
            PAGE,
            lambda: write_pages(pages, scored, labels, result, drawn, config, run, is_of_run=is_of_run),
        )
    return result


def _pages(folder: Path, part: str, run: Run | None, *, is_of_run: bool) -> dict[Path, str]:
    """The pages of an evaluation and their titles: its own and, if it is that of a run, the page of the run."""
    name = (folder if run is None else run.folder).resolve().name
    pages = {folder / PAGE: f"{name}: {part}"}
    return pages | {run.folder / PAGE: name} if run is not None and is_of_run else pages


@contextmanager
def _drawing(folder: Path) -> Iterator[None]:
    """Mark the time in which results are written and pictures drawn, and count the processes that were killed in it."""
    replace_text(folder / DRAWING, str(_killed_while_drawing(folder) + 1))
    yield
    (folder / DRAWING).unlink()


def lacks_pictures(folder: Path) -> bool:
    """Whether the evaluation in a folder has to be repeated, because its process was killed while it drew pictures.

    It is not repeated if this has happened `MAX_KILLS` times: the pictures may be the cause.
    """
    return 0 < _killed_while_drawing(folder) < MAX_KILLS


def _killed_while_drawing(folder: Path) -> int:
    """The number of processes that were killed while they drew the pictures of an evaluation."""
    try:
        return int((folder / DRAWING).read_text())
    except FileNotFoundError:
        return 0
    except ValueError:
        return MAX_KILLS


class _MaskKeeper:
    """Keeps predicted masks in files, as long as the disk has room: they are needed for pictures only."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.failed = False

    def __call__(self, number: int, mask: Tensor) -> None:
        if self.failed:
            return
        try:
            np.save(self.folder / f"{number}.npy", mask.cpu().numpy())
        except OSError as error:
            self.failed = True
            (self.folder / f"{number}.npy").unlink(missing_ok=True)
            warnings.warn(
                f"predicted masks cannot be kept in {self.folder} ({error.strerror or error}), so overlays.png may "
                "lack cases; set TMPDIR to a folder with more space, or evaluation.overlays=false",
                stacklevel=2,
            )


def try_to_draw(name: str, draw: Callable[[], None]) -> None:
    """Draw a picture. If this fails, warn: the scores are already written, and they do not depend on it."""
    try:
        draw()
    except Exception as error:
        warnings.warn(f"{name} could not be drawn: {type(error).__name__}: {error}", stacklevel=2)


def progress(description: str, console: Console) -> Any:
    """A function that shows the progress through a sized iterable."""
    return lambda numbers: tracked(numbers, description, len(numbers), console)


def write_figures(scored: CaseScores, labels: Labels, folder: Path) -> None:
    """Write the figures of the confusion matrix and of the calibration, if they were computed.

    A figure that cannot be drawn is a warning.
    """
    from segkit.report.evaluation_figures import confusion_figure, reliability_figure

    if scored.matrix is not None:
        matrix = scored.matrix
        try_to_draw("confusion.png", lambda: confusion_figure(matrix, labels.names, folder / "confusion.png"))
    if scored.calibration is not None:
        calibration = scored.calibration
        try_to_draw("reliability.png", lambda: reliability_figure(calibration, folder / "reliability.png"))


Chosen = tuple[str, float, int, np.ndarray]  # rank, Dice, number of the case, predicted mask


def chosen_cases(
    cases: EvaluationSet, labels: Labels, table: pd.DataFrame, masks: Path, processes: Processes
) -> list[Chosen]:
    """The worst, median and best case by mean foreground Dice, with their predicted masks.

    Each mask is gathered from the process that predicted it.
    """
    from segkit.report.overlays import choose_cases

    numbers = {case.name: number for number, case in enumerate(cases.cases)}
    chosen = {numbers[name]: (rank, dice) for rank, name, dice in choose_cases(table, labels)}
    local = {number: np.load(file) for number in chosen if (file := masks / f"{number}.npy").exists()}
    predicted = {number: mask for part in processes.all_gather(local) for number, mask in part.items()}
    return [(*found, number, predicted[number]) for number, found in chosen.items() if number in predicted]


def drawn_cases(cases: EvaluationSet, chosen: Sequence[Chosen]) -> list[DrawnCase]:
    """The chosen cases with their images and masks."""
    drawn = []
    for rank, dice, number, predicted in chosen:
        raw = cases.raw(number)
        assert raw.mask is not None
        case = cases.cases[number]
        arrays = (raw.image, raw.mask, predicted, raw.spacing)
        drawn.append(DrawnCase(rank, case.name, dice, *arrays, is_anatomical=_is_anatomical(case)))
    return drawn


def _is_anatomical(case: Case) -> bool:
    """Whether the image of a case is in a format that says where its voxels lie, and was turned accordingly."""
    name = format_name(case.images[0]) if case.images else None
    return name is not None and FORMATS[name].has_geometry


def write_overlays(drawn: Sequence[DrawnCase], labels: Labels, path: Path) -> None:
    """Write overlays of cases, if there are any."""
    from segkit.report.overlays import overlay_figure

    if drawn:
        overlay_figure([(case.caption, case.image, case.mask, case.predicted) for case in drawn], labels, path)
