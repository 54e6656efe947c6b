"""NPY and NPZ files, whose arrays are read unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.utils.errors import DataError

MAX_CHANNELS = 4  # an axis that is this short after longer ones holds channels
IMAGE_NAMES, MASK_NAMES = ("image", "img", "data"), ("mask", "label", "seg", "segmentation")


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image [H, W] or [C, *S], and a spacing of 1."""
    array = check_channels_first(_load(path, IMAGE_NAMES, where), where)
    return array, (1.0,) * max(2, array.ndim - 1)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a mask [*S], or [K, *S] with one channel per class, and a spacing of 1."""
    array = _load(path, MASK_NAMES, where)
    return array, (1.0,) * array.ndim


def check_channels_first(array: np.ndarray, where: str) -> np.ndarray:
    """The array. Raises DataError if its last axis looks like channels, [H, W, C]."""
    if array.ndim in (3, 4) and array.shape[-1] <= MAX_CHANNELS < min(array.shape[:-1]):
        raise DataError(
            f"{where}: expected an image [C, H, W] or [C, D, H, W], got shape {list(array.shape)}, whose last axis "
            "looks like channels; save numpy.moveaxis(array, -1, 0)"
        )
    return array


def number_type(path: Path) -> str:
    """The number type of an NPY file, from its header alone."""
    return np.load(path, mmap_mode="r", allow_pickle=False).dtype.name


def _load(path: Path, names: tuple[str, ...], where: str) -> np.ndarray:
    """The array of an NPY file. Of an NPZ file, the array under one of `names`, or the only one.

    Raises DataError if that does not identify one array, or if it does not hold real numbers.
    """
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        array = content
    else:
        with content:
            candidates = [name for name in names if name in content.files] or list(content.files)
            if path.suffix.lower() != ".npz" or len(candidates) != 1:
                raise DataError(
                    f"{where}: expected one array{f' or one named {names[0]}' if content.files else ''}, got an "
                    f"archive of {', '.join(content.files) or 'nothing'}; save it with numpy.save"
                )
            array = content[candidates[0]]
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected an array of real numbers, got {array.dtype}")
    return array
