"""Single DICOM files: images and multi-frame volumes by SimpleITK, segmentations by highdicom."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats import sitk
from segkit.data.formats.dicom_elements import check_elements
from segkit.data.formats.geometry import Geometry, check_affine, to_ras
from segkit.data.formats.header_checks import ANY_CODEC, DEFLATE, SMALL, check_pixel_bytes
from segkit.utils.errors import DataError, MissingExtra
from segkit.utils.optional import require

SEGMENTATION = "SEG"
SUBSAMPLED = 2  # the most bytes of pixels per byte of an uncompressed file, with colours at half the resolution
COUNTS = {"Rows": 0, "Columns": 0, "NumberOfFrames": 1, "SamplesPerPixel": 1, "BitsAllocated": 8}  # if missing
CHECKED = (  # fields that an image is checked by
    *COUNTS,
    *("Modality", "PixelRepresentation"),
    *("TotalPixelMatrixRows", "TotalPixelMatrixColumns"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image [*S] or [C, *S] in RAS orientation and its spacing in mm; a single frame has two spatial axes.

    Raises DataError for a DICOM segmentation, for the tiles of a whole slide, for frames that are not the slices of one
    volume, and for files without pixels.
    """
    with _without_patient_data(where):
        header = _header(path, CHECKED)
        if header.get("Modality") == SEGMENTATION:
            raise DataError(f"{where}: expected an image, got a DICOM segmentation, which is a mask")
        _check_pixels(header, where)
        _check_size(path, header, where)
        _check_frames(header, where)
        return sitk.read_squeezed(path, where)


def read_series(folder: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the volume of a folder with the files of one series, or with a single file of several frames."""
    files = sitk.dicom_files(folder)
    return read_image(files[0], where) if len(files) == 1 else _read_slices(folder, files, where)


def read_series_mask(folder: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a mask from a folder like `read_series`."""
    files = sitk.dicom_files(folder)
    return read_mask(files[0], where) if len(files) == 1 else _read_slices(folder, files, where)


def _read_slices(folder: Path, files: Sequence[Path], where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    with _without_patient_data(where):
        _check_slices(files, where)
        return sitk.read_series(folder, where)


def _check_slices(files: Sequence[Path], where: str) -> None:
    """Raise DataError if the header of a slice declares more pixels than its file can hold."""
    for file in files:
        _check_size(file, _header(file, list(COUNTS)), f"{where}, {file.name}")


def read_series_geometry(folder: Path, where: str) -> Geometry:
    """The geometry of a folder, see `read_series`."""
    files = sitk.dicom_files(folder)
    if len(files) == 1:
        return read_geometry(files[0], where)
    with _without_patient_data(where):
        _check_slices(files, where)
        return sitk.read_series_geometry(folder, where)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the segment numbers of a DICOM segmentation, see `read_segments`, or the pixels of another DICOM file."""
    with _without_patient_data(where):
        header = _header(path, [*COUNTS, "Modality"])
        if header.get("Modality") == SEGMENTATION:
            return read_segments(path, where)
        _check_size(path, header, where)
        return sitk.read_squeezed(path, where)


def read_geometry(path: Path, where: str) -> Geometry:
    """The geometry of a DICOM image or segmentation."""
    with _without_patient_data(where):
        header = _header(path, [*COUNTS, "Modality"])
        if header.get("Modality") == SEGMENTATION:
            return _geometry(_read_segmentation(path, where), where)
        _check_size(path, header, where)
        return sitk.read_geometry(path, where)


def read_segments(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the segment numbers [*S] of a DICOM segmentation in RAS orientation, 0 outside of all segments.

    Only the slices in the file are returned, which may be fewer than the image has. Returns the spacing in mm, too.

    Raises DataError for overlapping segments, fractional segments, and files that are not segmentations.
    """
    volume = _read_segmentation(path, where)
    return to_ras(volume.array, _geometry(volume, where), where)


@contextmanager
def _without_patient_data(where: str) -> Iterator[None]:
    """Turn exceptions of the libraries into a DataError without their message, which may quote patient data."""
    try:
        yield
    except (DataError, MissingExtra):
        raise
    except Exception as error:  # of any type: fields are decoded when they are used
        raise DataError(
            f"{where}: cannot be read as DICOM ({type(error).__name__}); it may be damaged or of another format: copy "
            "or export it again"
        ) from None


def _header(path: Path, tags: Sequence[str]) -> Any:
    """Some fields of the header."""
    pydicom = require("pydicom", "medical", "reading DICOM files")
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))


