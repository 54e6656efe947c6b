"""Padded image sizes."""

from __future__ import annotations

from collections.abc import Sequence

Multiple = int | tuple[int, ...]  # image sides must be multiples of this: one number for all axes, or one per axis


def padded(sides: Sequence[int], multiple: Multiple) -> tuple[int, ...]:
    """Round image sides up to the next multiples. Raises ValueError if the numbers of axes differ."""
    multiples = (multiple,) * len(sides) if isinstance(multiple, int) else multiple
    return tuple(-(-side // number) * number for side, number in zip(sides, multiples, strict=True))
