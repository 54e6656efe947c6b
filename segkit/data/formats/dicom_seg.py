"""DICOM segmentations: the frames of each segment as a volume of class numbers, by highdicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import DataError
from segkit.data.formats.geometry import Place, turned
from segkit.data.formats.itk import LPS_TO_RAS


def read(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Segment numbers [*S], turned to RAS, and the spacing; 0 where there is no segment.

    It has the slices that the file has, which may be fewer than those of the image. Raises DataError for segments that
    overlap, fractional ones, and a file that is no segmentation.
    """
    volume = _volume(path, where)
    return turned(volume.array, _place(volume), where)


def place(path: Path, where: str) -> Place:
    return _place(_volume(path, where))


def _volume(path: Path, where: str) -> Any:
    import highdicom
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.get("Modality") != "SEG":
            raise DataError(
                f"{where}: expected a DICOM segmentation, got {header.get('Modality')}; a series is given by its folder"
            )
        return highdicom.seg.segread(path).get_volume(combine_segments=True)
    except DataError:
        raise
    except Exception as error:
        # what the libraries say may quote the header, and with it the patient
        reason = "its segments overlap" if "overlap" in str(error).lower() else type(error).__name__
        raise DataError(f"{where}: it cannot be read as a DICOM segmentation ({reason})") from None


def _place(volume: Any) -> Place:
    affine = np.eye(4)
    affine[:3] = LPS_TO_RAS @ np.asarray(volume.affine)[:3]
    return Place(affine, tuple(volume.array.shape[:3]))
