"""Probabilities and other numbers of pixels lie on the grid of their image, as independent readers see it."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from segkit.data.readers import read_image
from segkit.data.value_writer import value_file, write_values

AFFINES = {
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
    "LPS": np.array([[-1.0, 0, 0, 9], [0, -2, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, 1.5, 4], [-2.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, 0, 1]]),
    "oblique": np.array([[0.9, 0.2, 0, 1], [-0.2, 0.9, 0, 2], [0, 0, -2, 3], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("channels", [1, 3])
def test_nifti_has_the_geometry_of_the_image(tmp_path, name, channels):
    """nibabel, which applies the factor of the header, finds each value where it finds the pixel of the image."""
    stored = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    nib.save(nib.Nifti1Image(stored, AFFINES[name]), tmp_path / "image.nii.gz")
    image, _spacing = read_image(tmp_path / "image.nii.gz")
    values = np.concatenate([(number + 1) * image / 3 for number in range(channels)])
    path = value_file(tmp_path / "image.nii.gz", tmp_path / "out", "case")
    assert path == tmp_path / "out" / "case.nii.gz"
    path.parent.mkdir()
    write_values(values, tmp_path / "image.nii.gz", path, ["a", "b", "c"][:channels], 1.0)
    written = nib.load(path)
    np.testing.assert_allclose(written.affine, AFFINES[name])
    assert written.get_data_dtype() == np.uint16
    found = written.get_fdata()
    found = found[..., None] if channels == 1 else found
    for number in range(channels):
        np.testing.assert_allclose(found[..., number], (number + 1) * stored / 3, atol=1.01 / 131070)


def test_the_largest_value_is_exact_and_others_are_cut_to_it(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / "image.nii.gz")
    values = np.array([0, 0.25, np.log(3), 1.2]).repeat(2).reshape(1, 2, 2, 2)
    write_values(values, tmp_path / "image.nii.gz", tmp_path / "out.nii.gz", ["entropy"], float(np.log(3)))
    found = nib.load(tmp_path / "out.nii.gz").get_fdata()
    np.testing.assert_allclose(found, np.minimum(values[0], np.log(3)), atol=1e-5)


@pytest.mark.parametrize("ending", [".png", ".npy"])
def test_other_formats_get_arrays(tmp_path, ending):
    image, pixels = tmp_path / f"image{ending}", np.zeros((4, 6), np.uint8)
    if ending == ".png":
        Image.fromarray(pixels).save(image)
    else:
        np.save(image, pixels)
    values = np.random.default_rng(1).random((2, *read_image(image)[0].shape[1:])).astype(np.float32)
    path = value_file(image, tmp_path, "a/b")
    assert path == tmp_path / "a_b.npz"
    write_values(values, image, path, ["left", "right"], 1.0)
    written = np.load(path)
    assert written["names"].tolist() == ["left", "right"]
    np.testing.assert_array_equal(written["values"], values.astype(np.float16))


def test_other_volumes_get_nifti_at_the_same_place(tmp_path):
    """SimpleITK finds the value of a voxel of the MetaImage at the same point in space."""
    stored = np.random.default_rng(2).random((3, 4, 5)).astype(np.float32)
    volume = sitk.GetImageFromArray(stored)
    volume.SetOrigin((5.0, -3.0, 2.0))
    volume.SetSpacing((1.0, 2.0, 1.5))
    volume.SetDirection((0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    sitk.WriteImage(volume, tmp_path / "image.mha")
    image, _spacing = read_image(tmp_path / "image.mha")
    path = value_file(tmp_path / "image.mha", tmp_path, "case")
    assert path == tmp_path / "case.nii.gz"
    write_values(image, tmp_path / "image.mha", path, ["a"], 1.0)
    written = sitk.ReadImage(path)
    for index in np.ndindex(5, 4, 3):
        place = written.TransformPhysicalPointToIndex(volume.TransformIndexToPhysicalPoint(index))
        assert abs(written[place] - volume[index]) < 1e-5
