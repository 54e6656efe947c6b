"""The memory that a plan may use, and the memory that a training step needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from segkit.config import ConfigError
from segkit.experiment.model_summary import memory_of_step
from segkit.experiment.planning.fingerprint import Fingerprint
from segkit.experiment.validate import build_on_meta, multiple_of
from segkit.inference.memory import bytes_per_pixel
from segkit.inference.predictor import whole_image
from segkit.labels import Labels
from segkit.models.nnunet_shapes import BUDGETS
from segkit.training.optimizers import Grouping, build_optimizer
from segkit.training.precision import Precision
from segkit.training.step_memory import Layout, StepMemory

LOSS = "dice_ce"
CPU_GB = 4.0  # without other information
GPU_GB = BUDGETS["M"].gb  # from which a given memory is taken to be that of a GPU
# Memory of a process on a CPU relative to its tensors, since glibc keeps freed blocks below 32 MB. The largest ratios
# measured: 1.35 for steps of 0.7 GB and more (2.78 instead of 2.41 GB for a 3D U-Net, 0.92 instead of 0.68 GB in 2D),
# below that 2.2 (0.93 instead of 0.42 GB; others 712 instead of 454 MB and 430 instead of 342 MB)
KEPT, KEPT_OF_SMALL, SMALL_GB = 1.4, 2.2, 1.1
# A GPU also holds the context of CUDA, the workspaces of cuDNN and gaps between blocks. A usual allowance, not measured
RESERVE_SHARE, RESERVE_GB = 0.05, 0.5
GB, GPU_UNIT = 10**9, 2**30  # bytes of a GB; of a GPU it is a GiB, as makers and nnU-Net count
CAPABILITY: tuple[tuple[int, Precision], ...] = ((8, "bf16"), (7, "fp16"))  # of NVIDIA's GPUs, from which it is fast

_COUNTED: dict[str, StepMemory] = {}  # a search asks for the same step several times, and a step takes seconds

PlanDevice = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class MemoryLimit:
    """The memory that a training step may use.

    Args:
        gb: GB, of `unit` bytes.
        gpu: Whether a GPU trains.
        precision: Type in which a network trains there.
        source: Where the number comes from, in words.
    """

    gb: float
    gpu: bool
    precision: Precision
    source: str

    @property
    def unit(self) -> int:
        """Bytes of a GB: 2^30 for a GPU, else 10^9."""
        return GPU_UNIT if self.gpu else GB


def memory_limit(gb: float | None, device: PlanDevice | None) -> MemoryLimit:
    """The memory to plan for.

    gb: the memory that the user gives; None: the free memory of the GPU, or CPU_GB.
    device: what is to train; None: the GPU of this machine, or one that is described by GPU_GB or more, else the CPU.

    Raises ConfigError for `cuda` without a number on a machine without a CUDA device.
    """
    found = device != "cpu" and torch.cuda.is_available()
    if gb is None:
        return _found_memory() if found else _default_memory(device)
    gpu = device == "cuda" or found or (device is None and gb >= GPU_GB)
    if not gpu:
        return MemoryLimit(gb, False, "fp32", f"{gb:g} GB for training on a CPU, as given")
    source = f"{gb:g} GB of a GPU, as given"
    if device is None and not found:
        source += f" ({GPU_GB:g} GB and more are taken to be a GPU's; --device cpu plans for a CPU)"
    return MemoryLimit(gb, True, _fast_precision() if found else "bf16", source)


def _found_memory() -> MemoryLimit:
    free, total = torch.cuda.mem_get_info()
    source = f"{free / GPU_UNIT:.3g} of {total / GPU_UNIT:.3g} GB are free on the GPU {torch.cuda.get_device_name()}"
    return MemoryLimit(free / GPU_UNIT, True, _fast_precision(), source)


def _default_memory(device: PlanDevice | None) -> MemoryLimit:
    if device == "cuda":
        raise ConfigError(
            "--device cuda without --memory plans for the free memory of the GPU, but torch finds no CUDA device on "
            "this machine; give the memory of the GPU, such as --memory 24"
        )
    unfound = "" if device == "cpu" else ", since torch finds no CUDA device; --memory GB plans for a GPU"
    return MemoryLimit(CPU_GB, False, "fp32", f"{CPU_GB:g} GB, the default for training on a CPU{unfound}")


def _fast_precision() -> Precision:
    """The smallest type in which the GPU of this machine computes fast."""
    major, _minor = torch.cuda.get_device_capability()
    fast: list[Precision] = [precision for capability, precision in CAPABILITY if major >= capability]
    return fast[0] if fast else "fp32"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: sections of a configuration.

    Args:
        optimizer, schedule: These sections.
        train: Settings of the section `train`, without the precision.
        parameters: The section `parameters`.
        least_steps: Steps that it needs for any data.
    """

    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    train: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    least_steps: int = 300


