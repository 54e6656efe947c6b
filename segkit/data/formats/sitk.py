"""NRRD, MetaImage and DICOM series, read and written by SimpleITK."""

from __future__ import annotations

import errno
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats import itk_headers
from segkit.data.formats.geometry import Geometry, check_affine, to_ras
from segkit.data.formats.header_checks import ANY_CODEC, check_pixel_bytes
from segkit.utils.errors import DataError
from segkit.utils.files import temporary_folder
from segkit.utils.optional import require

MAX_SEARCHED, MAX_COMPARED = 64, 16  # files looked at to recognise a series: any files, and DICOM files
OTHER_ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".txt",
    ".csv",
    ".json",
    ".xml",
    ".db",
    ".npy",
)
OVERLAYS = range(0x6000, 0x6100)  # groups of a DICOM header
MAX_SHEAR = 0.02  # shift of a slice against the one before, as a share of their distance
DICOM_READER = "GDCMImageIO"
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # a full disk, or a folder that is read-only
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a volume [*S] or [C, *S] in RAS orientation and its spacing in mm.

    Raises DataError, beginning with `where`, for complex numbers and more than three spatial axes.
    """
    reader = _header_reader(path, where)
    itk_headers.check_size(_declared_bytes(reader), path, where)
    return _to_ras(_quietly(reader.Execute), where)


def _declared_bytes(reader: Any) -> int:
    """The bytes of pixels that the header declares which a reader has read."""
    name = str(_sitk().GetPixelIDValueAsString(reader.GetPixelID()))
    bits = re.search(r"\d+", name)
    bytes_per_number = int(bits.group()) // 8 if bits else 1
    numbers = 2 if "complex" in name else 1
    return math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * bytes_per_number * numbers


def read_squeezed(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a DICOM file like `read`, without its third axis if that has length 1, as in files of a single frame.

    Pixels of dose files are multiplied by their DoseGridScaling, which differs between files and which GDCM leaves out.
    """
    pydicom = require("pydicom", "medical", "reading DICOM files")
    tags = ["DoseGridScaling", "ModalityLUTSequence", "BitsAllocated", "SamplesPerPixel"]
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
    sitk = _sitk()
    image = _dicom_image(path, header, where)
    if "DoseGridScaling" in header and "integer" in image.GetPixelIDTypeAsString():
        image = sitk.Cast(image, sitk.sitkFloat64) * float(header.DoseGridScaling)
    if header.get("ModalityLUTSequence"):
        values = pydicom.pixels.apply_modality_lut(sitk.GetArrayFromImage(image), header)
        replaced = sitk.GetImageFromArray(values)
        replaced.CopyInformation(image)
        image = replaced
    if image.GetDimension() != 3 or image.GetSize()[2] != 1:
        return _to_ras(image, where)
    array = sitk.GetArrayFromImage(image)[0]  # y, x, channels
    geometry = _geometry(image, where)
    # with the directions in space, since SimpleITK would project those of a tilted slice on the first two axes
    return _plane_to_ras(array.swapaxes(0, 1), Geometry(geometry.affine, geometry.shape[:2]), where)


def _dicom_image(path: Path, header: Any, where: str) -> Any:
    """The image of a DICOM file, decoded by GDCM, or by pydicom where GDCM cannot decode it or returns wrong pixels:
    those with 32 bits in big-endian order, and colours of more than 8 bits in run-length encoding."""
    pydicom = require("pydicom", "medical", "reading DICOM files")
    syntax, bits = header.file_meta.get("TransferSyntaxUID"), int(header.get("BitsAllocated", 8))
    is_wide_colour = int(header.get("SamplesPerPixel", 1)) > 1 and bits > 8
    is_misread = (syntax == pydicom.uid.ExplicitVRBigEndian and bits == 32) or (
        syntax == pydicom.uid.RLELossless and is_wide_colour
    )
    if not is_misread:
        with suppress(OSError):
            reader = _header_reader(path, where)
            check_pixel_bytes(_declared_bytes(reader), [path], where, ratio=ANY_CODEC)  # in the eyes of GDCM
            return _quietly(reader.Execute)
    try:
        with _decoded_copy(path) as copy:
            return _quietly(_header_reader(copy, where).Execute)
    except Exception as error:  # of any type; its message is not shown: it may quote patient data from the header
        if isinstance(error, OSError) and error.errno in NOT_WRITTEN:
            raise DataError(
                f"{where}: to decode it, a copy is written to the temporary folder {tempfile.gettempdir()}"
                f", which failed ({error.strerror}); free space there, or set TMPDIR to another folder"
            ) from None
        raise DataError(
            f"{where}: neither GDCM nor pydicom can decode it; it may be truncated: copy it again, or save it without "
            "compression, for example with `gdcmconv --raw IN OUT`"
        ) from None


