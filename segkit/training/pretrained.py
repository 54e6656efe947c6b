"""Loading pretrained weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Loaded:
    """Which parameters and buffers were loaded from a file of weights, by name.

    Args:
        taken: Loaded from the file.
        missing: In the network, but not in the file.
        unexpected: In the file, but not in the network.
        mismatched: In both with different shapes: the shape in the file and the shape in the network.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[list[int], list[int]]]

    def describe(self, path: Path) -> list[str]:
        """Messages for the user, one line each."""
        total = len(self.taken) + len(self.missing) + len(self.mismatched)
        lines = [f"loaded {len(self.taken)} of {total} weights from {path}"]
        if self.mismatched:
            shapes = (
                f"{name} (file {in_file}, network {in_network})"
                for name, (in_file, in_network) in self.mismatched.items()
            )
            lines.append(f"not loaded because of a different shape: {', '.join(shapes)}")
        if self.missing:
            lines.append(f"not in the file: {', '.join(self.missing)}")
        if self.unexpected:
            lines.append(f"only in the file: {', '.join(self.unexpected)}")
        return lines


def load_weights(model: nn.Module, path: Path) -> Loaded:
    """Load the weights that agree in name and shape from a segkit checkpoint or a file with a state dict.

    Raises CheckpointError if the file cannot be read without running code, or if no weight agrees.
    """
    in_network = model.state_dict()
    in_file = _without_wrapper(_state_dict(path), in_network)
    mismatched = {
        name: (list(in_file[name].shape), list(in_network[name].shape))
        for name in in_network.keys() & in_file.keys()
        if in_file[name].shape != in_network[name].shape
    }
    taken = [name for name in in_network if name in in_file and name not in mismatched]
    if not taken:
        raise CheckpointError(
            f"no weight in {path} matches the network: the file contains {', '.join(list(in_file)[:3])}, ..., and the "
            f"network {', '.join(list(in_network)[:3])}, ...; train.init needs weights of the same network"
        )
    model.load_state_dict({name: in_file[name] for name in taken}, strict=False)
    return Loaded(
        tuple(taken),
        tuple(name for name in in_network if name not in in_file),
        tuple(name for name in in_file if name not in in_network),
        {name: mismatched[name] for name in in_network if name in mismatched},
    )


def _without_wrapper(in_file: dict[str, Tensor], in_network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that all names share, such as those of DDP, torch.compile and Lightning, until names match."""
    while not in_file.keys() & in_network.keys():
        prefixes = {name.partition(".")[0] for name in in_file}
        if len(prefixes) != 1 or not all("." in name for name in in_file):
            break
        in_file = {name.partition(".")[2]: value for name, value in in_file.items()}
    return in_file


def weights_digest(path: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file of weights. Raises CheckpointError if the file does not exist."""
    _check_exists(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"train.init: there is no file {path}")


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of weights."""
    _check_exists(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot read weights from {path}: {type(error).__name__}: {error}") from error
    for key in ("model", "state_dict"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a checkpoint or a mapping from names to tensors")
    return content
