"""Part: value and gradient of every loss on the device, compared with plain formulas in float64 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from device_checks.checks import Check, Measured, Setup
from segkit.losses import LOSSES, build_loss, chunking

from support.loss_oracle import (  # pyright: ignore[reportMissingImports]
    EXACT,
    MODES,
    MODES_OF,
    VARIANTS,
    batch,
    labels_of,
    value_and_gradient,
)
from support.reference_losses import FLOORS, reference  # pyright: ignore[reportMissingImports]

# relative errors of value and gradient; a gradient has the type of the logits, and so its rounding
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-5, 1e-3), torch.bfloat16: (1e-5, 4e-3)}
SCALE = 2.0**12  # of the loss, as in training with fp16, so that gradients do not underflow
CHUNK = 2**8  # logits
SORTED = 1e-4  # bound of the gradient in fp32 where errors that round to the same number change their order
ORDERED = ("topk_cross_entropy", "lovasz_softmax", "lovasz_hinge")  # the gradient of pixels that tie is arbitrary
NOTE = f"""\
Relative errors of value and gradient (L2 norm) against plain formulas in float64 on the CPU: the largest over the
modes, in the column of the type of the logits. In the second column, the batch is cut into chunks of {CHUNK} logits.
Pixels are ignored with probability 0.3. Bounds: value 1e-5; gradient 1e-5 in fp32, 1e-3 in fp16, 4e-3 in bf16. Losses
that sort pixels change the order of those whose errors round to the same number: the bound of their gradient is
{SORTED:g} in fp32, and in half precision, where many pixels tie, it is not compared ("ties"). The losses with
histograms (Lovász without `mode exact`) are compared with themselves in float64 on the CPU.\
"""
COLUMNS = {
    "fp32": (torch.float32, False),
    "fp32 in chunks": (torch.float32, True),
    "fp16": (torch.float16, False),
    "bf16": (torch.bfloat16, False),
}


def checks(setup: Setup) -> Iterator[Check]:
    """A row per loss and its options; in the short form with default options alone."""
    space = (9, 11) if setup.short else (40, 56)
    histograms = [({"name": name}, MODES_OF.get(name, MODES)) for name in EXACT]
    defaults, others = VARIANTS[: len(LOSSES)], VARIANTS[len(LOSSES) :]
    for options, modes in [*defaults, *histograms, *([] if setup.short else others)]:
        yield Check(f"{_shown(options)}: {', '.join(modes)}", partial(_compare, setup, options, modes, space))


def _shown(options: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in options.items() if key != "name")
    return f"{options['name']} ({rest})" if rest else options["name"]


def _compare(setup: Setup, options: dict[str, Any], modes: Sequence[str], space: tuple[int, ...]) -> Measured:
    """The largest errors over the modes, for each column."""
    cells, problems = [], []
    for name, (dtype, in_chunks) in COLUMNS.items():
        errors = [_errors(setup, options, mode, space, dtype, in_chunks) for mode in modes]
        ties = options["name"] in ORDERED and dtype != torch.float32
        value, gradient = (max(column, key=_size) for column in zip(*errors, strict=True))
        cells.append(f"{value:.0e}, ties" if ties else f"{value:.0e}, {gradient:.0e}")
        bounds = (BOUNDS[dtype][0], SORTED if options["name"] in ORDERED else BOUNDS[dtype][1])
        if not value <= bounds[0] or (not ties and not gradient <= bounds[1]):
            problems.append(f"{name} exceeds {bounds[0]:g}, {bounds[1]:g}")
    return Measured(cells, "; ".join(problems) or None)


def _size(error: float) -> float:
    """NaN is larger than any number."""
    return math.inf if math.isnan(error) else error


def _errors(
    setup: Setup, options: dict[str, Any], mode: str, space: tuple[int, ...], dtype: torch.dtype, in_chunks: bool
) -> tuple[float, float]:
    """The relative error of the value, and that of the gradient by its L2 norm."""
    logits, mask = batch(mode, space)
    logits = logits.to(dtype)
    small = patch.dict(chunking.ELEMENTS, {setup.torch_device.type: CHUNK}) if in_chunks else nullcontext()
    with small:
        found = _on_device(setup, options, mode, logits, mask)
    expected = _expected(options, mode, logits.double(), mask, dtype)
    value, gradient = (((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))
    return value, gradient


def _on_device(setup: Setup, options: dict[str, Any], mode: str, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    loss = build_loss(options, labels_of(mode)).to(setup.torch_device)
    moved = logits.to(setup.torch_device), mask.to(setup.torch_device)
    value, gradient = value_and_gradient(lambda z, m: SCALE * loss(z, m), *moved)
    return value.cpu().double(), gradient.cpu().double()


def _expected(
    options: dict[str, Any], mode: str, logits: Tensor, mask: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Value and gradient in float64 on the CPU."""
    labels = labels_of(mode)
    if options["name"] in EXACT and "mode" not in options:
        loss = build_loss(options, labels)
        return value_and_gradient(lambda z, m: SCALE * loss(z, m), logits, mask)
    floor = FLOORS[torch.promote_types(dtype, torch.float32)]
    return value_and_gradient(lambda z, m: SCALE * reference(options, z, m, labels, floor=floor), logits, mask)
