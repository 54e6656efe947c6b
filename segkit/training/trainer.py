"""What changes while training: network, loss, optimiser and their states, and one step of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from segkit.data.datasets import EvaluationSet
from segkit.inference.predictor import Predictor, to_device
from segkit.labels import Labels
from segkit.losses.deep_supervision import DeepSupervision
from segkit.losses.gradient_diagnostics import term_gradients
from segkit.losses.weighted_sum import WeightedSum
from segkit.training.ema import KeptBuffers, move_average
from segkit.training.lr_schedules import Plateau, Schedule
from segkit.training.optimizers import frozen_modules, load_moments, prepare, skips_by_flag
from segkit.training.precision import AUTOCAST, Precision
from segkit.training.step_logger import Meter
from segkit.training.stopping import Limits
from segkit.utils.distributed import SINGLE_PROCESS, Processes
from segkit.utils.seeding import random_state, set_random_state

Batch = dict[str, Any]
Window = Sequence[Batch]  # the micro-batches of a step
Timed = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Settings:
    """How to train; all lengths in steps.

    limits: what ends the training. validate_every, log_every, gradients_every: the last says how often the share of
    each term in the gradient is looked at. accumulate: micro-batches a step. clip_norm: largest norm of the gradient,
    None for no limit. ema: decay of the moving average of the weights, which is then what is validated, evaluated and
    saved as the model; None for none. After n steps the decay is at most (1 + n) / (10 + n), so that a short run
    forgets its initial weights. best: the score by which best.pt is chosen. keep_every: steps between checkpoints that
    are kept beside the last one, None for none; `keep` is how many of them. nonfinite: how many steps in a row may
    have a loss or gradient that is not finite; such steps change nothing.
    """

    limits: Limits
    steps_per_epoch: int
    precision: Precision = "fp32"
    channels_last: bool = False
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    validate_every: int = 1000
    log_every: int = 10
    gradients_every: int = 100
    best: Literal["dice", "iou"] = "dice"
    keep_every: int | None = None
    keep: int = 3
    nonfinite: int = 10


@dataclass
class Experiment:
    """Everything that a run needs, built.

    schedule: step -> factor of the learning rate. batches: first step -> the micro-batches from there to the end.
    network: what is called in place of the model, such as its compiled form. plain: what goes into the checkpoint
    beside the weights (configuration, preprocessing, labels), plain data.
    """

    labels: Labels
    model: nn.Module
    loss: WeightedSum | DeepSupervision
    optimizer: Optimizer
    schedule: Schedule
    batches: Callable[[int], Iterable[Batch]]
    validation: EvaluationSet | None
    predictor: Callable[[nn.Module], Predictor]
    settings: Settings
    device: torch.device
    network: nn.Module | None = None
    processes: Processes = SINGLE_PROCESS
    plain: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """What changes while training, and one step of it."""

    def __init__(self, experiment: Experiment):
        settings = experiment.settings
        self.experiment, self.settings, self.processes = experiment, settings, experiment.processes
        self.model, self.loss, self.optimizer = experiment.model, experiment.loss, experiment.optimizer
        prepare(self.optimizer)
        self.skips_by_flag = False  # whether the optimiser does; checked in each step until it does
        updated = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        self.trained = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad and id(parameter) in updated
        ]
        self.average = None if settings.ema is None else copy.deepcopy(self.model).requires_grad_(False)
        self.buffers = KeptBuffers(self.model)
        self.network = _distributed(experiment.network or self.model, experiment)
        self.scaler = torch.amp.GradScaler(experiment.device.type, enabled=settings.precision == "fp16")
        self.frozen = frozen_modules(self.model)
        self.settled = not isinstance(self.network, DistributedDataParallel)
        self.meter = Meter(settings.log_every, settings.limits.last_step, experiment.device, self.processes)
        self.gradients: dict[str, dict[str, Tensor]] | None = None  # of the terms, until they are logged
        self.timed: Timed = lambda _part: nullcontext()
        self.step_number = 0
        self.seconds = 0.0  # of training, in all parts of a run that was resumed
        self.best: float | None = None
        self.best_step = 0
        self.finished: str | None = None  # by which length or limit

    @property
    def evaluated_model(self) -> nn.Module:
        return self.model if self.average is None else self.average

    def train_mode(self) -> None:
        """Of the network; what is frozen keeps the statistics of its norms."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def step(self, window: Window) -> dict[str, Tensor]:
        """One optimiser step on one or more micro-batches. Returns scalars on the device: `loss`, each unweighted term,
        `gradient_norm`, and `broken`, 1 where loss or gradient was not finite and the step therefore changed nothing.
        """
        self._set_rates()
        parts = [self._moved(batch) for batch in window]
        if not self.settled:
            self._settle(parts[0][0])
        normaliser = self._normaliser([mask for _image, mask in parts]) if len(parts) > 1 else None
        self.buffers.remember()
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        for number, (image, mask) in enumerate(parts, 1):
            with self._no_sync(number < len(parts)):
                found.append(self._backward(image, mask, normaliser, first=number == 1))
        sums = (
            found[0]
            if len(found) == 1
            else {name: torch.stack([one[name] for one in found]).sum(0) for name in found[0]}
        )
        with self.timed("optimiser"):
            norm, broken = self._update(sums["loss"])
        self.step_number += 1
        return {**sums, "gradient_norm": norm, "broken": broken}

    def _settle(self, image: Tensor) -> None:
        """Let DDP see a backward pass, after which it orders its sums anew, before any that counts: so that the first
        steps after a resume are summed as those of a run that was not cut off. Nothing else comes of the pass."""
        self.settled = True
        devices = [self.experiment.device] if self.experiment.device.type == "cuda" else []
        self.buffers.remember()
        with torch.random.fork_rng(devices), self._autocast():
            outputs = self.network(image)
            outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            (0 * torch.stack([output.sum() for output in outputs]).sum()).backward()
        self.buffers.put_back(torch.ones((), dtype=torch.bool, device=self.experiment.device))

    def _moved(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self.experiment.device
        image = to_device(batch["image"], device, channels_last=self.settings.channels_last)
        return image, to_device(batch["mask"], device)

    def _backward(self, image: Tensor, mask: Tensor, normaliser: Any, *, first: bool) -> dict[str, Tensor]:
        """Forward and backward of a micro-batch. Returns its part of the loss and of each term."""
        with self.timed("forward"), self._autocast():
            logits = self.network(image)
        if first and (self.step_number == 0 or (self.step_number + 1) % self.settings.gradients_every == 0):
            self.gradients = term_gradients(self.loss, logits, mask)
        with self.timed("loss"):
            terms = self.loss.terms(logits, mask, normaliser=normaliser)
            total = self.loss.combine(terms)
        with self.timed("backward"):
            self.scaler.scale(total).backward()
        return {name: value.detach() for name, value in {"loss": total, **terms}.items()}

    def _update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Move the weights, unless something is not finite; nothing is read back to decide that."""
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # a scaler decides by the gradients alone
        broken = (~torch.isfinite(norm if self.scaler.is_enabled() else norm + loss)).float()
        if self.processes.group is not None:
            dist.all_reduce(broken, op=dist.ReduceOp.MAX, group=self.processes.group)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.settings.clip_norm, norm)
        self._step_optimizer(broken)
        self.buffers.put_back(broken > 0)
        if self.average is not None and self.settings.ema is not None:
            grown = (2 + self.step_number) / (11 + self.step_number)
            move_average(self.average, self.model, (1 - min(self.settings.ema, grown)) * (1 - broken))
        return norm, broken

    def _step_optimizer(self, nonfinite: Tensor) -> None:
        """Step the optimiser, unless the gradient is not finite.

        A fused optimiser reads the flag on the device. For any other optimiser the flag is read on the host, which
        waits for the device: only then every part of its state, on whatever device, stays exactly as it was.
        """
        optimizer: Any = self.optimizer
        self.skips_by_flag = self.skips_by_flag or skips_by_flag(optimizer)
        if self.skips_by_flag:
            if not self.scaler.is_enabled():  # a scaler sets the flag itself
                optimizer.found_inf = nonfinite
            self.scaler.step(optimizer)
        elif not nonfinite.item():
            optimizer.step()
        self.scaler.update()

    def share_buffers(self) -> None:
        """Give all processes the norms' statistics of the first, which are those of the checkpoint; each has its own
        after a step."""
        if self.processes.group is not None:
            for module in filter(None, (self.model, self.average)):
                for buffer in module.buffers():
                    dist.broadcast(buffer, src=0, group=self.processes.group)

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

    def _no_sync(self, more_to_come: bool) -> Any:
        """Gradients of several processes are added up once a step, with the last micro-batch."""
        if more_to_come and isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    def _normaliser(self, masks: Sequence[Tensor]) -> Any:
        """What makes the micro-batches add up to one large batch."""
        images = len(masks[0].shape) - 1 - self.experiment.labels.has_mask_channels
        if isinstance(self.loss, WeightedSum):
            return self.loss.normaliser(masks, spatial=images)
        heads: Sequence[Sequence[int]] = self.model.head_strides  # pyright: ignore[reportAssignmentType]
        whole = masks[0].shape[-images:]
        sizes = [[side // stride for side, stride in zip(whole, strides, strict=True)] for strides in heads]
        return self.loss.normaliser(masks, sizes=sizes)

    def _set_rates(self) -> None:
        self.loss.set_progress(self.step_number / self.settings.limits.steps)
        factor = self.experiment.schedule(self.step_number)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def state(self) -> dict[str, Any]:
        """Everything the loop changes, plain tensors and plain data. All processes have to ask for it together."""
        schedule = self.experiment.schedule
        return {
            **self.experiment.plain,
            "step": self.step_number,
            "steps": self.settings.limits.steps,
            "finished": self.finished,
            "selected_on": None,
            "best": self.best,
            "best_step": self.best_step,
            "time": {"training_seconds": self.seconds},
            "model": self.evaluated_model.state_dict(),
            "training": {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": schedule.state if isinstance(schedule, Plateau) else None,
                "scaler": self.scaler.state_dict(),
                "meter": self.meter.state(),
                "gradients": self.gradients,
                "random": self.processes.all_gather(random_state(self.experiment.device)),
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; with another number of processes, their random states begin with that of the first.

        Rates, decays, precision and schedule are those of the configuration, which may have been allowed to change.
        """
        training = state["training"]
        self.model.load_state_dict(training["model"])
        load_moments(self.optimizer, training["optimizer"])
        if training["scaler"]:
            self.scaler.load_state_dict(training["scaler"])
        self.meter.load_state(training["meter"])
        self.gradients = training["gradients"]
        if isinstance(self.experiment.schedule, Plateau) and training["schedule"] is not None:
            self.experiment.schedule.state = training["schedule"]
        if self.average is not None:
            self.average.load_state_dict(state["model"])
        random = training["random"]
        place = self.processes.rank if len(random) == self.processes.world_size else 0
        set_random_state(random[place], self.experiment.device)
        self.step_number, self.seconds = state["step"], state["time"]["training_seconds"]
        self.best, self.best_step = state["best"], state["best_step"]
        limits = self.settings.limits
        self.finished = limits.reached(self.step_number, self.seconds)
        if state["finished"] == "patience":  # which is looked at after a validation, and at no other step
            self.finished = self.finished or limits.out_of_patience(self.step_number, self.best_step)


def _distributed(network: nn.Module, experiment: Experiment) -> nn.Module:
    """With several processes, the network in torch's wrapper that adds up their gradients."""
    if experiment.processes.group is None:
        return network
    devices = [experiment.device.index] if experiment.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, process_group=experiment.processes.group)
