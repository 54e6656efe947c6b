"""Inferring the classes of masks from the values that they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import spread
from segkit.data.formats import is_lossy
from segkit.data.mask_encoding import packed_colours
from segkit.data.readers import stored_mask
from segkit.utils.errors import DataError, kept

SURVEYED = 2000  # masks whose values are read
SMOOTHED = 16  # with more distinct values, those between 0 and 255 are smoothed edges and not classes
MANY_OBJECTS = 5  # number of objects in a mask from which they are no classes
SEARCHED = 20  # masks that are searched for connected objects
NEAR = 16  # distance to 0 and 255 of values changed by smoothing or JPEG


@dataclass(frozen=True)
class MaskClasses:
    """The classes of masks.

    Attributes:
        labels: The section `labels` of the configuration.
        options: Options of the source that convert stored values to class numbers.
        reasons: Why these classes are assumed.
    """

    labels: dict[str, Any]
    options: dict[str, Any]
    reasons: list[str]


def infer_classes(masks: Sequence[Path]) -> MaskClasses:
    """Infer the classes from the values of up to SURVEYED masks. Raises DataError if none of them can be read."""
    values: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    read, per_object = 0, 0
    object_counts: set[int] = set()
    errors: list[DataError] = []
    for path in spread(masks, SURVEYED):
        try:
            stored, is_colour = stored_mask(path)
        except DataError as error:
            errors.append(kept(error))
            continue
        read += 1
        if is_colour and not (stored == stored[:1]).all():
            colours.update(np.unique(packed_colours(stored)).tolist())
        else:
            plane = stored[0] if is_colour else stored
            distinct, counts = np.unique(np.rint(plane), return_counts=True)
            values.update(dict(zip(distinct.astype(np.int64).tolist(), counts.tolist(), strict=True)))
            if read <= SEARCHED and _has_one_number_per_object(plane, distinct):
                per_object += 1
                object_counts.add(len(distinct) - 1)
    if not read:
        raise DataError(f"none of the {len(masks)} masks can be read{f': {errors[0]}' if errors else ''}")
    reasons = [f"values were read from {read} of {len(masks)} masks"]
    # classes would be the same few in all masks
    varies = len(object_counts) > 1 and max(object_counts, default=0) >= MANY_OBJECTS
    if per_object == min(read, SEARCHED) and varies and not colours:
        return MaskClasses(
            {"names": ["background", "foreground"]},
            {"threshold": 1},
            [*reasons, "every value is one connected object, numbered from 1: all objects are foreground"],
        )
    if is_lossy(masks[0]):
        return MaskClasses(
            {"names": ["background", "foreground"]},
            {"threshold": 128},
            [*reasons, "JPEG compression changes values: pixels of 128 and more are foreground"],
        )
    return _classes_of_colours(colours, reasons) if colours else _classes_of_values(values, reasons)


def _has_one_number_per_object(mask: np.ndarray, values: np.ndarray) -> bool:
    """Whether the values are 0 to N, and all but 0 mark one connected object each."""
    from scipy import ndimage

    numbers = values[values > 0]
    if mask.ndim != 2 or values[0] != 0 or len(numbers) < 2 or numbers[-1] != len(numbers):
        return False
    neighbours = np.ones((3, 3))
    components: list[Any] = [ndimage.label(mask == number, neighbours) for number in numbers]
    return all(count == 1 for _objects, count in components)


def _classes_of_colours(colours: Counter[int], reasons: list[str]) -> MaskClasses:
    """One class per colour; black is background."""
    triples = [[packed >> 16, packed >> 8 & 255, packed & 255] for packed in sorted(colours)]
    names = ["background" if triple == [0, 0, 0] else f"class_{number}" for number, triple in enumerate(triples)]
    colors = dict(zip(names, triples, strict=True))
    return MaskClasses({"names": names}, {"colors": colors}, [*reasons, f"the masks have {len(names)} colours"])


def _classes_of_values(pixels: Counter[int], reasons: list[str]) -> MaskClasses:
    """One class per value, except 255 for ignored pixels and values of smoothed edges. pixels: count of each value."""
    labels: dict[str, Any] = {}
    values = sorted(pixels)
    reasons = [*reasons, f"the masks hold the values {', '.join(map(str, values[:12]))}{' ...' * (len(values) > 12)}"]
    if _has_smoothed_edges(values):
        reasons.append("values between 0 and 255 are smoothed edges: pixels of 128 and more are foreground")
        return MaskClasses({"names": ["background", "foreground"]}, {"threshold": 128}, reasons)
    if _ends_with_ignored(values):
        labels["ignore_index"] = 255
        values = values[:-1]
        reasons.append("255 usually marks unlabelled pixels")
    is_single = len(values) == 1 and values[0] not in (0, 255)
    if values == [0]:
        values = [0, 1]
    elif len(values) == 1:
        values = [0, *values]
    elif values[0] != 0:
        reasons.append("no value is 0: every pixel belongs to a class, and none is named background")
    value_map = {value: number for number, value in enumerate(values) if value != number}
    if value_map:
        reasons.append("`value_map` converts them to class numbers that start at 0")
    if values[0] == 0 and pixels[0] < max(pixels.values()) and not is_single:
        most_common, _count = pixels.most_common(1)[0]
        reasons.append(
            f"0 is named background, but {most_common} has more pixels: rename the classes if that is the background"
        )
    names = [f"class_{value}" for value in values]
    if values[0] == 0:
        names = ["background", *(["foreground"] if len(values) == 2 else names[1:])]
    return MaskClasses({"names": names, **labels}, {"value_map": value_map} if value_map else {}, reasons)


def _has_smoothed_edges(values: Sequence[int]) -> bool:
    """Whether masks of 0 and 255 also hold values in between that come from interpolation or compression."""
    all_near = all(min(value, 255 - value) < NEAR for value in values)
    below_255 = any(255 - NEAR < value < 255 for value in values)
    return values[0] == 0 and values[-1] == 255 and (len(values) > SMOOTHED or (all_near and below_255))


def _ends_with_ignored(values: Sequence[int]) -> bool:
    """Whether 255 follows at least two consecutive values from 0 or 1."""
    *classes, last = values
    consecutive = len(classes) > 1 and classes == list(range(classes[0], classes[0] + len(classes)))
    return consecutive and last == 255 and classes[0] < 2
