"""NRRD, MetaImage and series of DICOM files, by SimpleITK."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats.geometry import Place, turned
from segkit.data.formats.header_checks import check_claim
from segkit.utils.errors import DataError

HEADER = 65536  # bytes in which a header ends
# what names the files of pixels in headers that have files of their own
DETACHED = {".mhd": r"^ElementDataFile\s*=\s*(.+)$", ".nhdr": r"^data ?file:\s*(.+)$"}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """An array turned to RAS, [*S] or [C, *S], and its spacing in mm, length D. Raises DataError, beginning with
    `where`, for complex numbers and more than three spatial axes."""
    _check_header(path, where)
    image = _quietly(lambda: _sitk().ReadImage(str(path)))
    return _turned(image, where)


def pixel_files(path: Path) -> list[Path]:
    """The files of pixels that a header names, none where they are in the same file."""
    if path.suffix.lower() not in DETACHED:
        return []
    with open(path, "rb") as file:
        head = file.read(HEADER).decode("latin-1")
    found = re.search(DETACHED[path.suffix.lower()], head, re.MULTILINE | re.IGNORECASE)
    name = found.group(1).strip() if found else "LOCAL"
    if name.upper() == "LOCAL":
        return []
    if name.upper().startswith("LIST"):
        return (
            [path.parent / line.strip() for line in head[found.end() :].splitlines() if line.strip()] if found else []
        )
    return [path.parent / name]


def _check_header(path: Path, where: str) -> None:
    """Raise DataError where a header names files elsewhere, or asks for more pixels than its files can hold."""
    files = pixel_files(path)
    for file in files:
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(path.parent)):
            raise DataError(f"{where}: its pixels are to be read from {file}, outside the folder of its header")
        if not file.is_file():
            raise DataError(f"{where}: its pixels are to be read from {file}, which is no file; copy both together")
    sitk = _sitk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _quietly(reader.ReadImageInformation)
    bits = re.match(r"\d+", str(sitk.GetPixelIDValueAsString(reader.GetPixelID())).removeprefix("vector of "))
    size = int(bits.group()) // 8 if bits else 1
    check_claim(
        math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * size, [path, *files], where, compressed=True
    )


def read_flat(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """As `read`, with two axes if the third has one plane, as a DICOM file of one picture has it."""
    image = _quietly(lambda: _sitk().ReadImage(str(path)))
    return _turned(image[:, :, 0] if image.GetDimension() == 3 and image.GetSize()[2] == 1 else image, where)


def place_of_file(path: Path, where: str) -> Place:
    """From the header alone."""
    reader = _sitk().ImageFileReader()
    reader.SetFileName(str(path))
    _quietly(reader.ReadImageInformation)
    _check_axes(reader.GetDimension(), where)
    return _place(
        reader.GetDimension(), reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
    )


def number_type(path: Path) -> str:
    """In SimpleITK's words, such as `32-bit float`."""
    sitk = _sitk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _quietly(reader.ReadImageInformation)
    return str(sitk.GetPixelIDValueAsString(reader.GetPixelID()))


def read_series(folder: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """The volume that the DICOM files of a folder make, turned to RAS. Raises DataError where they make several, or
    slices lack."""
    return _turned(_quietly(_series_reader(folder, where).Execute), where)


def series_place(folder: Path, where: str) -> Place:
    """See `place`; the slices have to be read for it."""
    image = _quietly(_series_reader(folder, where).Execute)
    return _place_of(image)


def write(array: np.ndarray, place: Place, path: Path) -> None:
    """Write a mask in stored axes [*S] or [*S, K], as `place` says that it lies; compressed."""
    sitk, axes = _sitk(), len(place.shape)
    channels = array.ndim > axes
    image = sitk.GetImageFromArray(array.transpose(*reversed(range(axes)), *range(axes, array.ndim)), isVector=channels)
    turn = (LPS_TO_RAS @ place.affine[:3, :3])[:axes, :axes]
    spacing = np.sqrt((turn**2).sum(0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((turn / spacing).ravel().tolist())
    image.SetOrigin((LPS_TO_RAS @ place.affine[:3, 3])[:axes].tolist())
    _quietly(lambda: sitk.WriteImage(image, str(path), True))


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files, by the first that is no hidden one."""
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith("."))
    first = next(files, None)
    return first is not None and is_dicom(first)


def is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _series_reader(folder: Path, where: str) -> Any:
    reader = _sitk().ImageSeriesReader()
    series = _quietly(lambda: reader.GetGDCMSeriesIDs(str(folder)))
    if len(series) != 1:
        raise DataError(
            f"{where}: expected the DICOM files of one series in a folder, got {len(series)} series; give each a folder"
        )
    names = _quietly(lambda: reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    _check_slices(names, where)
    reader.SetFileNames(names)
    return reader


def _check_slices(names: tuple[str, ...], where: str) -> None:
    """Raise DataError if the distances between slices differ: one is missing, or two of them are the same."""
    import pydicom

    wanted = ["ImagePositionPatient", "ImageOrientationPatient"]
    headers = [pydicom.dcmread(name, stop_before_pixels=True, specific_tags=wanted) for name in names]
    if len(names) < 2 or not all(hasattr(header, tag) for header in headers for tag in wanted):
        return
    orientation = np.array(headers[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(orientation[:3], orientation[3:])
    gaps = np.diff([np.dot(normal, np.array(header.ImagePositionPatient, dtype=float)) for header in headers])
    usual = float(np.median(gaps))
    odd = np.abs(gaps - usual) > 0.05 * abs(usual) + 1e-3
    if odd.any():
        raise DataError(
            f"{where}: expected slices at equal distances, {usual:.3g} mm, got {gaps[odd][0]:.3g} mm after slice "
            f"{int(np.flatnonzero(odd)[0]) + 1} of {len(names)}; a file is missing or there twice"
        )


def _turned(image: Any, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    _check_axes(image.GetDimension(), where)
    if "complex" in image.GetPixelIDTypeAsString():
        raise DataError(f"{where}: expected one real number a voxel, got {image.GetPixelIDTypeAsString()}")
    array = _sitk().GetArrayFromImage(image)
    axes = image.GetDimension()
    array = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))  # z, y, x, channels -> x, y, z, channels
    if axes == 2 and array.ndim == 3:
        parts = [turned(array[..., channel], _place_of(image), where) for channel in range(array.shape[2])]
        return np.stack([part for part, _spacing in parts]), parts[0][1]
    return turned(array, _place_of(image), where)


def _check_axes(axes: int, where: str) -> None:
    if axes not in (2, 3):
        raise DataError(f"{where}: expected 2 or 3 spatial axes, got {axes}; save each time as a file")


def _place_of(image: Any) -> Place:
    return _place(image.GetDimension(), image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _place(axes: int, size: Any, spacing: Any, origin: Any, direction: Any) -> Place:
    """From ITK's LPS, in 2 or 3 axes, to an affine in RAS."""
    turn = np.eye(3)
    turn[:axes, :axes] = np.array(direction).reshape(axes, axes) * np.array(spacing)
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ turn
    affine[:3, 3] = LPS_TO_RAS @ np.array([*origin, 0.0])[:3]
    return Place(affine, tuple(size))


def _quietly(read: Callable[[], Any]) -> Any:
    """What ITK raises for a damaged file as an OSError of one line; its text may hold what a header says, so that of
    DICOM is never shown."""
    try:
        return read()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OSError(lines[-1] if lines else "unknown error") from None


def _sitk() -> Any:
    """Imported late, and typed as Any since it has no types."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
