"""MAT files of MATLAB, read by scipy: the only array of numbers in the file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from segkit.data.formats.arrays import check_channels_first
from segkit.data.formats.header_checks import DEFLATE, check_pixel_bytes
from segkit.utils.errors import DataError

NUMBERS = ("double", "single", "logical", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image [H, W] or [C, *S], and a spacing of 1."""
    array = check_channels_first(_load(path, where), where)
    return array, (1.0,) * max(2, array.ndim - 1)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a mask [*S], or [K, *S] with one channel per class, and a spacing of 1."""
    array = _load(path, where)
    return array, (1.0,) * array.ndim


def _load(path: Path, where: str) -> np.ndarray:
    """The only array of numbers with at least two axes. Raises DataError if there are none or several."""
    from scipy.io import loadmat, whosmat

    try:
        declared = whosmat(path)
        names = [name for name, shape, kind in declared if kind in NUMBERS and len(shape) > 1 and math.prod(shape) > 1]
        # a number may be stored in one byte, whatever its type
        numbers = sum(math.prod(shape) for name, shape, _kind in declared if name in names)
        check_pixel_bytes(numbers, [path], where, ratio=DEFLATE)
        content = loadmat(path, variable_names=names)
    except NotImplementedError as error:  # version 7.3, which is HDF5
        raise DataError(f"{where}: it is a MAT file of version 7.3; save it again in MATLAB with `-v7`") from error
    arrays = {
        name: array
        for name, array in content.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "biuf" and array.ndim > 1 and array.size > 1
    }
    if len(arrays) != 1:
        found = ", ".join(name for name, _shape, _kind in declared) or "nothing"
        raise DataError(
            f"{where}: expected a MAT file with a single array of numbers, got {found}; save the array to use in a "
            "file of its own, for example with numpy.save"
        )
    return next(iter(arrays.values()))
