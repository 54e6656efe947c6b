"""Floating-point precision of training."""

from __future__ import annotations

import time
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def chosen_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The precision on a device. `auto` is bf16 where the hardware computes in it, otherwise fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        is_supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if is_supported else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; False where this version of torch does not tell.

    oneDNN's own answer is no help: it is yes for any AVX-512, on which it computes in float32 between conversions.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)


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
