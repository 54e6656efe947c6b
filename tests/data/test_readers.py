"""Files written by PIL, OpenCV, nibabel and numpy are read correctly, and errors name the damaged files."""

import os
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segkit import Labels
from segkit.data import Case, DataError, MaskFile
from segkit.data.formats import case_name
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.mask_validation import check_mask, value_counts
from segkit.data.readers import image_files, read_files, read_image, read_mask

needs_data = pytest.mark.skipif("SEGKIT_DATA" not in os.environ, reason="SEGKIT_DATA does not name the real data")
DATA = Path(os.environ.get("SEGKIT_DATA", ""))

THREE = Labels(["background", "a", "b"])
IGNORING = Labels(["background", "a", "b"], ignore_index=255)
BINARY = Labels(["no", "yes"], mode="binary")
OVERLAPPING = Labels(["whole", "core"], mode="multilabel")
REGIONS = Labels(["whole", "core"], mode="multilabel", regions={"whole": [1, 3], "core": [3]})
MANY = Labels([f"class {number}" for number in range(300)])

RANDOM = np.random.default_rng(0)
GREY8 = RANDOM.integers(0, 256, (11, 7)).astype(np.uint8)
RGB8 = RANDOM.integers(0, 256, (11, 7, 3)).astype(np.uint8)


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def pair(image, mask=None):
    return Case("x", "x", images=(image,), masks=() if mask is None else (MaskFile(mask),))


def volume(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


# images


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "tiff"])
@pytest.mark.parametrize("array", [GREY8, RGB8], ids=["grey", "rgb"])
def test_raster_images_are_scaled_to_one(tmp_path, ending, array):
    image, spacing = read_image(write(tmp_path / f"x.{ending}", array))
    expected = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    assert image.dtype == np.float32
    assert spacing == (1.0, 1.0)
    np.testing.assert_allclose(image, expected / 255, atol=1e-7)


def test_jpeg_equals_pillow(tmp_path):
    smooth = np.stack([np.add.outer(np.arange(32), np.arange(24)) * step for step in (1, 2, 4)], -1).astype(np.uint8)
    path = write(tmp_path / "x.jpg", smooth, quality=95)
    image, _spacing = read_image(path)
    assert np.abs(image * 255 - np.array(Image.open(path)).transpose(2, 0, 1)).max() < 3


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_kept_and_transparency_dropped(tmp_path, ending, channels):
    array = RANDOM.integers(0, 65536, (9, 6, channels)).astype(np.uint16)
    path = tmp_path / f"x.{ending}"
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    cv2.imwrite(str(path), array[..., order])
    image, _spacing = read_image(path)
    expected = array[..., :3].transpose(2, 0, 1) / 65535
    assert image.shape == expected.shape
    np.testing.assert_allclose(image, expected, atol=1e-7)


def test_grey_with_transparency_has_one_channel(tmp_path):
    image, _spacing = read_image(write(tmp_path / "x.png", np.stack([GREY8, GREY8], -1)))
    np.testing.assert_allclose(image, GREY8[None] / 255, atol=1e-7)


