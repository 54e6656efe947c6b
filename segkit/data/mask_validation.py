"""What the numbers in a mask mean, and what has probably happened where they mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from segkit.labels import Labels
from segkit.utils.errors import DataError

SHOWN = 6  # offending values listed before the rest is only counted
NEAR = 16  # to 0 or 255, of values that a JPEG has moved
MANY = 16  # so many values that are no class are not class numbers
JPEG = (".jpg", ".jpeg")
WIDE = 1 << 16
WayOut = Callable[[Sequence[int], Sequence[int], Labels, Path], str]  # values present, offending ones, labels, file


def value_counts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of an integer array, ascending, and how often each occurs."""
    if mask.size and mask.min() >= 0 and mask.max() < WIDE:
        counts = np.bincount(mask.reshape(-1))
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(mask, return_counts=True)


def check_mask(mask: np.ndarray, labels: Labels, case: str, path: Path | str, way_out: WayOut | None = None) -> None:
    """Raise DataError if a mask, any integer shape, holds a value that is neither a class nor `ignore_index`.

    The message names case and file, the values with their pixels, the likely cause and the line of YAML for it.
    """
    values, counts = value_counts(mask)
    legal = [*labels.values, *([] if labels.ignore_index is None else [labels.ignore_index])]
    unknown = ~np.isin(values, legal)
    if not unknown.any():
        return
    offending = [int(value) for value in values[unknown]]
    pixels = [int(count) for count in counts[unknown]]
    shown = [f"{value} ({count} pixels)" for value, count in zip(offending[:SHOWN], pixels, strict=False)]
    more = f" and {len(offending) - SHOWN} more" if len(offending) > SHOWN else ""
    cause = (way_out or likely_cause)([int(value) for value in values], offending, labels, Path(path))
    raise DataError(
        f"case {case}, file {path}: expected the mask values {_legal_text(labels)}, "
        f"got {', '.join(shown)}{more}; {cause}"
    )


def _legal_text(labels: Labels) -> str:
    first, last = labels.values[:-1], max(labels.values)
    straight = len(first) > 1 and labels.values == tuple(range(len(labels.values)))
    text = f"0 to {last}" if straight else f"{', '.join(map(str, first))} and {last}"
    return text if labels.ignore_index is None else f"{text}, or {labels.ignore_index} to ignore"


def likely_cause(values: Sequence[int], offending: Sequence[int], labels: Labels, path: Path) -> str:
    """What has probably happened, and what mends it. values: all of the mask; offending: those that mean nothing."""
    last = max(labels.values)
    if path.suffix.lower() in JPEG:
        way_out = "write `threshold: 128` under `data`, or " if last == 1 else ""
        return f"JPEG does not keep values; {way_out}export the masks again as PNG"
    if last == 1 and len(offending) > 1 and all(min(value, 255 - value) <= NEAR for value in values):
        return "values near 0 and 255 look like a binary mask that was a JPEG once: write `threshold: 128` under `data`"
    if len(offending) >= MANY:
        return (
            f"{len(offending)} different values look like edges smoothed by resizing, or probabilities; "
            "resize masks with nearest neighbours, and give probabilities a threshold"
        )
    if set(values) <= {0, 255} and last == 1:
        return "it looks like a binary mask of 0 and 255: write `value_map: {255: 1}` under `data`"
    if list(offending) == [255]:
        return "255 usually marks pixels without a label: write `ignore_index: 255` under `labels`"
    if list(offending) == [last + 1]:
        return _one_above(values, last)
    example = ", ".join(f"{value}: 0" for value in offending[:SHOWN])
    return (
        "if they are classes, add their names under `labels`; if they mean another class, write for example "
        f"`value_map: {{{example}}}` under `data`; if one marks pixels without a label, "
        f"`ignore_index: {offending[-1]}` under `labels`"
    )


def _one_above(values: Sequence[int], last: int) -> str:
    shift = ", ".join(f"{value}: {value - 1}" for value in range(1, last + 2))
    shifted = f"the classes seem to count from 1: write `value_map: {{{shift}}}` under `data`"
    if 0 not in values:
        return shifted
    return (
        f"{last + 1} is one above the last class: if it marks pixels without a label, write "
        f"`ignore_index: {last + 1}` under `labels`; if it is a class, add its name there; "
        "if 0 marks pixels without a label, so that classes count from 1, "
        f"write `value_map: {{0: 255, {shift}}}` under `data` and `ignore_index: 255` under `labels`"
    )
