"""Images in pieces are the images as a whole: read, resampled, normalised."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from segkit.data import pieces
from segkit.data.cases import RawCase
from segkit.data.datasets import network_image
from segkit.data.pieces import ArrayPieces, ResampledPieces, blocks, moments, network_pieces, percentiles, thinned
from segkit.data.preprocess import Preprocess, resize_linear
from segkit.data.readers import large_image, read_image


def as_is(array):
    return ArrayPieces(array, lambda piece: piece, "image")


def whole(source):
    return source.read(tuple(slice(0, side) for side in source.shape[1:]))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Statistics and pictures in many blocks."""
    monkeypatch.setattr(pieces, "BLOCK", 500)


@pytest.mark.parametrize("shape", [(1, 31, 40), (3, 17, 9), (2, 8, 9, 10), (1, 1, 700)])
def test_blocks_cover_the_image_once(shape):
    for order in "CF":
        seen = np.zeros(shape, np.float32, order=order)
        for box in blocks(as_is(seen)):
            assert seen[(slice(None), *box)].size <= 500
            seen[(slice(None), *box)] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_lie_together_in_the_file(order):
    image = np.zeros((1, 20, 20, 20), order=order)
    (box, *_others) = blocks(as_is(image))
    sides = [part.stop - part.start for part in box]
    assert sides == ([1, 20, 20] if order == "C" else [20, 20, 1])


@pytest.mark.parametrize("new", [(5, 6), (3, 120), (50, 60)])
def test_no_more_than_a_block_is_read_at_a_time_whatever_the_new_grid(new):
    read, image = [], np.random.default_rng(7).random((1, 200, 240)).astype(np.float32)

    class Watched(ArrayPieces):
        def read(self, box):
            piece = super().read(box)
            read.append(piece.size)
            return piece

    source = ResampledPieces(Watched(image, lambda piece: piece, "image"), new)
    np.testing.assert_allclose(whole(source), resize_linear(image, new), atol=5e-6)
    assert max(read) <= 500


def test_an_image_that_is_small_on_the_new_grid_is_resampled_once():
    preprocess = Preprocess(1, 2, "zscore", shift=(), scale=(), low=(0,), high=(1,), spacing=(4.0, 4.0), multiple=1)
    image = np.random.default_rng(8).random((1, 40, 60)).astype(np.float32)
    source = network_pieces(as_is(image), (1.0, 1.0), preprocess, "image")
    assert isinstance(source.source, ArrayPieces)
    assert source.shape == (1, 10, 15)


@pytest.mark.parametrize("kind", ["normal", "integers", "constant", "skewed", "negative", "tiny"])
def test_moments_and_percentiles_are_those_of_numpy(kind):
    random = np.random.default_rng(0)
    image = {
        "normal": lambda: random.normal(5, 3, (2, 37, 41)),
        "integers": lambda: random.integers(-3, 4, (2, 37, 41)),
        "constant": lambda: np.full((2, 37, 41), -0.3),
        "skewed": lambda: random.exponential(1, (2, 37, 41)) ** 4 * 1e6,
        "negative": lambda: -random.random((2, 37, 41)),
        "tiny": lambda: random.normal(0, 1, (2, 37, 41)) * 1e-38,
    }[kind]().astype(np.float32)
    mean, deviation = moments(as_is(image))
    flat = image.reshape(2, -1).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(deviation, flat.std(1), rtol=1e-9, atol=1e-300)
    levels = (0, 0.5, 37.3, 50, 99.5, 100)
    np.testing.assert_allclose(percentiles(as_is(image), levels), np.percentile(flat, levels, axis=1), rtol=1e-12)


