"""Sides of images that a network can halve."""

from __future__ import annotations

from collections.abc import Sequence

Multiple = int | tuple[int, ...]  # what sides have to be multiples of: the same for all axes, or one number each


def padded(sides: Sequence[int], multiple: Multiple) -> tuple[int, ...]:
    """Sides made larger to the next multiples. Raises ValueError for another number of axes."""
    each = (multiple,) * len(sides) if isinstance(multiple, int) else multiple
    return tuple(-(-side // number) * number for side, number in zip(sides, each, strict=True))
