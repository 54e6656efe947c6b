"""Conversion of stored mask values to class numbers, by options that every file source accepts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segkit.data.mask_validation import under_data
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed

IGNORE = "ignore"  # the key for the ignore value among class names
ROUNDING = 1e-3  # largest distance from a class number
MAX_COLOURS = 64  # a mask with more colours than this cannot be a colour-coded class mask


@dataclass(frozen=True)
class MaskEncoding:
    """How classes are encoded in mask files. At most one of the four encodings may be set.

    value_map: maps stored values to class numbers. Values that it does not contain stay as they are.
    colors: maps class names to [red, green, blue]; the key `ignore` stands for ignored pixels.
    threshold: in masks of two classes, pixels with at least this value belong to the second class.
    one_hot: the first axis of a mask is the class axis.
    nearest_color: with `colors`, any other colour, such as a JPEG artefact, counts as the nearest of these by squared
        RGB distance.
    """

    value_map: Mapping[int, int] | None = None
    colors: Mapping[str, Sequence[int]] | None = None
    threshold: float | None = None
    one_hot: bool = False
    nearest_color: bool = False
    accepted: Collection[str] | None = None  # the options of the source, for advice in messages; None for any

    def check(self, labels: Labels, *, class_files: bool = False) -> None:
        """Raise ValueError for options that exclude each other or do not fit the labels.

        class_files: whether a file may hold the mask of a single class, so that `threshold` fits any number of classes.
        """
        options = [name for name in ("value_map", "colors", "threshold") if getattr(self, name) is not None]
        options += ["one_hot"] if self.one_hot else []
        if len(options) > 1:
            raise ValueError(f"expected one of value_map, colors, threshold and one_hot, got {' and '.join(options)}")
        if self.nearest_color and self.colors is None:
            raise ValueError("nearest_color requires colors, which gives the colour of each class")
        if self.colors is not None:
            _check_colors(self.colors, labels)
        if self.threshold is not None and not class_files and not _has_two_classes(labels):
            raise ValueError(f"threshold yields two classes, but labels has {len(labels.names)}")

    def decode(self, stored: np.ndarray, labels: Labels, where: str, *, colours: bool) -> np.ndarray:
        """Convert a stored mask to class numbers, int64 [*S], or to [K, *S] of 0 and 1 for overlapping classes.

        The values are not checked against the labels; `check_mask` does that.

        where: names case and file in messages. colours: whether `stored` is an RGB image, [3, *S].

        Raises DataError if the mask does not have the shape or type that the encoding requires.
        """
        if self.colors is not None:
            if not colours or stored.dtype != np.uint8:
                shape = list(stored.shape)
                raise DataError(f"{where}: `colors` requires an 8-bit RGB image, got {stored.dtype} {shape}")
            return _decode_colors(stored, self.colors, labels, where, nearest=self.nearest_color)
        if colours and not labels.has_mask_channels:
            stored = _to_grey(stored, labels, where, self.accepted)
        if self.threshold is not None:
            if not _has_two_classes(labels):
                raise DataError(f"{where}: threshold yields two classes, but labels has {len(labels.names)}")
            return (_without_channel_axis(stored, labels, where) >= self.threshold).astype(np.int64)
        if self.one_hot:
            return _decode_one_hot(stored, labels, where)
        raw = whole_numbers(_without_channel_axis(stored, labels, where), where)
        mask = raw.copy() if self.value_map else raw
        for value, number in (self.value_map or {}).items():
            mask[raw == value] = number
        return mask


AS_STORED = MaskEncoding()  # stored values are class numbers


def _has_two_classes(labels: Labels) -> bool:
    return not labels.has_mask_channels and len(labels.values) == 2


def _check_colors(colors: Mapping[str, Sequence[int]], labels: Labels) -> None:
    if labels.has_mask_channels:
        raise ValueError("colors assigns one class to each pixel, but the classes of labels overlap")
    known = [*labels.names, IGNORE] if labels.regions is None else [IGNORE]
    unknown = [name for name in colors if name not in known]
    if unknown:
        raise ValueError(f"expected colors for {', '.join(known)}, got {', '.join(unknown)}")
    if IGNORE in colors and IGNORE not in labels.names and labels.ignore_index is None:
        raise ValueError(
            "colors defines a colour for ignored pixels, but labels has no ignore_index; "
            "write `ignore_index: 255` under `labels`"
        )
    invalid = {
        name: list(color) for name, color in colors.items() if len(color) != 3 or not set(color) <= set(range(256))
    }
    if invalid:
        raise ValueError(f"expected three numbers from 0 to 255 for each colour, got {invalid}")
    if len({tuple(color) for color in colors.values()}) < len(colors):
        raise ValueError(f"expected a different colour for each class, got {dict(colors)}")


def _decode_colors(
    stored: np.ndarray, colors: Mapping[str, Sequence[int]], labels: Labels, where: str, *, nearest: bool
) -> np.ndarray:
    packed = packed_colours(stored)
    numbers = {name: number for number, name in enumerate(labels.names)}
    number_of_color = {
        (red << 16) + (green << 8) + blue: numbers.get(name, labels.ignore_index)
        for name, (red, green, blue) in colors.items()
    }
    known = np.array(sorted(number_of_color))
    if nearest:
        packed = _nearest_of(packed, known)
    position = np.searchsorted(known, packed).clip(max=len(known) - 1)
    unknown = known[position] != packed
    if unknown.any():
        raise DataError(
            f"{where}: expected the colours under `colors`, got {describe_colours(packed[unknown])}; add them to "
            "`colors`, or, if they occur along edges, export the mask again without smoothing or JPEG compression or "
            "write `nearest_color: true`"
        )
    return np.array([number_of_color[color] for color in known.tolist()], dtype=np.int64)[position]


def _nearest_of(packed: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Replace each packed colour by the closest known one. Of two equally close ones, the smaller number is used."""
    values, positions = np.unique(packed, return_inverse=True)
    distances = np.stack([((_unpacked(values) - _unpacked(color)[:, None]) ** 2).sum(0) for color in known])
    return known[distances.argmin(0)][positions].reshape(packed.shape)


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Red, green and blue of packed colours, [3, N] or [3]."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255])


