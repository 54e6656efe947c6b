"""One training step, and everything that it changes: network, optimiser, moving average and their states."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

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
from segkit.training.ema import BufferBackup, move_average
from segkit.training.lr_schedules import Plateau, Schedule
from segkit.training.optimizers import frozen_modules, load_moments, prepare, skips_by_flag
from segkit.training.precision import AUTOCAST, Precision
from segkit.training.step_logger import NONFINITE, Meter
from segkit.training.stopping import Limits
from segkit.utils.distributed import SINGLE_PROCESS, Processes
from segkit.utils.seeding import random_state, set_random_state

Batch = dict[str, Any]
MicroBatches = Sequence[Batch]  # of one step
Timed = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Settings:
    """The settings of a training. All durations are in steps.

    Args:
        limits: The length of the training and the limits that end it early.
        steps_per_epoch: Steps per epoch, which are used for logging.
        precision: Floating-point precision of the forward pass.
        channels_last: Whether images are moved to the channels-last memory format.
        accumulate: Micro-batches per step.
        clip_norm: Maximum norm of the gradient; None for no clipping.
        ema: Decay of the exponential moving average of the weights; None for no average. The averaged weights are
            validated, evaluated and saved as the model. After n steps the decay is at most (1 + n) / (10 + n), so that
            a short run forgets its initial weights.
        validate_every: Steps between validations.
        log_every: Steps between log lines.
        gradients_every: Steps between measurements of the share of each term in the gradient.
        best: The metric that selects `best.pt`; see `validation_scoring`.
        keep_every: Steps between numbered checkpoints, which are kept in addition to `last.pt`; None for none.
        keep: Number of numbered checkpoints to keep.
        nonfinite: Number of consecutive steps with a non-finite loss or gradient that ends the training. Such steps
            are skipped: they change neither weights nor optimiser state.
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
    best: str = "dice"
    keep_every: int | None = None
    keep: int = 3
    nonfinite: int = 10


