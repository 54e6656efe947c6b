"""NIfTI, MGH and Analyze volumes, read by nibabel, which also writes NIfTI."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from segkit.data.formats.geometry import Geometry, check_affine, ras_orientation, to_ras
from segkit.data.formats.header_checks import DEFLATE, UNCOMPRESSED, check_pixel_bytes, check_regular
from segkit.data.formats.mapped import Mapped, temporary_file
from segkit.utils.errors import DataError
from segkit.utils.optional import require

BLOCK = 2**22  # bytes that are unpacked at a time
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}


def read(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a volume [*S], or [C, *S] with the fourth axis first, in RAS orientation, and its spacing in mm.

    Raises DataError, beginning with `where`, for colours, complex numbers, more than four axes and an affine that is
    not invertible; OSError and other errors of the reader for a damaged file.
    """
    volume = _checked_size(path, where)
    affine = _affine_in_mm(volume, where)
    array = _checked_axes(np.asanyarray(volume.dataobj), where)
    return to_ras(array, Geometry(affine, array.shape[:3]), where)


def declared_numbers(path: Path, where: str) -> int:
    """The numbers of the volume, from the header alone."""
    return math.prod(_open(path, where).shape)


def map_volume(path: Path, where: str, folder: Path) -> Mapped:
    """The volume of `read` as an array [C, *S] that reads what is indexed, how its numbers become float32, and the
    spacing. A compressed file is unpacked into the given folder."""
    _checked_size(path, where)
    if path.name.lower().endswith(".gz"):
        path = _unpacked(path, folder, where)
    volume = _open(path, where)
    array = _checked_axes(volume.dataobj.get_unscaled(), where)
    slope, intercept = volume.dataobj.slope, volume.dataobj.inter
    oriented, spacing = to_ras(array, Geometry(_affine_in_mm(volume, where), array.shape[:3]), where)

    def convert(piece: np.ndarray) -> np.ndarray:
        return piece if (slope, intercept) == (1, 0) else piece * slope + intercept

    return oriented[None] if oriented.ndim == len(spacing) else oriented, convert, spacing


def _unpacked(path: Path, folder: Path, where: str) -> Path:
    """The file behind a compressed one, up to the last voxel that its header declares."""
    volume = _open(path, where)
    bits = int(volume.header["bitpix"])
    needed = int(volume.dataobj.offset) + math.prod(volume.shape) * bits // 8
    with temporary_file(folder / "volume.nii", needed, where) as target, gzip.open(path, "rb") as source:
        for start in range(0, needed, BLOCK):
            block = source.read(min(BLOCK, needed - start))
            if not block:
                raise EOFError(f"{start} bytes instead of {needed}")
            target.write(block)
    return folder / "volume.nii"


def pixel_files(path: Path) -> list[Path]:
    """The file of pixels beside an Analyze header; empty for other formats."""
    return [path.with_suffix(".img")] if path.suffix.lower() == ".hdr" else []


def read_geometry(path: Path, where: str) -> Geometry:
    """The geometry, from the header alone. Raises DataError for an affine that is not finite or not invertible."""
    volume = _open(path, where)
    return Geometry(_affine_in_mm(volume, where), tuple(volume.shape[:3]))


def header_conflict(path: Path, where: str) -> str | None:
    """How the two orientations in a header, sform and qform, contradict each other; None if they do not.

    The sform is used, as nibabel does; other programs use the qform.
    """
    volume = _open(path, where)
    if not hasattr(volume.header, "get_sform"):
        return None
    (sform, is_set), (qform, is_set_too) = volume.get_sform(coded=True), volume.get_qform(coded=True)
    if not is_set or not is_set_too:
        return None
    if not np.isfinite(qform).all():
        return "its qform is not finite; segkit uses the sform, other programs the qform"
    if np.array_equal(ras_orientation(sform, where), ras_orientation(qform, where)):
        return None
    return "its sform and qform give the axes different directions; segkit uses the sform, other programs the qform"


def number_type(path: Path) -> str:
    """The number type after the intensity scaling of the header, from the header alone."""
    volume = _open(path, f"file {path}")
    slope, intercept = getattr(volume.dataobj, "slope", 1), getattr(volume.dataobj, "inter", 0)
    return volume.get_data_dtype().name if (slope, intercept) == (1, 0) else "float64"


def write(array: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write a mask in stored order, [*S] or [*S, K], with the affine of `geometry`."""
    nibabel = _nibabel("writing NIfTI files")
    nibabel.save(nibabel.Nifti1Image(array, geometry.affine), path)


def _affine_in_mm(volume: Any, where: str) -> np.ndarray:
    """The affine in mm, converted from the unit in the header. Raises DataError, see `check_affine`."""
    has_units = hasattr(volume.header, "get_xyzt_units")  # MGH and Analyze are in mm
    factor = MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0) if has_units else 1.0
    affine = volume.affine if factor == 1.0 else np.diag([factor] * 3 + [1.0]) @ volume.affine
    check_affine(affine, where)
    return affine


def _open(path: Path, where: str) -> Any:
    """The volume with its pixels not yet read."""
    for file in pixel_files(path):
        if file.exists():
            check_regular(file, where)
    nibabel = _nibabel("reading NIfTI files")
    try:
        volume = nibabel.load(path)
        if not hasattr(volume, "affine"):  # CIFTI holds values of points on surfaces
            raise OSError(f"it is a {type(volume).__name__} and holds no volume")
        return volume
    except nibabel.filebasedimages.ImageFileError as error:
        raise OSError(str(error)) from error


def _nibabel(purpose: str) -> ModuleType:
    return require("nibabel", "medical", purpose)


def _checked_size(path: Path, where: str) -> Any:
    """The volume with its pixels not yet read. Raises DataError if its header declares more than the file can hold."""
    volume, files = _open(path, where), [path, *pixel_files(path)]
    declared = math.prod(volume.shape) * volume.get_data_dtype().itemsize
    is_compressed = any(file.suffix.lower() in (".gz", ".mgz") for file in files)
    check_pixel_bytes(declared, files, where, ratio=DEFLATE if is_compressed else UNCOMPRESSED)
    return volume


def _checked_axes(array: np.ndarray, where: str) -> np.ndarray:
    """The array with two to four axes. Raises DataError for other shapes and for numbers that are not real."""
    if array.dtype.fields is not None or np.iscomplexobj(array):
        raise DataError(f"{where}: expected one real number per voxel, got {array.dtype}; convert it to float32")
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0]  # vector images have a time axis of length 1
    if array.ndim not in (2, 3, 4):
        raise DataError(f"{where}: expected 2 to 4 axes, the fourth for channels, got {list(array.shape)}")
    return array
