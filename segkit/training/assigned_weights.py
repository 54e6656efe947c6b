"""Which tensor of a file of pretrained weights belongs to which weight of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from segkit.models.initial_weights import InitialWeights
from segkit.training.checkpoint import CheckpointError
from segkit.training.tensor_pickle import shown
from segkit.training.weight_names import best_match, by_preference, dotted, weight_sets
from segkit.utils.text import listed

COUNTER = "num_batches_tracked"  # of batch norms, which files of torch before 0.4.1 lack
ORDERLESS = ".safetensors"  # sorts its tensors


@dataclass(frozen=True)
class Assigned:
    """The weights for a part of a network.

    Args:
        weights: By their names in the part.
        expected: How many weights the part has.
        part: Prefix, within the part, of those that the file is for, such as `backbone.`; empty for all of them.
        by_order: Whether they were assigned in the order of the file, not by name.
        adapted: The names of those adapted to the number of channels.
        channels: The number of channels of the images.
        left_out: The names of those that depend on the classes and have another shape.
        unused: The names in the file that were not needed.
        notes: What else is to be said.
    """

    weights: dict[str, Tensor]
    expected: int
    part: str
    by_order: bool
    adapted: tuple[str, ...]
    channels: int
    left_out: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Which tensor of a file belongs to which weight of a part.

    Args:
        state: The tensors of the file by name.
        names: From the name in the part to that in the file.
        part: See `Assigned`.
        by_order: See `Assigned`.
        notes: See `Assigned`.
    """

    state: Mapping[str, Tensor]
    names: Mapping[str, str]
    part: str = ""
    by_order: bool = False
    notes: tuple[str, ...] = ()


def assign(content: Any, in_part: Mapping[str, Tensor], initial: InitialWeights, path: Path) -> Assigned:
    """Assign the tensors of a file with this content to the weights of a part of a network.

    By name, as `train.init` does, with `.` and `_` taken for the same. Where less than half of the weights agree in
    name and shape, in the order of both, for which every shape must fit.

    Raises CheckpointError that names the first weight that is missing or does not fit.
    """
    sets = weight_sets(content)
    if not sets:
        raise CheckpointError(f"{path}: expected a mapping from names to tensors, got {shown(content)}")
    pairs = _by_name(sets, in_part, initial.parts) or _by_order(sets, in_part, initial, path)
    expected = [name for name in in_part if name.startswith(pairs.part)]
    missing = [name for name in expected if name not in pairs.names and not name.endswith(COUNTER)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(pairs.names)} of {len(expected)} weights of {initial.module} agree in name, but there is "
            f"none for {listed(missing, limit=3)}; give the weights of the same network"
        )
    first = {dotted(name) for name in initial.first_convolutions}
    weights, adapted, left_out = {}, [], []
    for name, source in pairs.names.items():
        value, target = pairs.state[source], in_part[name]
        if value.shape != target.shape and dotted(name) in first and _adaptable(value, target):
            value = adapted_to_channels(value, target.shape[1])
            adapted.append(name)
        if value.shape == target.shape:
            weights[name] = value
        elif name.startswith(initial.head):
            left_out.append(name)
        else:
            raise CheckpointError(_difference(path, source, value, name, target, pairs.by_order))
    channels = next((in_part[name].shape[1] for name in in_part if dotted(name) in first), 0)
    used = set(pairs.names.values())
    unused = tuple(name for name in pairs.state if name not in used)
    return Assigned(
        weights,
        len(expected),
        pairs.part,
        pairs.by_order,
        tuple(adapted),
        channels,
        tuple(left_out),
        unused,
        pairs.notes,
    )


def adapted_to_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight [O, I, *K] of a first convolution for images with another number of channels.

    One channel: the sum over the channels, so that a grey image gives the features of the same image in grey colour.
    Otherwise: the channels repeated cyclically and scaled by I / channels, which keeps the size of the features. These
    are the rules of timm.
    """
    known = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(channels / known), *[1] * (weight.ndim - 2))[:, :channels]
    return repeated * (known / channels)


def _adaptable(value: Tensor, target: Tensor) -> bool:
    """Whether two weights of a convolution differ in the number of image channels alone."""
    same = value.ndim == target.ndim == 4 and value.shape[2:] == target.shape[2:] and len(value) == len(target)
    return same and value.shape[1] in (1, 3)


def _by_name(
    sets: Mapping[str, Mapping[str, Tensor]], in_part: Mapping[str, Tensor], parts: Sequence[str]
) -> Pairs | None:
    """The pairs of the same name; None if less than half of the weights agree in name and shape."""
    match = best_match(sets, in_part)
    if match is None or match.network_prefix not in ("", *parts):
        return None
    weights = [name for name, value in in_part.items() if value.ndim and name.startswith(match.network_prefix)]
    if 2 * match.fitting < len(weights):
        return None
    return Pairs(match.state, match.names, match.network_prefix, notes=match.choice)


def _by_order(
    sets: Mapping[str, Mapping[str, Tensor]], in_part: Mapping[str, Tensor], initial: InitialWeights, path: Path
) -> Pairs:
    """The pairs in the order of file and part, of the first set of weights that is large enough."""
    keys = by_preference(sets)
    if path.suffix == ORDERLESS:
        raise CheckpointError(
            f"{path}: its names do not agree with those of {initial.module}, {listed(list(in_part), limit=3)}, and a "
            f"safetensors file keeps no order; the file has {listed(list(sets[keys[0]]), limit=3)}"
        )
    for key in keys:
        state = sets[key]
        counted = any(name.endswith(COUNTER) for name in state)
        expected = [name for name in in_part if counted or not name.endswith(COUNTER)]
        if len(state) >= len(expected):
            return Pairs(state, dict(zip(expected, state, strict=False)), by_order=True)
    most = max(len(state) for state in sets.values())
    raise CheckpointError(
        f"{path}: its names do not agree with those of {initial.module}, and it has {most} tensors for {len(in_part)} "
        "weights; give the weights of the same network"
    )


def _difference(path: Path, source: str, value: Tensor, name: str, target: Tensor, by_order: bool) -> str:
    shapes = f"{source} in the file has the shape {list(value.shape)}, {name} in the network {list(target.shape)}"
    few = "less than half of the weights agree in name and shape, and in the order of the file"
    return f"{path}: {few if by_order else 'the names agree, but'} {shapes}; give the weights of the same network"