@dataclass
class Experiment:
    """The objects that a training needs.

    Args:
        labels: The classes and the meaning of mask values.
        model: The network, on the device. Its weights are saved in the checkpoints.
        loss: The loss, on the device.
        optimizer: An optimiser of `torch.optim`, or any other whose `step` needs no closure. Fused optimisers skip
            non-finite steps without a host synchronisation.
        schedule: A function from the step to the factor on the learning rate.
        batches: A function from the first step to the micro-batches from this step to the end of the training.
        validation: The validation cases; None for no validation.
        predictor: A function from a network to its predictor.
        settings: The settings of the training.
        device: The device of the model and the loss.
        validation_loss: The loss of single validation cases; None leaves it out of the log.
        network: The module that is called in the forward pass if it is not `model` itself, such as its compiled form.
        processes: The process group of distributed training.
        plain: Plain data for the checkpoint in addition to the weights: configuration, preprocessing, labels.
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
    validation_loss: WeightedSum | None = None


@dataclass(frozen=True)
class _OnDevice:
    """The tensors of a micro-batch on the device. weight: the weight of each pixel in the loss, or None. maps: those of
    the masks that the loss needs, or None."""

    image: Tensor
    mask: Tensor
    weight: Tensor | None
    maps: Mapping[str, Tensor] | None


class Trainer:
    """The state of a training, and one step of it."""

    def __init__(self, experiment: Experiment):
        settings = experiment.settings
        self.experiment, self.settings, self.processes = experiment, settings, experiment.processes
        self.model, self.loss, self.optimizer = experiment.model, experiment.loss, experiment.optimizer
        prepare(self.optimizer)
        self.skips_by_flag = False  # set by the first step in which the optimiser supports it
        optimized = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = [parameter for parameter in trainable if id(parameter) in optimized]
        self.average = None if settings.ema is None else copy.deepcopy(self.model).requires_grad_(False)
        self.buffers = BufferBackup(self.model)
        self.network = _distributed(experiment.network or self.model, experiment)
        self.scaler = torch.amp.GradScaler(experiment.device.type, enabled=settings.precision == "fp16")
        self.frozen = frozen_modules(self.model)
        self.needs_ddp_warm_up = isinstance(self.network, DistributedDataParallel)
        self.meter = Meter(settings.log_every, settings.limits.last_step, experiment.device, self.processes)
        self.gradients: dict[str, dict[str, Tensor]] | None = None  # of the terms, since the last log line
        self.timed: Timed = lambda _part: nullcontext()
        self.step_number = 0
        self.seconds = 0.0  # training time, including the time before a resume
        self.best: float | None = None
        self.best_step = 0
        self.validation_score: float | None = None  # the last one since the start of this process
        self.finished: str | None = None  # the limit that ended the training
        self.validation_pending = False  # whether the checkpoint of this step is written before its validation
        self.is_between_steps = True  # False while the optimiser changes the weights, and if it failed meanwhile

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is validated, evaluated and saved: the moving average if there is one."""
        return self.model if self.average is None else self.average

    def train_mode(self) -> None:
        """Set the network to training mode. Frozen modules keep the running statistics of their normalisation."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def step(self, batches: MicroBatches) -> dict[str, Tensor]:
        """One optimiser step on one or more micro-batches.

        Returns scalars on the device: `loss`, each unweighted term, `gradient_norm`, and `broken`, which is 1 if the
        step was skipped because loss or gradient was not finite.

        If the forward or backward pass fails, for example for lack of memory, the state is that before the step.
        """
        self._apply_schedules(self.step_number)
        self.buffers.save()
        random, gradients = random_state(self.experiment.device), self.gradients
        try:
            sums = self._compute_gradients(batches)
        except Exception:
            self.buffers.restore(torch.ones((), dtype=torch.bool, device=self.experiment.device))
            set_random_state(random, self.experiment.device)
            self.gradients = gradients
            raise
        self.is_between_steps = False
        with self.timed("optimiser"):
            norm, nonfinite = self._update(sums["loss"])
        self.step_number += 1
        self.is_between_steps = True
        return {**sums, "gradient_norm": norm, NONFINITE: nonfinite}

    def _compute_gradients(self, batches: MicroBatches) -> dict[str, Tensor]:
        """Forward and backward pass of each micro-batch. Returns the loss and its terms."""
        moved = [self._to_device(batch) for batch in batches]
        if self.needs_ddp_warm_up:
            self._warm_up_ddp(moved[0].image)
        normaliser = self._normaliser(moved) if len(moved) > 1 else None
        self.optimizer.zero_grad(set_to_none=True)
        results = []
        for number, batch in enumerate(moved, 1):
            with self._no_sync(number < len(moved)):
                results.append(self._backward(batch, normaliser, is_first=number == 1))
        return _summed(results)

    def _warm_up_ddp(self, image: Tensor) -> None:
        """Run one backward pass with zero gradients before the first step.

        DDP changes the order in which it sums gradients after its first backward pass. With this extra pass, the first
        steps after a resume sum in the same order as in an uninterrupted run. The pass changes nothing else.
        """
        self.needs_ddp_warm_up = False
        devices = [self.experiment.device] if self.experiment.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._autocast():
            outputs = self.network(image)
            outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            (0 * torch.stack([output.sum() for output in outputs]).sum()).backward()
        self.buffers.restore(torch.ones((), dtype=torch.bool, device=self.experiment.device))

    def _to_device(self, batch: Batch) -> _OnDevice:
        device = self.experiment.device
        image = to_device(batch["image"], device, channels_last=self.settings.channels_last)
        weight = to_device(batch["weight"], device) if "weight" in batch else None
        maps = {name: to_device(values, device) for name, values in batch["maps"].items()} if "maps" in batch else None
        return _OnDevice(image, to_device(batch["mask"], device), weight, maps)

    def _backward(self, batch: _OnDevice, normaliser: Any, *, is_first: bool) -> dict[str, Tensor]:
        """Forward and backward pass of a micro-batch. Returns its contribution to the loss and to each term."""
        with self.timed("forward"), self._autocast():
            logits = self.network(batch.image)
        if is_first and (self.step_number == 0 or (self.step_number + 1) % self.settings.gradients_every == 0):
            self.gradients = term_gradients(self.loss, logits, batch.mask, batch.weight, batch.maps)
        with self.timed("loss"):
            terms = self.loss.terms(logits, batch.mask, batch.weight, normaliser=normaliser, maps=batch.maps)
            total = self.loss.combine(terms)
        with self.timed("backward"):
            self.scaler.scale(total).backward()
        return {name: value.detach() for name, value in {"loss": total, **terms}.items()}

    def _update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Update weights and moving average, unless loss or gradient is not finite.

        Returns the gradient norm, and 1 if the update was skipped, else 0.
        """
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # with a scaler, only the gradient decides, since the scaler itself does not see the loss
        nonfinite = (~torch.isfinite(norm if self.scaler.is_enabled() else norm + loss)).float()
        if self.processes.group is not None:
            dist.all_reduce(nonfinite, op=dist.ReduceOp.MAX, group=self.processes.group)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.settings.clip_norm, norm)
        self._step_optimizer(nonfinite)
        self.buffers.restore(nonfinite > 0)
        if self.average is not None and self.settings.ema is not None:
            largest_decay = (2 + self.step_number) / (11 + self.step_number)
            move_average(self.average, self.model, (1 - min(self.settings.ema, largest_decay)) * (1 - nonfinite))
        return norm, nonfinite

    def _step_optimizer(self, nonfinite: Tensor) -> None:
        """Step the optimiser, unless loss or gradient is not finite.

        A fused optimiser reads the flag on the device. For any other optimiser the flag is read back to the host,
        which waits for the device. Its state may be on the host, such as the step counter of Adam, so that no operation
        on the device could restore it.
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
        """Copy the buffers of rank 0, which are those in the checkpoint, to all ranks.

        The running statistics of normalisation layers differ between ranks after a step.
        """
        if self.processes.group is not None:
            for module in filter(None, (self.model, self.average)):
                for buffer in module.buffers():
                    dist.broadcast(buffer, src=0, group=self.processes.group)

    @property
    def position(self) -> dict[str, Any]:
        """The current step, epoch and learning rate of each parameter group."""
        return {
            "step": self.step_number,
            "epoch": self.step_number / self.settings.steps_per_epoch,
            "lr": [group["lr"] for group in self.optimizer.param_groups],
        }

    def _autocast(self) -> Any:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.experiment.device.type, AUTOCAST[self.settings.precision])

    def _no_sync(self, more_follow: bool) -> Any:
        """Ranks exchange gradients once per step, in the backward pass of the last micro-batch."""
        if more_follow and isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    def _normaliser(self, batches: Sequence[_OnDevice]) -> Any:
        """The normaliser with which the losses of the micro-batches add up to the loss of one large batch."""
        masks = [batch.mask for batch in batches]
        weights = [batch.weight for batch in batches if batch.weight is not None] or None
        dims = masks[0].ndim - 1 - self.experiment.labels.has_mask_channels
        if isinstance(self.loss, WeightedSum):
            return self.loss.normaliser(masks, weights, spatial=dims)
        head_strides: Sequence[Sequence[int]] = self.model.head_strides  # pyright: ignore[reportAssignmentType]
        size = masks[0].shape[-dims:]
        sizes = [[side // stride for side, stride in zip(size, strides, strict=True)] for strides in head_strides]
        return self.loss.normaliser(masks, weights, sizes=sizes)

    def _apply_schedules(self, step: int) -> None:
        """Set the term weights and the learning rates of a step."""
        self.loss.set_progress(step / self.settings.limits.steps)
        factor = self.experiment.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint, as tensors and plain data. All ranks must call this together."""
        schedule = self.experiment.schedule
        return {
            **self.experiment.plain,
            "step": self.step_number,
            "steps": self.settings.limits.steps,
            "finished": self.finished,
            "validation_pending": self.validation_pending,
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
        """Continue from the contents of a checkpoint.

        Learning rates, weight decay, precision and schedule stay those of the experiment, which may differ from the
        checkpoint. If the number of processes has changed, all ranks start from the random state of rank 0.
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
        random_states = training["random"]
        rank = self.processes.rank if len(random_states) == self.processes.world_size else 0
        set_random_state(random_states[rank], self.experiment.device)
        self.step_number, self.seconds = state["step"], state["time"]["training_seconds"]
        self._apply_schedules(max(0, self.step_number - 1))  # as after the last step
        best_metric = state["config"].get("checkpoints", {}).get("best", self.settings.best)
        # scores of different metrics cannot be compared
        self.best = state["best"] if best_metric == self.settings.best else None
        self.best_step = state["best_step"]
        self.validation_pending = state.get("validation_pending", False)  # earlier versions saved after the validation
        limits = self.settings.limits
        self.finished = limits.reached(self.step_number, self.seconds)
        if state["finished"] == "patience":  # otherwise patience is only checked after a validation
            self.finished = self.finished or limits.out_of_patience(self.step_number, self.best_step)


def _summed(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum over micro-batches of each scalar."""
    if len(results) == 1:
        return results[0]
    return {name: torch.stack([result[name] for result in results]).sum(0) for name in results[0]}


def _distributed(network: nn.Module, experiment: Experiment) -> nn.Module:
    """The network, wrapped in DistributedDataParallel if there is a process group."""
    if experiment.processes.group is None:
        return network
    devices = [experiment.device.index] if experiment.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, process_group=experiment.processes.group)
