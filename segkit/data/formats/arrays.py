"""NPY and NPZ files, whose arrays are read unchanged."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from segkit.data.formats.header_checks import DEFLATE, UNCOMPRESSED, check_pixel_bytes
from segkit.data.formats.mapped import Mapped
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


def declared_numbers(path: Path, _where: str) -> int:
    """The numbers of an NPY file, from the header alone; 0 for an NPZ file, which cannot be mapped."""
    content = np.load(path, mmap_mode="r", allow_pickle=False)
    return content.size if isinstance(content, np.ndarray) else 0


def map_image(path: Path, where: str, _folder: Path) -> Mapped:
    """The image of `read_image` as an array [C, *S] that reads what is indexed, how its numbers become float32, and
    the spacing."""
    _check_size(path, where)
    array = check_channels_first(np.load(path, mmap_mode="r", allow_pickle=False), where)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected an array of real numbers, got {array.dtype}")
    spacing = (1.0,) * max(2, array.ndim - 1)
    return array[None] if array.ndim == len(spacing) else array, lambda piece: piece, spacing


def number_type(path: Path) -> str:
    """The number type of an NPY file, from its header alone."""
    return np.load(path, mmap_mode="r", allow_pickle=False).dtype.name


def _load(path: Path, names: tuple[str, ...], where: str) -> np.ndarray:
    """The array of an NPY file. Of an NPZ file, the array under one of `names`, or the only one.

    Raises DataError if that does not identify one array, if it does not hold real numbers, and if a header declares
    more of them than the file can hold.
    """
    _check_size(path, where)
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
            _check_member(path, candidates[0], where)
            array = content[candidates[0]]
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected an array of real numbers, got {array.dtype}")
    return array


def _check_size(path: Path, where: str) -> None:
    """Raise DataError if the header of an NPY file declares more numbers than the file holds."""
    with path.open("rb") as file:
        is_npy = file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
        file.seek(0)
        declared = _declared_bytes(file) if is_npy else 0
    check_pixel_bytes(declared, [path], where, ratio=UNCOMPRESSED)


def _check_member(path: Path, name: str, where: str) -> None:
    """Raise DataError if an array of an NPZ file unpacks to more than its compressed bytes can hold.

    Both the directory of the archive and the header of the array declare a size.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        member = archive.getinfo(f"{name}.npy" if f"{name}.npy" in names else name)
        check_pixel_bytes(member.file_size, [path], where, ratio=DEFLATE)
        with archive.open(member) as file:
            declared = _declared_bytes(file)
    if declared > member.file_size:
        raise DataError(
            f"{where}: the header of its array {name} declares {declared:,} bytes, but the archive holds "
            f"{member.file_size:,}; it is truncated or damaged, copy or export it again"
        )


def _declared_bytes(file: IO[bytes]) -> int:
    """The bytes of the numbers that the header of an NPY file declares."""
    major, _minor = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _order, dtype = read(file)
    return math.prod(shape) * dtype.itemsize
