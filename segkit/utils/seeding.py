"""The random states of a training process, and the switches that decide whether equal runs are equal to the bit."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of torch's generators, which training draws from; data are drawn by seed, epoch and position alone."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def switch(*, deterministic: bool, tf32: bool) -> None:
    """deterministic: refuse operations whose result depends on the order of threads (on CUDA; on a CPU there are none
    here). tf32: let CUDA multiply float32 with 10 bits of mantissa, which is faster."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