@pytest.mark.parametrize(("size", "new"), [((20, 30), (33, 17)), ((20, 30), (20, 61)), ((7, 8, 9), (11, 8, 4))])
def test_boxes_of_a_resampled_image_are_those_of_the_whole(size, new):
    image = np.random.default_rng(1).normal(0, 1, (2, *size)).astype(np.float32)
    expected, source = resize_linear(image, new), ResampledPieces(as_is(image), new)
    assert source.shape == expected.shape
    np.testing.assert_allclose(whole(source), expected, atol=5e-6)  # of the rounding of places
    box = tuple(slice(side // 3, side // 3 + max(1, side // 2)) for side in new)
    np.testing.assert_allclose(source.read(box), expected[(slice(None), *box)], atol=5e-6)


@pytest.mark.parametrize("intensity", ["zscore", "percentile", "dataset", "none"])
@pytest.mark.parametrize("spacing", [None, (1.5, 0.7)])
def test_what_a_network_receives(intensity, spacing):
    image = np.random.default_rng(2).normal(100, 30, (2, 40, 50)).astype(np.float32)
    fixed = {"shift": (90.0, 80.0), "scale": (10.0, 20.0)} if intensity == "dataset" else {"shift": (), "scale": ()}
    preprocess = Preprocess(2, 2, intensity, **fixed, low=(0, 0), high=(1, 1), spacing=spacing, multiple=1)
    expected = network_image(RawCase(image, None, (1.0, 1.0)), preprocess, "image")
    source = network_pieces(as_is(image), (1.0, 1.0), preprocess, "image")
    np.testing.assert_allclose(whole(source), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_thinned_image_has_every_nth_pixel(order):
    image = np.require(np.random.default_rng(3).random((1, 100, 90)), np.float32, [order])
    found, step = thinned(as_is(image))
    assert step == math.ceil(math.sqrt(100 * 90 / 500))
    np.testing.assert_array_equal(found, image[:, ::step, ::step])


def test_pixels_that_are_not_finite_name_the_file():
    image = np.zeros((1, 4, 5), np.float32)
    image[0, 2, 3] = np.nan
    with pytest.raises(Exception, match="image: expected finite pixel values, got 1 of 5"):
        as_is(image).read((slice(2, 3), slice(0, 5)))


# --- files -----------------------------------------------------------------------------------------------------------

TIFFS = {
    "plain": {},
    "tiled": {"tile": (32, 32)},
    "compressed": {"tile": (32, 32), "compression": "zlib"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "inverted": {"photometric": "miniswhite", "tile": (32, 32)},
}


TIFF_CASES = [
    (name, dtype, colours)
    for name in TIFFS
    for dtype in (np.uint8, np.uint16, np.float32)
    for colours in (1, 3)
    if name != "inverted" or (dtype != np.float32 and colours == 1)
]


@pytest.mark.parametrize(("name", "dtype", "colours"), TIFF_CASES)
def test_tiff(tmp_path, name, dtype, colours):
    shape = (70, 90) if colours == 1 else (70, 90, 3)
    random = np.random.default_rng(4)
    array = random.random(shape).astype(dtype) if dtype == np.float32 else random.integers(0, 200, shape).astype(dtype)
    options = {"photometric": "rgb"} if colours == 3 else {}
    tifffile.imwrite(tmp_path / "image.tif", array, **options, **TIFFS[name])
    check_file(tmp_path / "image.tif", tmp_path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_nifti(tmp_path, ending, scaled, channels):
    random = np.random.default_rng(5)
    array = random.integers(-500, 900, (9, 11, 13) if channels == 1 else (9, 11, 13, channels)).astype(np.int16)
    affine = np.array([[0, 0, 1.5, 4], [-2.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, 0, 1]])
    volume = nib.Nifti1Image(array, affine)
    if scaled:
        volume.header.set_slope_inter(0.5, 3.0)
    nib.save(volume, tmp_path / f"image{ending}")
    check_file(tmp_path / f"image{ending}", tmp_path)


def test_npy(tmp_path):
    np.save(tmp_path / "image.npy", np.random.default_rng(6).random((2, 20, 30)))
    check_file(tmp_path / "image.npy", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the memory of files")
def test_what_was_read_of_a_file_does_not_stay_in_memory(tmp_path):
    np.save(tmp_path / "image.npy", np.zeros((1, 4096, 4096), np.float32))  # 64 MB

    def resident():
        (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("RssFile"))
        return 1024 * int(line.split()[1])

    with large_image(tmp_path / "image.npy", tmp_path) as (source, _spacing):
        before = resident()
        for start in range(0, 4096, 256):
            source.read((slice(start, start + 256), slice(0, 4096)))
        assert resident() - before < 16e6


def check_file(path, folder):
    expected, expected_spacing = read_image(path)
    with large_image(path, folder) as (source, spacing):
        assert source.shape == expected.shape
        assert spacing == expected_spacing
        np.testing.assert_array_equal(whole(source), expected)
        box = tuple(slice(side // 3, side // 3 + 2) for side in source.shape[1:])
        np.testing.assert_array_equal(source.read(box), expected[(slice(None), *box)])
    assert [file for file in folder.iterdir() if file != path] == []
