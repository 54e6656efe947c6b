"""The geometry of volumes: reorienting to the closest orientation to RAS, and comparing image and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from segkit.utils.errors import DataError
from segkit.utils.optional import require


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a volume lie in space.

    Attributes:
        affine: [4, 4], maps stored voxel indices to RAS coordinates in mm.
        shape: Sizes of the stored spatial axes, 2 or 3.
    """

    affine: np.ndarray
    shape: tuple[int, ...]


MIN_SIDE_MM, MAX_SIDE_MM = 1e-6, 1e6  # a nanometre and a kilometre


def check_affine(affine: np.ndarray, where: str) -> None:
    """Raise DataError unless an affine is finite and invertible with voxels of MIN_SIDE_MM to MAX_SIDE_MM."""
    if not np.isfinite(affine).all():
        raise DataError(
            f"{where}: expected finite numbers in the affine, got {affine.tolist()}; correct the header, or export the "
            "volume again"
        )
    sides = [float(side) for side in np.sqrt((affine[:3, :3].astype(float) ** 2).sum(0))]
    ras_orientation(affine, where)
    if not all(MIN_SIDE_MM <= side <= MAX_SIDE_MM for side in sides):
        raise DataError(
            f"{where}: expected voxels with sides of {MIN_SIDE_MM:g} to {MAX_SIDE_MM:g} mm, got "
            f"{', '.join(f'{side:.3g}' for side in sides)} mm; correct the spacing in the header"
        )