@given(order=st.permutations([0, 1, 2]), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3), channels=st.integers(1, 3))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_nifti_is_reoriented_to_ras(tmp_path, order, signs, channels):
    """For any axis order and direction, values and spacing equal those of nibabel's canonical image."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(order)] * np.array(signs) * [0.5, 2.0, 3.0]
    shape = (4, 5, 6) if channels == 1 else (4, 5, 6, channels)
    array = RANDOM.normal(size=shape).astype(np.float32) * 1e6
    path = volume(tmp_path / "x.nii.gz", array, affine)
    image, spacing = read_image(path)
    canonical = nib.as_closest_canonical(nib.load(path))
    expected = canonical.get_fdata().reshape(*canonical.shape[:3], channels)
    np.testing.assert_array_equal(image, np.moveaxis(expected, -1, 0).astype(np.float32))
    assert spacing == pytest.approx(tuple(map(float, canonical.header.get_zooms()[:3])))
    assert len(spacing) == 3


def test_2d_nifti_keeps_two_axes(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    image, spacing = read_image(volume(tmp_path / "x.nii", array, np.diag([-2.0, 3.0, 1.0, 1.0])))
    np.testing.assert_array_equal(image, array[None, ::-1])
    assert spacing == (2.0, 3.0)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 5, 4)])
def test_npy_keeps_values(tmp_path, shape):
    array = RANDOM.normal(size=shape) * 1000
    np.save(tmp_path / "x.npy", array)
    image, spacing = read_image(tmp_path / "x.npy")
    np.testing.assert_allclose(image, array.reshape((1,) * (len(shape) == 2) + shape), rtol=1e-6)
    assert spacing == (1.0,) * (image.ndim - 1)


def test_pixels_that_are_not_finite(tmp_path):
    array = np.ones((1, 4, 4))
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(DataError, match=r"case seven, .*bad\.npy.* 3 of 16 that are NaN or infinite"):
        read_image(tmp_path / "bad.npy", "seven")


# damaged files

FORMATS = ["x.png", "x.jpg", "x.bmp", "x.tif", "x.nii", "x.nii.gz", "x.npy"]


@pytest.fixture(params=FORMATS)
def file(request, tmp_path):
    path = tmp_path / request.param
    array = RANDOM.integers(0, 3, (20, 30)).astype(np.uint8)
    if "nii" in path.name:
        volume(path, RANDOM.integers(0, 3, (20, 21, 22)).astype(np.uint8))
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        write(path, array)
    return path


def refused(path, message):
    for read in (read_image, lambda path: read_mask(path, MANY)):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_files_are_named(file):
    content = file.read_bytes()
    for part in (0.1, 0.5, 0.9):
        file.write_bytes(content[: int(len(content) * part)])
        refused(file, "truncated|cannot be read")
    file.write_bytes(b"this is not an image, whatever its name says" * 30)
    refused(file, "another format|cannot be read")
    file.write_bytes(b"")
    refused(file, r"empty \(0 bytes\)")
    file.unlink()
    refused(file, "does not exist")


def test_unknown_ending(tmp_path):
    (tmp_path / "x.exr").write_bytes(b"GIF89a")
    refused(tmp_path / "x.exr", "ending .nii.gz, .nii, .mgz")


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.ones((2, 3), complex), np.array([[{}]])])
def test_npy_without_numbers(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    refused(tmp_path / "x.npy", "array of real numbers|NPY")


def test_npz_with_the_ending_of_npy(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.savez(file, a=GREY8)
    refused(tmp_path / "x.npy", "expected one array.* numpy.save")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_pages_of_a_tiff_are_a_volume(tmp_path, dtype):
    stack = RANDOM.integers(0, 3, (4, 11, 7)).astype(dtype)
    pages = [Image.fromarray(page) for page in stack]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    image, spacing = read_image(tmp_path / "x.tif")
    assert spacing == (1, 1, 1)
    np.testing.assert_allclose(image[0] * np.iinfo(dtype).max, stack, atol=1e-3)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.tif", THREE), stack)


def test_names_and_folders(tmp_path):
    assert case_name(Path("f/a.b.nii.gz")) == "a.b"
    assert case_name(Path("a.PNG")) == "a"
    with pytest.raises(DataError, match="expected images"):
        image_files(tmp_path)
    write(tmp_path / "b.png", GREY8)
    write(tmp_path / "a.JPG", GREY8, format="JPEG")
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "._b.png").touch()
    assert [path.name for path in image_files(tmp_path)] == ["a.JPG", "b.png"]
    write(tmp_path / "b.tif", GREY8)
    with pytest.raises(DataError, match="the same name"):
        image_files(tmp_path)


# masks


def test_palette_gives_indices_and_one_bit_gives_0_and_1(tmp_path):
    array = RANDOM.integers(0, 3, (8, 9)).astype(np.uint8)
    palette = Image.fromarray(array, mode="L").convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.putdata(array.reshape(-1).tolist())
    palette.save(tmp_path / "p.png")
    mask = read_mask(tmp_path / "p.png", THREE)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, array)
    write(tmp_path / "1.png", array > 0)
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png", BINARY), array > 0)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_more_than_255_classes(tmp_path, ending):
    array = RANDOM.integers(0, 300, (20, 20)).astype(np.uint16)
    mask = read_mask(write(tmp_path / f"x.{ending}", array), MANY)
    assert mask.dtype == np.int32
    np.testing.assert_array_equal(mask, array)


@given(st.lists(st.sampled_from([0, 1, 2, 255]), min_size=6, max_size=6), st.sampled_from(["png", "bmp", "npy", "nii"]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_masks_survive_every_format(tmp_path, values, ending):
    array = np.array(values, np.uint8).reshape(2, 3)
    path = tmp_path / f"x.{ending}"
    {"npy": np.save, "nii": volume}.get(ending, write)(path, array)
    np.testing.assert_array_equal(read_mask(path, IGNORING), array)


@given(st.dictionaries(st.integers(0, 5), st.integers(0, 2)))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_value_map_replaces_all_at_once(tmp_path, value_map):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.save(tmp_path / "x.npy", array)
    expected = np.vectorize(lambda value: value_map.get(int(value), int(value)))(array)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.npy", MANY, MaskEncoding(value_map)), expected)


def test_floating_masks(tmp_path):
    array = RANDOM.integers(0, 3, (4, 5, 6))
    path = volume(tmp_path / "x.nii.gz", array.astype(np.float32))
    mask = read_mask(path, THREE)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, array)
    volume(path, np.where(array == 2, 0.25, array).astype(np.float32))
    with pytest.raises(DataError, match=rf"{(array == 2).sum()} pixels .*such as 0.25; .*probabilities"):
        read_mask(path, THREE)


def test_colour_coded_mask(tmp_path):
    with pytest.raises(
        DataError,
        match=r"case x, .*x\.png: expected class numbers, got a mask in \d+ colours, .*edges",
    ):
        read_mask(write(tmp_path / "x.png", RGB8), THREE)


def test_overlapping_masks(tmp_path):
    array = RANDOM.integers(0, 2, (2, 4, 5, 6)).astype(np.uint8)
    np.save(tmp_path / "x.npy", array)
    volume(tmp_path / "x.nii", np.moveaxis(array, 0, -1))
    for name in ("x.npy", "x.nii"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, OVERLAPPING), array)
    with pytest.raises(DataError, match=r"a mask \[2, H, W\].*shape \[11, 7\]; .*`regions`"):
        read_mask(write(tmp_path / "x.png", GREY8 % 2), OVERLAPPING)
    with pytest.raises(DataError, match=r"expected a mask \[H, W\] or"):
        read_mask(tmp_path / "x.npy", THREE)


CAUSES = [
    ([0, 255], BINARY, r"got 255 \(1 pixels\); .*binary mask.*`value_map: \{255: 1\}` under `data`"),
    ([0, 255], OVERLAPPING, r"`value_map: \{255: 1\}`"),
    ([0, 1, 255], THREE, r"expected the mask values 0 to 2, got 255 .*`ignore_index: 255` under `labels`"),
    ([0, 0, 1, 2, 3, 3], THREE, r"got 3 \(2 pixels\); 3 is one above the last class.*`ignore_index: 3`"),
    ([0, 1, 2, 3], THREE, r"if 0 marks pixels without a label.*`value_map: \{0: 255, 1: 0, 2: 1, 3: 2\}`"),
    ([1, 2, 3], THREE, r"write `value_map: \{1: 0, 2: 1, 3: 2\}`"),
    (list(range(0, 256, 5)), BINARY, r"smoothed edges: write `threshold: 128` under `data`"),
    ([0, 60, 255], BINARY, r"smoothed edges: write `threshold: 128` under `data`"),
    (list(range(0, 256, 5)), THREE, r"51 different values .*resizing.* probabilities"),
    (list(range(90)), BINARY, r"90 consecutive numbers look like one number per object"),
    (list(range(0, 256, 5)), BINARY, r"5 \(1 pixels\), .*30 \(1 pixels\) and 45 more;"),
    ([0, -1024, 7], IGNORING, r"0 to 2, or 255 .*got -1024 \(1 pixels\), 7 \(1 pixels\)"),
    ([0, 7], THREE, r"if they stand for other classes, write `value_map` under `data`; .*`ignore_index: 7`"),
    ([0, 128, 255], THREE, r"the classes in the order of their names, write `value_map: \{128: 1, 255: 2\}`"),
    ([0, 1, 2, 3, 255], THREE, r"if one of them marks pixels without a label, write `ignore_index: 255`"),
    ([-1, 0, 1], BINARY, r"write `ignore_index: -1` under `labels`"),
    ([0, 2], REGIONS, r"expected the mask values 0, 1 and 3, got 2 \(1 pixels\)"),
]


@pytest.mark.parametrize(("values", "labels", "message"), CAUSES)
def test_likely_cause(values, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        check_mask(np.array(values), labels, "seven", "f/7.png")
    assert "case seven, file f/7.png" in str(caught.value)


def test_jpeg_mask(tmp_path):
    path = write(tmp_path / "x.jpg", np.kron(np.eye(5, dtype=np.uint8) * 2, np.ones((5, 5), np.uint8)), quality=30)
    labels = Labels(["background", "a", "b"])
    if read_image(path)[0].max() * 255 <= 2:
        pytest.skip("this JPEG library preserved the values")
    with pytest.raises(DataError, match=r"JPEG .*PNG"):
        read_mask(path, labels)


@pytest.mark.parametrize("labels", [THREE, IGNORING, BINARY, OVERLAPPING, REGIONS])
def test_legal_values_pass(labels):
    check_mask(np.array([*labels.values, *([255] if labels.ignore_index else [])]), labels, "x", "x.png")


@given(st.lists(st.integers(-3, 300), max_size=30))
def test_value_counts(values):
    array = np.array(values, np.int64)
    for computed, expected in zip(value_counts(array), np.unique(array, return_counts=True), strict=True):
        np.testing.assert_array_equal(computed, expected)


# pairs


def test_image_and_mask_of_different_sizes(tmp_path):
    image, mask = write(tmp_path / "i.png", GREY8), write(tmp_path / "m.png", GREY8.T % 3)
    with pytest.raises(DataError, match=r"case x, .*i\.png: .*size \[11, 7\], got \[7, 11\] in .*m\.png"):
        read_files(pair(image, mask), THREE)
    raw = read_files(pair(image), THREE)
    assert raw.mask is None


def test_image_and_mask_in_different_orientations(tmp_path):
    """A mask in another orientation is aligned with its image; a mask with a wrong affine is refused."""
    array = RANDOM.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    reoriented = nib.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0]))
    nib.save(reoriented, tmp_path / "image.nii")
    nib.save(nib.as_closest_canonical(reoriented), tmp_path / "mask.nii")
    raw = read_files(pair(tmp_path / "image.nii", tmp_path / "mask.nii"), THREE)
    np.testing.assert_array_equal(raw.image[0], raw.mask)
    volume(tmp_path / "lost.nii", array)
    with pytest.raises(DataError, match=r"lost\.nii .* mm"):
        read_files(pair(tmp_path / "image.nii", tmp_path / "lost.nii"), THREE)


# real files


@needs_data
@pytest.mark.parametrize("name", ["png_sample-16rgb_SEM.png", "png_sample-16rgba_SEM.png", "tif_sample-16rgb_SEM.tif"])
def test_real_16_bit_colours_keep_their_depth(name):
    """Pillow reads these files with 8 bits per channel."""
    image, _spacing = read_image(DATA / "formats/png_tif_16bit" / f"sub-{name}")
    stored = cv2.imread(str(DATA / "formats/png_tif_16bit" / f"sub-{name}"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(image * 65535, stored[..., 2::-1].transpose(2, 0, 1), atol=0.01)


@needs_data
def test_real_palette_mask():
    path = DATA / "formats/voc_palette/SegmentationClass/2011_000006.png"
    names = [str(number) for number in range(21)]
    mask = read_mask(path, Labels(names, ignore_index=255))
    assert set(np.unique(mask)) == {0, 9, 15, 18, 255}
    with pytest.raises(DataError, match=r"got 255 \(\d+ pixels\); .*`ignore_index: 255`"):
        read_mask(path, Labels(names))


@needs_data
def test_real_nifti_spacing():
    image, spacing = read_image(DATA / "formats/nifti_odd/fmri_pitch.nii.gz")
    assert image.shape == (1, 64, 64, 35)
    assert spacing == (3.25, 3.25, pytest.approx(3.6, abs=1e-6))


@needs_data
def test_real_floating_mask():
    mask = read_mask(DATA / "hippocampus/labelsTr/hippocampus_243.nii.gz", THREE)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1, 2}
