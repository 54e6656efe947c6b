"""Writing predicted masks on the grid of their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.data.formats import FORMATS, case_name, format_name, format_of, format_with
from segkit.data.formats.geometry import Geometry, ras_orientation
from segkit.labels import Labels
from segkit.utils.optional import require


def mask_files(image: Path, folder: Path, labels: Labels) -> list[Path]:
    """The files that `write_mask` writes to `folder` for an image."""
    name, image_format = case_name(image), format_of(image)
    ending = ".png" if image_format is None else image_format.mask_ending(image)
    if labels.mode != "multilabel" or format_with(ending).has_mask_channels:
        return [folder / f"{name}{ending}"]
    return [folder / f"{name}_{label.replace('/', '_')}{ending}" for label in labels.channel_names]


def write_mask(mask: np.ndarray, image: Path, folder: Path, labels: Labels) -> list[Path]:
    """Write the mask predicted for an image, [*S] or [K, *S], and return the paths of the files.

    The file format follows that of the image:

    - Volumes keep their orientation and affine matrix; overlapping classes become a fourth axis. NIfTI and DICOM images
      yield NIfTI, NRRD and MetaImage yield their own format.
    - Arrays yield NPY.
    - 2D raster images yield a PNG of class numbers, or one PNG of 0 and 255 per class if classes overlap. A TIFF of
      several pages yields a TIFF with the same number of pages.
    """
    files = mask_files(image, folder, labels)
    read_geometry = FORMATS[str(format_name(image))].read_geometry
    if read_geometry is not None:
        _write_volume(mask, read_geometry(image, f"file {image}"), files[0], labels)
    elif files[0].suffix == ".npy":
        np.save(files[0], mask)
    elif labels.mode != "multilabel":
        _write_raster(mask, files[0])
    else:
        for plane, file in zip(mask, files, strict=True):
            _write_raster(plane * 255, file)
    return files


def _write_raster(mask: np.ndarray, path: Path) -> None:
    from PIL import Image

    mask = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)
    first_page, *other_pages = [Image.fromarray(page) for page in (mask if mask.ndim == 3 else mask[None])]
    first_page.save(path, **({"save_all": True, "append_images": other_pages} if other_pages else {}))


def _write_volume(mask: np.ndarray, geometry: Geometry, path: Path, labels: Labels) -> None:
    """Write a volume in the orientation of its geometry, undoing the reorientation to RAS at reading."""
    orientations = require("nibabel.orientations", "medical", "writing medical volumes")
    stored_orientation = ras_orientation(geometry.affine, str(path))
    axes = len(geometry.shape)
    has_channels = mask.ndim > 3 or (labels.mode == "multilabel" and mask.ndim == 3 and axes == 2)
    array = np.moveaxis(mask, 0, -1) if has_channels else mask
    is_flat = array.ndim - has_channels == 2
    if is_flat:
        array = np.expand_dims(array, int(stored_orientation[2, 0]))
    to_stored = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), stored_orientation)
    array = orientations.apply_orientation(array, to_stored)
    if is_flat:
        array = array[:, :, 0]
    array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32)
    FORMATS[str(format_name(path))].write_volume(array, geometry, path)
