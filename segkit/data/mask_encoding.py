"""How what a mask's file holds is turned into class numbers: options that every source of files takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segkit.labels import Labels
from segkit.utils.errors import DataError

IGNORE = "ignore"  # stands for the ignore value where a class is named
SHOWN, MOST_COLOURS = 6, 64  # colours listed; more than so many are no classes


@dataclass(frozen=True)
class MaskCode:
    """value_map: class numbers for numbers of the file; numbers that it does not name stay. colors: the red, green and
    blue of each class by its name, `ignore` for pixels to ignore. nearest_color: other colours, such as those that JPEG
    makes, count as the nearest of these, by the squared distance of red, green and blue. threshold: from which value on
    a pixel is of the second of two classes. one_hot: the first axis is the classes.

    Raises ValueError for options that exclude each other or do not fit the labels.
    """

    value_map: Mapping[int, int] | None = None
    colors: Mapping[str, Sequence[int]] | None = None
    threshold: float | None = None
    one_hot: bool = False
    nearest_color: bool = False

    def check(self, labels: Labels, *, files_of_classes: bool = False) -> None:
        """files_of_classes: whether a file may be the mask of one class alone, of any number of classes."""
        given = [name for name in ("value_map", "colors", "threshold") if getattr(self, name) is not None]
        given += ["one_hot"] if self.one_hot else []
        if len(given) > 1:
            raise ValueError(f"expected one of value_map, colors, threshold and one_hot, got {' and '.join(given)}")
        if self.nearest_color and self.colors is None:
            raise ValueError("nearest_color needs colors, the colour of each class")
        if self.colors is not None:
            _check_colors(self.colors, labels)
        if self.threshold is not None and not files_of_classes and not _two(labels):
            raise ValueError(f"threshold makes two classes, and labels has {len(labels.names)}")

    def decoded(self, stored: np.ndarray, labels: Labels, where: str, *, colours: bool) -> np.ndarray:
        """Class numbers, int64 [*S], or [K, *S] of 0 and 1 for overlapping classes; not yet checked against labels.

        colours: whether it is red, green and blue, [3, *S].
        """
        if self.colors is not None:
            if not colours or stored.dtype != np.uint8:
                shape = list(stored.shape)
                raise DataError(f"{where}: `colors` needs a picture of 8-bit colours, got {stored.dtype} {shape}")
            return _of_colors(stored, self.colors, labels, where, nearest=self.nearest_color)
        stored = _grey(stored, labels, where) if colours and not labels.has_mask_channels else stored
        if self.threshold is not None:
            if not _two(labels):
                raise DataError(f"{where}: threshold makes two classes, and labels has {len(labels.names)}")
            return (_axes(stored, labels, where) >= self.threshold).astype(np.int64)
        if self.one_hot:
            return _of_one_hot(stored, labels, where)
        raw = whole_numbers(_axes(stored, labels, where), where)
        mask = raw.copy() if self.value_map else raw
        for value, number in (self.value_map or {}).items():
            mask[raw == value] = number
        return mask


PLAIN = MaskCode()


def _two(labels: Labels) -> bool:
    return not labels.has_mask_channels and len(labels.values) == 2


def _check_colors(colors: Mapping[str, Sequence[int]], labels: Labels) -> None:
    if labels.has_mask_channels:
        raise ValueError("colors give each pixel one class, and the classes of labels overlap")
    known = [*labels.names, IGNORE] if labels.regions is None else [IGNORE]
    unknown = [name for name in colors if name not in known]
    if unknown:
        raise ValueError(f"expected colors of {', '.join(known)}, got {', '.join(unknown)}")
    if IGNORE in colors and IGNORE not in labels.names and labels.ignore_index is None:
        raise ValueError("colors has a colour to ignore, and labels no ignore_index; write `ignore_index: 255` there")
    wrong = {
        name: list(color) for name, color in colors.items() if len(color) != 3 or not set(color) <= set(range(256))
    }
    if wrong:
        raise ValueError(f"expected three numbers from 0 to 255 for a colour, got {wrong}")
    if len({tuple(color) for color in colors.values()}) < len(colors):
        raise ValueError(f"expected a colour of its own for each class, got {dict(colors)}")


def _of_colors(
    stored: np.ndarray, colors: Mapping[str, Sequence[int]], labels: Labels, where: str, *, nearest: bool
) -> np.ndarray:
    packed = packed_colours(stored)
    numbers = {name: number for number, name in enumerate(labels.names)}
    wanted = {
        (red << 16) + (green << 8) + blue: numbers.get(name, labels.ignore_index)
        for name, (red, green, blue) in colors.items()
    }
    known = np.array(sorted(wanted))
    if nearest:
        packed = _nearest_of(packed, known)
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    unknown = known[place] != packed
    if unknown.any():
        raise DataError(
            f"{where}: expected the colours under `colors`, got {colours_in_words(packed[unknown])}; add them there, "
            "or if they lie along edges, export the mask again without smoothing or JPEG, or "
            "write `nearest_color: true`"
        )
    return np.array([wanted[color] for color in known.tolist()], dtype=np.int64)[place]


def _nearest_of(packed: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Each packed colour as the known one that is closest; of two as close, the smaller number."""
    values, places = np.unique(packed, return_inverse=True)
    distances = np.stack([((_unpacked(values) - _unpacked(color)[:, None]) ** 2).sum(0) for color in known])
    return known[distances.argmin(0)][places].reshape(packed.shape)


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Red, green and blue, [3, N] or [3]."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255])


