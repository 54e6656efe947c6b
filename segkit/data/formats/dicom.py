"""Single DICOM files: images and multi-frame volumes by SimpleITK, segmentations by highdicom."""

from __future__ import annotations

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

    Raises DataError for a DICOM segmentation.
    """
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
    pydicom = require("pydicom", "medical", "reading DICOM files")
    try:
        return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality"))
    except Exception as error:  # its message is not shown: it may quote patient data from the header
        raise DataError(f"{where}: cannot be read as DICOM ({type(error).__name__})") from None


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
