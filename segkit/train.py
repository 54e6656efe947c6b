"""The training loop: step, log, validate, save."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from segkit import checkpoint
from segkit.data.loaders import EvaluationSet
from segkit.evaluate import Scoring, foreground_means, score_cases
from segkit.guards import dead_terms
from segkit.labels import Labels
from segkit.losses.diagnostics import term_gradients
from segkit.meter import Meter, progress_bar
from segkit.predict import Predictor, to_device
from segkit.runs import Run

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Interrupted(Exception):
    """Training was asked to stop by a signal; the checkpoint holds everything up to `step`."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; continue with --resume")
        self.exit_code = 128 + number


class Diverged(Exception):
    """The loss became infinite or NaN, and the weights with it."""

    exit_code = 1

    def __init__(self, step: int, saved: Path):
        super().__init__(
            f"the loss was not a finite number in the steps up to {step}, so training is stopped; {saved} is from "
            "before. Lower optimizer.lr, set train.clip_norm, or train with precision fp32"
        )


@dataclass(frozen=True)
class Settings:
    """How to train. steps, steps_per_epoch, validate_every (epochs), log_every and gradients_every (steps): counts, at
    least 1; the last says how often the share of each term in the gradient is looked at.

    clip_norm: largest norm of the gradient, None for no limit. ema: decay of the moving average of the weights,
    which is then what is validated, evaluated and saved as the model; None for none. After n steps the decay is at
    most (1 + n) / (10 + n), so that a short run forgets its initial weights.
    """

    steps: int
    steps_per_epoch: int
    precision: Precision = "fp32"
    channels_last: bool = False
    clip_norm: float | None = None
    ema: float | None = None
    validate_every: int = 1
    log_every: int = 10
    gradients_every: int = 100


