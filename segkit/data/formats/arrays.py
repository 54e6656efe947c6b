"""NPY and NPZ: arrays as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.utils.errors import DataError

IMAGE_NAMES, MASK_NAMES = ("image", "img", "data"), ("mask", "label", "seg", "segmentation")


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """[H, W] or [C, *S]."""
    array = _load(path, IMAGE_NAMES, where)
    return array, (1.0,) * max(2, array.ndim - 1)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """[*S], or [K, *S] where classes are channels."""
    array = _load(path, MASK_NAMES, where)
    return array, (1.0,) * array.ndim


def number_type(path: Path) -> str:
    return np.load(path, mmap_mode="r", allow_pickle=False).dtype.name


def _load(path: Path, names: tuple[str, ...], where: str) -> np.ndarray:
    """The array of a file; of an NPZ the only one, or that of one of the names."""
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        array = found
    else:
        with found:
            chosen = [name for name in names if name in found.files] or list(found.files)
            if path.suffix.lower() != ".npz" or len(chosen) != 1:
                raise DataError(
                    f"{where}: expected one array{f' or one named {names[0]}' if found.files else ''}, got an archive "
                    f"of {', '.join(found.files) or 'nothing'}; save it with numpy.save"
                )
            array = found[chosen[0]]
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected an array of numbers, got {array.dtype}")
    return array
