"""Morphology of binary masks: components, boundaries, skeletons, distances, Euler characteristic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from segkit.utils.optional import require

# up to this side, the squares of float32 distances round to the exact integers
LARGEST_SIDE = 1024
Connectivity = Literal["full", "direct"]  # pixels that share a corner are connected, or a side only


def count_components(mask: np.ndarray) -> int:
    """The number of connected components of a bool mask [*S]; pixels that share a corner are connected."""
    return label_components(mask)[1]


def label_components(mask: np.ndarray, connectivity: Connectivity = "full") -> tuple[np.ndarray, int]:
    """Number the connected components of a bool mask [*S] from 1: int32 [*S], 0 outside of the mask, and their number.

    connectivity: `full`: pixels that share a corner are connected (8 neighbours in 2D, 26 in 3D). `direct`: pixels that
        share a side are (4 and 6).
    """
    if mask.ndim == 2:
        import cv2

        number, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8 if connectivity == "full" else 4)
        return labels, number - 1
    from scipy.ndimage import generate_binary_structure, label

    structure = generate_binary_structure(mask.ndim, mask.ndim if connectivity == "full" else 1)
    labels = np.empty(mask.shape, np.int32)
    return labels, int(label(mask, structure=structure, output=labels))  # pyright: ignore[reportArgumentType]


def euler_characteristic(mask: np.ndarray, connectivity: Connectivity = "full") -> int:
    """The Euler characteristic of a bool mask [*S]: the alternating sum of the numbers of its cells.

    connectivity: `full`: pixels are closed squares or cubes, so that cells are also the sides, edges and corners of any
        pixel of the mask, each counted once. `direct`: pixels are points, neighbours are joined by edges, 2 x 2 pixels
        by squares, and 2 x 2 x 2 by cubes.

    In 2D it is the number of components minus the number of holes.
    """
    combine = np.logical_or if connectivity == "full" else np.logical_and
    padded = np.pad(mask, 1) if connectivity == "full" else mask
    total = 0
    for number in range(mask.ndim + 1):
        for axes in combinations(range(mask.ndim), number):
            cells = padded
            for axis in axes:
                slices = np.moveaxis(cells, axis, 0)
                cells = np.moveaxis(combine(slices[:-1], slices[1:]), 0, axis)
            dimension = mask.ndim - number if connectivity == "full" else number
            total += (-1) ** dimension * int(np.count_nonzero(cells))
    return total


def skeleton(mask: np.ndarray, purpose: str = "a skeleton") -> np.ndarray:
    """The skeleton of a bool mask [*S]: lines of one pixel through the middle of each component, bool [*S].

    It is that of scikit-image: thinning by Zhang and Suen (1984) in 2D and by Lee et al. (1994) in 3D. Everything
    beyond the image is background. An empty mask has an empty skeleton. In 3D, the thinning removes some components of
    even width entirely; these get the skeleton of the component without its outermost layer on one side.

    purpose: what needs it, for the message of MissingExtra, which is raised without scikit-image.
    """
    require("skimage", "topology", purpose)
    from skimage.morphology import skeletonize

    plane = mask[None] if mask.ndim == 1 else mask
    thin = skeletonize(plane).astype(bool).reshape(mask.shape)
    if mask.ndim < 3 or not mask.any():
        return thin
    components, count = label_components(mask)
    for number in set(range(1, count + 1)) - set(np.unique(components[thin]).tolist()):
        component = components == number
        box = bounding_box(component)
        thin[box] |= _skeleton_of_lost(component[box])
    return thin


def _skeleton_of_lost(component: np.ndarray) -> np.ndarray:
    """The skeleton of a component that the thinning removes, bool [*S], not empty."""
    from skimage.morphology import skeletonize

    rest = component
    for axis in range(component.ndim):  # an odd width has a middle
        slices = np.moveaxis(rest.copy(), axis, 0)
        slices[0] = False
        slices[1:] &= np.moveaxis(rest, axis, 0)[:-1]
        rest = np.moveaxis(slices, 0, axis)
        thin = skeletonize(np.pad(rest, 1)).astype(bool)[(slice(1, -1),) * rest.ndim]
        if thin.any():
            return thin
    depth = distance_to(~np.pad(component, 1), [1.0] * component.ndim)[(slice(1, -1),) * component.ndim]
    return depth == depth.max()


def boundary(mask: np.ndarray) -> np.ndarray:
    """The inner boundary of a bool mask [*S]: its pixels with a direct neighbour outside of the mask, bool [*S].

    This is the mask minus its erosion with 4 (2D) or 6 (3D) neighbours. Everything beyond the image is background, so
    mask pixels at the border of the image belong to the boundary.
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
    """Crop two bool masks [*S] to their common bounding box plus a margin of one background pixel on every side.

    The margin is added even if the box reaches the border of the image. Two empty masks give masks of 2 background
    pixels along each axis.
    """
    box = bounding_box(first | second)
    cropped = np.zeros((2, *(side.stop - side.start + 2 for side in box)), dtype=bool)
    inside = (slice(1, -1),) * first.ndim
    cropped[0][inside], cropped[1][inside] = first[box], second[box]
    return cropped[0], cropped[1]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box of a mask; it contains no pixels if the mask is empty."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0))
    return tuple(box)


