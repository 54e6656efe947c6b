"""Where the voxels of a volume lie: turning to the orientation closest to RAS, and whether two volumes lie alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segkit.utils.errors import DataError


@dataclass(frozen=True)
class Place:
    """affine: from stored voxel indices to mm, RAS, [4, 4]. shape: of the stored spatial axes."""

    affine: np.ndarray
    shape: tuple[int, ...]


def turned(array: np.ndarray, place: Place, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """An array with spatial axes first, turned to RAS, and its spacing in mm; channels, the last axis, come first.

    A picture with two axes stays one. Raises DataError for an affine without inverse.
    """
    from nibabel.orientations import apply_orientation

    orientation = orientation_of(place.affine, where)
    flat = array.ndim == 2
    array = apply_orientation(array[..., None] if flat else array, orientation)
    if flat:
        array = np.squeeze(array, _lacking(orientation))
    return (np.moveaxis(array, -1, 0) if array.ndim == 4 else array), spacing_of(place, where)


def spacing_of(place: Place, where: str) -> tuple[float, ...]:
    """Voxel sides in mm after turning."""
    orientation = orientation_of(place.affine, where)
    spacing, lacking = _spacing(place.affine, orientation), _lacking(orientation)
    return spacing[:lacking] + spacing[lacking + 1 :] if len(place.shape) == 2 else spacing


def turned_affine(place: Place, where: str) -> np.ndarray:
    """The affine of a volume once it is turned, [4, 4]."""
    from nibabel.orientations import inv_ornt_aff

    return place.affine @ inv_ornt_aff(orientation_of(place.affine, where), _three(place.shape))


def orientation_of(affine: np.ndarray, where: str) -> np.ndarray:
    """For each stored axis, the axis of RAS that it becomes and 1 or -1 for its direction, [3, 2]."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise DataError(f"{where}: the affine has no inverse, so the orientation is unknown: {affine.tolist()}")
    return orientation


def _lacking(orientation: np.ndarray) -> int:
    """Where the axis that a picture lacks has come to lie."""
    return int(orientation[2, 0])


def _spacing(affine: np.ndarray, orientation: np.ndarray) -> tuple[float, ...]:
    """Voxel sides in mm after turning, free of the float32 dust of headers."""
    stored = np.sqrt((affine[:3, :3] ** 2).sum(0))
    return tuple(round(float(stored[axis]), 6) for axis in np.argsort(orientation[:, 0]))


def _three(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape, 1)[:3]


def check_same_place(image: Place, mask: Place, name: str, where: str, *, exactly: bool = False) -> None:
    """Raise DataError if image and mask are turned differently although they do not lie in the same place.

    Such a mask has usually lost its header: turning it by it would mirror it against the image. Headers that
    disagree without changing which voxel meets which are let pass; with `exactly` only up to half a voxel. name: of
    the mask, for the message.
    """
    first, second = (orientation_of(place.affine, where) for place in (image, mask))
    if np.array_equal(first, second) and not exactly:
        return
    sides = np.array(_three(image.shape))
    corners = np.array([[0, 0, 0, 1], [*(sides[np.argsort(first[:, 0])] - 1), 1]])
    places = [corners @ turned_affine(place, where).T for place in (image, mask)]
    apart_mm = np.abs(places[0] - places[1]).max()
    if apart_mm > max(_spacing(image.affine, first)) * (0.5 if exactly else 1):
        raise DataError(
            f"{where}: expected the mask in the image's place, but the affines put {name} up to {apart_mm:.1f} mm "
            f"away{'' if exactly else ' and turned differently'}; save the mask with the affine of the image"
        )