@contextmanager
def _decoded_copy(path: Path) -> Iterator[Path]:
    """A copy of a DICOM file with uncompressed little-endian pixels, as pydicom decodes them, and without overlays."""
    pydicom = require("pydicom", "medical", "reading DICOM files")
    source = pydicom.dcmread(path)
    pixels = source.pixel_array
    source.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    source["PixelData"].VR = "OW"
    source["PixelData"].is_undefined_length = False
    if int(source.get("SamplesPerPixel", 1)) > 1:
        source.PlanarConfiguration = 0
    for element in [element for element in source if element.tag.group in OVERLAYS]:
        del source[element.tag]
    source.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    with temporary_folder() as folder:
        copy = folder / "copy.dcm"
        pydicom.dcmwrite(copy, source, implicit_vr=False, little_endian=True, force_encoding=True)
        yield copy


def read_geometry(path: Path, where: str) -> Geometry:
    """The geometry, from the header alone."""
    reader = _header_reader(path, where)
    _check_axes(reader.GetDimension(), where)
    return _geometry(reader, where)


def number_type(path: Path) -> str:
    """The number type as SimpleITK names it, such as `32-bit float`, from the header alone."""
    sitk = _sitk()
    return str(sitk.GetPixelIDValueAsString(_header_reader(path, f"file {path}").GetPixelID()))


