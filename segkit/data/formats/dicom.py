"""Single DICOM files: images and multi-frame volumes by SimpleITK, segmentations by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats import sitk
from segkit.data.formats.geometry import Geometry, to_ras
from segkit.utils.errors import DataError
from segkit.utils.optional import require

SEGMENTATION = "SEG"


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image [*S] or [C, *S] in RAS orientation and its spacing in mm; a single frame has two spatial axes.

    Raises DataError for a DICOM segmentation, and for the tiles of a whole slide.
    """
    _refuse_tiles(path, where)
    if _modality(path, where) == SEGMENTATION:
        raise DataError(f"{where}: expected an image, got a DICOM segmentation, which is a mask")
    return sitk.read_squeezed(path, where)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the segment numbers of a DICOM segmentation, see `read_segments`, or the pixels of another DICOM file."""
    if _modality(path, where) == SEGMENTATION:
        return read_segments(path, where)
    return sitk.read_squeezed(path, where)


def read_geometry(path: Path, where: str) -> Geometry:
    """The geometry of a DICOM image or segmentation."""
    if _modality(path, where) == SEGMENTATION:
        return _geometry(_read_segmentation(path, where))
    return sitk.read_geometry(path, where)


def read_segments(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the segment numbers [*S] of a DICOM segmentation in RAS orientation, 0 outside of all segments.

    Only the slices in the file are returned, which may be fewer than the image has. Returns the spacing in mm, too.

    Raises DataError for overlapping segments, fractional segments, and files that are not segmentations.
    """
    volume = _read_segmentation(path, where)
    return to_ras(volume.array, _geometry(volume), where)


def _modality(path: Path, where: str) -> str:
    return str(_header(path, where, ["Modality"]).get("Modality"))


def _header(path: Path, where: str, tags: Sequence[str]) -> Any:
    """Some fields of the header."""
    pydicom = require("pydicom", "medical", "reading DICOM files")
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except Exception as error:  # its message is not shown: it may quote patient data from the header
        raise DataError(f"{where}: cannot be read as DICOM ({type(error).__name__})") from None


def _refuse_tiles(path: Path, where: str) -> None:
    """Raise DataError if the frames of a file are the tiles of a large picture: they are no slices of a volume."""
    header = _header(path, where, ["NumberOfFrames", "TotalPixelMatrixRows", "TotalPixelMatrixColumns"])
    size = header.get("TotalPixelMatrixColumns"), header.get("TotalPixelMatrixRows")
    frames = int(header.get("NumberOfFrames") or 1)
    if None not in size and frames > 1:
        raise DataError(
            f"{where}: expected a picture or a volume, got {frames} tiles of a whole slide of {size[0]} x {size[1]} "
            "pixels; export the slide or regions of it as TIFF, for example with wsidicom or OpenSlide"
        )


def _read_segmentation(path: Path, where: str) -> Any:
    highdicom = require("highdicom", "medical", "reading DICOM segmentations")
    try:
        return highdicom.seg.segread(path).get_volume(combine_segments=True)
    except Exception as error:
        # its message is not shown: it may quote patient data from the header
        reason = "its segments overlap" if "overlap" in str(error).lower() else type(error).__name__
        raise DataError(f"{where}: cannot be read as a DICOM segmentation ({reason})") from None


def _geometry(volume: Any) -> Geometry:
    """The geometry of a highdicom volume, converted from LPS to RAS."""
    affine = np.eye(4)
    affine[:3] = sitk.LPS_TO_RAS @ np.asarray(volume.affine)[:3]
    return Geometry(affine, tuple(volume.array.shape[:3]))