def distances_between(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distance from each true pixel of a bool mask [*S] to the nearest true pixel of another one, in both directions.

    Distances are exact and Euclidean, between pixel centres, in the unit of `spacing` [D]. Returns float64 [n] and [m],
    in the order of `mask.nonzero()`. They are inf if the other mask is empty. Time and memory grow with the number of
    true pixels, not with the size of the image, so pass boundaries rather than filled regions.
    """
    flat_indices = np.flatnonzero(first), np.flatnonzero(second)
    points = [_coordinates(indices, first.shape, spacing) for indices in flat_indices]
    return (
        _nearest(points[0], points[1], second.reshape(-1)[flat_indices[0]]),
        _nearest(points[1], points[0], first.reshape(-1)[flat_indices[1]]),
    )


def _coordinates(flat_indices: np.ndarray, shape: tuple[int, ...], spacing: Sequence[float]) -> np.ndarray:
    """Coordinates in mm, float64 [n, D], of flat indices [n]."""
    indices = np.unravel_index(flat_indices, shape)
    return np.stack([index * step for index, step in zip(indices, spacing, strict=True)], axis=-1)


def _nearest(points: np.ndarray, others: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """The distance from each point [n, D] to the nearest of the others [m, D].

    `shared` [n] marks points that are also among the others: their distance is 0. A k-d tree is 4 to 8 times faster
    than a distance transform of the bounding box, from hippocampus volumes to 256 x 256 x 256 voxels.
    """
    from scipy.spatial import KDTree

    if not len(others):
        return np.full(len(points), np.inf)
    distances, separate = np.zeros(len(points)), ~shared
    if separate.any():
        # there is only one query per point, so a tree that is fast to build pays off; its queries are as fast
        tree = KDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
        distances[separate] = tree.query(points[separate])[0]
    return distances


def distance_to(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The distance of every pixel to the nearest true pixel of a bool mask [*S], in the unit of `spacing`: [*S].

    The mask has at least one true pixel.
    """
    if mask.ndim == 2 and spacing[0] == spacing[1] and max(mask.shape) <= LARGEST_SIDE:
        import cv2  # six times faster than SciPy; in float32, where the squares of distances in pixels are integers

        outside = np.ascontiguousarray(~mask).view(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
        return np.sqrt(np.rint(distance**2)) * spacing[0]
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~mask, sampling=spacing))


def nearest_component(components: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The number of the component that is nearest to each pixel, int32 [*S]; 0 everywhere if there is none.

    components: numbers from 1, 0 outside of all components; spacing: the distance between pixels along each axis.
    """
    from scipy.ndimage import distance_transform_edt

    if not components.any():
        return components
    nearest = distance_transform_edt(components == 0, sampling=spacing, return_distances=False, return_indices=True)
    return components[tuple(nearest)]  # pyright: ignore[reportArgumentType]


def second_nearest_distances(
    components: np.ndarray, count: int, spacing: Sequence[float], reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """The distance of every pixel to the nearest and to the second nearest component, [*S] each, inf beyond `reach`.

    components: numbers from 1 to `count`, 0 outside of all components. The time grows with the areas around the
    components, since the distances to each are computed only as far as they are needed.
    """
    from scipy.ndimage import find_objects

    first, second = np.full(components.shape, np.inf), np.full(components.shape, np.inf)
    margins = [int(np.ceil(reach / step)) for step in spacing]
    for number, box in enumerate(find_objects(components, count), 1):
        around = tuple(
            slice(max(0, side.start - margin), side.stop + margin) for side, margin in zip(box, margins, strict=True)
        )
        distance = distance_to(components[around] == number, spacing)
        distance[distance > reach] = np.inf
        nearest = first[around]
        second[around] = np.minimum(second[around], np.maximum(nearest, distance))
        first[around] = np.minimum(nearest, distance)
    return first, second


def widened_skeleton(mask: np.ndarray, radius: int, purpose: str = "a skeleton") -> np.ndarray:
    """The skeleton of a bool mask [*S], dilated `radius` times by all neighbours within the mask, bool [*S]."""
    thin = skeleton(mask, purpose)
    if radius == 0 or not thin.any():
        return thin
    from scipy.ndimage import binary_dilation

    every_neighbour = np.ones((3,) * mask.ndim, bool)
    return np.asarray(binary_dilation(thin, every_neighbour, iterations=radius)) & mask


def taxicab_radius(mask: np.ndarray) -> int:
    """The largest number of erosions with direct neighbours that leave a pixel of a bool mask [*S], plus 1.

    This is the largest distance of a pixel of the mask to a pixel outside of it, in steps along the axes; pixels beyond
    the image do not count as outside. It is 0 for an empty mask, and for one without a pixel outside.
    """
    from scipy.ndimage import distance_transform_cdt

    if not mask.any() or mask.all():
        return 0
    return int(np.asarray(distance_transform_cdt(mask, metric="taxicab")).max())
