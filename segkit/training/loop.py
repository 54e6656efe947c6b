"""The training loop: step, log, validate and save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from segkit.data.datasets import EvaluationSet
from segkit.evaluation.results import foreground_means
from segkit.evaluation.scorer import score_cases
from segkit.evaluation.scoring import validation_scoring
from segkit.losses.gradient_diagnostics import dead_terms
from segkit.losses.weighted_sum import WeightedSum
from segkit.training import checkpoint
from segkit.training.forecast import Forecast
from segkit.training.lr_schedules import Plateau
from segkit.training.profiling import Profiler
from segkit.training.run_folder import Run
from segkit.training.stopping import BatchOverdue, Diverged, Interrupted, StopMonitor, StopSignals
from segkit.training.trackers import FirstMasks, overlays_of
from segkit.training.trainer import Batch, Experiment, MicroBatches, Trainer
from segkit.utils.console import warn
from segkit.utils.distributed import Processes
from segkit.utils.errors import is_out_of_memory
from segkit.utils.metric_names import metric_facts
from segkit.utils.progress import ProgressDisplay
from segkit.utils.text import readable_number


class TrainingMemoryError(MemoryError):
    """A training step needs more memory than there is."""

    exit_code = 4


def fit(
    experiment: Experiment,
    run: Run,
    *,
    resume: bool = False,
    console: Console | None = None,
    profiler: Profiler | None = None,
) -> Trainer:
    """Train an experiment until its last step or a limit is reached, and write the run folder.

    Args:
        experiment: The built experiment.
        run: The run folder.
        resume: Continue from `last.pt` if the folder already contains a run.
        console: Where messages and the progress bar are printed; stdout by default.
        profiler: Measures the first steps, see `segkit.training.profiling`.

    Raises RunError if the folder contains a run and `resume` is False. For the other errors, see `run_training`.
    """
    run.check_free(resume=resume)
    run.start()
    return run_training(experiment, run, console=console, profiler=profiler)


def run_training(
    experiment: Experiment, run: Run, *, console: Console | None = None, profiler: Profiler | None = None
) -> Trainer:
    """The training loop of `fit`, for a run folder that is already checked and started.

    Training continues from `last.pt` if this file exists.

    Raises Interrupted on SIGINT or SIGTERM, after the current step is finished and `last.pt` is written. Raises
    Diverged if the loss or its gradient is not finite for `settings.nonfinite` consecutive steps.
    """
    console = console or Console()
    trainer = Trainer(experiment)
    _start_or_continue(trainer, run)
    if trainer.validation_pending:
        _validate_and_save(trainer, run, console, validates=True, numbered=_is_numbered(trainer))
    if trainer.finished:
        return trainer
    trainer.train_mode()
    if profiler is not None:
        trainer.timed = profiler.timed
    steps = experiment.settings.limits.last_step
    with ProgressDisplay("training", steps, console, trainer.step_number) as progress, StopSignals() as signals:
        monitor = StopMonitor(experiment.settings.limits, experiment.processes, signals)
        try:
            _run_steps(trainer, run, monitor, profiler, progress)
        finally:
            if profiler is not None:
                profiler.close(run)
    return trainer


def _run_steps(
    trainer: Trainer, run: Run, monitor: StopMonitor, profiler: Profiler | None, progress: ProgressDisplay
) -> None:
    """Run training steps until the last step or a limit is reached."""
    meter, settings = trainer.meter, trainer.settings
    forecast = Forecast(settings.limits, trainer.step_number, trainer.experiment.device)
    start = time.perf_counter() - trainer.seconds
    meter.start()
    arriving = _grouped(trainer.experiment.batches(trainer.step_number), settings.accumulate)
    while True:
        begun = time.perf_counter()
        with _saved_on_failure(trainer, run, progress.console):
            batches = _next_batches(arriving, trainer, monitor)
            if batches is None:
                break
            meter.data_arrived()
            scalars = trainer.step(batches)
        trainer.seconds = time.perf_counter() - start
        if profiler is not None:
            profiler.step_done(meter.last_wait)
        duration = time.perf_counter() - begun
        if (text := forecast.step_done(trainer.step_number, duration, trainer.seconds)) is not None:
            _tell_forecast(text, progress.console)
        trainer.finished, signal_number = monitor.after_step(trainer.step_number, trainer.seconds)
        _after_step(trainer, run, batches, scalars, progress)
        progress.update(trainer.step_number)
        if signal_number is None:
            signal_number = monitor.after_validation(is_last=trainer.finished is not None)
        if signal_number is not None:
            if not trainer.finished:  # the checkpoint of a finished training is already written
                _save(run, run.last, trainer.state())
            raise Interrupted(signal_number, trainer.step_number)
        if trainer.finished:
            progress.console.print(_end_of_training(trainer), highlight=False)
            break
        meter.step_done()


def _tell_forecast(text: str, console: Console) -> None:
    from segkit.report.console import print_facts

    print_facts([("time", text)], console)


def _end_of_training(trainer: Trainer) -> str:
    """What ended the training."""
    settings = trainer.settings
    reasons = {
        "steps": "",
        "max_steps": ", at the limit of train.max_steps or train.max_epochs",
        "max_minutes": ", at the limit of train.max_minutes",
        "patience": f" by train.patience: validation {settings.best} has not improved since step {trainer.best_step}",
    }
    return f"training ended after step {trainer.step_number}{reasons[trainer.finished or 'steps']}"


def _start_or_continue(trainer: Trainer, run: Run) -> None:
    """Load `last.pt` if it exists; otherwise write it before the first step."""
    content = trainer.processes.broadcast(run.load_last() if run.writes else None)
    if content is None:
        _save(run, run.last, trainer.state())
    else:
        checkpoint.check_resumable(run.last, content, trainer.model, trainer.optimizer)
        trainer.load_state(content)
        run.prune(trainer.settings.keep)  # a process that was killed may have left one too many
        run.cut_log(trainer.step_number, validation_pending=trainer.validation_pending)


def _next_batches(arriving: Iterator[MicroBatches], trainer: Trainer, monitor: StopMonitor) -> MicroBatches | None:
    """The micro-batches of the next step, or None after the last step.

    Raises Interrupted if a signal arrives while a batch does not.
    """
    try:
        with monitor.signals.waiting_for_batch():
            return next(arriving, None)
    except BatchOverdue:
        assert monitor.signals.first is not None
        raise Interrupted(monitor.signals.first, trainer.step_number) from None


@contextmanager
def _saved_on_failure(trainer: Trainer, run: Run, console: Console) -> Iterator[None]:
    """Write `last.pt` if loading a batch or computing a step fails, so that no finished step is lost.

    With several processes this is not possible, because they write a checkpoint together.
    """
    try:
        yield
    except Exception as error:
        if trainer.processes.group is None and trainer.is_between_steps:
            with suppress(checkpoint.CheckpointError):  # the failure itself is reported
                _save(run, run.last, trainer.state())
                console.print(f"the training up to step {trainer.step_number} is saved", highlight=False)
        if is_out_of_memory(error):
            raise TrainingMemoryError(
                f"out of memory in step {trainer.step_number + 1}; use a smaller loader.batch (with train.accumulate "
                "for the same number of images per step), a smaller sampling.patch, or a smaller network"
            ) from error
        raise


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[MicroBatches]:
    """The micro-batches of each step."""
    return zip(*[iter(batches)] * size, strict=True)


def _after_step(
    trainer: Trainer, run: Run, batches: MicroBatches, scalars: dict[str, Tensor], progress: ProgressDisplay
) -> None:
    """Log, validate and save if they are due."""
    settings, step, meter = trainer.settings, trainer.step_number, trainer.meter
    if step == 1:
        _warn_about_dead_terms(trainer, run, progress.console)
    validates = trainer.finished is not None or step % settings.validate_every == 0
    cases = [case for batch in batches for case in batch["case"]]
    record = meter.record(scalars, cases, trainer.position, due=validates)
    if record is not None:
        _log(trainer, run, {**record, **_logged_gradients(trainer)}, progress)
    numbered = _is_numbered(trainer)
    if validates or numbered:
        with meter.paused():
            _validate_and_save(trainer, run, progress.console, validates=validates, numbered=numbered)


def _is_numbered(trainer: Trainer) -> bool:
    """Whether a numbered checkpoint is due."""
    return trainer.settings.keep_every is not None and trainer.step_number % trainer.settings.keep_every == 0


def _validate_and_save(trainer: Trainer, run: Run, console: Console, *, validates: bool, numbered: bool) -> None:
    """Validate and write the checkpoints.

    `last.pt` is also written before the validation, which may fail or be killed; a resumed run then repeats it.
    """
    if validates:
        trainer.share_buffers()
        if trainer.experiment.validation is not None:
            trainer.validation_pending = True
            _save(run, run.last, trainer.state())
            trainer.validation_pending = False
        _validate(trainer, run, console)
    state = trainer.state()
    if numbered:  # before last.pt, so that a run that is killed in between resumes at an earlier step and writes both
        _save(run, run.numbered(trainer.step_number), state)
    _save(run, run.last, state)
    if numbered:
        run.prune(trainer.settings.keep)


def _log(trainer: Trainer, run: Run, record: dict[str, Any], progress: ProgressDisplay) -> None:
    """Write a log line and report skipped steps. Raises Diverged after too many consecutive skipped steps."""
    run.log(record)
    if "skipped" in record:
        cases = ", ".join(dict.fromkeys(record["skipped"]["cases"]))
        hint = " (expected for a few steps in fp16, until the loss scale fits)" if trainer.scaler.is_enabled() else ""
        warn(
            f"skipped {record['skipped']['steps']} steps up to step {record['step']}: loss or gradient was not "
            f"finite{hint}; cases: {cases}",
            progress.console,
        )
    longest = trainer.meter.longest
    if longest >= trainer.settings.nonfinite:
        _save(run, run.last, trainer.state())
        raise Diverged(trainer.step_number, longest, record["skipped"]["cases"], run.last)
    progress.update(trainer.step_number, _note(trainer, record))


def _note(trainer: Trainer, record: dict[str, Any]) -> str:
    """Loss, last validation score and speed, for the progress."""
    loss, score = record["loss"], trainer.validation_score
    notes = [] if loss is None else [f"loss {loss:.3f}"]
    notes += [] if score is None or math.isnan(score) else [f"{trainer.settings.best} {score:.3f}"]
    return "  ".join([*notes, f"{readable_number(record['time']['images_per_second'])} images/s"])


def _warn_about_dead_terms(trainer: Trainer, run: Run, console: Console) -> None:
    """Warn about terms that contribute no gradient on the first batch. This reads the gradients back, once."""
    assert trainer.gradients is not None
    for warning in dead_terms({name: norm.item() for name, norm in trainer.gradients["norm"].items()}):
        warn(warning, console)
        run.log({"kind": "warning", "step": trainer.step_number, "message": warning})


def _logged_gradients(trainer: Trainer) -> dict[str, Any]:
    """The field `gradients` of a log line: share and cosine of the terms, if they were computed since the last line."""
    gradients, trainer.gradients = trainer.gradients, None
    if gradients is None or len(gradients["norm"]) < 2:
        return {}
    logged = {key: {name: value.item() for name, value in gradients[key].items()} for key in ("share", "cosine")}
    return {"gradients": logged}


def _validate(trainer: Trainer, run: Run, console: Console) -> None:
    """Score the validation cases, save `best.pt` if the score improved, and check the patience."""
    experiment, step, settings = trainer.experiment, trainer.step_number, trainer.settings
    record: dict[str, Any] = {"kind": "epoch", "step": step, "epoch": step / settings.steps_per_epoch}
    improved = False
    if experiment.validation is not None:
        start = time.perf_counter()
        masks = FirstMasks() if run.takes_pictures else None
        means, loss, has_foreground = _validation_scores(trainer, experiment.validation, masks)
        score = means[settings.best] if has_foreground else None  # otherwise only false positives are scored
        trainer.validation_score = score
        improved = score is not None and not math.isnan(score) and _is_better(score, trainer.best, settings.best)
        if improved:
            trainer.best, trainer.best_step = score, step
        if isinstance(experiment.schedule, Plateau):
            experiment.schedule.observe(step, None if score is None else _sign(settings.best) * score)
        record |= {"validation": means, "time": {"validation_seconds": time.perf_counter() - start}}
        record |= {} if loss is None else {"validation_loss": loss}
        scores = "  ".join(f"{name} {value:.4f}" for name, value in means.items() if value is not None)
        shown_loss = "" if loss is None else f"  loss {loss:.4f}"
        shown = f"{scores or 'without foreground'}{shown_loss}{'  best' if improved else ''}"
        console.print(f"step {step}  validation {shown}")
        if masks is not None:
            run.show_picture("validation", overlays_of(masks, experiment.validation, experiment.labels), step)
        trainer.train_mode()
    run.log(record)
    if trainer.best is not None:  # without a score there is nothing that could improve
        trainer.finished = trainer.finished or settings.limits.out_of_patience(step, trainer.best_step)
    if improved:
        _save(run, run.best, {**trainer.state(), "selected_on": "validation"})


def _sign(metric: str) -> int:
    """The factor that makes larger values of a metric better."""
    facts = metric_facts(metric)
    return 1 if facts is None else facts.sign


def _is_better(score: float, best: float | None, metric: str) -> bool:
    return best is None or _sign(metric) * score > _sign(metric) * best


class _CaseLosses:
    """The loss of each validation case, kept on the device until all are computed."""

    def __init__(self, loss: WeightedSum):
        self.loss = loss
        self.values: dict[int, Tensor] = {}

    @torch.inference_mode()
    def observe(self, number: int, logits: Tensor, mask: Tensor, spacing: Sequence[float]) -> None:
        self.values[number] = self.loss(logits, mask, spacing=[spacing])

    def mean(self, processes: Processes) -> float:
        """The mean over the cases of all processes; a case of two processes counts once."""
        local = {number: value.item() for number, value in self.values.items()}
        values = {number: value for part in processes.all_gather(local) for number, value in part.items()}
        return sum(values.values()) / len(values)


def _validation_scores(
    trainer: Trainer, validation: EvaluationSet, masks: FirstMasks | None
) -> tuple[dict[str, float | None], float | None, bool]:
    """The mean scores over the foreground classes, the mean loss of the cases, and whether a mask has foreground.

    The first predictions are kept in `masks`.
    """
    losses, scoring = None, validation_scoring(trainer.settings.best)
    if trainer.experiment.validation_loss is not None:
        losses = _CaseLosses(trainer.experiment.validation_loss)
        losses.loss.set_progress(max(0, trainer.step_number - 1) / trainer.settings.limits.steps)
    scored = score_cases(
        trainer.experiment.predictor(trainer.evaluated_model),
        validation,
        trainer.experiment.labels,
        scoring,
        group=trainer.processes.group,
        keep=None if masks is None else masks.keep,
        observe=None if losses is None else losses.observe,
    )
    labels = trainer.experiment.labels
    foreground = scored.cases["class"].isin([labels.channel_names[channel] for channel in labels.foreground])
    has_foreground = bool((scored.cases.loc[foreground, "reference"] > 0).any())
    loss = None if losses is None else losses.mean(trainer.processes)
    return foreground_means(scored.cases, labels, scoring.metrics), loss, has_foreground


def _save(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint. Only the process of rank 0 writes; the state is the same on all ranks."""
    if run.writes:
        checkpoint.save(path, state)
