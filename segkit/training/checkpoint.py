"""Checkpoints: tensors and plain data in one file, written atomically and read without running code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segkit.training import checkpoint_fields as fields
from segkit.training.tensor_file import read_archive
from segkit.training.tensor_pickle import Unreadable, shown
from segkit.utils.files import replaced
from segkit.utils.text import listed

FORMAT = 1
# the fields that a trained model consists of, and those that a training continues from
TRAINED = ("config", "preprocess", "split", "step", "steps", "selected_on", "model")
CONTINUED = ("training", "model", "step", "steps", "finished", "best", "best_step", "time")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or incomplete, has a newer format, holds code, or cannot be written."""

    exit_code = 2


class NewerFormat(CheckpointError):
    """A checkpoint of a newer version, which is not damaged."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` atomically: after a crash, the file is either the old one or the new one.

    Raises CheckpointError if the file cannot be written, for example because the disk is full.
    """
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a run folder that was deleted or renamed is not made anew
        with replaced(path) as temporary, open(temporary, "wb") as file:
            _write({"format": FORMAT, **content}, file)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}, which is left unchanged: {error.strerror or error}") from error


def _write(content: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint to an open file. Raises the OSError of the file, which PyTorch's writer hides."""
    recorder = _ErrorRecorder(file)
    try:
        torch.save(content, recorder)  # pyright: ignore[reportArgumentType]
    except RuntimeError as error:
        raise recorder.error or error from error


class _ErrorRecorder:
    """An open file that keeps the OSError that occurs while it is written."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU and check the type of every field.

    Raises CheckpointError if the file does not exist, is damaged, holds code, has a newer format, or has a field of
    another type. Fields may be missing; see `check_complete`.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}; give a run folder or a .pt file")
    try:
        content = read_archive(path)
    except Unreadable as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is not a segkit checkpoint: it has no format number")
    if type(content["format"]) is not int or content["format"] < 1:
        raise CheckpointError(f"{path}: format: expected a whole number of at least 1, got {shown(content['format'])}")
    if content["format"] > FORMAT:
        raise NewerFormat(
            f"{path} has checkpoint format {shown(content['format'])}, but this version of segkit reads formats up to "
            f"{FORMAT}; upgrade segkit-trainer"
        )
    if wrong := fields.problems(content):
        raise CheckpointError(f"{path}: {listed(wrong, limit=fields.SHOWN, separator='; ')}")
    return content


def check_complete(path: Path, content: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raise CheckpointError if a checkpoint lacks fields."""
    if missing := [name for name in needed if name not in content]:
        raise CheckpointError(f"{path} is no complete checkpoint: it has no {', '.join(missing)}")


def check_weights(path: Path, field: str, state: Mapping[str, Any], network: nn.Module) -> None:
    """Raise CheckpointError unless weights fit a network, which may be on the meta device, and are finite."""
    if wrong := fields.weight_problems(state, network):
        raise CheckpointError(f"{path}: the weights in {field} do not fit the network; {'; '.join(wrong)}")
    check_finite(path, field, state)


def check_finite(path: Path, field: str, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError that names the weights with NaN or infinite numbers."""
    if wrong := fields.not_finite(state):
        raise CheckpointError(
            f"{path}: expected finite weights in {field}, got NaN or infinity in "
            f"{listed(wrong, limit=fields.SHOWN)}; use another checkpoint of the run"
        )


def check_fitting(path: Path, weights: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for weights of another kind of numbers than in the network, and for NaN and infinity."""
    other = [
        f"{name} (file {value.dtype}, network {network[name].dtype})"
        for name, value in weights.items()
        if fields.kind_of_numbers(value) != fields.kind_of_numbers(network[name])
    ]
    if other:
        raise CheckpointError(f"{path}: expected weights of the type of the network, got {listed(other, limit=3)}")
    check_finite(path, "the file", weights)


def check_resumable(path: Path, content: Mapping[str, Any], network: nn.Module, optimizer: Optimizer) -> None:
    """Raise CheckpointError unless a training with this network and optimiser can continue from a checkpoint."""
    check_complete(path, content, CONTINUED)
    check_weights(path, "model", content["model"], network)
    check_weights(path, "training.model", content["training"]["model"], network)
    if wrong := fields.optimizer_problems(content["training"]["optimizer"], optimizer):
        raise CheckpointError(f"{path}: {listed(wrong, limit=fields.SHOWN, separator='; ')}")
