"""Which tensor of a file of pretrained weights belongs to which weight of a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from segkit.models.initial_weights import InitialWeights
from segkit.training.checkpoint import CheckpointError
from segkit.utils.text import listed

COUNTER = "num_batches_tracked"  # of batch norms, which files of torch before 0.4.1 lack
ORDERLESS = ".safetensors"  # sorts its tensors


@dataclass(frozen=True)
class Assigned:
    """The weights for a part of a network.

    Args:
        weights: By their names in the part.
        expected: How many weights the part has.
        by_order: Whether they were assigned in the order of the file, not by name.
        adapted: The names of those adapted to the number of channels.
        channels: The number of channels of the images.
        left_out: The names of those that depend on the classes and have another shape.
        unused: The names in the file that were not needed.
    """

    weights: dict[str, Tensor]
    expected: int
    by_order: bool
    adapted: tuple[str, ...]
    channels: int
    left_out: tuple[str, ...]
    unused: tuple[str, ...]


def assign(
    in_file: Mapping[str, Tensor], in_part: Mapping[str, Tensor], initial: InitialWeights, path: Path
) -> Assigned:
    """Assign the tensors of a file to the weights of a part of a network.

    By name, where the names agree after a prefix is removed from those in the file, and with `.` and `_` taken for the
    same. Where less than half of the names agree, in the order of both, for which every shape must fit.

    Raises CheckpointError that names the first weight that is missing or does not fit.
    """
    pairs = _by_name(in_file, in_part)
    by_order = 2 * len(pairs) < len(in_part)
    if by_order:
        pairs = _by_order(in_file, in_part, initial, path)
    missing = [name for name in in_part if name not in pairs and not name.endswith(COUNTER)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(pairs)} of {len(in_part)} weights of {initial.module} agree in name, but there is none for "
            f"{listed(missing, limit=3)}; give the weights of the same network"
        )
    first = {_plain(name) for name in initial.first_convolutions}
    weights, adapted, left_out = {}, [], []
    for name, source in pairs.items():
        value, target = in_file[source], in_part[name]
        if value.shape != target.shape and _plain(name) in first and _adaptable(value, target):
            value = adapted_to_channels(value, target.shape[1])
            adapted.append(name)
        if value.shape == target.shape:
            weights[name] = value
        elif name.startswith(initial.head):
            left_out.append(name)
        else:
            raise CheckpointError(_difference(path, source, value, name, target, by_order))
    channels = next((in_part[name].shape[1] for name in in_part if _plain(name) in first), 0)
    unused = tuple(name for name in in_file if name not in set(pairs.values()))
    return Assigned(weights, len(in_part), by_order, tuple(adapted), channels, tuple(left_out), unused)


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


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _by_name(in_file: Mapping[str, Tensor], in_part: Mapping[str, Tensor]) -> dict[str, str]:
    """The name in the file for each name in the part; empty if none agrees."""
    names = {_plain(name): name for name in in_part}
    best: dict[str, str] = {}
    for prefix in _prefixes(in_file):
        without = ((_plain(source.removeprefix(prefix)), source) for source in in_file if source.startswith(prefix))
        pairs = {names[name]: source for name, source in without if name in names}
        best = pairs if len(pairs) > len(best) else best
    return {name: best[name] for name in in_part if name in best}


def _prefixes(names: Iterable[str]) -> list[str]:
    """The beginnings of names up to a dot, the shortest first."""
    found = {""}
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:length]) + "." for length in range(1, len(parts))}
    return sorted(found, key=len)


def _by_order(
    in_file: Mapping[str, Tensor], in_part: Mapping[str, Tensor], initial: InitialWeights, path: Path
) -> dict[str, str]:
    """The name in the file for each name in the part, in the order of both."""
    if path.suffix == ORDERLESS:
        raise CheckpointError(
            f"{path}: its names do not agree with those of {initial.module}, {listed(list(in_part), limit=3)}, and a "
            f"safetensors file keeps no order; the file has {listed(list(in_file), limit=3)}"
        )
    counted = any(name.endswith(COUNTER) for name in in_file)
    expected = [name for name in in_part if counted or not name.endswith(COUNTER)]
    if len(in_file) < len(expected):
        raise CheckpointError(
            f"{path}: its names do not agree with those of {initial.module}, and it has {len(in_file)} tensors for "
            f"{len(expected)} weights; give the weights of the same network"
        )
    return dict(zip(expected, in_file, strict=False))


def _difference(path: Path, source: str, value: Tensor, name: str, target: Tensor, by_order: bool) -> str:
    shapes = f"{source} in the file has the shape {list(value.shape)}, {name} in the network {list(target.shape)}"
    reason = "the names do not agree, and in the order of the file" if by_order else "the names agree, but"
    return f"{path}: {reason} {shapes}; give the weights of the same network"
