"""Random states of training, and the backend settings that decide whether two equal runs give identical results."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, which training draws from.

    The order of samples and augmentation do not use them: these depend on seed, epoch and position only.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states that `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def configure_backends(*, deterministic: bool, tf32: bool) -> None:
    """Set determinism and float32 precision of torch's backends, for the whole process.

    deterministic: raise an error for operations whose result depends on the order of threads. This concerns CUDA; on a
        CPU, segkit uses no such operation.
    tf32: let CUDA multiply float32 with a mantissa of 10 bits, which is faster.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is initialised
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False
    backends: Any = torch.backends
    # torch.export and torch.compile read the older switches, which raise an error unless they agree with the new ones
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = tf32
    backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32" if tf32 else "ieee"
