"""Files of images and masks: which format a path is, and how each is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.data.formats import arrays, dicom, nifti, raster, sitk, tiff
from segkit.data.formats.geometry import Place

Read = Callable[[Path, str], tuple[np.ndarray, tuple[float, ...]]]  # file, where it is for errors -> array, spacing


@dataclass(frozen=True)
class Format:
    """endings: of file names, in lower case; none for a folder that is one image. read_image: [C, *S] or [*S].
    read_mask: as stored. place: where the voxels lie, for formats that say so. number_type: how numbers are stored,
    from the header alone."""

    endings: tuple[str, ...]
    read_image: Read
    read_mask: Read
    place: Callable[[Path, str], Place] | None = None
    number_type: Callable[[Path], str] | None = None


FORMATS: dict[str, Format] = {
    "NIfTI": Format((".nii.gz", ".nii"), nifti.read, nifti.read, nifti.place, nifti.number_type),
    "PNG": Format((".png",), raster.read_image, raster.read_mask, None, raster.number_type),
    "JPEG": Format((".jpg", ".jpeg"), raster.read_image, raster.read_mask, None, raster.number_type),
    "GIF": Format((".gif",), raster.read_first_frame, raster.read_mask, None, raster.number_type),
    "BMP": Format((".bmp",), raster.read_image, raster.read_mask, None, raster.number_type),
    "TIFF": Format(tiff.ENDINGS, tiff.read_image, tiff.read_mask, None, tiff.number_type),
    "NPY": Format((".npy",), arrays.read_image, arrays.read_mask, None, arrays.number_type),
    "NPZ": Format((".npz",), arrays.read_image, arrays.read_mask),
    "NRRD": Format((".nrrd", ".nhdr"), sitk.read, sitk.read, sitk.place_of_file, sitk.number_type),
    "MetaImage": Format((".mha", ".mhd"), sitk.read, sitk.read, sitk.place_of_file, sitk.number_type),
    "DICOM": Format((".dcm", ".seg"), dicom.read_image, dicom.read_mask, dicom.place),
    "DICOM series": Format((), sitk.read_series, sitk.read_series, sitk.series_place),
}
SERIES = "DICOM series"
EXTENSIONS = tuple(ending for kind in FORMATS.values() for ending in kind.endings)


def extension(path: Path) -> str:
    """The extension as one of EXTENSIONS, in lower case, or an empty text."""
    name = path.name.lower()
    return next((known for known in EXTENSIONS if name.endswith(known)), "")


def format_name(path: Path) -> str | None:
    """The name of the format of a file by its ending, or of a folder by its first file; None for others."""
    if path.is_dir():
        return SERIES if sitk.is_series(path) else None
    ending = extension(path)
    return next((name for name, kind in FORMATS.items() if ending in kind.endings), None) if ending else None


def case_name(path: Path) -> str:
    """The name of a file without its known extension: `a.b.nii.gz` -> `a.b`. A folder's name stays."""
    return path.name if path.is_dir() else path.name.removesuffix(path.name[len(path.name) - len(extension(path)) :])


def is_image(path: Path) -> bool:
    """Whether a file or folder is of a known format; those that begin with a dot are not."""
    return not path.name.startswith(".") and format_name(path) is not None and (path.is_file() or path.is_dir())
