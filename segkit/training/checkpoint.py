"""Checkpoints: plain tensors and plain data in one file, written atomically, read without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of a newer format, or cannot be written."""

    exit_code = 2


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`: after a crash at any moment the file is either the old one or the new one.

    Raises CheckpointError if it cannot be written, on a full disk for instance.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer turns the one into the other
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written, and is as it was before: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Raises CheckpointError if there is none, it is damaged, or it is too new."""
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at {path}, found nothing; give a run folder or a .pt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is not a segkit checkpoint: it has no format")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}, this version reads up to {FORMAT}; upgrade segkit-trainer"
        )
    return content
