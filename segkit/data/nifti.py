"""NIfTI volumes: turned to the orientation closest to RAS on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import DataError


def load_nifti(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an array turned to RAS, [*S] or [C, *S] with the fourth axis first, and its spacing in mm, length D.

    A picture with two axes stays one. Raises DataError, beginning with `where`, for colours, complex numbers, more
    than four axes and an affine without inverse; OSError and other errors of reading for a file that is damaged.
    """
    from nibabel.orientations import apply_orientation

    volume = _open(path)
    array = _plain_axes(np.asanyarray(volume.dataobj), where)
    orientation = _orientation(volume.affine, where)
    flat = array.ndim == 2
    array = apply_orientation(array[..., None] if flat else array, orientation)
    spacing = _spacing_of(volume, orientation)
    if flat:
        return np.squeeze(array, _lacking(orientation)), spacing
    return (np.moveaxis(array, -1, 0) if array.ndim == 4 else array), spacing


def read_spacing(path: Path, where: str) -> tuple[float, ...]:
    """The spacing that `load_nifti` gives, from the header alone."""
    volume = _open(path)
    return _spacing_of(volume, _orientation(volume.affine, where))


def _spacing_of(volume: Any, orientation: np.ndarray) -> tuple[float, ...]:
    spacing, lacking = _spacing(volume.affine, orientation), _lacking(orientation)
    return spacing[:lacking] + spacing[lacking + 1 :] if len(volume.shape) == 2 else spacing


def _lacking(orientation: np.ndarray) -> int:
    """Where the axis that a picture lacks has come to lie."""
    return int(orientation[2, 0])


def _open(path: Path) -> Any:
    """The volume, its pixels unread. Typed as Any because nibabel's own types are too general."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        return nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
    except ImageFileError as error:
        raise OSError(str(error)) from error


def _plain_axes(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.fields is not None or np.iscomplexobj(array):
        raise DataError(f"{where}: expected one real number a voxel, got {array.dtype}; convert it to float32")
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0]  # images of vectors keep an axis of time
    if array.ndim not in (2, 3, 4):
        raise DataError(f"{where}: expected 2 to 4 axes, the fourth being channels, got {list(array.shape)}")
    return array


def _orientation(affine: np.ndarray, where: str) -> np.ndarray:
    """For each stored axis, the axis of RAS that it becomes and 1 or -1 for its direction, [3, 2]."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise DataError(f"{where}: the affine has no inverse, so the orientation is unknown: {affine.tolist()}")
    return orientation


def _spacing(affine: np.ndarray, orientation: np.ndarray) -> tuple[float, ...]:
    """Voxel sides in mm after turning, free of the float32 dust of headers."""
    stored = np.sqrt((affine[:3, :3] ** 2).sum(0))
    return tuple(round(float(stored[axis]), 6) for axis in np.argsort(orientation[:, 0]))


def check_same_place(image: Path, mask: Path, where: str, *, exactly: bool = False) -> None:
    """Raise DataError if image and mask are turned differently although they do not lie in the same place.

    Such a mask has usually lost its header: turning it by it would mirror it against the image. Headers that
    disagree without changing which voxel meets which are let pass; with `exactly` only up to half a voxel.
    """
    from nibabel.orientations import inv_ornt_aff

    volumes = _open(image), _open(mask)
    first, second = (_orientation(volume.affine, where) for volume in volumes)
    if np.array_equal(first, second) and not exactly:
        return
    sides = np.array((*volumes[0].shape, 1)[:3])
    corners = np.array([[0, 0, 0, 1], [*(sides[np.argsort(first[:, 0])] - 1), 1]])
    places = [
        corners @ (volume.affine @ inv_ornt_aff(turn, (*volume.shape, 1)[:3])).T
        for volume, turn in zip(volumes, (first, second), strict=True)
    ]
    apart_mm = np.abs(places[0] - places[1]).max()
    if apart_mm > max(_spacing(volumes[0].affine, first)) * (0.5 if exactly else 1):
        raise DataError(
            f"{where}: expected the mask in the image's place, but the affines put {mask} up to {apart_mm:.1f} mm "
            f"away{'' if exactly else ' and turned differently'}; save the mask with the affine of the image"
        )
