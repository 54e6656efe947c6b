"""Padded image sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

Multiple = int | tuple[int, ...]  # image sides must be multiples of this: one number for all axes, or one per axis


def padded(sides: Sequence[int], multiple: Multiple, minimum_pixels: int = 1) -> tuple[int, ...]:
    """Round image sides up to the next multiples; if these are too few pixels, the last side becomes longer.

    minimum_pixels: how many pixels a network needs at least, see `segkit.models`.

    Raises ValueError if the numbers of axes differ.
    """
    multiples = (multiple,) * len(sides) if isinstance(multiple, int) else multiple
    size = [-(-side // number) * number for side, number in zip(sides, multiples, strict=True)]
    needed = -(-minimum_pixels // math.prod(size[:-1]))
    if size[-1] < needed:
        size[-1] = -(-needed // multiples[-1]) * multiples[-1]
    return tuple(size)
