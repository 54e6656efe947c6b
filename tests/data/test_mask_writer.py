"""Written masks are read back unchanged, on the grid of their image."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from segkit import Labels
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.mask_writer import write_mask
from segkit.data.readers import read_image, read_mask

LABELS = Labels(["background", "a", "b"])
OVERLAPPING = Labels(["whole", "core"], mode="multilabel")
ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(["RL", "AP", "SI"]) for codes in itertools.product(*axes)
]


def volume(path, codes, shape=(5, 6, 7), channels=0):
    """A NIfTI file of the given orientation and its affine matrix."""
    random = np.random.default_rng(0)
    array = random.normal(size=shape + ((channels,) if channels else ())).astype(np.float32)
    ornt = nib.orientations.axcodes2ornt(tuple(codes))
    affine = nib.orientations.inv_ornt_aff(ornt, shape) @ np.diag([1, 2, 3, 1])
    nib.save(nib.Nifti1Image(array, affine), path)
    return array, affine


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_nifti_masks_keep_the_grid_of_the_image(tmp_path, codes):
    array, affine = volume(tmp_path / "image.nii.gz", codes)
    image, _ = read_image(tmp_path / "image.nii.gz")
    (tmp_path / "out").mkdir()
    (path,) = write_mask((image[0] > 0).astype(np.uint8), tmp_path / "image.nii.gz", tmp_path / "out", LABELS)
    written = nib.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), array > 0)
    np.testing.assert_allclose(written.affine, affine)


def test_overlapping_nifti_masks(tmp_path):
    array, _ = volume(tmp_path / "image.nii.gz", "LPS")
    image, _ = read_image(tmp_path / "image.nii.gz")
    mask = np.stack([image[0] > 0, image[0] > 1]).astype(np.uint8)
    (tmp_path / "out").mkdir()
    (path,) = write_mask(mask, tmp_path / "image.nii.gz", tmp_path / "out", OVERLAPPING)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), np.stack([array > 0, array > 1], axis=-1))
    np.testing.assert_array_equal(read_mask(path, OVERLAPPING), mask)


@pytest.mark.parametrize("kind", [".png", ".npy"])
def test_raster_and_array_masks_round_trip(tmp_path, kind):
    mask = np.random.default_rng(0).integers(0, 3, (9, 11)).astype(np.uint8)
    (path,) = write_mask(mask, tmp_path / f"image{kind}", tmp_path, LABELS)
    np.testing.assert_array_equal(read_mask(path, LABELS), mask)


def test_overlapping_raster_masks_are_one_file_per_class(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (2, 9, 11)).astype(np.uint8)
    paths = write_mask(mask, tmp_path / "image.jpg", tmp_path, OVERLAPPING)
    assert [path.name for path in paths] == ["image_whole.png", "image_core.png"]
    binary = Labels(["no", "yes"], mode="binary")
    for path, plane in zip(paths, mask, strict=True):
        np.testing.assert_array_equal(read_mask(path, binary, MaskEncoding({255: 1})), plane)