def read_series(folder: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the volume of a folder of DICOM files in RAS orientation and its spacing in mm.

    Raises DataError if the folder holds several series, or if slices are missing.
    """
    return _to_ras(_quietly(_series_reader(folder, where).Execute), where)


def read_series_geometry(folder: Path, where: str) -> Geometry:
    """The geometry of a DICOM series, for which its slices are read."""
    return _geometry(_quietly(_series_reader(folder, where).Execute), where)


def write(array: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write a mask in stored order, [*S] or [*S, K], with its geometry, compressed."""
    sitk, axes = _sitk(), len(geometry.shape)
    has_channels = array.ndim > axes
    reversed_axes = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))
    image = sitk.GetImageFromArray(reversed_axes, isVector=has_channels)
    scaled_direction = (LPS_TO_RAS @ geometry.affine[:3, :3])[:axes, :axes]
    spacing = np.sqrt((scaled_direction**2).sum(0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((scaled_direction / spacing).ravel().tolist())
    image.SetOrigin((LPS_TO_RAS @ geometry.affine[:3, 3])[:axes].tolist())
    _quietly(lambda: sitk.WriteImage(image, str(path), True))


def is_series(folder: Path) -> bool:
    """Whether DICOM files in a folder are slices: of some of them, two of one series have different positions.

    A single DICOM file counts as a series of one slice. Other files, such as a preview, do not matter.
    """
    candidates = [file for file in sorted(folder.iterdir()) if not _is_other_format(file)]
    # a few first ones decide whether to look at all, since folders may hold thousands of other files
    if not any(is_dicom(file) for file in candidates[:MAX_SEARCHED]):
        return False
    found = [file for file in candidates if is_dicom(file)]
    if len(found) < 2:
        return bool(found)
    found = [found[position] for position in np.linspace(0, len(found) - 1, min(MAX_COMPARED, len(found))).astype(int)]
    pydicom = require("pydicom", "medical", "reading DICOM files")
    tags = ["SeriesInstanceUID", "ImagePositionPatient"]
    positions: dict[str, set[str]] = defaultdict(set)
    for file in found:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            if header.get("ImagePositionPatient"):
                positions[str(header.get("SeriesInstanceUID"))].add(str(header.ImagePositionPatient))
        except Exception:  # a damaged file is named when it is read
            continue
    return any(len(places) > 1 for places in positions.values())


def _is_other_format(file: Path) -> bool:
    """Whether a file is hidden, or a picture or text by the ending of its name."""
    return file.name.startswith(".") or file.suffix.lower() in OTHER_ENDINGS


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder that are not hidden, sorted."""
    return [file for file in sorted(folder.iterdir()) if not file.name.startswith(".") and is_dicom(file)]


def is_dicom(path: Path) -> bool:
    """Whether a file begins like a DICOM file."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _header_reader(path: Path, where: str) -> Any:
    """A SimpleITK reader that has read the header of a file. Raises DataError, see `itk_headers.check_files`."""
    has_text_header = path.suffix.lower() in itk_headers.HEADERS
    if has_text_header:
        itk_headers.check_files(path, where)
    reader = _sitk().ImageFileReader()
    # ITK alone would choose its reader by the content, whatever the name says
    reader.SetImageIO(itk_headers.HEADERS[path.suffix.lower()][2] if has_text_header else DICOM_READER)
    reader.SetFileName(str(path))
    _quietly(reader.ReadImageInformation)
    return reader


def _series_reader(folder: Path, where: str) -> Any:
    """A reader of the one series in a folder. Raises DataError for several series or missing slices."""
    reader = _sitk().ImageSeriesReader()
    series = _quietly(lambda: reader.GetGDCMSeriesIDs(str(folder)))
    if len(series) != 1:
        raise DataError(
            f"{where}: expected one DICOM series in the folder, got {len(series)}; put each one into its own folder"
        )
    names = _quietly(lambda: reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    _check_slices(names, where)
    reader.SetFileNames(names)
    return reader


def _check_slices(names: tuple[str, ...], where: str) -> None:
    """Raise DataError if the distances between slices differ, or if slices are shifted against each other."""
    pydicom = require("pydicom", "medical", "reading DICOM files")
    tags = ["ImagePositionPatient", "ImageOrientationPatient"]
    headers = [pydicom.dcmread(name, stop_before_pixels=True, specific_tags=tags) for name in names]
    if len(names) < 2 or not all(hasattr(header, tag) for header in headers for tag in tags):
        return
    positions = [np.array(header.ImagePositionPatient, dtype=float) for header in headers]
    check_positions(positions, [header.ImageOrientationPatient for header in headers], where)


def check_positions(positions: Sequence[np.ndarray], orientations: Sequence[Any], where: str) -> None:
    """Raise DataError unless slices are parallel, at equal distances and one above the other.

    positions, orientations: ImagePositionPatient and ImageOrientationPatient of each slice, in their order.
    """
    directions = np.array([np.array(orientation, dtype=float) for orientation in orientations])
    if not np.allclose(directions, directions[0], atol=1e-3):
        raise DataError(
            f"{where}: expected parallel slices, got {len(np.unique(directions.round(3), axis=0))} orientations; put "
            "the slices of each orientation into a folder of their own"
        )
    distinct = len({tuple(position.round(3)) for position in positions})
    if len(positions) % distinct == 0 and len(positions) > distinct:
        raise DataError(
            f"{where}: expected one slice per position, got {len(positions)} slices at {distinct} positions, such as "
            "several time points or contrasts; put each of them into a folder of its own, for example with dcm2niix"
        )
    normal = np.cross(directions[0][:3], directions[0][3:])
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    odd = np.abs(gaps - usual) > 0.05 * abs(usual) + 1e-3
    if odd.any():
        raise DataError(
            f"{where}: expected slices at equal distances of {usual:.3g} mm, got {gaps[odd][0]:.3g} mm after slice "
            f"{int(np.flatnonzero(odd)[0]) + 1} of {len(positions)}; a file is missing or present twice"
        )
    shifts = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    sheared = np.flatnonzero(shifts > MAX_SHEAR * abs(usual))
    if len(sheared):
        first = int(sheared[0])
        angle = np.degrees(np.arctan2(shifts[first], abs(gaps[first])))
        raise DataError(
            f"{where}: expected slices one above the other, but slice {first + 2} of {len(positions)} is shifted by "
            f"{shifts[first]:.3g} mm against the one before ({angle:.0f} degrees, as with a tilted gantry); resample "
            "the series to a rectangular grid, for example with dcm2niix"
        )


def _to_ras(image: Any, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """The array of a SimpleITK image, [*S] or [C, *S] in RAS orientation, and its spacing in mm."""
    _check_axes(image.GetDimension(), where)
    if "complex" in image.GetPixelIDTypeAsString():
        raise DataError(f"{where}: expected one real number per voxel, got {image.GetPixelIDTypeAsString()}")
    array = _sitk().GetArrayFromImage(image)
    axes = image.GetDimension()
    array = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))  # z, y, x, channels -> x, y, z, channels
    geometry = _geometry(image, where)
    return _plane_to_ras(array, geometry, where) if axes == 2 else to_ras(array, geometry, where)


def _plane_to_ras(array: np.ndarray, geometry: Geometry, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Reorient a plane [X, Y] or [X, Y, C] as `to_ras` does."""
    if array.ndim == 2:
        return to_ras(array, geometry, where)
    channels = [to_ras(array[..., channel], geometry, where) for channel in range(array.shape[2])]
    return np.stack([channel for channel, _spacing in channels]), channels[0][1]


def _check_axes(axes: int, where: str) -> None:
    if axes not in (2, 3):
        raise DataError(f"{where}: expected 2 or 3 spatial axes, got {axes}; save each time point as a file of its own")


def _geometry(image: Any, where: str) -> Geometry:
    """The geometry of a SimpleITK image, or of a reader that has read a header, converted from LPS to RAS.

    Raises DataError, see `check_affine`.
    """
    axes = image.GetDimension()
    scaled_direction = np.eye(3)
    scaled_direction[:axes, :axes] = np.array(image.GetDirection()).reshape(axes, axes) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ scaled_direction
    affine[:3, 3] = LPS_TO_RAS @ np.array([*image.GetOrigin(), 0.0])[:3]
    check_affine(affine, where)
    return Geometry(affine, tuple(image.GetSize()))


def _quietly(read: Callable[[], Any]) -> Any:
    """Call an ITK function and raise its errors as an OSError with a message of one line, without their cause.

    The text of an ITK error may quote the header, which is why the readers of DICOM do not show it.
    """
    try:
        return read()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OSError(lines[-1] if lines else "unknown error") from None


def _sitk() -> Any:
    """SimpleITK, without the warnings that it prints."""
    SimpleITK = require("SimpleITK", "medical", "reading and writing NRRD, MetaImage and DICOM files")
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
