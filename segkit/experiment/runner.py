"""What each verb of the command line does, from a configuration or a checkpoint to files and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from segkit.config import Config, dump
from segkit.config.schema import leaves
from segkit.evaluation.results import Origin
from segkit.experiment.build import Data
from segkit.experiment.build_training import build_experiment, init_digest, profile_steps
from segkit.experiment.evaluate_run import evaluated_part, write_evaluation
from segkit.experiment.resume import finished_scores
from segkit.experiment.run_header import print_header, print_overfit, print_profile
from segkit.training.loop import run_training
from segkit.training.profiling import Profiler
from segkit.training.run_folder import Ended, Run
from segkit.training.step_logger import progress_bar
from segkit.training.stopping import Interrupted
from segkit.training.trackers import MLflow, TensorBoard
from segkit.utils.distributed import ALONE, Processes


def folder_of(config: Config) -> Path:
    """`run.dir`, or runs/<name>-<digest> in the current directory."""
    return config.run.dir or Path("runs") / f"{config.name}-{config.digest()}"


def run_experiment(
    config: Config,
    run: Run,
    *,
    resume: bool,
    console: Console,
    allow: Sequence[str] = (),
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train into a run folder and evaluate its last checkpoint there. Returns the scores.

    A run that is finished is not trained again; its scores are returned. Raises RunError if the folder holds another
    experiment, if it holds an unfinished run and `resume` was not asked for, or if another process is training there.
    """
    with run.locked():
        found = processes.first_does(lambda: finished_scores(config, run, console, allow))
        return found or _train_and_evaluate(config, run, resume, console, processes)


def _train_and_evaluate(
    config: Config, run: Run, resume: bool, console: Console, processes: Processes
) -> dict[str, Any]:
    run.check_free(resume=resume)
    resumed = processes.agreed(run.last.exists())
    built = build_experiment(config, run.folder.parent / "cache", processes, from_init=not resumed)
    experiment, data = built.experiment, built.data
    if config.train.init is not None and resumed:
        content = run.load_last(keep=True) if run.writes else None
        experiment.plain["init"] = processes.agreed(None if content is None else init_digest(config, content["init"]))
    part = evaluated_part(config, data.split)
    run.start()
    if run.writes:
        with open(run.folder / "config.yaml", "w") as file:
            dump(built.config, file)
    run.write_json("split.json", data.split.to_json())
    print_header(config, built, console)
    if config.evaluation.read_first and not resumed:
        processes.first_does(lambda: read_first(data, part, console))
    steps = profile_steps(config, experiment.settings)
    profiler = None if steps is None else Profiler(steps, experiment.device)
    with trackers(config, run):
        trainer = run_training(experiment, run, console=console, profiler=profiler)
        if profiler is not None and profiler.measured:
            print_profile(profiler, console)
        if config.train.overfit is not None:
            print_overfit(run, config.train.overfit, console)
        result = write_evaluation(
            experiment.predictor(trainer.evaluated_model),
            data.evaluation_set(part),
            data.labels,
            run.evaluation(part),
            split=part,
            origin=Origin(
                str(run.last.relative_to(run.folder)),
                trainer.step_number,
                experiment.settings.limits.steps,
                trainer.finished,
                None,
                data.split.content_hash,
            ),
            config=config,
            console=console,
            processes=processes,
        )
        show_overlays(run, run.evaluation(part) / "overlays.png", trainer.step_number)
    return result


def read_first(data: Data, part: str, console: Console) -> None:
    """Read what will judge the training, which reads its own cases at once and these at its end. Raises DataError."""
    cases = list(dict.fromkeys([*data.cases("validation"), *data.cases(part)]))
    with progress_bar(console) as progress:
        task = progress.add_task("reading what judges", total=len(cases), note="")
        for case in cases:
            data.source.read(case)
            progress.update(task, advance=1)


@contextmanager
def trackers(config: Config, run: Run) -> Iterator[None]:
    """The trackers that the configuration asks for, while the run goes on."""
    if run.writes and config.logging.tensorboard:
        content = run.load_last(keep=True)
        run.trackers.append(TensorBoard(run.folder, 0 if content is None else content["step"]))
    if run.writes and config.logging.mlflow is not None:
        run.trackers.append(MLflow(config.logging.mlflow, run.folder, run.folder.name, leaves(config.to_dict())))
    ended: Ended = "FAILED"
    try:
        yield
        ended = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        ended = "KILLED"
        raise
    finally:
        run.close(ended)


def show_overlays(run: Run, file: Path, step: int) -> None:
    """The picture of the evaluation, for the trackers."""
    if run.takes_pictures and file.exists():
        from PIL import Image

        with Image.open(file) as picture:
            run.show_picture("evaluation", np.asarray(picture.convert("RGB")), step)