def colours_in_words(packed: np.ndarray) -> str:
    """The most frequent of the packed colours, with their pixels."""
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = [
        f"[{value >> 16}, {value >> 8 & 255}, {value & 255}] ({count} pixels)"
        for value, count in zip(values[order][:SHOWN].tolist(), counts[order].tolist(), strict=False)
    ]
    return ", ".join(shown) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def packed_colours(stored: np.ndarray) -> np.ndarray:
    """Red, green and blue [3, *S] as one number a pixel."""
    red, green, blue = stored.astype(np.int32)
    return (red << 16) + (green << 8) + blue


def _grey(stored: np.ndarray, labels: Labels, where: str) -> np.ndarray:
    """A picture of colours whose channels are all the same as a grey one. Raises DataError for real colours."""
    if (stored == stored[:1]).all():
        return stored[0]
    packed = packed_colours(stored)
    number = len(np.unique(packed))
    if number > MOST_COLOURS:
        way_out = "so many look like edges smoothed by resizing or JPEG, or like a photograph; export the masks again"
    else:
        way_out = f"say under `data` which class each is, such as `{_colors_line(packed, labels)}`"
    raise DataError(
        f"{where}: expected class numbers, got a mask in {number} colours, {colours_in_words(packed)}; {way_out}"
    )


def _colors_line(packed: np.ndarray, labels: Labels) -> str:
    """The line of YAML for all colours of a mask, black and then the most frequent first; which class a colour is, one
    has to look."""
    values, counts = np.unique(packed, return_counts=True)
    order = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda one: (one[0] != 0, -one[1]))
    names = [*labels.names, *["NAME"] * len(order)]
    shown = ", ".join(
        f"{name}: [{value >> 16}, {value >> 8 & 255}, {value & 255}]"
        for name, (value, _count) in zip(names, order, strict=False)
    )
    return f"colors: {{{shown}}}"


def _axes(stored: np.ndarray, labels: Labels, where: str) -> np.ndarray:
    """The mask as [*S], or [K, *S] for overlapping classes, with a lone channel taken off."""
    if not labels.has_mask_channels:
        stored = stored[0] if stored.ndim == 4 and stored.shape[0] == 1 else stored
        if stored.ndim in (2, 3) and stored.size:
            return stored
        raise DataError(f"{where}: expected a mask [H, W] or [D, H, W], got the shape {list(stored.shape)}")
    channels = len(labels.names)
    if stored.ndim in (3, 4) and stored.shape[0] == channels and stored.size:
        return stored
    raise DataError(
        f"{where}: overlapping classes need a mask [{channels}, H, W] or [{channels}, D, H, W] of 0 and 1, as NPY or "
        f"NIfTI with the classes on the fourth axis, got the shape {list(stored.shape)}; "
        "to make them from class numbers, give `regions` under `labels`"
    )


def _of_one_hot(stored: np.ndarray, labels: Labels, where: str) -> np.ndarray:
    channels = len(labels.names)
    if stored.ndim not in (3, 4) or stored.shape[0] != channels:
        raise DataError(f"{where}: `one_hot` needs a mask [{channels}, *S], got the shape {list(stored.shape)}")
    there = stored != 0
    if labels.has_mask_channels:
        return there.astype(np.int64)
    wrong = int((there.sum(0) != 1).sum())
    if wrong:
        raise DataError(
            f"{where}: expected exactly one class a pixel, got {wrong} pixels with none or several; for classes that "
            "overlap write `mode: multilabel` under `labels`"
        )
    return there.argmax(0).astype(np.int64)


def whole_numbers(stored: np.ndarray, where: str) -> np.ndarray:
    """The mask as int64. Raises DataError if it holds fractions or NaN."""
    if stored.dtype.kind in "biu":
        return stored.astype(np.int64)
    fractions = stored[~(np.isfinite(stored) & (stored == np.rint(stored)))]
    if fractions.size:
        raise DataError(
            f"{where}: expected whole class numbers, got {fractions.size} pixels that are not, such as "
            f"{float(fractions[0]):g}; probabilities need a threshold first, a resampled mask nearest neighbours"
        )
    return stored.astype(np.int64)