@dataclass
class Experiment:
    """Everything that a run needs, built.

    schedule: step -> factor of the learning rate. batches: first step -> the batches from there to the end.
    plain: what goes into the checkpoint beside the weights (configuration, preprocessing, labels), plain data.
    """

    labels: Labels
    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer
    schedule: Callable[[int], float]
    batches: Callable[[int], Iterable[dict[str, Any]]]
    validation: EvaluationSet | None
    predictor: Callable[[nn.Module], Predictor]
    settings: Settings
    device: torch.device
    threshold: float
    plain: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """What changes while training, and one step of it."""

    def __init__(self, experiment: Experiment):
        settings = experiment.settings
        self.experiment, self.settings = experiment, settings
        self.model, self.loss, self.optimizer = experiment.model, experiment.loss, experiment.optimizer
        self.average = None if settings.ema is None else copy.deepcopy(self.model).requires_grad_(False)
        self.scaler = torch.amp.GradScaler(experiment.device.type, enabled=settings.precision == "fp16")
        self.gradients: dict[str, dict[str, Tensor]] | None = None  # of the terms, until they are logged
        self.step_number = 0
        self.best: float | None = None

    @property
    def evaluated_model(self) -> nn.Module:
        return self.model if self.average is None else self.average

    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One optimiser step. Returns device scalars: `loss`, each unweighted term, `gradient_norm` if clipped."""
        self._set_learning_rate(self.step_number)
        self.loss.set_progress(self.step_number / self.settings.steps)  # pyright: ignore[reportCallIssue]
        image = to_device(batch["image"], self.experiment.device, channels_last=self.settings.channels_last)
        mask = to_device(batch["mask"], self.experiment.device)
        with self._autocast():
            logits = self.model(image)
        if self.step_number == 0 or (self.step_number + 1) % self.settings.gradients_every == 0:
            self.gradients = term_gradients(self.loss, logits, mask)
        terms = self.loss.terms(logits, mask)  # pyright: ignore[reportCallIssue]
        total = self.loss.combine(terms)  # pyright: ignore[reportCallIssue]
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_number += 1
        if self.average is not None and self.settings.ema is not None:
            grown = (1 + self.step_number) / (10 + self.step_number)
            move_average(self.average, self.model, min(self.settings.ema, grown))
        return {name: value.detach() for name, value in {"loss": total, **terms, **norm}.items()}

    @property
    def position(self) -> dict[str, Any]:
        """Where training stands: step, epoch, learning rate of each parameter group."""
        return {
            "step": self.step_number,
            "epoch": self.step_number / self.settings.steps_per_epoch,
            "lr": [group["lr"] for group in self.optimizer.param_groups],
        }

    def _autocast(self) -> Any:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.experiment.device.type, AUTOCAST[self.settings.precision])

    def _clip(self) -> dict[str, Tensor]:
        if self.settings.clip_norm is None:
            return {}
        self.scaler.unscale_(self.optimizer)
        return {"gradient_norm": nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)}

    def _set_learning_rate(self, step: int) -> None:
        factor = self.experiment.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def state(self) -> dict[str, Any]:
        """Everything the loop changes, plain tensors and plain data."""
        return {
            **self.experiment.plain,
            "step": self.step_number,
            "steps": self.settings.steps,
            "selected_on": None,
            "best": self.best,
            "model": self.evaluated_model.state_dict(),
            "training": {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": _random_state(self.experiment.device),
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        training = state["training"]
        self.model.load_state_dict(training["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["model"])
        _set_random_state(training["random"], self.experiment.device)
        self.step_number, self.best = state["step"], state["best"]


def fit(experiment: Experiment, run: Run, *, resume: bool = False, console: Console | None = None) -> Trainer:
    """Train from the start, or from `last.pt` with `resume`, to `settings.steps`, into the run folder.

    Raises Interrupted after SIGINT or SIGTERM, once the step is done and `last.pt` is written, and Diverged for a loss
    that is not finite, which is noticed every `log_every` steps and before each validation.
    """
    console = console or Console()
    run.check_free(resume=resume)
    run.start()
    trainer = Trainer(experiment)
    if run.last.exists():
        trainer.load_state(checkpoint.load(run.last))
        run.cut_log(trainer.step_number)
    else:
        checkpoint.save(run.last, trainer.state())
    meter = Meter(experiment.settings.log_every)
    experiment.model.train()
    with progress_bar(console) as progress, _stop_signals() as stop:
        task = progress.add_task("training", total=experiment.settings.steps, completed=trainer.step_number, note="")
        meter.start()
        for batch in experiment.batches(trainer.step_number):
            meter.data_arrived()
            scalars = trainer.step(batch)
            step = trainer.step_number
            if step == 1:
                _warn_of_dead_terms(trainer, run, progress.console)
            record = meter.record(
                scalars, len(batch["case"]), trainer.position, due=_validates(experiment.settings, step)
            )
            if record is not None:
                run.log({**record, **_logged_gradients(trainer)})
                if not math.isfinite(record["loss"]):
                    raise Diverged(step, run.last)
                progress.update(task, note=f"loss {record['loss']:.3f}")
            if _validates(experiment.settings, step):
                _validate_and_save(trainer, run, progress.console)
            elif stop:
                checkpoint.save(run.last, trainer.state())
            progress.update(task, completed=step)
            if stop and step < experiment.settings.steps:
                raise Interrupted(stop[0], step)
            meter.step_done()
    return trainer


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


def _validates(settings: Settings, step: int) -> bool:
    return step == settings.steps or step % (settings.validate_every * settings.steps_per_epoch) == 0


def _validate_and_save(trainer: Trainer, run: Run, console: Console) -> None:
    """Count Dice and IoU on the validation cases, keep the best checkpoint, save the last."""
    experiment, step = trainer.experiment, trainer.step_number
    record: dict[str, Any] = {"kind": "epoch", "step": step, "epoch": step / experiment.settings.steps_per_epoch}
    improved = False
    if experiment.validation is not None:
        started = time.perf_counter()
        predictor = experiment.predictor(trainer.evaluated_model)
        scoring = Scoring(threshold=experiment.threshold)
        scored = score_cases(predictor, experiment.validation, experiment.labels, scoring)
        means = foreground_means(scored.cases, experiment.labels)
        improved = means["dice"] is not None and (trainer.best is None or means["dice"] > trainer.best)
        trainer.best = means["dice"] if improved else trainer.best
        record |= {"validation": means, "time": {"validation_seconds": time.perf_counter() - started}}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items() if value is not None)
        console.print(f"step {step}  validation {shown or 'without a foreground class'}{'  best' if improved else ''}")
    run.log(record)
    state = trainer.state()
    if improved:
        checkpoint.save(run.best, {**state, "selected_on": "validation"})
    checkpoint.save(run.last, state)


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters and buffers; counters are copied.

    torch's AveragedModel counts its updates in a tensor and moves that to the device at each of them, which waits.
    """
    new = dict(model.state_dict())
    old = average.state_dict()
    floating = [name for name, value in old.items() if value.is_floating_point()]
    torch._foreach_lerp_([old[name] for name in floating], [new[name] for name in floating], 1 - decay)  # pyright: ignore
    for name in old.keys() - set(floating):
        old[name].copy_(new[name])


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def _stop_signals():
    """Note SIGINT and SIGTERM in a list instead of stopping in the middle of a step; a second one stops at once."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever runs us there looks after signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
