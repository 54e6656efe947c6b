"""The training loop: step, log, validate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor

from segkit.evaluation.results import foreground_means
from segkit.evaluation.scorer import score_cases
from segkit.losses.gradient_diagnostics import dead_terms
from segkit.training import checkpoint
from segkit.training.lr_schedules import Plateau
from segkit.training.profiling import Profiler
from segkit.training.run_folder import Run
from segkit.training.step_logger import progress_bar
from segkit.training.stopping import Diverged, Interrupted, Watch, stop_signals
from segkit.training.trackers import FirstMasks, overlays_of
from segkit.training.trainer import Batch, Experiment, Trainer, Window


def fit(
    experiment: Experiment,
    run: Run,
    *,
    resume: bool = False,
    console: Console | None = None,
    profiler: Profiler | None = None,
) -> Trainer:
    """Train an experiment into a run folder until its length or a limit is reached.

    resume: continue from `last.pt` if the folder already holds a run. profiler: see `segkit.training.profiling`.

    Raises RunError if the folder holds a run and `resume` is False. See `run_training` for the other errors.
    """
    run.check_free(resume=resume)
    run.start()
    return run_training(experiment, run, console=console, profiler=profiler)


def run_training(
    experiment: Experiment, run: Run, *, console: Console | None = None, profiler: Profiler | None = None
) -> Trainer:
    """The training loop of `fit`, for a run folder that is already checked and started.

    Training continues from `last.pt` if this file exists. Raises Interrupted after SIGINT or SIGTERM, once the current
    step is done and `last.pt` is written, and Diverged if the loss or gradient is not finite for `settings.nonfinite`
    steps in a row.
    """
    console = console or Console()
    trainer = Trainer(experiment)
    _start_or_continue(trainer, run)
    if trainer.finished:
        return trainer
    trainer.train_mode()
    if profiler is not None:
        trainer.timed = profiler.timed
    with progress_bar(console) as progress, stop_signals() as received:
        total = experiment.settings.limits.last_step
        task = progress.add_task("training", total=total, completed=trainer.step_number, note="")
        watch = Watch(experiment.settings.limits, experiment.processes, received)
        try:
            _steps(trainer, run, watch, profiler, progress, task)
        finally:
            if profiler is not None:
                profiler.close(run)
    return trainer


def _steps(
    trainer: Trainer, run: Run, watch: Watch, profiler: Profiler | None, progress: Progress, task: TaskID
) -> None:
    """Step after step, until a length or limit is reached."""
    meter, settings = trainer.meter, trainer.settings
    began = time.perf_counter() - trainer.seconds
    meter.start()
    for window in _windows(trainer.experiment.batches(trainer.step_number), settings.accumulate):
        meter.data_arrived()
        scalars = trainer.step(window)
        trainer.seconds = time.perf_counter() - began
        if profiler is not None:
            profiler.step_done(meter.waiting_now)
        trainer.finished, asked = watch.look(trainer.step_number, trainer.seconds)
        _after_step(trainer, run, window, scalars, progress, task)
        progress.update(task, completed=trainer.step_number)
        asked = asked if asked is not None else watch.meanwhile(last=trainer.finished is not None)
        if asked is not None:
            if not trainer.finished:  # at its end the checkpoint is written already
                _save(run, run.last, trainer.state())
            raise Interrupted(asked, trainer.step_number)
        if trainer.finished:
            break
        meter.step_done()


def _start_or_continue(trainer: Trainer, run: Run) -> None:
    content = trainer.processes.broadcast(run.load_last() if run.writes else None)
    if content is None:
        _save(run, run.last, trainer.state())
    else:
        trainer.load_state(content)
        run.cut_log(trainer.step_number)


def _windows(batches: Iterable[Batch], size: int) -> Iterator[Window]:
    """The micro-batches of each step."""
    return zip(*[iter(batches)] * size, strict=True)


def _after_step(
    trainer: Trainer, run: Run, window: Window, scalars: dict[str, Tensor], progress: Progress, task: TaskID
) -> None:
    """Log, validate and save, whatever is due."""
    settings, step, meter = trainer.settings, trainer.step_number, trainer.meter
    if step == 1:
        _warn_of_dead_terms(trainer, run, progress.console)
    validates = trainer.finished is not None or step % settings.validate_every == 0
    record = meter.record(
        scalars, [case for batch in window for case in batch["case"]], trainer.position, due=validates
    )
    if record is not None:
        _log(trainer, run, {**record, **_logged_gradients(trainer)}, progress, task)
    keeps = settings.keep_every is not None and step % settings.keep_every == 0
    if validates or keeps:
        with meter.paused():
            _validate_and_save(trainer, run, progress.console, validates=validates, keeps=keeps)


def _validate_and_save(trainer: Trainer, run: Run, console: Console, *, validates: bool, keeps: bool) -> None:
    if validates:
        _validate(trainer, run, console)
    state = trainer.state()
    if keeps:  # before the last one, from which a run that is killed in between goes on
        _save(run, run.numbered(trainer.step_number), state)
    _save(run, run.last, state)
    if keeps:
        run.prune(trainer.settings.keep)


def _log(trainer: Trainer, run: Run, record: dict[str, Any], progress: Progress, task: TaskID) -> None:
    """Write a line of the log; say which steps were skipped, and stop where there are too many of them in a row."""
    run.log(record)
    if "skipped" in record:
        cases = ", ".join(dict.fromkeys(record["skipped"]["cases"]))
        usual = " (a few are usual in fp16, while its scale is looked for)" if trainer.scaler.is_enabled() else ""
        progress.console.print(
            f"warning: {record['skipped']['steps']} steps up to {record['step']} changed nothing, since loss or "
            f"gradient was not finite{usual}; their cases: {cases}",
            style="yellow",
            highlight=False,
            markup=False,
        )
    longest = trainer.meter.longest
    if longest >= trainer.settings.nonfinite:
        _save(run, run.last, trainer.state())
        raise Diverged(trainer.step_number, longest, record["skipped"]["cases"], run.last)
    progress.update(task, note="" if record["loss"] is None else f"loss {record['loss']:.3f}")


def _warn_of_dead_terms(trainer: Trainer, run: Run, console: Console) -> None:
    """Read the gradients of the first batch back, once, and say which terms train nothing."""
    assert trainer.gradients is not None
    for warning in dead_terms({name: norm.item() for name, norm in trainer.gradients["norm"].items()}):
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
        run.log({"kind": "warning", "step": trainer.step_number, "message": warning})


def _logged_gradients(trainer: Trainer) -> dict[str, Any]:
    """The share and the cosine of the terms since they were last looked at, as a field of a log line."""
    found, trainer.gradients = trainer.gradients, None
    if found is None or len(found["norm"]) < 2:
        return {}
    return {
        "gradients": {key: {name: value.item() for name, value in found[key].items()} for key in ("share", "cosine")}
    }


def _validate(trainer: Trainer, run: Run, console: Console) -> None:
    """Count Dice and IoU on the validation cases, keep the best checkpoint, see whether patience is at its end."""
    experiment, step, settings = trainer.experiment, trainer.step_number, trainer.settings
    record: dict[str, Any] = {"kind": "epoch", "step": step, "epoch": step / settings.steps_per_epoch}
    improved = False
    trainer.share_buffers()
    if experiment.validation is not None:
        started = time.perf_counter()
        predictor = experiment.predictor(trainer.evaluated_model)
        shown = FirstMasks() if run.takes_pictures else None
        scored = score_cases(
            predictor,
            experiment.validation,
            experiment.labels,
            group=trainer.processes.group,
            keep=None if shown is None else shown.keep,
        )
        means = foreground_means(scored.cases, experiment.labels)
        score = means[settings.best]
        improved = score is not None and not math.isnan(score) and (trainer.best is None or score > trainer.best)
        if improved:
            trainer.best, trainer.best_step = score, step
        if isinstance(experiment.schedule, Plateau):
            experiment.schedule.observe(step, score)
        record |= {"validation": means, "time": {"validation_seconds": time.perf_counter() - started}}
        said = "  ".join(f"{name} {value:.4f}" for name, value in means.items() if value is not None)
        console.print(f"step {step}  validation {said or 'without a foreground class'}{'  best' if improved else ''}")
        if shown is not None:
            run.show_picture("validation", overlays_of(shown, experiment.validation, experiment.labels), step)
        trainer.train_mode()
    run.log(record)
    trainer.finished = trainer.finished or settings.limits.out_of_patience(step, trainer.best_step)
    if improved:
        state = trainer.state()
        _save(run, run.best, {**state, "selected_on": "validation"})


def _save(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Only the first process writes; `state` is the same on all of them."""
    if run.writes:
        checkpoint.save(path, state)
