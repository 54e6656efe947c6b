"""The environment of a run: package versions, hardware and code revision."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("segkit-trainer", "torch", "torchvision", "monai", "albumentations", "numpy", "scipy")


def versions() -> dict[str, Any]:
    """Package versions and code revision, as stored in checkpoints."""
    return {"packages": {name: _version(name) for name in PACKAGES}, "revision": _revision()}


def environment() -> dict[str, Any]:
    """Everything that is needed to repeat a run: versions, processor, device and code revision."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision of this code, with a + appended if files are modified; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None if completed.returncode == 0 else None
