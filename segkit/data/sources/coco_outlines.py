"""Outlines of COCO objects, polygons and run lengths, as run lengths of pycocotools."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segkit.data.cases import Case
from segkit.utils.errors import DataError, reason
from segkit.utils.optional import require

MAX_DISTANCE = 10  # of a corner from the picture, in its longest sides
MAX_DIGITS = 8  # characters of a number in a compressed run-length encoding, each of 5 bits
FIRST, LAST = 48, 111  # codes of its characters


def object_runs(entry: Mapping[str, Any], size: tuple[int, int], case: Case) -> Any:
    """The pixels of an object as run lengths of pycocotools. Raises DataError if its outline cannot be drawn.

    All numbers are checked first, since pycocotools takes them as they are, whatever memory that needs or overwrites.
    """
    coco = require("pycocotools.mask", "coco", "drawing COCO annotations")
    outline, height, width = entry["outline"], *size
    if outline is None:
        left, top, wide, high = entry["box"]
        outline = [[left, top, left + wide, top, left + wide, top + high, left, top + high]]
    try:
        if isinstance(outline, list):
            _check_polygons(outline, size)
            runs = coco.merge(coco.frPyObjects(outline, height, width))
        else:
            runs = coco.frPyObjects({"size": [height, width], "counts": _checked_runs(outline, size)}, height, width)
    except Exception as error:  # the library raises exceptions of any type for invalid outlines
        raise DataError(
            f"case {case.name}: the outline of object {entry['id']} cannot be drawn ({reason(error)})"
        ) from error
    if not coco.area(runs):
        warnings.warn(
            f"case {case.name}: object {entry['id']} covers no pixel; it is too small, or lies outside the picture",
            stacklevel=2,
        )
    return runs


def _check_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> None:
    """Raise ValueError for corners far outside of a picture [H, W], and for edges that are longer than an outline in
    it can be: the time and the memory for drawing grow with the length of the edges."""
    height, width = size
    farthest, longest = MAX_DISTANCE * max(size), height * width + 100 * (height + width)
    for polygon in polygons:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
        lowest, highest = corners.min(), (corners - [width, height]).max()
        if lowest < -farthest or highest > farthest:
            raise ValueError(
                f"expected coordinates at most {farthest} pixels outside of the picture of {width} x {height} pixels, "
                f"got {corners.min(0).tolist()} to {corners.max(0).tolist()}"
            )
        length = float(np.abs(np.diff(corners, axis=0, append=corners[:1])).sum())
        if length > longest:
            raise ValueError(f"expected edges of at most {longest} pixels in all, got {length:.0f}")


def _checked_runs(encoding: Mapping[str, Any], size: tuple[int, int]) -> list[int]:
    """The run lengths of an encoding of a picture [H, W]. Raises ValueError if they do not add up to its pixels."""
    if list(encoding["size"]) != list(size):
        raise ValueError(f"expected the size {list(size)} of the picture, got {encoding['size']}")
    counts = encoding["counts"]
    runs = counts if isinstance(counts, list) else _decompressed(counts)
    if runs and min(runs) < 0:
        raise ValueError(f"expected run lengths of 0 or more, got {min(runs)}")
    if sum(runs) != math.prod(size):
        raise ValueError(f"its run lengths add up to {sum(runs)} pixels, not to {math.prod(size)}")
    return runs


def _decompressed(counts: str) -> list[int]:
    """The run lengths of a compressed encoding: groups of 5 bits, each number the difference to the last but one.

    Raises ValueError for numbers that are too long, and if the last one is cut short.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode():
        bits = character - FIRST
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift >= 5 * MAX_DIGITS:
                raise ValueError(f"expected numbers of at most {MAX_DIGITS} characters in its run lengths, got more")
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return runs