def to_ras(array: np.ndarray, geometry: Geometry, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Reorient an array to the orientation closest to RAS, by flipping and permuting axes.

    Args:
        array: [*S] or [*S, C] in stored order, with two or three spatial axes.
        geometry: The geometry of the stored array.
        where: Prefix of error messages.

    Returns the array [*S] or [C, *S] and its spacing in mm; a 2D image stays 2D.

    Raises DataError for an affine that is not invertible.
    """
    orientation = ras_orientation(geometry.affine, where)
    is_2d = array.ndim == 2
    array = _orientations().apply_orientation(array[..., None] if is_2d else array, orientation)
    if is_2d:
        array = np.squeeze(array, _added_axis(orientation))
    return (np.moveaxis(array, -1, 0) if array.ndim == 4 else array), ras_spacing(geometry, where)


def ras_spacing(geometry: Geometry, where: str) -> tuple[float, ...]:
    """Voxel sizes in mm after reorientation to RAS, one per spatial axis."""
    orientation = ras_orientation(geometry.affine, where)
    spacing, added = _spacing(geometry.affine, orientation), _added_axis(orientation)
    return spacing[:added] + spacing[added + 1 :] if len(geometry.shape) == 2 else spacing


def ras_affine(geometry: Geometry, where: str) -> np.ndarray:
    """The affine of a volume after reorientation to RAS, [4, 4]."""
    orientation = ras_orientation(geometry.affine, where)
    return geometry.affine @ _orientations().inv_ornt_aff(orientation, _shape_3d(geometry.shape))


def ras_orientation(affine: np.ndarray, where: str) -> np.ndarray:
    """The orientation in nibabel's form, [3, 2]: the RAS axis of each stored axis, and 1 or -1 for its direction.

    Directions are rounded to 4 decimals, so that two headers of an oblique volume that differ by rounding errors give
    the same orientation. Raises DataError for an affine that is not invertible.
    """
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(0))
    rounded = np.eye(4)
    rounded[:3, :3] = np.round(affine[:3, :3] / np.where(lengths > 0, lengths, 1), 4)
    orientation = _orientations().io_orientation(rounded) if np.isfinite(rounded).all() else np.full((3, 2), np.nan)
    if not np.isfinite(orientation).all():
        raise DataError(
            f"{where}: the affine is not invertible, so the orientation is unknown: {affine.tolist()}; correct the "
            "header, or export the volume again"
        )
    return orientation


def _orientations() -> ModuleType:
    return require("nibabel.orientations", "medical", "reading medical volumes")


def _added_axis(orientation: np.ndarray) -> int:
    """The RAS axis of the third stored axis, which 2D images get for reorientation and lose afterwards."""
    return int(orientation[2, 0])


def _spacing(affine: np.ndarray, orientation: np.ndarray) -> tuple[float, ...]:
    """Voxel sizes in mm in RAS order, rounded to remove the float32 error of headers."""
    stored = np.sqrt((affine[:3, :3] ** 2).sum(0))
    return tuple(round(float(stored[axis]), 6) for axis in np.argsort(orientation[:, 0]))


def _shape_3d(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape, 1)[:3]


def check_same_geometry(image: Geometry, mask: Geometry, name: str, where: str, *, exactly: bool = False) -> None:
    """Raise DataError if reorientation to RAS would pair the wrong voxels of image and mask.

    A mask with another orientation than its image has usually lost its header: reorienting by it would flip the mask
    against the image. Headers that disagree without changing which voxels are paired are accepted.

    Args:
        image: The geometry of the image.
        mask: The geometry of the mask.
        name: The mask's name in the message.
        where: Prefix of the message.
        exactly: Also refuse masks of the same orientation that lie more than half a voxel away.
    """
    image_orientation, mask_orientation = (ras_orientation(volume.affine, where) for volume in (image, mask))
    if np.array_equal(image_orientation, mask_orientation) and not exactly:
        return
    sides = np.array(_shape_3d(image.shape))
    ends = np.diag(sides[np.argsort(image_orientation[:, 0])] - 1)  # the last voxel of each axis
    corners = np.column_stack([np.vstack([np.zeros(3), ends]), np.ones(4)])
    image_corners, mask_corners = (corners @ ras_affine(volume, where).T for volume in (image, mask))
    distance_mm = np.abs(image_corners - mask_corners).max()
    if distance_mm > max(_spacing(image.affine, image_orientation)) * (0.5 if exactly else 1):
        raise DataError(
            f"{where}: expected the mask at the position of the image, but the affines put {name} up to "
            f"{distance_mm:.1f} mm away{'' if exactly else ' and in another orientation'}; save the mask with the "
            "affine of the image"
        )


def ras_shape(geometry: Geometry, where: str) -> tuple[int, ...]:
    """The sizes of the three axes after reorientation to RAS."""
    order = np.argsort(ras_orientation(geometry.affine, where)[:, 0])
    return tuple(int(side) for side in np.array(_shape_3d(geometry.shape))[order])


def covers_less(part: Geometry, whole: Geometry, where: str) -> bool:
    """Whether a volume has fewer voxels than another along an axis, and more along none."""
    sides, limits = ras_shape(part, where), ras_shape(whole, where)
    return sides != limits and all(side <= limit for side, limit in zip(sides, limits, strict=True))


def slices_in(whole: Geometry, part: Geometry, name: Path, where: str) -> tuple[slice, ...]:
    """The region, after reorientation to RAS, that a volume covers in another one on the same grid.

    name: the other volume, named in the message. Raises DataError if the voxels of the part are not voxels of it.
    """
    to_voxels = np.linalg.inv(ras_affine(whole, where)) @ ras_affine(part, where)
    start = np.rint(to_voxels[:3, 3]).astype(int)
    stop = start + np.array(ras_shape(part, where))
    size = np.array(ras_shape(whole, where))
    directions, expected = to_voxels[:3, :3], np.eye(3)
    thick = np.array(ras_shape(part, where)) > 1  # the distance to the next slice of a single one is unknown
    aligned = np.allclose(directions[:, thick], expected[:, thick], atol=0.01)
    aligned &= np.allclose(to_voxels[:3, 3], start, atol=0.1)
    if not aligned or (start < 0).any() or (stop > size).any():
        raise DataError(f"{where}: expected its slices to be slices of {name}; resample it to the image's grid")
    return tuple(slice(int(first), int(last)) for first, last in zip(start, stop, strict=True))
