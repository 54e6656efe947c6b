"""Which classes masks hold, told from the values of some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import spread
from segkit.data.formats import extension
from segkit.data.mask_encoding import packed_colours
from segkit.data.readers import stored_mask
from segkit.utils.errors import DataError

SURVEYED = 2000  # masks read for their values
SMOOTHED = 16  # values between 0 and 255 from which on they are edges and no classes
NEAR = 16  # to 0 and 255, of values that smoothing or JPEG have moved


@dataclass(frozen=True)
class Classes:
    """The section `labels`, options of the source that turn what is stored into class numbers, and why."""

    labels: dict[str, Any]
    options: dict[str, Any]
    why: list[str]


def survey(masks: Sequence[Path]) -> Classes:
    """The classes of masks, by the values of some of them. Raises DataError if none can be read."""
    values: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    read = 0
    jpeg = bool(masks) and extension(masks[0]) in (".jpg", ".jpeg")
    for path in spread(masks, SURVEYED):
        try:
            stored, coloured = stored_mask(path)
        except DataError:
            continue
        read += 1
        if coloured and not (stored == stored[:1]).all():
            colours.update(np.unique(packed_colours(stored)).tolist())
        else:
            plane = stored[0] if coloured else stored
            found, counts = np.unique(np.rint(plane), return_counts=True)
            values.update(dict(zip(found.astype(np.int64).tolist(), counts.tolist(), strict=True)))
    if not read:
        raise DataError(f"none of the masks can be read, such as {masks[0] if masks else 'of none'}")
    why = [f"{read} of {len(masks)} masks were looked at"]
    if jpeg:
        return Classes(
            {"names": ["background", "foreground"]},
            {"threshold": 128},
            [*why, "JPEG does not keep values: a pixel is foreground from 128 on"],
        )
    return _of_colours(colours, why) if colours else _of_values(values, why)


def _of_colours(colours: Counter[int], why: list[str]) -> Classes:
    triples = [[value >> 16, value >> 8 & 255, value & 255] for value in sorted(colours)]
    names = ["background" if triple == [0, 0, 0] else f"class_{number}" for number, triple in enumerate(triples)]
    shown = dict(zip(names, triples, strict=True))
    return Classes({"names": names}, {"colors": shown}, [*why, f"classes are told by {len(names)} colours"])


def _of_values(pixels: Counter[int], why: list[str]) -> Classes:
    """pixels: how many have each value."""
    labels: dict[str, Any] = {}
    kept = sorted(pixels)
    why = [*why, f"they hold the values {', '.join(map(str, kept[:12]))}{' ...' if len(kept) > 12 else ''}"]
    moved = all(min(value, 255 - value) < NEAR for value in kept) and any(255 - NEAR < value < 255 for value in kept)
    if kept[0] == 0 and kept[-1] == 255 and (len(kept) > SMOOTHED or moved):
        why.append("those between 0 and 255 are smoothed edges: a pixel is foreground from 128 on")
        return Classes({"names": ["background", "foreground"]}, {"threshold": 128}, why)
    few = kept[:-1]
    if len(few) > 1 and kept[-1] == 255 and few == list(range(few[0], few[0] + len(few))) and few[0] < 2:
        labels["ignore_index"] = 255
        kept = kept[:-1]
        why.append("255 usually marks pixels without a label")
    if kept == [255] or kept == [0]:
        kept = [0, 255] if kept == [255] else [0, 1]
    whole = kept[0] == 0 or len(kept) > 1
    if kept[0] != 0 and whole:
        why.append("none is 0: every pixel has a class, and none is called background")
    numbers = kept if whole else [0, *kept]
    straight = numbers == list(range(len(numbers)))
    options = {} if straight else {"value_map": {value: place for place, value in enumerate(numbers) if value != place}}
    if options:
        why.append("which are counted from 0 here")
    if kept[0] == 0 and pixels[0] < max(pixels.values()):
        value, _count = pixels.most_common(1)[0]
        why.append(f"0 is called background, but more pixels have {value}: call that one background if it is")
    names = [f"class_{value}" for value in numbers]
    if numbers[0] == 0:
        names = ["background", *(["foreground"] if len(numbers) == 2 else names[1:])]
    return Classes({"names": names, **labels}, options, why)
