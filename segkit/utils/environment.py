"""Versions, processor and revision."""

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
    """What a checkpoint says of the code that made it: versions and revision."""
    return {"packages": {name: _version(name) for name in PACKAGES}, "revision": _revision()}


def environment() -> dict[str, Any]:
    """Versions, processor, device and revision: what one needs to know to repeat a run."""
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
    """The git revision of this code, with a + if files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
