"""Single DICOM files: a picture or the frames of a volume by SimpleITK, and segmentations by highdicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats.geometry import Place, turned
from segkit.data.formats.sitk import LPS_TO_RAS, place_of_file, read_flat
from segkit.utils.errors import DataError

SEGMENTATION = "SEG"


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """[*S] or [C, *S], turned to RAS, two axes if there is one frame. Raises DataError for a segmentation."""
    if _modality(path, where) == SEGMENTATION:
        raise DataError(f"{where}: expected an image, got a DICOM segmentation, which is a mask")
    return read_flat(path, where)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Segment numbers of a segmentation, see `read_segments`; of another file its pixels."""
    return read_segments(path, where) if _modality(path, where) == SEGMENTATION else read_flat(path, where)


def place(path: Path, where: str) -> Place:
    if _modality(path, where) != SEGMENTATION:
        return place_of_file(path, where)
    return _place(_volume(path, where))


def read_segments(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Segment numbers [*S], turned to RAS, and the spacing; 0 where there is no segment.

    It has the slices that the file has, which may be fewer than those of the image. Raises DataError for segments that
    overlap, fractional ones, and a file that is no segmentation.
    """
    volume = _volume(path, where)
    return turned(volume.array, _place(volume), where)


def _modality(path: Path, where: str) -> str:
    import pydicom

    try:
        return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality"))
    except Exception as error:  # what the library says may quote the header, and with it the patient
        raise DataError(f"{where}: it cannot be read as DICOM ({type(error).__name__})") from None


def _volume(path: Path, where: str) -> Any:
    import highdicom

    try:
        return highdicom.seg.segread(path).get_volume(combine_segments=True)
    except Exception as error:
        # what the libraries say may quote the header, and with it the patient
        reason = "its segments overlap" if "overlap" in str(error).lower() else type(error).__name__
        raise DataError(f"{where}: it cannot be read as a DICOM segmentation ({reason})") from None


def _place(volume: Any) -> Place:
    affine = np.eye(4)
    affine[:3] = LPS_TO_RAS @ np.asarray(volume.affine)[:3]
    return Place(affine, tuple(volume.array.shape[:3]))
