"""The numbers that a network computes with while it trains."""

from __future__ import annotations

import time
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def bf16_slowdown() -> float:
    """How many times longer than in float32 a convolution with its gradient takes in bfloat16 on this CPU, measured in
    some milliseconds: below 1 where the processor has units for it, up to a hundred where it has not."""
    seconds = {dtype: min(_seconds(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] / seconds[torch.float32]


def _seconds(dtype: torch.dtype) -> float:
    image, weight = torch.ones(2, 32, 32, 32, dtype=dtype), torch.ones(32, 32, 3, 3, dtype=dtype, requires_grad=True)
    started = time.perf_counter()
    torch.conv2d(image, weight, padding=1).sum().backward()
    return time.perf_counter() - started
