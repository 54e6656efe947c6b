"""NIfTI volumes, by nibabel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats.geometry import Place, turned
from segkit.data.formats.header_checks import check_claim
from segkit.utils.errors import DataError

MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}


def read(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """An array turned to RAS, [*S] or [C, *S] with the fourth axis first, and its spacing in mm, length D.

    Raises DataError, beginning with `where`, for colours, complex numbers, more than four axes and an affine without
    inverse; OSError and other errors of reading for a file that is damaged.
    """
    volume = _open(path)
    claimed = math.prod(volume.shape) * volume.get_data_dtype().itemsize
    check_claim(claimed, [path], where, compressed=path.suffix.lower() == ".gz")
    array = _plain_axes(np.asanyarray(volume.dataobj), where)
    return turned(array, Place(_in_mm(volume), array.shape[:3]), where)


def place(path: Path, _where: str) -> Place:
    """From the header alone."""
    volume = _open(path)
    return Place(_in_mm(volume), tuple(volume.shape[:3]))


def _in_mm(volume: Any) -> np.ndarray:
    """The affine, whose lengths the header may give in other units."""
    factor = MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0)
    return volume.affine if factor == 1.0 else np.diag([factor] * 3 + [1.0]) @ volume.affine


def number_type(path: Path) -> str:
    """As values are after the scaling that the header may ask for."""
    volume = _open(path)
    slope, start = volume.dataobj.slope, volume.dataobj.inter
    return volume.get_data_dtype().name if (slope, start) == (1, 0) else "float64"


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
