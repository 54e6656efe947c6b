"""Written masks are read back unchanged, on the grid of their image."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

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
    image = tmp_path / f"image{kind}"
    np.save(image, mask) if kind == ".npy" else Image.fromarray(mask).save(image)
    (tmp_path / "out").mkdir()
    (path,) = write_mask(mask, image, tmp_path / "out", LABELS)
    np.testing.assert_array_equal(read_mask(path, LABELS), mask)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR"])
def test_overlapping_masks_of_a_flat_volume(tmp_path, codes):
    """One slice: channels are the fourth axis nevertheless, so that the mask can be read."""
    volume(tmp_path / "image.nii.gz", codes, shape=(5, 6, 1))
    image, _ = read_image(tmp_path / "image.nii.gz")
    mask = np.stack([image[0] > 0, image[0] > 1]).astype(np.uint8)
    (tmp_path / "out").mkdir()
    (path,) = write_mask(mask, tmp_path / "image.nii.gz", tmp_path / "out", OVERLAPPING)
    np.testing.assert_array_equal(read_mask(path, OVERLAPPING), mask)


def test_overlapping_masks_of_a_two_dimensional_nifti(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((5, 6), np.float32), np.diag([-1, 2, 3, 1])), tmp_path / "image.nii.gz")
    image, _ = read_image(tmp_path / "image.nii.gz")
    mask = np.random.default_rng(0).integers(0, 2, (2, *image.shape[1:])).astype(np.uint8)
    (tmp_path / "out").mkdir()
    (path,) = write_mask(mask, tmp_path / "image.nii.gz", tmp_path / "out", OVERLAPPING)
    written = np.asarray(nib.load(path).dataobj)
    assert written.shape == (5, 6, 1, 2), "classes are the fourth axis"
    np.testing.assert_array_equal(written[::-1, :, 0], np.moveaxis(mask, 0, -1))  # the first axis leads to the left


IMAGEJ = {"imagej": True, "metadata": {"axes": "ZYX"}}


@pytest.mark.parametrize("options", [IMAGEJ, IMAGEJ | {"truncate": True}, {}, {"tile": (16, 16)}])
def test_masks_of_stacks_have_all_slices(tmp_path, options):
    """ImageJ writes large stacks as a single page."""
    stack = np.random.default_rng(0).integers(0, 255, (5, 40, 30)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "image.tif", stack, photometric="minisblack", **options)
    mask = (read_image(tmp_path / "image.tif")[0][0] > 0.5).astype(np.uint8)
    assert mask.shape == (5, 40, 30)
    (tmp_path / "out").mkdir()
    (path,) = write_mask(mask, tmp_path / "image.tif", tmp_path / "out", LABELS)
    np.testing.assert_array_equal(read_mask(path, LABELS), mask)
    with Image.open(path) as picture:  # an independent reader
        assert picture.n_frames == 5
        picture.seek(3)
        np.testing.assert_array_equal(np.asarray(picture), mask[3])


def test_overlapping_raster_masks_are_one_file_per_class(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (2, 9, 11)).astype(np.uint8)
    Image.fromarray(mask[0]).save(tmp_path / "image.jpg")
    paths = write_mask(mask, tmp_path / "image.jpg", tmp_path, OVERLAPPING)
    assert [path.name for path in paths] == ["image_whole.png", "image_core.png"]
    binary = Labels(["no", "yes"], mode="binary")
    for path, plane in zip(paths, mask, strict=True):
        np.testing.assert_array_equal(read_mask(path, binary, MaskEncoding({255: 1})), plane)


@pytest.mark.parametrize(("ending", "written"), [("mhd", "mha"), ("nhdr", "nrrd"), ("mha", "mha"), ("nrrd", "nrrd")])
def test_a_mask_is_one_file_also_for_an_image_in_two(tmp_path, ending, written):
    """Two files could not appear together, and the header would name the temporary file of the pixels."""
    sitk = pytest.importorskip("SimpleITK")
    array = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    (tmp_path / "out").mkdir()
    pixels, _spacing = read_image(tmp_path / f"a.{ending}")
    (path,) = write_mask((pixels[0] > 0).astype(np.uint8), tmp_path / f"a.{ending}", tmp_path / "out", LABELS)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [path.name] == [f"a.{written}"]
    result = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result), array > 0)
    assert result.GetSpacing() == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("kind", [".png", ".npy", ".nii.gz", ".nrrd", ".tif"])
def test_a_writer_that_fails_leaves_the_old_mask(tmp_path, kind, monkeypatch):
    """The file under the name of the mask is never open for writing."""
    if kind == ".tif":
        pytest.importorskip("tifffile").imwrite(
            tmp_path / "a.tif", np.zeros((3, 5, 6), np.uint8), photometric="minisblack"
        )
    elif kind in (".nii.gz", ".nrrd"):
        sitk = pytest.importorskip("SimpleITK")
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 5, 6), np.float32)), str(tmp_path / f"a{kind}"))
    mask = np.ones((3, 5, 6) if kind not in (".png", ".npy") else (5, 6), np.uint8)
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / f"a{kind}"
    image = tmp_path / f"a{kind}"
    if not image.exists():
        np.save(image, mask) if kind == ".npy" else Image.fromarray(mask).save(image)
    old.write_bytes(b"old")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_mask(mask, image, tmp_path / "out", LABELS)
    assert [(path, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [(old, b"old")]
    assert write_mask(mask, image, tmp_path / "out", LABELS) == [old]
    np.testing.assert_array_equal(read_mask(old, LABELS), np.ones_like(read_mask(old, LABELS)))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_folder_that_is_gone_is_an_os_error_whatever_writes(tmp_path, ending):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.float32)), str(tmp_path / f"a{ending}"))
    with pytest.raises(OSError, match=r"."):
        write_mask(np.zeros((5, 4, 3), np.uint8), tmp_path / f"a{ending}", tmp_path / "gone", LABELS)


@pytest.mark.parametrize(
    ("name", "expected"), [("a/b", "a_b.png"), ("../x", "__x.png"), (".hidden", "_hidden.png"), ("c\\d\n", "c_d_.png")]
)
def test_names_of_cases_stay_in_the_folder(tmp_path, name, expected):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "image.png")
    (path,) = write_mask(np.zeros((4, 5), np.uint8), tmp_path / "image.png", tmp_path, LABELS, name)
    assert path == tmp_path / expected
    assert path.exists()
