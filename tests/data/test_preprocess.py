"""Preprocessing and class counts against numpy and scipy."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segkit import Labels
from segkit.data import Case, DataError, RawCase
from segkit.data.class_counts import class_counts, pixel_and_component_counts
from segkit.data.datasets import network_image
from segkit.data.preprocess import Preprocess, resize_linear, resize_nearest

RANDOM = np.random.default_rng(0)


def raw(shape=(2, 6, 7), spacing=None, scale=1.0, offset=0.0):
    image = (RANDOM.normal(size=shape) * scale + offset).astype(np.float32)
    mask = RANDOM.integers(0, 3, shape[1:]).astype(np.uint8)
    return RawCase(image, mask, spacing or (1.0,) * (len(shape) - 1))


def named(*cases):
    return [
        (Case(f"c{number}", f"c{number}", images=(Path(f"c{number}.npy"),)), case) for number, case in enumerate(cases)
    ]


def fit(*cases, **options):
    return Preprocess.fit(iter(named(*cases)), **{"multiple": 8, **options})


def normalised(preprocess, case):
    return preprocess.normalise(case.image, *preprocess.intensity_map(case.image))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_zscore(offset):
    case = raw((2, 30, 30), scale=50, offset=offset)
    normal = normalised(fit(case), case)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean((1, 2)), 0, atol=1e-2)
    np.testing.assert_allclose(normal.std((1, 2)), 1, atol=1e-2)


def test_dataset_uses_the_moments_of_all_pixels():
    cases = [raw((2, 4 + number, 9), scale=10.0**number, offset=1e4 * number) for number in range(4)]
    preprocess = fit(*cases, intensity="dataset")
    pixels = np.concatenate([case.image.reshape(2, -1) for case in cases], 1).astype(np.float64)
    np.testing.assert_allclose(preprocess.shift, pixels.mean(1), rtol=1e-9)
    np.testing.assert_allclose(preprocess.scale, pixels.std(1), rtol=1e-9)
    expected = (cases[1].image - pixels.mean(1)[:, None, None]) / pixels.std(1)[:, None, None]
    np.testing.assert_allclose(normalised(preprocess, cases[1]), expected, atol=1e-5)


def test_percentile():
    case = raw((2, 40, 40), scale=7, offset=3)
    low, high = np.percentile(case.image.astype(np.float64), (0.5, 99.5), axis=(1, 2))
    expected = (case.image - low[:, None, None]) / (high - low)[:, None, None]
    normal = normalised(fit(case, intensity="percentile"), case)
    np.testing.assert_allclose(normal, expected, atol=1e-5)
    assert normal.min() < 0
    assert normal.max() > 1


def test_percentile_of_a_checkpoint_that_clipped():
    case = raw((2, 40, 40), scale=7, offset=3)
    fitted = fit(case, intensity="percentile")
    stored = {name: value for name, value in fitted.to_dict().items() if name not in ("low", "high", "clips")}
    np.testing.assert_array_equal(
        normalised(Preprocess.from_dict(stored), case), np.clip(normalised(fitted, case), 0, 1)
    )


def in_unit_range(*shape):
    return RawCase(RANDOM.random(shape, dtype=np.float32), np.zeros(shape[1:], np.uint8), (1.0, 1.0))


def encoder(channels):
    return tuple(0.2 + 0.1 * channel for channel in range(channels)), (0.5,) * channels


def test_encoder_uses_the_numbers_that_it_is_given():
    first, second = in_unit_range(3, 6, 7), in_unit_range(3, 5, 9)
    preprocess = fit(first, second, intensity="encoder", encoder=encoder)
    expected = (second.image - np.array([0.2, 0.3, 0.4]).reshape(3, 1, 1)) / 0.5
    np.testing.assert_allclose(normalised(preprocess, second), expected, rtol=1e-5, atol=1e-6)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    with pytest.raises(ValueError, match="one number per channel or axis in shift"):
        Preprocess.from_dict(preprocess.to_dict() | {"shift": []})


@pytest.mark.parametrize("scale", [255.0, -1.0])
def test_encoder_expects_images_in_its_range(scale):
    """In training the message names the case and the way out, in prediction the image."""
    good, bad = in_unit_range(1, 6, 7), in_unit_range(1, 6, 7)
    bad = RawCase(bad.image * scale, bad.mask, bad.spacing)
    with pytest.raises(
        DataError, match=r"case c1, file c1\.npy: .*between 0 and 1.* write preprocess.intensity: zscore"
    ):
        fit(good, bad, intensity="encoder", encoder=encoder)
    preprocess = fit(good, intensity="encoder", encoder=encoder)
    with pytest.raises(DataError, match=r"case x: .*between 0 and 1, .* give images as those of the training"):
        network_image(bad, preprocess, "case x")
    resized = fit(good, intensity="encoder", encoder=encoder, spacing=[0.7, 0.6])
    assert np.isfinite(network_image(good, resized, "case x")).all()


def test_none_changes_nothing():
    case = raw()
    np.testing.assert_array_equal(normalised(fit(case, intensity="none"), case), case.image)


@pytest.mark.parametrize("intensity", ["zscore", "dataset", "percentile"])
def test_constant_image_is_only_shifted(intensity):
    case = RawCase(np.full((1, 4, 4), 7, np.float32), None, (1.0, 1.0))
    np.testing.assert_array_equal(normalised(fit(case, intensity=intensity), case), 0)


@pytest.mark.parametrize("intensity", ["zscore", "dataset", "percentile", "none"])
@pytest.mark.parametrize("spacing", [None, "median", [1.5, 2.5]])
def test_survives_json(intensity, spacing):
    preprocess = fit(raw(), raw(spacing=(2.0, 3.0)), intensity=intensity, spacing=spacing)
    again = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess
    assert (again.channels, again.dims, again.multiple) == (2, 2, 8)


def test_median_spacing():
    cases = [raw((1, 4, 4, 4), spacing=(1.0, 1.0, depth)) for depth in (1.0, 2.0, 9.0)]
    assert fit(*cases, spacing="median").spacing == (1.0, 1.0, 2.0)
    assert fit(*cases).spacing is None


def test_resampling_to_the_spacing():
    case = raw((1, 10, 12, 6), spacing=(1.0, 1.0, 3.0))
    preprocess = fit(case, spacing=[2.0, 1.0, 1.0])
    resampled = preprocess.resample(case)
    assert resampled.image.shape == (1, 5, 12, 18)
    assert resampled.mask.shape == (5, 12, 18)
    assert resampled.mask.dtype == np.uint8
    assert resampled.spacing == (2.0, 1.0, 1.0)
    assert preprocess.resample(resampled) is resampled
    assert fit(case).resample(case) is case
    assert preprocess.resample(RawCase(case.image, None, case.spacing)).mask is None


sides = st.tuples(*[st.integers(1, 9)] * 2)


@given(sides, sides)
@settings(max_examples=50, deadline=None)
def test_resizing_equals_scipy(old, new):
    """Pixel centres of the new grid, (i + 0.5) old / new - 0.5, interpolated in the old one."""
    image = np.arange(np.prod(old), dtype=np.float32).reshape(old)
    grid = [(np.arange(b) + 0.5) * a / b - 0.5 for a, b in zip(old, new, strict=True)]
    points = np.meshgrid(*grid, indexing="ij")
    expected = ndimage.map_coordinates(image, points, order=1, mode="nearest")
    np.testing.assert_allclose(resize_linear(image[None], new)[0], expected, rtol=1e-4, atol=1e-4)
    # halfway between two centres the later neighbour is used
    indices = [
        np.clip(np.floor(axis + 0.5 + 1e-9), 0, side - 1).astype(int) for axis, side in zip(grid, old, strict=True)
    ]
    np.testing.assert_array_equal(resize_nearest(image, new), image[np.ix_(*indices)])


def test_overlapping_masks_are_resized_by_class():
    mask = RANDOM.integers(0, 2, (3, 4, 4)).astype(np.uint8)
    np.testing.assert_array_equal(resize_nearest(mask, (8, 8)), mask.repeat(2, 1).repeat(2, 2))


def test_cases_that_differ_are_named():
    with pytest.raises(DataError, match="case c0 has 2 channels and 2 spatial axes, case c1 has 1 and 2"):
        fit(raw(), raw((1, 6, 7)))
    with pytest.raises(DataError, match="case c0 has 2 channels and 2 spatial axes, case c1 has 2 and 3"):
        fit(raw(), raw((2, 6, 7, 8)))
    with pytest.raises(DataError, match=r"expected training cases.*got none"):
        fit()


def test_other_channels_than_in_training():
    with pytest.raises(DataError, match=r"expected an image with 2 channels and 2 spatial axes.*got 3 and 2"):
        fit(raw()).intensity_map(raw((3, 6, 7)).image)
    with pytest.raises(DataError, match="2 axes, got 3"):
        fit(raw(), spacing="median").resample(raw((2, 4, 4, 4)))


def test_pixels_that_are_not_finite():
    case = raw()
    case.image[0, 0, :2] = np.nan
    with pytest.raises(DataError, match=r"case c1, file c1\.npy: .* 2 of 84"):
        fit(raw(), case)


def test_invalid_options():
    with pytest.raises(ValueError, match="expected intensity to be one of zscore"):
        fit(raw(), intensity="minmax")
    with pytest.raises(ValueError, match="expected spacing to be 2 positive lengths"):
        fit(raw(), spacing=[1.0])
    with pytest.raises(ValueError, match="expected spacing to be 2 positive lengths"):
        fit(raw(), spacing=[1.0, 0.0])
    with pytest.raises(ValueError, match="median or none, got 'mean'"):
        fit(raw(), spacing="mean")


# class_counts

IGNORING = Labels(["background", "a", "b"], ignore_index=255)
values = st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=40)


@given(st.lists(values, max_size=4))
def test_class_counts_of_exclusive_classes(masks):
    counted = class_counts((np.array(mask, np.uint8) for mask in masks), IGNORING)
    assert counted.dtype == np.int64
    assert counted.tolist() == [[mask.count(number) for number in range(3)] for mask in masks]
    assert counted.shape == (len(masks), 3)


def test_class_counts_of_other_modes():
    binary = Labels(["no", "yes"], mode="binary", ignore_index=-1)
    assert class_counts([np.array([[0, 1, 1, -1]], np.int32)], binary).tolist() == [[1, 2]]
    overlapping = Labels(["whole", "core"], mode="multilabel", ignore_index=255)
    assert class_counts([np.array([[[1, 1, 255]], [[0, 1, 255]]], np.uint8)], overlapping).tolist() == [[2, 1]]
    regions = Labels(["whole", "core"], mode="multilabel", regions={"whole": [1, 3], "core": [3]})
    assert class_counts([np.array([[0, 1, 3, 3, 255]], np.uint8)], regions).tolist() == [[3, 2]]


def test_class_counts_equal_the_onehot_sums():
    import torch

    mask = RANDOM.choice([0, 1, 2, 255], (5, 6)).astype(np.uint8)
    onehot = IGNORING.onehot(torch.from_numpy(mask)[None])
    assert class_counts([mask], IGNORING)[0].tolist() == onehot.sum((0, 2, 3)).tolist()


def test_components_connect_at_corners_and_exclude_ignored_pixels():
    mask = np.array([[1, 0, 0, 2], [0, 1, 255, 0], [0, 0, 0, 1]], np.uint8)
    counts = pixel_and_component_counts([mask], Labels(["background", "a", "b"], ignore_index=255))
    assert counts["components"].tolist() == [[1, 2, 1]]
    assert counts["pixels"].tolist() == [[7, 3, 1]]
    overlapping = pixel_and_component_counts(
        [np.array([[[1, 0, 1]], [[0, 0, 255]]], np.uint8)], Labels(["a", "b"], "multilabel", 255)
    )
    assert overlapping["components"].tolist() == [[2, 0]]
