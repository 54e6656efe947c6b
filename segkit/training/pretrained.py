"""Loading pretrained weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segkit.data.preprocess import Preprocess
from segkit.labels import Labels
from segkit.training import checkpoint_fields
from segkit.training.checkpoint import CheckpointError, check_finite
from segkit.training.tensor_file import read_weights
from segkit.training.tensor_pickle import Unreadable, shown
from segkit.utils.text import listed


@dataclass(frozen=True)
class Origin:
    """What a segkit checkpoint says of the training of its weights.

    classes: the names of the classes, empty if the configuration does not say. preprocess: the fitted preprocessing.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess

    def differences(self, labels: Labels, preprocess: Preprocess) -> list[str]:
        """Differences from the training that starts from these weights, one line each."""
        known = self.preprocess
        pairs = {
            "the classes": (", ".join(self.classes), ", ".join(labels.names)),
            "intensity": (known.intensity, preprocess.intensity),
            "channels": (known.channels, preprocess.channels),
            "spatial axes": (known.dims, preprocess.dims),
        }
        return [
            f"these weights were trained with other data: {name} {before} there, {now} here"
            for name, (before, now) in pairs.items()
            if before != now and before != ""
        ]


@dataclass(frozen=True)
class Loaded:
    """Which parameters and buffers were loaded from a file of weights, by name.

    Args:
        taken: Loaded from the file.
        missing: In the network, but not in the file.
        unexpected: In the file, but not in the network.
        mismatched: In both with different shapes: the shape in the file and the shape in the network.
        origin: How the weights were trained; None if the file is not a segkit checkpoint.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[list[int], list[int]]]
    origin: Origin | None = None

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

    Raises CheckpointError if the file cannot be read without running code, if no weight agrees, and if weights that
    agree are not finite or are not floating-point numbers where the network expects them.
    """
    in_network = model.state_dict()
    content = _content(path)
    in_file = _without_wrapper(_state_dict(content, path), in_network)
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
    _check_taken(path, {name: in_file[name] for name in taken}, in_network)
    model.load_state_dict({name: in_file[name] for name in taken}, strict=False)
    return Loaded(
        tuple(taken),
        tuple(name for name in in_network if name not in in_file),
        tuple(name for name in in_file if name not in in_network),
        {name: mismatched[name] for name in in_network if name in mismatched},
        _origin(content, path),
    )


def _check_taken(path: Path, taken: Mapping[str, Tensor], in_network: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for weights of another kind of numbers, and for NaN and infinity."""
    kind = checkpoint_fields.kind_of_numbers
    other = [
        f"{name} (file {value.dtype}, network {in_network[name].dtype})"
        for name, value in taken.items()
        if kind(value) != kind(in_network[name])
    ]
    if other:
        raise CheckpointError(f"{path}: expected weights of the type of the network, got {listed(other, limit=3)}")
    check_finite(path, "the file", taken)


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


def _content(path: Path) -> Any:
    _check_exists(path)
    try:
        return read_weights(path)
    except Unreadable as error:
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a file of weights."""
    for key in ("model", "state_dict"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: expected a checkpoint or a mapping from names to tensors, got {shown(content)}")
    other = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(
            f"{path}: expected a checkpoint or a mapping from names to tensors, got {shown(content[other[0]])} under "
            f"{shown(other[0])}"
        )
    return content


def _origin(content: Any, path: Path) -> Origin | None:
    """How the weights of a segkit checkpoint were trained. Raises CheckpointError for damaged fields."""
    if not isinstance(content, dict) or not {"format", "config", "preprocess"} <= content.keys():
        return None
    if wrong := checkpoint_fields.problems(content):
        raise CheckpointError(f"{path}: {listed(wrong, limit=checkpoint_fields.SHOWN, separator='; ')}")
    labels = content["config"].get("labels")
    names = labels.get("names") if isinstance(labels, dict) else None
    return Origin(
        tuple(map(str, names if isinstance(names, list) else ())), Preprocess.from_dict(content["preprocess"])
    )