ADAMW = Recipe(
    {"name": "adamw", "lr": 2e-3},
    {"name": "cosine", "warmup": {"fraction": 0.05}},
    {"channels_last": True, "clip_norm": 12, "ema": 0.99},
)


@dataclass(frozen=True)
class Task:
    """What a network is planned for.

    Args:
        fingerprint: Of the data set.
        labels: Of the data set.
        limit: Memory that a training step may use.
    """

    fingerprint: Fingerprint
    labels: Labels
    limit: MemoryLimit

    def network(self, model: Mapping[str, Any]) -> nn.Module:
        """A network on the meta device. model: the section `model` of a configuration."""
        options = {key: value for key, value in model.items() if key != "name"}
        return build_on_meta(
            model["name"], options, self.fingerprint.channels, self.labels.channels, self.fingerprint.dims
        )

    def step(self, model: Mapping[str, Any], recipe: Recipe, batch: int, patch: Sequence[int]) -> StepMemory:
        """The memory of a training step, see `segkit.training.step_memory`.

        Args:
            model: The section `model` of a configuration.
            recipe: How the network is trained.
            batch: Patches per batch.
            patch: Sides of the patch.
        """
        labels, channels = self.labels, self.fingerprint.channels
        classes = (labels.mode, len(labels.names), labels.ignore_index)
        key = repr((model, recipe, self.limit.precision, batch, tuple(patch), channels, classes))
        if key not in _COUNTED:
            _COUNTED[key] = self._step(model, recipe, batch, patch)
        return _COUNTED[key]

    def _step(self, model: Mapping[str, Any], recipe: Recipe, batch: int, patch: Sequence[int]) -> StepMemory:
        arguments = {key: value for key, value in recipe.optimizer.items() if key != "name"}
        return memory_of_step(
            self.network(model),
            self.labels,
            [batch, self.fingerprint.channels, *patch],
            LOSS,
            lambda network: build_optimizer(
                recipe.optimizer["name"], network, arguments, Grouping(**recipe.parameters)
            ),
            Layout(
                self.limit.precision,
                recipe.train.get("channels_last", False),
                averaged=recipe.train.get("ema") is not None,
            ),
        )

    def held_gb(self, memory: StepMemory) -> float:
        """GB that a process holds for a training step."""
        gb = memory.peak / self.limit.unit
        if self.limit.gpu:
            return (1 + RESERVE_SHARE) * gb + RESERVE_GB
        return max(KEPT * gb, min(KEPT_OF_SMALL * gb, SMALL_GB))

    def fits(self, memory: StepMemory) -> bool:
        """Whether a training step stays within the limit."""
        return self.held_gb(memory) <= self.limit.gb

    def described(self, memory: StepMemory) -> str:
        """The memory of a step in words."""
        parts = ("activations", "weights", "gradients", "moments")
        unit = self.limit.unit
        listed = ", ".join(f"{part} {getattr(memory, part) / unit:.2g}" for part in parts)
        peak, precision = f"{memory.peak / unit:.3g} GB", self.limit.precision
        text = f"a step takes {peak} in {precision}, counted tensor by tensor ({listed})"
        held = self.held_gb(memory)
        if self.limit.gpu:
            return (
                f"{text}; with {100 * RESERVE_SHARE:g} % and {RESERVE_GB:g} GB in reserve for CUDA and gaps, "
                f"{held:.3g} of {self.limit.gb:.3g} GB"
            )
        return (
            f"{text}; a process on a CPU holds up to {held * GB / memory.peak:.2g} times that, since glibc keeps "
            f"freed blocks: {held:.3g} of {self.limit.gb:.3g} GB"
        )


def prediction_bytes(network: nn.Module, channels: int, size: Sequence[int]) -> float:
    """Estimated peak memory of the prediction of an image as a whole.

    Args:
        network: On the meta device.
        channels: Number of image channels.
        size: Sides of the image.
    """
    multiple, minimum = multiple_of(network), getattr(network, "minimum_pixels", 1)
    network = network.eval()
    run: Callable[[torch.Tensor], torch.Tensor] = lambda image: whole_image(image, network, multiple, minimum)  # noqa: E731
    with torch.device("meta"), torch.inference_mode():
        return math.prod(size) * bytes_per_pixel(network, torch.zeros(1, channels, *size), run)
