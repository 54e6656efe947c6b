"""The checkpoints that a command is given: run folders, files, or the runs of a loss in a comparison."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from segkit.compare.design import PLAN, latest_plan
from segkit.compare.unit_results import RUNS
from segkit.experiment.evaluate_run import checkpoint_file
from segkit.training.run_folder import Run
from segkit.utils.csv_tables import read_table
from segkit.utils.errors import RunError, reason


def checkpoint_files(paths: Sequence[Path], loss: str | None) -> list[Path]:
    """The checkpoint files that predict together.

    paths: run folders, whose last.pt is used, or files; with `loss`, the folder of a comparison, whose runs with that
        loss are used, of all seeds and folds.

    Raises RunError for a checkpoint given twice, and for a comparison without a loss or with an unknown one.
    """
    if loss is not None:
        if len(paths) != 1:
            raise RunError(f"--loss needs one --checkpoint, the folder of a comparison, got {len(paths)}")
        return _runs_of_loss(paths[0], loss)
    files = [single_checkpoint(path) for path in paths]
    check_different(files, paths)
    return files


def single_checkpoint(path: Path) -> Path:
    """The checkpoint file of a run folder, or the file itself. Raises RunError for the folder of a comparison."""
    if (path / PLAN).is_file():
        raise RunError(f"{path} is a comparison: choose one of its losses with --loss ({_listed_losses(path)})")
    return checkpoint_file(path)


def check_different(files: Sequence[Path], paths: Sequence[Path]) -> None:
    """Raise RunError if a checkpoint is given twice. paths: as they were given."""
    if len({file.resolve() for file in files}) < len(files):
        raise RunError(f"expected different checkpoints, got one twice: {', '.join(map(str, paths))}")


def _runs_of_loss(folder: Path, loss: str) -> list[Path]:
    chosen = [Run(folder / run).last for name, run in _runs(folder) if name == loss]
    if not chosen:
        raise RunError(f"expected --loss to be one of {_listed_losses(folder)}, got {loss}")
    if (planned := _planned(folder)) and planned > len(chosen):
        warnings.warn(
            f"{len(chosen)} of {planned} planned runs of {loss} have finished; the others are left out", stacklevel=2
        )
    return chosen


def _planned(folder: Path) -> int:
    """The number of runs of each loss in the plan; 0 if it cannot be read."""
    design = latest_plan(folder).get("design", {})
    try:
        return len(design["seeds"]) * (design["folds"] or 1) * design["repeats"]
    except (KeyError, TypeError):
        return 0


def _listed_losses(folder: Path) -> str:
    return ", ".join(dict.fromkeys(loss for loss, _run in _runs(folder)))


def _runs(folder: Path) -> list[tuple[str, str]]:
    """The loss and the run folder of each run of a comparison. Raises RunError if it has no table of runs."""
    try:
        table = read_table(folder / RUNS, ("loss", "folder"))
        return list(zip(table["loss"].astype(str), table["folder"].astype(str), strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{folder / RUNS}, the table of the runs of a comparison, cannot be read ({reason(error)}): expected the "
            "folder that was given to `segkit compare --out`; the same command, given again, writes the table and "
            "trains nothing again"
        ) from error