def _check_size(path: Path, header: Any, where: str) -> None:
    """Raise DataError if a header declares more pixels, or an element more bytes, than its file can hold."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{where}: expected a TransferSyntaxUID in its header, found none; export the file again")
    known = syntax.is_transfer_syntax
    implicit, big_endian = known and syntax.is_implicit_VR, known and not syntax.is_little_endian
    deflated = known and syntax.is_deflated
    check_elements(path, where, implicit=implicit, big_endian=big_endian, deflated=deflated)
    counts = []
    for name, default in COUNTS.items():
        value = header.get(name)
        try:
            counts.append(default if value is None else int(value))
        except (TypeError, ValueError):
            raise DataError(
                f"{where}: expected a whole number as {name} in the header; export the file again"
            ) from None
    ratio = ANY_CODEC if known and syntax.is_encapsulated else DEFLATE if deflated else SUBSAMPLED
    check_pixel_bytes(math.prod(counts) // 8, [path], where, ratio=ratio)


def _check_pixels(header: Any, where: str) -> None:
    """Raise DataError if a file holds no image, or one of floating-point numbers."""
    if not header.get("Rows"):
        modality = str(header.get("Modality"))
        # anything but the short code of a modality may be another field of a damaged header
        modality = modality if re.fullmatch(r"[A-Z]{2,16}", modality) else "unknown"
        raise DataError(f"{where}: this DICOM file of the modality {modality} holds no image")
    if "PixelRepresentation" not in header and header.get("BitsAllocated") in (32, 64):  # required for integers only
        raise DataError(
            f"{where}: this DICOM file holds floating-point pixels, as parametric maps do; convert it, for example "
            "with paramap2itkimage of dcmqi"
        )


def _check_frames(header: Any, where: str) -> None:
    """Raise DataError if the frames of a file are no slices of one volume: the tiles of a large picture, or several
    time points or orientations."""
    size = header.get("TotalPixelMatrixColumns"), header.get("TotalPixelMatrixRows")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames == 1:
        return
    if None not in size:
        raise DataError(
            f"{where}: expected a picture or a volume, got {frames} tiles of a whole slide of {size[0]} x {size[1]} "
            "pixels; export the slide or regions of it as TIFF, for example with wsidicom or OpenSlide"
        )
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    places = [_of_frame(group, shared, "PlanePositionSequence", "ImagePositionPatient") for group in groups]
    directions = [_of_frame(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient") for group in groups]
    if not groups or None in places or None in directions:
        return
    positions = [np.array(place, dtype=float) for place in places]
    distinct = len({tuple(position.round(3)) for position in positions})
    if distinct < frames:
        raise DataError(
            f"{where}: expected one frame per slice, got {frames} frames at {distinct} positions, such as several time "
            "points or contrasts; save each of them as a file of its own, for example with dcm2niix"
        )
    normal = np.cross(np.array(directions[0], dtype=float)[:3], np.array(directions[0], dtype=float)[3:])
    order = np.argsort([position @ normal for position in positions])
    sitk.check_positions([positions[frame] for frame in order], [directions[frame] for frame in order], where)


def _of_frame(group: Any, shared: Any, sequence: str, field: str) -> Any:
    """A field of a frame, which is stored for the frame or for all frames together; None if it is missing."""
    for source in (group, shared):
        if source is not None and source.get(sequence):
            return source.get(sequence)[0].get(field)
    return None


def _read_segmentation(path: Path, where: str) -> Any:
    highdicom = require("highdicom", "medical", "reading DICOM segmentations")
    _check_size(path, _header(path, list(COUNTS)), where)
    try:
        segmentation = highdicom.seg.segread(path)
        _check_extent(segmentation, path, where)
        return segmentation.get_volume(combine_segments=True)
    except DataError:
        raise
    except Exception as error:
        # its message is not shown: it may quote patient data from the header
        overlap = "overlap" in str(error).lower()
        reason = "its segments overlap" if overlap else _why_no_segmentation(path)
        raise DataError(f"{where}: cannot be read as a DICOM segmentation: {reason}") from None


def _check_extent(segmentation: Any, path: Path, where: str) -> None:
    """Raise DataError if a segmentation leaves out so many slices between its first and last that they would not fit
    into memory."""
    geometry = segmentation.get_volume_geometry()
    voxels = 0 if geometry is None else math.prod(geometry.spatial_shape)
    limit = max(DEFLATE * path.stat().st_size, 4 * SMALL)
    if voxels > limit:
        raise DataError(
            f"{where}: expected at most {limit:,} voxels between its first and last slice, got {voxels:,}; correct the "
            "positions of its slices"
        )


def _why_no_segmentation(path: Path) -> str:
    """Why highdicom does not read a segmentation, from its header."""
    header = _header(path, ["SegmentationType", "SharedFunctionalGroupsSequence"])
    if header.get("SegmentationType") == "FRACTIONAL":
        return "its segments are fractional; export it as a binary segmentation"
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_transfer_syntax and syntax.is_compressed:
        return "it is compressed; decompress it, for example with `gdcmconv --raw IN OUT`"
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    if not shared.get("PlaneOrientationSequence"):
        return "its frames have no position in space"
    return "highdicom does not read it; export it again, for example as NIfTI"


def _geometry(volume: Any, where: str) -> Geometry:
    """The geometry of a highdicom volume, converted from LPS to RAS. Raises DataError, see `check_affine`."""
    affine = np.eye(4)
    affine[:3] = sitk.LPS_TO_RAS @ np.asarray(volume.affine)[:3]
    check_affine(affine, where)
    return Geometry(affine, tuple(volume.array.shape[:3]))
