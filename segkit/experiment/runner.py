"""Run an experiment: train into a run folder, evaluate the last checkpoint, and return the scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from segkit.config import Config, dump
from segkit.data.class_counts import count_classes
from segkit.evaluation.results import Origin
from segkit.experiment.build import Data
from segkit.experiment.build_training import Built, build_experiment, init_digest, profile_steps
from segkit.experiment.evaluate_run import evaluated_part, progress, write_evaluation
from segkit.experiment.plugins import load_plugins
from segkit.experiment.preflight import unscored_validation_warnings
from segkit.experiment.resume import check_run_to_continue, finished_scores, learning_rate_change
from segkit.experiment.run_header import print_header, print_overfit, print_profile
from segkit.training.loop import run_training
from segkit.training.profiling import Profiler
from segkit.training.run_folder import Ended, Run
from segkit.training.stopping import Interrupted
from segkit.training.trackers import TRACKERS, TrackedRun
from segkit.training.trainer import Trainer
from segkit.utils.console import warn
from segkit.utils.distributed import SINGLE_PROCESS, Processes
from segkit.utils.errors import RunError, set_folder
from segkit.utils.files import replaced
from segkit.utils.optional import require
from segkit.utils.progress import tracked
from segkit.utils.text import one_line


def folder_of(config: Config) -> Path:
    """The run folder: `run.dir`, or runs/<name>-<digest> in the current directory."""
    return config.run.dir or Path("runs") / f"{config.name}-{config.digest()}"


def run_experiment(
    config: Config,
    run: Run,
    *,
    resume: bool,
    console: Console,
    allow: Sequence[str] = (),
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train into a run folder and evaluate its last checkpoint there. Returns the scores.

    A finished run is not trained again; its scores are returned. Raises RunError if the folder holds another
    experiment, if it holds an unfinished run and `resume` is false, or if another process is training there.
    """
    load_plugins(config.plugins)  # this process may have received the configuration from another one
    check_run_to_continue(config, run, allow)
    try:
        read_only = processes.broadcast(run.last.exists() and not os.access(run.folder, os.W_OK))
        with nullcontext() if read_only else run.locked():  # the scores of a finished run need no lock
            scores = processes.run_on_first(lambda: finished_scores(config, run, console, allow))
            if scores is None and read_only:
                raise RunError(
                    f"{run.folder} is read-only, and its run is not finished: make the folder writable, or copy it and "
                    "give the copy with run.dir="
                )
            return scores or _train_and_evaluate(config, run, resume, console, processes)
    except Exception as error:
        set_folder(error, run.folder)
        raise


def _train_and_evaluate(
    config: Config, run: Run, resume: bool, console: Console, processes: Processes
) -> dict[str, Any]:
    run.check_free(resume=resume)
    check_trackers(config)
    resumed = processes.broadcast(run.last.exists())
    built = build_experiment(
        config,
        run.folder.parent / "cache",
        processes,
        from_init=not resumed,
        track=lambda description: progress(description, console),
    )
    experiment, data = built.experiment, built.data
    content = run.load_last(keep=True) if run.writes and resumed else None
    if content is not None and (change := learning_rate_change(content, experiment)):
        console.print(change, markup=False, highlight=False)
    if config.train.init is not None and resumed:
        experiment.plain["init"] = processes.broadcast(
            None if content is None else init_digest(config, content["init"])
        )
    if resumed:
        experiment.plain["pretrained"] = processes.broadcast(None if content is None else content.get("pretrained"))
    part = evaluated_part(config, data.split)
    _start(run, built)
    print_header(config, built, console)
    if config.evaluation.read_first and not resumed:
        for warning in processes.run_on_first(lambda: read_first(config, data, part, console)):
            warn(warning, console)
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
            origin=_origin(run, trainer, data, experiment.plain["data"]),
            config=config,
            run=run,
            is_of_run=True,
            console=console,
            processes=processes,
        )
        show_overlays(run, run.evaluation(part) / "overlays.png", trainer.step_number)
        run.pass_scores(result, trainer.step_number)
    return result


def _start(run: Run, built: Built) -> None:
    """Write the resolved configuration, the split and what was loaded from `train.init` into the run folder."""
    run.start()
    if run.writes:
        with replaced(run.folder / "config.yaml") as temporary:
            dump(built.config, temporary)
    run.write_json("split.json", built.data.split.to_json())
    if built.loaded is not None and built.config.train.init is not None:
        run.write_json("initial_weights.json", built.loaded.to_json(built.config.train.init))


def _origin(run: Run, trainer: Trainer, data: Data, data_hash: str) -> Origin:
    """The last checkpoint of this training, for scores.json."""
    return Origin(
        checkpoint=str(run.last.relative_to(run.folder)),
        step=trainer.step_number,
        steps=trainer.settings.limits.steps,
        finished=trainer.finished,
        selected_on=None,
        split_hash=data.split.content_hash,
        data_hash=data_hash,
    )


def read_first(config: Config, data: Data, part: str, console: Console) -> list[str]:
    """Read the validation and evaluation cases once before training, so that bad ones are reported now. Raises
    DataError. Returns warnings about the validation cases."""
    validation = data.cases("validation")
    cases, has_foreground = list(dict.fromkeys([*validation, *data.cases(part)])), False
    names = {data.labels.channel_names[channel] for channel in data.labels.foreground}
    foreground = [name in names for name in data.labels.names]
    for case in tracked(cases, "checking the evaluation cases", len(cases), console):
        mask = data.source.read(case).mask
        if not has_foreground and mask is not None and case in validation:
            has_foreground = bool(count_classes(mask, data.labels)[foreground].any())
    return [] if has_foreground or not validation else unscored_validation_warnings(config)


def check_trackers(config: Config) -> None:
    """Raise MissingExtra for a tracker that is not installed, before anything is read."""
    for tracker in config.logging.trackers:
        needed: tuple[str, str] | None = getattr(TRACKERS[tracker.name], "requires", None)  # module and extra
        if needed is not None:
            require(*needed, f"the tracker {tracker.name}")


@contextmanager
def trackers(config: Config, run: Run) -> Iterator[None]:
    """Attach the trackers that the configuration asks for while the run goes on."""
    if run.writes and config.logging.trackers:
        content = run.load_last(keep=True)
        tracked_run = TrackedRun(run.folder, config.to_dict(), 0 if content is None else content["step"])
        for tracker in config.logging.trackers:
            try:
                run.trackers.append(TRACKERS[tracker.name](run=tracked_run, **tracker.args))
            except Exception as error:  # of any type, such as of a server that cannot be reached
                run.close("FAILED")
                reason = f"{type(error).__name__}: {one_line(str(error))}"
                raise RunError(
                    f"the tracker {tracker.name} cannot start, and nothing was trained ({reason}): mend the cause, or "
                    "leave it out of logging.trackers (wandb needs no server with mode: offline)"
                ) from error
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
    """Send the overlays of the evaluation to the trackers."""
    if run.takes_pictures and file.exists():
        from PIL import Image

        with Image.open(file) as picture:
            run.show_picture("evaluation", np.asarray(picture.convert("RGB")), step)
