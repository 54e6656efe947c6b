"""Checkpoints: tensors and plain data in one file, written atomically and read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from segkit.utils.files import replaced

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is missing or damaged, has a newer format, or cannot be written."""

    exit_code = 2


class NewerFormat(CheckpointError):
    """A checkpoint of a newer version, which is not damaged."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` atomically: after a crash, the file is either the old one or the new one.

    Raises CheckpointError if the file cannot be written, for example because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replaced(path) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError for an OSError
        raise CheckpointError(f"cannot write {path}, which is left unchanged: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises CheckpointError if the file does not exist, is damaged, or has a newer format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a run folder or a .pt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({type(error).__name__}): the file is damaged, or holds more than "
            "tensors and plain data, which segkit does not load"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is not a segkit checkpoint: it has no format number")
    if content["format"] > FORMAT:
        raise NewerFormat(
            f"{path} has checkpoint format {content['format']}, but this version of segkit reads formats up to "
            f"{FORMAT}; upgrade segkit-trainer"
        )
    return content
