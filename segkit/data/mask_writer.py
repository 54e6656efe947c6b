"""Writing predicted masks on the grid of their images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from segkit.data.formats import FORMATS, case_name, format_name, format_with
from segkit.data.formats.geometry import Geometry, ras_orientation
from segkit.data.readers import mask_ending
from segkit.labels import Labels
from segkit.utils.errors import reason
from segkit.utils.files import replaced
from segkit.utils.optional import require

TILE = 512  # side of the tiles of a mask, in pixels
UNSAFE = re.compile(r"^\.+|[/\\\x00-\x1f]")


def mask_files(image: Path, folder: Path, labels: Labels, name: str | None = None) -> list[Path]:
    """The files that `write_mask` writes to `folder` for an image.

    name: the name of the case; None for the name of the image file. What cannot be part of a file name becomes `_`.

    Raises DataError if the image does not exist or its format cannot be read.
    """
    name = file_name(case_name(image) if name is None else name)
    ending = mask_ending(image)
    if labels.mode != "multilabel" or format_with(ending).has_mask_channels:
        return [folder / f"{name}{ending}"]
    return [folder / f"{name}_{file_name(label)}{ending}" for label in labels.channel_names]


def file_name(name: str) -> str:
    """A name without a dot at its start, the characters that separate folders, and control characters."""
    return UNSAFE.sub("_", name)


def write_mask(mask: np.ndarray, image: Path, folder: Path, labels: Labels, name: str | None = None) -> list[Path]:
    """Write the mask predicted for an image, [*S] or [K, *S], and return the paths of the files.

    Each file appears under its name when it is complete. name: see `mask_files`.

    The file format follows that of the image:

    - Volumes keep their orientation and affine matrix; overlapping classes become a fourth axis. NIfTI and DICOM images
      yield NIfTI, NRRD and MetaImage yield their own format, in one file.
    - Arrays yield NPY.
    - 2D raster images yield a PNG of class numbers, or one PNG of 0 and 255 per class if classes overlap. A tiled or
      very large TIFF yields a tiled TIFF, and a volume a TIFF with a page for each slice.

    Raises OSError if a file cannot be written.
    """
    files = mask_files(image, folder, labels, name)
    geometry = image_geometry(image)
    planes = [mask] if len(files) == 1 else [255 * plane for plane in mask]
    for plane, file in zip(planes, files, strict=True):
        with replaced(file) as temporary:
            _write(plane, geometry, temporary)
    return files


def _write(mask: np.ndarray, geometry: Geometry | None, path: Path) -> None:
    """Write a mask in the format of the path."""
    if geometry is not None:
        _write_volume(mask, geometry, path)
    elif path.suffix == ".npy":
        np.save(path, mask)
    else:
        _write_raster(mask, path)


def _write_raster(mask: np.ndarray, path: Path) -> None:
    from PIL import Image

    mask = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16, copy=False)
    if path.suffix == ".tif":
        tifffile = require("tifffile", "tiff", "writing TIFF files")
        layout = {"tile": (TILE, TILE)} if mask.ndim == 2 else {"photometric": "minisblack", "metadata": None}
        tifffile.imwrite(path, mask, compression="zlib", bigtiff=mask.nbytes > 2**31, **layout)
    else:
        Image.fromarray(mask).save(path)


def image_geometry(image: Path) -> Geometry | None:
    """The geometry of an image; None for formats without one."""
    read_geometry = FORMATS[str(format_name(image))].read_geometry
    return None if read_geometry is None else read_geometry(image, f"file {image}")


def as_stored(array: np.ndarray, geometry: Geometry, where: str) -> np.ndarray:
    """A volume, [*S] or [K, *S], in the orientation of its geometry, [*S], or [*S, K] with three axes before K.

    It undoes the reorientation to RAS at reading. where: names the file in errors.
    """
    orientations = require("nibabel.orientations", "medical", "writing medical volumes")
    stored_orientation = ras_orientation(geometry.affine, where)
    has_channels = array.ndim > len(geometry.shape)
    array = np.moveaxis(array, 0, -1) if has_channels else array
    is_flat = array.ndim - has_channels == 2
    if is_flat:
        array = np.expand_dims(array, int(stored_orientation[2, 0]))
    to_stored = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), stored_orientation)
    array = orientations.apply_orientation(array, to_stored)
    return array[:, :, 0] if is_flat and not has_channels else array  # channels are always the fourth axis


def _write_volume(mask: np.ndarray, geometry: Geometry, path: Path) -> None:
    array = as_stored(mask, geometry, str(path))
    array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32, copy=False)
    try:
        FORMATS[str(format_name(path))].write_volume(array, geometry, path)
    except RuntimeError as error:  # of SimpleITK, for everything that prevents writing
        raise OSError(reason(error)) from error
