"""Floating-point precision of training."""

from __future__ import annotations

import time
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def bf16_slowdown() -> float:
    """Time of a convolution with its gradient in bfloat16 on this CPU, relative to float32.

    The measurement takes a few milliseconds. The ratio is below 1 on processors with bfloat16 instructions and up to
    100 on others.
    """
    seconds = {dtype: min(_seconds(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] / seconds[torch.float32]


def _seconds(dtype: torch.dtype) -> float:
    image, weight = torch.ones(2, 32, 32, 32, dtype=dtype), torch.ones(32, 32, 3, 3, dtype=dtype, requires_grad=True)
    start = time.perf_counter()
    torch.conv2d(image, weight, padding=1).sum().backward()
    return time.perf_counter() - start
