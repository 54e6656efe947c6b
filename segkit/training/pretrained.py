"""Starting from weights that were trained before."""

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
    """Names of parameters and buffers: those that were taken, those of the network that the file has not, those of the
    file that the network has not, and those of another shape, with both shapes."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[list[int], list[int]]]

    def in_words(self, path: Path) -> list[str]:
        """What a user has to know, a line each."""
        lines = [
            f"weights of {path}: {len(self.taken)} of {len(self.taken) + len(self.missing) + len(self.mismatched)}"
        ]
        if self.mismatched:
            shown = (f"{name} {theirs} there, {ours} here" for name, (theirs, ours) in self.mismatched.items())
            lines.append(f"of another shape, so left as initialised: {'; '.join(shown)}")
        if self.missing:
            lines.append(f"not in the file, so left as initialised: {', '.join(self.missing)}")
        if self.unexpected:
            lines.append(f"in the file only: {', '.join(self.unexpected)}")
        return lines


def load_weights(model: nn.Module, path: Path) -> Loaded:
    """Take the weights of a checkpoint of ours, or of a file with a state dict, as far as names and shapes agree.

    Raises CheckpointError for a file that cannot be read without running code, and where nothing agrees.
    """
    ours = model.state_dict()
    theirs = _without_wrapper(_state_dict(path), ours)
    mismatched = {
        name: (list(theirs[name].shape), list(ours[name].shape))
        for name in ours.keys() & theirs.keys()
        if theirs[name].shape != ours[name].shape
    }
    taken = [name for name in ours if name in theirs and name not in mismatched]
    if not taken:
        raise CheckpointError(
            f"{path} has no weight that fits: it holds {', '.join(list(theirs)[:3])}, ..., the network "
            f"{', '.join(list(ours)[:3])}, ...; train.init needs weights of the same network"
        )
    model.load_state_dict({name: theirs[name] for name in taken}, strict=False)
    return Loaded(
        tuple(taken),
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        {name: mismatched[name] for name in ours if name in mismatched},
    )


def _without_wrapper(theirs: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that all names share where they are of a wrapper, as DDP's, torch.compile's or Lightning's."""
    while not theirs.keys() & ours.keys():
        first = {name.partition(".")[0] for name in theirs}
        if len(first) != 1 or not all("." in name for name in theirs):
            break
        theirs = {name.partition(".")[2]: value for name, value in theirs.items()}
    return theirs


def weights_digest(path: Path) -> str:
    """16 hexadecimal digits of the content of a file of weights. Raises CheckpointError if there is none."""
    _check_there(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"train.init: expected a file of weights at {path}, found nothing")


def _state_dict(path: Path) -> dict[str, Tensor]:
    _check_there(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is no readable file of weights: {type(error).__name__}: {error}") from error
    for key in ("model", "state_dict"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a checkpoint or a mapping from names to tensors")
    return content
