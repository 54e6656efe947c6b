"""File formats of images and masks: how each is recognised, read and written."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.data.formats import arrays, dicom, matlab, nifti, raster, sitk, tiff
from segkit.data.formats.geometry import Geometry
from segkit.data.formats.mapped import Mapped

ReadArray = Callable[[Path, str], tuple[np.ndarray, tuple[float, ...]]]  # file, prefix of errors -> array, spacing
WriteVolume = Callable[[np.ndarray, Geometry, Path], None]


def extension(path: Path) -> str:
    """The file name ending that is listed in EXTENSIONS, in lower case, or an empty string."""
    name = path.name.lower()
    return next((known for known in EXTENSIONS if name.endswith(known)), "")


def _png(_image: Path) -> str:
    return ".png"


def _in_one_file(image: Path) -> str:
    """The ending for a header and its pixels in one file: two files cannot be written as one."""
    return {".nhdr": ".nrrd", ".mhd": ".mha"}.get(extension(image), extension(image))


@dataclass(frozen=True)
class Format:
    """A file format and what it supports.

    Attributes:
        endings: File name endings in lower case; empty for a DICOM series, which is a folder.
        read_image: Returns the image, [C, *S] or [*S], and its spacing.
        read_mask: Returns the mask as stored and its spacing.
        read_geometry: Reads where the voxels lie in space; None for formats that do not store it.
        number_type: Reads the stored number type from the header alone; None if the header does not contain it.
        header_conflict: Reads how a header contradicts itself about the directions of the axes; None where it cannot.
        orientation: Reads by which EXIF orientation viewers turn the picture; None for formats without one.
        is_raster: Whether integers are scaled to 0..1 and masks may be stored as RGB colours.
        is_lossy: Whether compression changes the stored values.
        is_sliced: Whether a mask may cover only some of the slices of its image.
        mask_ending: Returns the file name ending of masks predicted for an image of this format.
        has_mask_channels: Whether a single mask file of this format holds overlapping classes as channels.
        declared_numbers: Reads the count of numbers of an image from its header; None where images cannot be mapped.
        map_image: Returns an image as an array [C, *S] that reads what is indexed, how its numbers become float32, and
            its spacing; a folder for temporary files is given.
        write_volume: Writes a mask with its geometry; None if masks are not written in this format, or without a
            geometry.
    """

    endings: tuple[str, ...]
    read_image: ReadArray
    read_mask: ReadArray
    read_geometry: Callable[[Path, str], Geometry] | None = None
    number_type: Callable[[Path], str] | None = None
    orientation: Callable[[Path], int] | None = None
    header_conflict: Callable[[Path, str], str | None] | None = None
    is_raster: bool = False
    is_lossy: bool = False
    is_sliced: bool = False
    mask_ending: Callable[[Path], str] = _png
    has_mask_channels: bool = False
    write_volume: WriteVolume = sitk.write
    declared_numbers: Callable[[Path, str], int] | None = None
    map_image: Callable[[Path, str, Path], Mapped] | None = None

    @property
    def has_geometry(self) -> bool:
        """Whether files of this format store where their voxels lie in space."""
        return self.read_geometry is not None


def _as_nifti(*endings: str) -> Format:
    """A format that nibabel reads, and whose masks are written as NIfTI."""
    return Format(
        endings,
        nifti.read,
        nifti.read,
        nifti.read_geometry,
        nifti.number_type,
        mask_ending=lambda _image: ".nii.gz",
        has_mask_channels=True,
        write_volume=nifti.write,
    )


FORMATS: dict[str, Format] = {
    "NIfTI": Format(
        (".nii.gz", ".nii"),
        nifti.read,
        nifti.read,
        nifti.read_geometry,
        nifti.number_type,
        header_conflict=nifti.header_conflict,
        mask_ending=extension,
        has_mask_channels=True,
        write_volume=nifti.write,
        declared_numbers=nifti.declared_numbers,
        map_image=nifti.map_volume,
    ),
    "MGH": _as_nifti(".mgz", ".mgh"),
    "Analyze": _as_nifti(".hdr"),
    "PNG": Format(
        (".png",), raster.read_image, raster.read_mask, None, raster.number_type, raster.orientation, is_raster=True
    ),
    "JPEG": Format(
        (".jpg", ".jpeg"),
        raster.read_image,
        raster.read_mask,
        None,
        raster.number_type,
        raster.orientation,
        is_raster=True,
        is_lossy=True,
    ),
    "WebP": Format(
        (".webp",), raster.read_image, raster.read_mask, None, raster.number_type, raster.orientation, is_raster=True
    ),
    "GIF": Format((".gif",), raster.read_first_frame, raster.read_mask, None, raster.number_type, is_raster=True),
    "BMP": Format((".bmp",), raster.read_image, raster.read_mask, None, raster.number_type, is_raster=True),
    "PNM": Format((".ppm", ".pgm", ".pbm"), raster.read_image, raster.read_mask, is_raster=True),
    "JPEG 2000": Format((".jp2",), raster.read_image, raster.read_mask, is_raster=True),
    "MAT": Format((".mat",), matlab.read_image, matlab.read_mask, mask_ending=lambda _image: ".npy"),
    "TIFF": Format(
        tiff.ENDINGS,
        tiff.read_image,
        tiff.read_mask,
        None,
        tiff.number_type,
        tiff.orientation,
        is_raster=True,
        mask_ending=tiff.mask_ending,
        declared_numbers=tiff.declared_numbers,
        map_image=tiff.map_image,
    ),
    "NPY": Format(
        (".npy",),
        arrays.read_image,
        arrays.read_mask,
        None,
        arrays.number_type,
        mask_ending=extension,
        has_mask_channels=True,
        declared_numbers=arrays.declared_numbers,
        map_image=arrays.map_image,
    ),
    "NPZ": Format(
        (".npz",), arrays.read_image, arrays.read_mask, mask_ending=lambda _image: ".npy", has_mask_channels=True
    ),
    "NRRD": Format(
        (".nrrd", ".nhdr"),
        sitk.read,
        sitk.read,
        sitk.read_geometry,
        sitk.number_type,
        mask_ending=_in_one_file,
        has_mask_channels=True,
    ),
    "MetaImage": Format(
        (".mha", ".mhd"),
        sitk.read,
        sitk.read,
        sitk.read_geometry,
        sitk.number_type,
        mask_ending=_in_one_file,
        has_mask_channels=True,
    ),
    "DICOM": Format((".dcm", ".seg"), dicom.read_image, dicom.read_mask, dicom.read_geometry, is_sliced=True),
    "DICOM series": Format(
        (), dicom.read_series, dicom.read_series_mask, dicom.read_series_geometry, mask_ending=lambda _folder: ".nii.gz"
    ),
}
SERIES = "DICOM series"
EXTENSIONS = tuple(ending for file_format in FORMATS.values() for ending in file_format.endings)


def format_name(path: Path) -> str | None:
    """The name of the format: of a file by its ending, of a folder by its first file. None for an unknown format."""
    if path.is_dir():
        return SERIES if sitk.is_series(path) else None
    ending = extension(path)
    if ending == ".seg" and not (path.is_file() and sitk.is_dicom(path)):
        return None  # the text files of the Berkeley segmentation data set
    return next((name for name, file_format in FORMATS.items() if ending in file_format.endings), None)


def format_with(ending: str) -> Format:
    """The format of files with one of EXTENSIONS."""
    return next(file_format for file_format in FORMATS.values() if ending in file_format.endings)


def format_of(path: Path) -> Format | None:
    """The format of a file or folder, None for an unknown one."""
    name = format_name(path)
    return None if name is None else FORMATS[name]


def is_raster(path: Path) -> bool:
    """Whether a file is of a raster format such as PNG."""
    file_format = format_of(path)
    return file_format is not None and file_format.is_raster


def is_lossy(path: Path) -> bool:
    """Whether a file is of a format whose compression changes the stored values."""
    file_format = format_of(path)
    return file_format is not None and file_format.is_lossy


def case_name(path: Path) -> str:
    """The name of a file without its known ending: `a.b.nii.gz` -> `a.b`. Folder names are returned unchanged."""
    name = unicodedata.normalize("NFC", path.name)  # archives packed on macOS decompose accents
    return name if path.is_dir() else name.removesuffix(name[len(name) - len(extension(path)) :])


def is_image(path: Path) -> bool:
    """Whether a file or folder has a known format. Hidden files, whose names begin with a dot, are excluded."""
    return not path.name.startswith(".") and format_name(path) is not None and (path.is_file() or path.is_dir())
