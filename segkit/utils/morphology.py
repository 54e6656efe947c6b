"""Shapes in masks: what class_counts, metrics and post-processing share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def count_components(mask: np.ndarray) -> int:
    """The number of connected components of a bool mask [*S]; pixels that touch at a corner are connected."""
    if mask.ndim == 2:
        import cv2  # ten times as fast, and knows pictures only

        return cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] - 1
    from scipy.ndimage import generate_binary_structure, label

    _, number = label(mask, structure=generate_binary_structure(mask.ndim, mask.ndim))  # pyright: ignore
    return int(number)


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a bool mask [*S] that have a neighbour along an axis outside it: bool [*S].

    The same as the mask without its erosion by 4 (2D) or 6 (3D) neighbours. Beyond the image there is background, so
    that pixels of the mask at the border of the image are on the boundary.
    """
    inner = mask.copy()
    for axis in range(mask.ndim):
        slices, eroded = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        eroded[1:] &= slices[:-1]
        eroded[:-1] &= slices[1:]
        eroded[:1] = False
        eroded[-1:] = False
    return mask & ~inner


def crop_to_foreground(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bool masks [*S], cropped to the smallest box that holds both and one pixel of background on every side.

    Where the box reaches the border of the image, that pixel is added. Two empty masks give masks of 2 background
    pixels along every axis.
    """
    box = _box(first | second)
    cropped = np.zeros((2, *(side.stop - side.start + 2 for side in box)), dtype=bool)
    inside = (slice(1, -1),) * first.ndim
    cropped[0][inside], cropped[1][inside] = first[box], second[box]
    return cropped[0], cropped[1]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask, of no pixels where the mask is empty."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0))
    return tuple(box)


def distances_between(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """From each true pixel of one bool mask [*S] to the nearest true pixel of the other, and the other way round.

    Euclidean, between pixel centres, in mm where `spacing` [D] is in mm: float64 [n] and [m], in the order of
    `mask.nonzero()`. inf where the other mask is empty. Exact. Time and memory go with the true pixels, not with the
    size of the image, so that masks should be boundaries rather than regions.
    """
    places = np.flatnonzero(first), np.flatnonzero(second)
    points = [_points(place, first.shape, spacing) for place in places]
    return (
        _nearest(points[0], points[1], second.reshape(-1)[places[0]]),
        _nearest(points[1], points[0], first.reshape(-1)[places[1]]),
    )


def _points(places: np.ndarray, shape: tuple[int, ...], spacing: Sequence[float]) -> np.ndarray:
    """Coordinates in mm, float64 [n, D], of flat indexes [n]."""
    indexes = np.unravel_index(places, shape)
    return np.stack([index * step for index, step in zip(indexes, spacing, strict=True)], axis=-1)


def _nearest(points: np.ndarray, others: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """The distance from each point [n, D] to the nearest of the others [m, D]; `shared` [n] are also among the others.

    A tree of the points is 4 to 8 times faster than a distance transform of the box, from hippocampus to 256 cubed.
    """
    from scipy.spatial import KDTree

    if not len(others):
        return np.full(len(points), np.inf)
    distances, apart = np.zeros(len(points)), ~shared
    if apart.any():
        # one search for each point: a tree that is quick to build pays, and is as quick to search
        tree = KDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
        distances[apart] = tree.query(points[apart])[0]
    return distances
