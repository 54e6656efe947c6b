"""Writing predicted masks beside the images they belong to, on the images' own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.data.readers import VOLUMES, case_name, extension
from segkit.labels import Labels


def mask_files(image: Path, folder: Path, labels: Labels) -> list[Path]:
    """The files that `write_mask` writes for an image file."""
    name, kind = case_name(image), extension(image)
    if kind in VOLUMES or kind == ".npy":
        return [folder / f"{name}{kind}"]
    if labels.mode != "multilabel":
        return [folder / f"{name}.png"]
    return [folder / f"{name}_{label.replace('/', '_')}.png" for label in labels.channel_names]


def write_mask(mask: np.ndarray, image: Path, folder: Path, labels: Labels) -> list[Path]:
    """Write the mask [*S] or [K, *S] predicted for an image file and return the files written.

    NIfTI images give NIfTI in the orientation of the file, its affine matrix kept, overlapping classes as a fourth
    axis. NPY gives NPY. Pictures give PNG of class numbers, for overlapping classes one of 0 and 255 for each class.
    """
    files = mask_files(image, folder, labels)
    if extension(image) in VOLUMES:
        _write_nifti(mask, image, files[0], labels)
    elif extension(image) == ".npy":
        np.save(files[0], mask)
    elif labels.mode != "multilabel":
        _write_png(mask, files[0])
    else:
        for plane, file in zip(mask, files, strict=True):
            _write_png(plane * 255, file)
    return files


def _write_png(mask: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)).save(path)


def _write_nifti(mask: np.ndarray, image: Path, path: Path, labels: Labels) -> None:
    """Undo the turn to RAS that reading made."""
    import nibabel as nib
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    like = nib.load(image)  # pyright: ignore[reportPrivateImportUsage]
    affine = like.affine  # pyright: ignore[reportAttributeAccessIssue]
    stored = io_orientation(affine)
    has_channels = mask.ndim > 3 or (labels.mode == "multilabel" and mask.ndim == 3 and like.ndim == 2)  # pyright: ignore
    array = np.moveaxis(mask, 0, -1) if has_channels else mask
    flat = array.ndim - has_channels == 2
    if flat:
        array = np.expand_dims(array, int(stored[2, 0]))
    array = apply_orientation(array, ornt_transform(axcodes2ornt("RAS"), stored))
    if flat:
        array = array[:, :, 0]
    nib.save(nib.Nifti1Image(array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32), affine), path)  # pyright: ignore
