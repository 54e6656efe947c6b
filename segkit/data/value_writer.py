"""Writing probabilities and other numbers of pixels on the grid of their image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkit.data.formats import FORMATS, format_name
from segkit.data.mask_writer import as_stored, file_name, image_geometry
from segkit.data.readers import mask_ending
from segkit.utils.files import replaced
from segkit.utils.optional import require

NIFTI = ".nii.gz"
LEVELS = 65535  # NIfTI has no float16; integers of the same size with a factor are more precise


def value_file(image: Path, folder: Path, name: str) -> Path:
    """The file that `write_values` writes to `folder` for the case `name`. Raises DataError as `mask_files`."""
    mask_ending(image)  # which reads what cannot be read
    has_geometry = FORMATS[str(format_name(image))].has_geometry
    return folder / f"{file_name(name)}{NIFTI if has_geometry else '.npz'}"


def write_values(values: np.ndarray, image: Path, path: Path, names: Sequence[str], largest: float) -> None:
    """Write a number from 0 to `largest` for each pixel, [K, *S], with the names of the K channels.

    For images in formats that say where their voxels lie: a NIfTI volume with the orientation and affine of the image,
    the channels as its fourth axis, as 16-bit integers with a factor that readers apply, exact to `largest` / 131070.
    For all others: an NPZ file with `values`, float16 [K, *S], and `names`.

    The file appears when it is complete. Raises OSError if it cannot be written.
    """
    with replaced(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, values=values.astype(np.float16), names=np.array(names))
        else:
            _write_nifti(values, image, temporary, largest)


def _write_nifti(values: np.ndarray, image: Path, path: Path, largest: float) -> None:
    nibabel = require("nibabel", "medical", "writing NIfTI files")
    geometry = image_geometry(image)
    assert geometry is not None
    levels = np.empty(values.shape, np.uint16)
    for plane in np.ndindex(values.shape[:2]):  # one by one: the float32 numbers may fill the memory already
        levels[plane] = np.rint(values[plane] * np.float32(LEVELS / largest)).clip(0, LEVELS)
    array = as_stored(levels if len(levels) > 1 else levels[0], geometry, str(path))
    volume = nibabel.Nifti1Image(array, geometry.affine)
    volume.header.set_slope_inter(largest / LEVELS, 0)
    nibabel.save(volume, path)
