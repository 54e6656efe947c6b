"""Validation of mask values, with a likely cause and a fix for unexpected ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed

SHOWN = 6  # unexpected values shown in a message
NEAR = 16  # distance from 0 or 255 within which JPEG compression moves values
MANY = 16  # from this number of unexpected values on, they are not class numbers
JPEG = (".jpg", ".jpeg")
COUNTABLE = 1 << 16  # values below this are counted by bincount
Advice = Callable[[Sequence[int], Sequence[int], Labels, Path], str]  # all values, unexpected values, labels, file


def value_counts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of an integer array, ascending, and how often each occurs."""
    if mask.size and mask.min() >= 0 and mask.max() < COUNTABLE:
        counts = np.bincount(mask.reshape(-1))
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(mask, return_counts=True)


def check_mask(mask: np.ndarray, labels: Labels, case: str, path: Path | str, advice: Advice | None = None) -> None:
    """Raise DataError if an integer mask of any shape contains a value that is neither a class nor `ignore_index`.

    The message names the case, the file, the values with their numbers of pixels, the likely cause, and the YAML line
    that fixes it. advice: returns cause and fix; `likely_cause` by default.
    """
    values, counts = value_counts(mask)
    allowed = [*labels.values, *([] if labels.ignore_index is None else [labels.ignore_index])]
    unexpected = ~np.isin(values, allowed)
    if not unexpected.any():
        return
    offending = [int(value) for value in values[unexpected]]
    pixels = [int(count) for count in counts[unexpected]]
    shown = listed([f"{value} ({count} pixels)" for value, count in zip(offending, pixels, strict=True)], limit=SHOWN)
    cause = (advice or likely_cause)([int(value) for value in values], offending, labels, Path(path))
    raise DataError(f"case {case}, file {path}: expected the mask values {_legal_text(labels)}, got {shown}; {cause}")


def _legal_text(labels: Labels) -> str:
    first, last = labels.values[:-1], max(labels.values)
    consecutive = len(first) > 1 and labels.values == tuple(range(len(labels.values)))
    text = f"0 to {last}" if consecutive else f"{', '.join(map(str, first))} and {last}"
    return text if labels.ignore_index is None else f"{text}, or {labels.ignore_index} for ignored pixels"


def under_data(line: str, otherwise: str, accepted: Collection[str] | None) -> str:
    """The advice to write a line under `data`, or to do something else if the source has no such option.

    accepted: the options of the source; None for any.
    """
    return f"write `{line}` under `data`" if accepted is None or line.partition(":")[0] in accepted else otherwise


def likely_cause(
    values: Sequence[int],
    offending: Sequence[int],
    labels: Labels,
    path: Path,
    accepted: Collection[str] | None = None,
) -> str:
    """Describe the likely cause of unexpected mask values and how to fix it.

    values: all values of the mask. offending: those that are neither a class nor `ignore_index`. accepted: the options
    of the source; None for any.
    """
    last = max(labels.values)
    threshold = under_data("threshold: 128", "save the masks again with 1 for values of 128 and more", accepted)
    if path.suffix.lower() in JPEG:
        return f"JPEG compression changes mask values; {f'{threshold}, or ' * (last == 1)}export the masks again as PNG"
    near = [min(value, 255 - value) <= NEAR for value in values]
    if last == 1 and len(offending) > 1 and all(near) and max(values) >= 128:
        return f"values near 0 and 255 look like a binary mask that was once a JPEG: {threshold}"
    if last == 1 and len(offending) > 1 and min(values) == 0 and 128 <= max(values) <= 255:
        return f"grey values between black and white look like a binary mask with smoothed edges: {threshold}"
    if _are_object_numbers(values):
        return (
            f"{len(values)} consecutive numbers look like one number per object; semantic segmentation needs class "
            "numbers: save 1 for all objects of a class"
        )
    if len(offending) >= MANY:
        return (
            f"{len(offending)} different values look like edges smoothed by resizing, or probabilities; "
            "resize masks with nearest neighbours, and threshold probabilities"
        )
    if set(values) <= {0, 255} and last == 1:
        advice = under_data("value_map: {255: 1}", "save the masks again with 1 for 255", accepted)
        return f"it looks like a binary mask of 0 and 255: {advice}"
    if list(offending) == [255]:
        return "255 usually marks pixels without a label: write `ignore_index: 255` under `labels`"
    if list(offending) == [last + 1]:
        return _one_above(values, last, accepted)
    ignored = next((value for value in offending if value < 0 or value == 255), offending[-1])
    mapping = ordered_mapping(values, offending, labels)
    if mapping is not None:
        example = ", ".join(f"{value}: {number}" for value, number in mapping.items())
        replace = under_data(f"value_map: {{{example}}}", "replace them in the masks", accepted)
        return f"if they are the classes in the order of their names, {replace}"
    return (
        "if they are classes, add their names under `labels`; if they stand for other classes, "
        f"{under_data('value_map', 'replace them in the masks', accepted)}; if one of them marks pixels without a "
        f"label, write `ignore_index: {ignored}` under `labels`"
    )


def ordered_mapping(values: Sequence[int], offending: Sequence[int], labels: Labels) -> dict[int, int] | None:
    """The values of a mask in ascending order as the class numbers, if there are as many as classes; otherwise None.

    A value that is no class never becomes another one without such a reason, least of all background.
    """
    stored = [value for value in values if value != labels.ignore_index]
    if labels.regions is not None or len(stored) != len(labels.values) or min(stored) < 0:
        return None
    mapping = dict(zip(stored, labels.values, strict=True))
    return {value: number for value, number in mapping.items() if value != number} if offending else None


def _are_object_numbers(values: Sequence[int]) -> bool:
    """Whether a mask holds all whole numbers up to a large one, as labelled objects do."""
    return len(values) >= MANY and 255 not in values and max(values) - min(values) == len(values) - 1


def _one_above(values: Sequence[int], last: int, accepted: Collection[str] | None) -> str:
    shift = ", ".join(f"{value}: {value - 1}" for value in range(1, last + 2))
    advice = under_data(f"value_map: {{{shift}}}", "subtract 1 in the masks", accepted)
    shifted = f"the class numbers seem to start at 1: {advice}"
    if 0 not in values:
        return shifted
    both = under_data(f"value_map: {{0: 255, {shift}}}", "save 255 for 0 and subtract 1 from the others", accepted)
    return (
        f"{last + 1} is one above the last class: if it marks pixels without a label, write "
        f"`ignore_index: {last + 1}` under `labels`; if it is a class, add its name under `labels`; "
        f"if 0 marks pixels without a label, so that class numbers start at 1, {both} and `ignore_index: 255` under "
        "`labels`"
    )
