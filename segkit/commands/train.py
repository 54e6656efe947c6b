"""The command `train`: train an experiment and evaluate its last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from segkit.experiment.build import ConfigSource, load_config
from segkit.experiment.runner import folder_of, run_experiment
from segkit.training.run_folder import Run
from segkit.utils.distributed import process_group


def train(
    source: ConfigSource,
    overrides: Sequence[str],
    *,
    console: Console,
    resume: bool = False,
    allow: Sequence[str] = (),
    overfit: int | None = None,
) -> tuple[dict[str, Any], Path]:
    """Train an experiment, evaluate its last.pt and print the scores. Under torchrun, run as one of its processes.

    allow: configuration keys in which a resumed run may differ from its start. overfit: train on this number of fixed
    batches only. Returns the contents of scores.json and the run folder.
    """
    from segkit.report.console import print_scores

    with process_group() as processes:
        console = console if processes.is_first else Console(quiet=True)
        if overfit is not None:
            overrides = [*overrides, f"train.overfit={overfit}"]
        config = load_config(source, overrides)
        run = Run(folder_of(config), writes=processes.is_first)
        result = run_experiment(config, run, resume=resume, console=console, allow=allow, processes=processes)
        print_scores(result, console)
        console.print(f"run folder: {run.folder}", markup=False)
        return result, run.folder
