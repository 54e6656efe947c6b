"""Part: the device, and the versions of what runs on it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Iterator

import torch
from benchmark_tables import PACKAGES, processor

from device_checks.checks import Check, Measured, Setup, Skip
from segkit import __version__


def checks(setup: Setup) -> Iterator[Check]:
    """A row per fact."""
    yield Check("date", lambda: Measured([datetime.date.today().isoformat()]))
    yield Check("processor", lambda: Measured([f"{processor()}, {os.cpu_count()} cores"]))
    yield Check("device", lambda: Measured([_device(setup)]))
    yield Check("CUDA, cuDNN", lambda: Measured([_cuda(setup)]))
    yield Check("versions", lambda: Measured([_versions()]))


def _device(setup: Setup) -> str:
    if not setup.is_cuda:
        return setup.device
    properties = torch.cuda.get_device_properties(setup.torch_device)
    free, total = torch.cuda.mem_get_info(setup.torch_device)
    capability = f"compute capability {properties.major}.{properties.minor}"
    return f"{properties.name}, {capability}, {total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"


def _cuda(setup: Setup) -> str:
    if not setup.is_cuda:
        raise Skip("needs a CUDA device")
    return f"{torch.version.cuda}, {torch.backends.cudnn.version()}"


def _versions() -> str:
    return ", ".join([f"segkit {__version__}", *(f"{name} {_version(package)}" for name, package in PACKAGES.items())])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
