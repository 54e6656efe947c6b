"""The network of a configuration in numbers: stages, parameters, arithmetic, and the memory of a training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segkit.config import Config, ConfigError
from segkit.experiment.build import build_labels, build_source, choose_device
from segkit.experiment.build_training import with_precision
from segkit.experiment.validate import meta_network, multiple_of
from segkit.labels import Labels
from segkit.losses import build_loss
from segkit.losses.build import term_mappings
from segkit.losses.class_weights import equal_class_counts
from segkit.losses.deep_supervision import DeepSupervision
from segkit.losses.target_maps import TargetMap, maps_of_mask
from segkit.training.optimizers import build_optimizer, freeze
from segkit.training.precision import chosen_precision
from segkit.training.step_memory import Layout, StepMemory, multiply_adds, step_memory
from segkit.utils.errors import reason
from segkit.utils.padding import padded


@dataclass(frozen=True)
class Stage:
    """A part of the network.

    Args:
        name: Of the module.
        shape: Channels and sides of its output, or of the first of several outputs; None if it is only a part of
            another computation.
        parameters: Number of parameters.
        multiply_adds: Multiplications with an addition for one patch.
    """

    name: str
    shape: list[int] | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class ModelSummary:
    """A network for one size of patch.

    Args:
        name: Of the network.
        channels, classes: Channels of the image and of the logits.
        patch: Sides of the patch, padded as the network needs it.
        batch: Patches per batch.
        precision: Type in which the network trains.
        stages: The parts, in the order of the forward pass.
        parameters, trained: Number of parameters, and of those that are not frozen.
        multiply_adds: Multiplications with an addition for one patch.
        memory: Bytes of a training step on a batch.
    """

    name: str
    channels: int
    classes: int
    patch: list[int]
    batch: int
    precision: str
    stages: list[Stage]
    parameters: int
    trained: int
    multiply_adds: int
    memory: StepMemory

    def to_json(self) -> dict[str, Any]:
        """The summary as plain data."""
        return asdict(self)


def summarise_model(config: Config, channels: int | None = None) -> ModelSummary:
    """The network of a configuration in numbers, for batches of `sampling.patch`.

    channels: of the images. Without it, or without a patch, the first case is read.

    Raises ConfigError if the network cannot be built, or cannot train on such batches.
    """
    labels, config = build_labels(config), with_precision(config, torch.device(_device_type(config)))
    channels, sides = _input(config, labels, channels)
    try:
        network = _network(config, channels, labels, len(sides))
        patch = padded(sides, multiple_of(network), getattr(network, "minimum_pixels", 1))
        shape = [config.loader.batch, channels, *patch]
        shapes = _shapes(network, shape)
        memory = _step_memory(config, network, labels, shape)
        counts = multiply_adds(_network(config, channels, labels, len(sides)), [1, channels, *patch])
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{config.name}: model {config.model.name} cannot train on patches of {list(sides)} with {channels} "
            f"channels: {reason(error)}"
        ) from error
    parameters = list(network.parameters())
    return ModelSummary(
        config.model.name,
        channels,
        labels.channels,
        list(patch),
        config.loader.batch,
        config.train.precision,
        _stages(network, shapes, counts),
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        counts[""],
        memory,
    )


def _device_type(config: Config) -> str:
    """The type of the device to train on, which this machine need not have."""
    return choose_device("auto").type if config.device == "auto" else config.device


def _input(config: Config, labels: Labels, channels: int | None) -> tuple[int, Sequence[int]]:
    """The channels of the images, and the sides of a patch; the first case is read if the configuration lacks any."""
    patch = config.sampling.patch
    if channels is not None and patch is not None:
        return channels, patch
    source = build_source(config, labels)
    raw = source.read(source.cases[0])
    sides = [int(side) for side in raw.image.shape[1:]]
    spacing = config.preprocess.spacing
    if isinstance(spacing, list) and len(spacing) == len(sides):
        sides = [max(1, round(side * old / new)) for side, old, new in zip(sides, raw.spacing, spacing, strict=True)]
    return channels or len(raw.image), patch or sides


def _network(config: Config, channels: int, labels: Labels, dims: int) -> nn.Module:
    network = meta_network(config, channels, labels.channels, dims)
    freeze(network, config.parameters.freeze)
    return network


def _step_memory(config: Config, network: nn.Module, labels: Labels, shape: Sequence[int]) -> StepMemory:
    train = config.train
    precision = chosen_precision(train.precision, torch.device(_device_type(config)))
    return memory_of_step(
        network,
        labels,
        shape,
        [dict(term) for term in config.loss],
        lambda model: build_optimizer(config.optimizer.name, model, config.optimizer.args),
        Layout(precision, train.channels_last, train.accumulate, train.ema is not None),
    )


def memory_of_step(
    network: nn.Module,
    labels: Labels,
    shape: Sequence[int],
    loss: Any,
    optimizer: Callable[[nn.Module], Optimizer],
    layout: Layout,
) -> StepMemory:
    """The memory of a training step, see `step_memory`. loss: anything that `build_loss` takes."""
    # distances to the boundary of the prediction take the memory of another map, but can only be made of real images
    terms = [{**term, "one_sided": True} if term["name"] == "hausdorff" else term for term in term_mappings(loss)]
    built = DeepSupervision(build_loss(terms, labels, equal_class_counts(labels)))
    regions = (len(labels.names),) if labels.has_mask_channels else ()
    mask = (shape[0], *regions, *shape[2:]), labels.mask_dtype
    maps = _blank_maps(built.loss.maps, labels, mask)
    return step_memory(network, shape, mask, partial(built, maps=maps or None), optimizer, layout, held=maps.values())


def _blank_maps(
    maps: Sequence[TargetMap], labels: Labels, mask: tuple[Sequence[int], torch.dtype]
) -> dict[str, Tensor]:
    """The maps of a batch of masks without any class, which have the shapes of all others."""
    (images, *shape), dtype = mask
    spacing = [1.0] * (len(shape) - labels.has_mask_channels)
    arrays = maps_of_mask(maps, labels, torch.zeros(shape, dtype=dtype).numpy(), spacing)
    return {name: torch.from_numpy(array)[None].expand(images, *array.shape) for name, array in arrays.items()}


def _shapes(network: nn.Module, shape: Sequence[int]) -> dict[str, list[int]]:
    """Channels and sides of the output of each module, in the order in which they are first called in training."""
    shapes: dict[str, list[int]] = {}

    def record(name: str, output: Any) -> None:
        while isinstance(output, (list, tuple, dict)) and output:
            output = next(iter(output.values())) if isinstance(output, dict) else output[0]
        if isinstance(output, Tensor):
            shapes.setdefault(name, list(output.shape[1:]))

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in network.named_modules()
    ]
    with torch.no_grad(), torch.device("meta"):
        network.train()(torch.zeros(tuple(shape)))
    for hook in hooks:
        hook.remove()
    return shapes


def _stages(network: nn.Module, shapes: dict[str, list[int]], counts: dict[str, int]) -> list[Stage]:
    """The parts of the network with parameters: those that are called, in that order, then the others.

    A parameter of several parts counts for the first one.
    """
    parts, seen = {}, set()
    for name, part in _parts(network).items():
        parts[name] = sum(parameter.numel() for parameter in part.parameters() if parameter not in seen)
        seen.update(part.parameters())
    order = {name: number for number, name in enumerate(shapes)}
    names = sorted((name for name, number in parts.items() if number), key=lambda name: order.get(name, math.inf))
    return [Stage(name, shapes.get(name), parts[name], counts.get(name, 0)) for name in names]


def _parts(network: nn.Module) -> dict[str, nn.Module]:
    """The children of the network by name; a container, and the only child, count as their own children."""
    parts = dict(network.named_children())
    while len(parts) == 1 and any(parts[next(iter(parts))].children()):
        ((name, module),) = parts.items()
        parts = {f"{name}.{child}": part for child, part in module.named_children()}
    spread: dict[str, nn.Module] = {}
    for name, part in parts.items():
        is_container = isinstance(part, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        children = {f"{name}.{child}": module for child, module in part.named_children()} if is_container else {}
        spread |= children or {name: part}
    return spread
