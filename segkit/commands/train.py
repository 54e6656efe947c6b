"""The command `train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from segkit.experiment.build import load_config
from segkit.experiment.runner import folder_of, run_experiment
from segkit.training.run_folder import Run
from segkit.utils.distributed import joined


def train(
    path: Path,
    overrides: Sequence[str],
    *,
    console: Console,
    resume: bool = False,
    allow: Sequence[str] = (),
    overfit: int | None = None,
) -> dict[str, Any]:
    """Train an experiment, evaluate its last.pt and print the scores. Under torchrun, run as one of its processes.

    allow: configuration keys in which a resumed run may differ from its start. overfit: train on this number of fixed
    batches only. Returns the contents of scores.json.
    """
    from segkit.report.console import print_scores

    with joined() as processes:
        console = console if processes.first else Console(quiet=True)
        if overfit is not None:
            overrides = [*overrides, f"train.overfit={overfit}"]
        config = load_config(path, overrides)
        run = Run(folder_of(config), writes=processes.first)
        result = run_experiment(config, run, resume=resume, console=console, allow=allow, processes=processes)
        print_scores(result, console)
        console.print(f"run folder: {run.folder}", markup=False)
        return result
