"""Class counts: the number of pixels and connected components per class, from which class weights are computed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from segkit.labels import Labels
from segkit.utils.morphology import count_components, taxicab_radius


def class_counts(case_masks: Iterable[np.ndarray], labels: Labels) -> np.ndarray:
    """Count the pixels of each class in each mask: int64 [cases, K]. Ignored pixels and padding are not counted.

    case_masks: masks as returned by `read_mask`, [*S] or [K, *S].

    multiclass: one column per class. binary: K = 2, negative and positive. multilabel: the positive pixels of each of
    the K classes, which may overlap.
    """
    return _table([count_classes(mask, labels) for mask in case_masks], labels)


def pixel_and_component_counts(case_masks: Iterable[np.ndarray], labels: Labels) -> dict[str, np.ndarray]:
    """Count the pixels and the connected components of each class in each mask.

    Returns int64 [cases, K] under `pixels` (see `class_counts`) and under `components`.
    """
    counts = [(count_classes(mask, labels), count_class_components(mask, labels)) for mask in case_masks]
    return {
        "pixels": _table([pixels for pixels, _ in counts], labels),
        "components": _table([components for _, components in counts], labels),
    }


def _table(rows: list[np.ndarray], labels: Labels) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(labels.names))


def count_classes(mask: np.ndarray, labels: Labels) -> np.ndarray:
    """Count the pixels of each class in one mask: int64 [K]."""
    if labels.has_mask_channels:
        return (mask == 1).reshape(len(mask), -1).sum(1)
    top = max(labels.values)
    # the padding value and other values without a class fall into the last bin, which is dropped
    known = np.where((mask >= 0) & (mask <= top), mask, top + 1)
    counts = np.bincount(known.reshape(-1), minlength=top + 2)[:-1]
    if labels.regions is None:
        return counts
    return np.array([counts[sorted(set(union))].sum() for union in labels.regions.values()])


def count_class_components(mask: np.ndarray, labels: Labels) -> np.ndarray:
    """Count the connected components of each class in one mask: int64 [K]."""
    return np.array([count_components(plane) for plane in labels.class_planes(mask)], dtype=np.int64)


def class_radii(case_masks: Iterable[np.ndarray], labels: Labels) -> np.ndarray:
    """The largest radius of each class in each mask, int64 [cases, K]: the largest distance of a pixel of the class to
    one outside of it, in steps along the axes; 0 for an absent class, and for one that fills the image.

    case_masks: masks as returned by `read_mask`, [*S] or [K, *S]. Ignored pixels are outside of every class. In binary
    mode, K = 2, negative and positive.
    """
    rows = [[taxicab_radius(plane) for plane in labels.class_planes(mask)] for mask in case_masks]
    return _table([np.array(row) for row in rows], labels)