def describe_colours(packed: np.ndarray) -> str:
    """List the most frequent packed colours with their numbers of pixels."""
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    texts = [
        f"[{value >> 16}, {value >> 8 & 255}, {value & 255}] ({count} pixels)"
        for value, count in zip(values[order].tolist(), counts[order].tolist(), strict=True)
    ]
    return listed(texts)


def packed_colours(stored: np.ndarray) -> np.ndarray:
    """Pack red, green and blue, [3, *S], into one number per pixel, int32 [*S]."""
    red, green, blue = stored.astype(np.int32)
    return (red << 16) + (green << 8) + blue


def _to_grey(stored: np.ndarray, labels: Labels, where: str, accepted: Collection[str] | None) -> np.ndarray:
    """Reduce an RGB image with three equal channels to one channel. Raises DataError if the channels differ."""
    if (stored == stored[:1]).all():
        return stored[0]
    packed = packed_colours(stored)
    colour_count = len(np.unique(packed))
    if colour_count > MAX_COLOURS:
        advice = "so many look like edges smoothed by resizing or JPEG, or like a photograph; export the masks again"
    else:
        advice = under_data(_colors_option(packed, labels), "save the masks as class numbers", accepted)
    raise DataError(
        f"{where}: expected class numbers, got a mask in {colour_count} colours, {describe_colours(packed)}; {advice}"
    )


def _colors_option(packed: np.ndarray, labels: Labels) -> str:
    """The YAML line `colors` for all colours of a mask, black first and then by frequency.

    The classes are assigned in this order, which the user has to correct.
    """
    values, counts = np.unique(packed, return_counts=True)
    order = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: (pair[0] != 0, -pair[1]))
    names = [*labels.names, *["NAME"] * len(order)]
    shown = ", ".join(
        f"{name}: [{value >> 16}, {value >> 8 & 255}, {value & 255}]"
        for name, (value, _count) in zip(names, order, strict=False)
    )
    return f"colors: {{{shown}}}"


def _without_channel_axis(stored: np.ndarray, labels: Labels, where: str) -> np.ndarray:
    """The mask as [*S], or as [K, *S] for overlapping classes. A single channel is removed.

    Raises DataError for any other shape.
    """
    if not labels.has_mask_channels:
        stored = stored[0] if stored.ndim == 4 and stored.shape[0] == 1 else stored
        if stored.ndim in (2, 3) and stored.size:
            return stored
        raise DataError(f"{where}: expected a mask [H, W] or [D, H, W], got shape {list(stored.shape)}")
    channels = len(labels.names)
    if stored.ndim in (3, 4) and stored.shape[0] == channels and stored.size:
        return stored
    raise DataError(
        f"{where}: overlapping classes require a mask [{channels}, H, W] or [{channels}, D, H, W] of 0 and 1, as NPY "
        f"or as NIfTI with the classes on the fourth axis, got shape {list(stored.shape)}; "
        "to define them as unions of class numbers, set `regions` under `labels`"
    )


def _decode_one_hot(stored: np.ndarray, labels: Labels, where: str) -> np.ndarray:
    channels = len(labels.names)
    if stored.ndim not in (3, 4) or stored.shape[0] != channels:
        raise DataError(f"{where}: `one_hot` requires a mask [{channels}, *S], got shape {list(stored.shape)}")
    onehot = stored != 0
    if labels.has_mask_channels:
        return onehot.astype(np.int64)
    count = int((onehot.sum(0) != 1).sum())
    if count:
        raise DataError(
            f"{where}: expected exactly one class per pixel, got {count} pixels with none or several; for overlapping "
            "classes write `mode: multilabel` under `labels`"
        )
    return onehot.argmax(0).astype(np.int64)


def whole_numbers(stored: np.ndarray, where: str) -> np.ndarray:
    """The mask as int64. Raises DataError if it contains fractions, NaN or infinity.

    Values within 0.001 of a whole number are that number: headers with a slope make 2.9999999993 of 3.
    """
    if stored.dtype.kind in "biu":
        return stored.astype(np.int64)
    with np.errstate(invalid="ignore"):  # inf - inf
        is_whole = np.isfinite(stored) & (np.abs(stored - np.rint(stored)) <= ROUNDING)
    fractions = stored[~is_whole]
    if fractions.size:
        raise DataError(
            f"{where}: expected whole class numbers, got {fractions.size} pixels with other values, such as "
            f"{float(fractions[0]):g}; threshold probabilities first, and resample masks with nearest neighbours"
        )
    return np.rint(stored).astype(np.int64)
