"""What a network reports about itself: image sizes, resolutions of its outputs, and the blocks of its encoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

Strides = tuple[int, ...]  # one number per axis
Network = TypeVar("Network", bound=nn.Module)


def checked_strides(
    strides: Sequence[Sequence[int]] | None, levels: int, dims: int, largest: int = 16
) -> list[Strides]:
    """The strides between consecutive resolutions, one number per axis; None halves all axes each time.

    Raises ValueError unless there is one entry per step, each with `dims` numbers of 1 to `largest`, not all 1.
    """
    if strides is None:
        return [(2,) * dims] * levels
    allowed = {*range(1, largest + 1)}
    if len(strides) != levels or any(len(step) != dims or not {1} < {1, *step} <= allowed for step in strides):
        raise ValueError(
            f"expected strides with {levels} entries, one fewer than widths, each with {dims} numbers of 1 to "
            f"{largest} that are not all 1, such as {[[2] * dims] * levels}, got {[list(step) for step in strides]}"
        )
    return [tuple(step) for step in strides]


def checked_kernels(
    kernels: Sequence[Sequence[int]] | None, levels: int, dims: int, sides: Sequence[int]
) -> list[tuple[int, ...]]:
    """The sides of the convolutions at each resolution, one number per axis; None takes 3.

    Raises ValueError unless there is one entry per resolution, each with `dims` of the numbers `sides`.
    """
    if kernels is None:
        return [(3,) * dims] * levels
    if len(kernels) != levels or any(len(kernel) != dims or not {*kernel} <= {*sides} for kernel in kernels):
        raise ValueError(
            f"expected kernels with {levels} entries, as many as widths, each with {dims} numbers among "
            f"{', '.join(map(str, sides))}, such as {[[3] * dims] * levels}, got {[list(kernel) for kernel in kernels]}"
        )
    return [tuple(kernel) for kernel in kernels]


def downsampling(strides: Sequence[Strides], dims: int) -> list[Strides]:
    """The downsampling factors of all resolutions, finest first: the running products of the strides, after ones."""
    return list(
        itertools.accumulate(
            [(1,) * dims, *strides], lambda first, second: tuple(a * b for a, b in zip(first, second, strict=True))
        )
    )


def described(
    network: Network, factors: Sequence[Strides], *, encoder: Sequence[str], least: int = 1, heads: int = 1
) -> Network:
    """Set the attributes by which a network describes itself, see `segkit.models`.

    factors: the downsampling factors of all resolutions, finest first. encoder: its `encoder_blocks`. least: the number
    of pixels that it needs at the coarsest resolution. heads: the number of its outputs in `train()` mode, which have
    the first of these resolutions.
    """
    coarsest = factors[-1]
    attributes = {
        "multiple": coarsest if len(set(coarsest)) > 1 else coarsest[0],
        "minimum_pixels": least * math.prod(coarsest),
        "head_strides": tuple(factors[:heads]),
        "encoder_blocks": tuple(encoder),
    }
    for name, value in attributes.items():
        setattr(network, name, value)
    return network
