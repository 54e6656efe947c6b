"""Writing predicted masks beside the images they belong to, on the images' own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.data.formats import FORMATS, case_name, extension, format_name, sitk
from segkit.data.formats.geometry import Place, orientation_of
from segkit.data.formats.tiff import page_count
from segkit.labels import Labels

OWN_ENDING = ("NIfTI", "NPY", "NRRD", "MetaImage")  # formats that masks are written in too


def mask_files(image: Path, folder: Path, labels: Labels) -> list[Path]:
    """The files that `write_mask` writes for an image."""
    name, kind = case_name(image), format_name(image)
    if kind in OWN_ENDING:
        return [folder / f"{name}{extension(image)}"]
    if kind == "DICOM series":
        return [folder / f"{name}.nii.gz"]
    if kind == "NPZ":
        return [folder / f"{name}.npy"]
    ending = ".tif" if kind == "TIFF" and image.is_file() and page_count(image) > 1 else ".png"
    if labels.mode != "multilabel":
        return [folder / f"{name}{ending}"]
    return [folder / f"{name}_{label.replace('/', '_')}{ending}" for label in labels.channel_names]


def write_mask(mask: np.ndarray, image: Path, folder: Path, labels: Labels) -> list[Path]:
    """Write the mask [*S] or [K, *S] predicted for an image and return the files written.

    Volumes give volumes in the orientation of the file, its affine matrix kept, overlapping classes as a fourth axis:
    NIfTI for NIfTI and DICOM, NRRD and MetaImage for their own. Arrays give NPY. Pictures give PNG of class numbers,
    for overlapping classes one of 0 and 255 for each class; a TIFF of several pages gives one of as many.
    """
    files = mask_files(image, folder, labels)
    find_place = FORMATS[str(format_name(image))].place
    if find_place is not None:
        _write_volume(mask, find_place(image, f"file {image}"), files[0], labels)
    elif files[0].suffix == ".npy":
        np.save(files[0], mask)
    elif labels.mode != "multilabel":
        _write_picture(mask, files[0])
    else:
        for plane, file in zip(mask, files, strict=True):
            _write_picture(plane * 255, file)
    return files


def _write_picture(mask: np.ndarray, path: Path) -> None:
    from PIL import Image

    mask = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)
    first, *others = [Image.fromarray(page) for page in (mask if mask.ndim == 3 else mask[None])]
    first.save(path, **({"save_all": True, "append_images": others} if others else {}))


def _write_volume(mask: np.ndarray, place: Place, path: Path, labels: Labels) -> None:
    """Undo the turn to RAS that reading made."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

    stored = orientation_of(place.affine, str(path))
    axes = len(place.shape)
    has_channels = mask.ndim > 3 or (labels.mode == "multilabel" and mask.ndim == 3 and axes == 2)
    array = np.moveaxis(mask, 0, -1) if has_channels else mask
    flat = array.ndim - has_channels == 2
    if flat:
        array = np.expand_dims(array, int(stored[2, 0]))
    array = apply_orientation(array, ornt_transform(axcodes2ornt("RAS"), stored))
    if flat:
        array = array[:, :, 0]
    array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32)
    if format_name(path) == "NIfTI":
        import nibabel as nib

        nib.save(nib.Nifti1Image(array, place.affine), path)  # pyright: ignore[reportPrivateImportUsage]
    else:
        sitk.write(array, place, path)
