"""Boundary counts against erosion by SciPy and OpenCV, and known values of squares; no host synchronisation."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from segkit import Labels
from segkit.metrics import count, dice, iou
from segkit.metrics.boundary import band_radius, boundary_counts, maximum_filter

from support.synchronisation import NoWaiting

THREE = Labels(["background", "a", "b"], ignore_index=255)
BINARY = Labels(["no", "yes"], mode="binary", ignore_index=255)
OVERLAPPING = Labels(["whole", "core"], mode="multilabel", ignore_index=255)
REGIONS = Labels(["whole", "core"], mode="multilabel", ignore_index=255, regions={"whole": [1, 2], "core": [2]})
VOID = 255


def draw(seed, values, shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values, dtype=torch.uint8)[torch.randint(len(values), shape, generator=generator)]


def blobs(seed, classes, shape):
    """Class numbers [B, *S] in patches of several pixels."""
    generator = np.random.default_rng(seed)
    fields = generator.normal(size=(classes, *shape))
    smooth = ndimage.gaussian_filter(fields, [0, 0] + [2.5] * (len(shape) - 1))
    return torch.from_numpy(smooth.argmax(0).astype(np.uint8))


def square(top, left, side=60, size=100):
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[0, top : top + side, left : left + side] = 1
    return mask


def scipy_band(plane, valid, radius):
    """The band of bool [*S]: ignored pixels are inside of every class, and pixels beyond the border outside."""
    eroded = ndimage.binary_erosion(plane | ~valid, np.ones([2 * radius + 1] * plane.ndim), border_value=0)
    return plane & valid & ~eroded


def cv2_band(plane, radius):
    """The published procedure: pad with background, and erode with 3 × 3 pixels once per pixel of the width."""
    framed = cv2.copyMakeBorder(plane.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), dtype=np.uint8), iterations=radius)
    return plane & (eroded[1:-1, 1:-1] == 0)


def counted_by_scipy(predicted, reference, valid, radius):
    """Counts [B, K, 3] of bool planes [B, K, *S]."""
    counts = torch.zeros(*predicted.shape[:2], 3, dtype=torch.int64)
    for case, channel in np.ndindex(*predicted.shape[:2]):
        of_class = [planes[case, channel].numpy() for planes in (predicted, reference, valid)]
        bands = [scipy_band(plane, of_class[2], radius) for plane in of_class[:2]]
        counts[case, channel] = torch.tensor([int(band.sum()) for band in (bands[0] & bands[1], *bands)])
    return counts


def planes(index, numbers):
    return torch.stack([index == number for number in numbers], dim=1)


@pytest.mark.parametrize(
    ("sides", "radius"), [((31, 23), 1), ((31, 23), 4), ((17, 9), 12), ((14, 11, 9), 2), ((40,), 3)]
)
@pytest.mark.parametrize("void", [[], [VOID]])
def test_exclusive_bands_are_eroded_by_scipy(sides, radius, void):
    prediction, mask = blobs(1, 3, (2, *sides)), blobs(2, 3, (2, *sides))
    mask = torch.where(draw(3, [0, 0, 0, 0, *void], mask.shape) == VOID, VOID, mask)
    counts = boundary_counts(prediction, mask, THREE, ("pixels", radius))
    valid = (mask != VOID)[:, None].expand(-1, 3, *sides)
    expected = counted_by_scipy(planes(prediction, range(3)), planes(mask, range(3)), valid, radius)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("channel", [False, True])
def test_binary_bands_are_eroded_by_scipy_in_every_form(channel):
    prediction, mask = blobs(4, 2, (2, 25, 30)), blobs(5, 2, (2, 25, 30))
    mask[:, :4] = VOID
    expected = counted_by_scipy((prediction == 1)[:, None], (mask == 1)[:, None], (mask != VOID)[:, None], 2)
    with_channel = (prediction[:, None], prediction[:, None]) if channel else (prediction, prediction.bool())
    for form in with_channel:
        for given in (mask, mask[:, None]):
            assert torch.equal(boundary_counts(form, given, BINARY, ("pixels", 2)), expected)


@pytest.mark.parametrize("sides", [(21, 26), (10, 11, 12)])
def test_overlapping_bands_are_eroded_by_scipy(sides):
    prediction = torch.stack([blobs(6, 2, (2, *sides)), blobs(7, 2, (2, *sides))], dim=1)
    mask = torch.stack([blobs(8, 2, (2, *sides)), blobs(9, 2, (2, *sides))], dim=1)
    mask = torch.where(draw(1, [0] * 9 + [VOID], mask.shape) == VOID, VOID, mask)
    counts = boundary_counts(prediction, mask, OVERLAPPING, ("pixels", 2))
    assert torch.equal(counts, counted_by_scipy(prediction == 1, mask == 1, mask != VOID, 2))


def test_bands_of_regions_come_from_class_numbers():
    numbers = blobs(3, 3, (2, 20, 24))
    prediction = torch.stack([blobs(6, 2, (2, 20, 24)), blobs(7, 2, (2, 20, 24))], dim=1)
    both = torch.stack([(numbers > 0), (numbers == 2)], dim=1)
    counts = boundary_counts(prediction, numbers, REGIONS, ("pixels", 2))
    assert torch.equal(counts, boundary_counts(prediction, both.to(torch.uint8), OVERLAPPING, ("pixels", 2)))


@pytest.mark.parametrize("seed", range(4))
def test_bands_equal_the_published_procedure(seed):
    prediction, mask = blobs(seed, 2, (1, 90, 121)), blobs(seed + 50, 2, (1, 90, 121))
    radius = max(1, round(0.02 * math.sqrt(90**2 + 121**2)))
    bands = [cv2_band(plane[0].numpy() == 1, radius) for plane in (prediction, mask)]
    counts = boundary_counts(prediction, mask, BINARY)
    assert counts[0, 0].tolist() == [int(band.sum()) for band in (bands[0] & bands[1], *bands)]


def test_a_square_shifted_by_two_pixels():
    mask, prediction = square(20, 20), square(20, 22)
    assert float(iou(count(prediction, mask, BINARY))) == pytest.approx(0.935, abs=5e-4)
    counts = boundary_counts(prediction, mask, BINARY)
    assert counts[0, 0, 1:].tolist() == [60**2 - 54**2] * 2
    assert float(iou(counts)) == pytest.approx(0.5, abs=5e-4)
    assert float(iou(boundary_counts(prediction, mask, BINARY, ("pixels", 3)))) == float(iou(counts))


def test_the_band_of_a_cube_is_a_shell():
    mask = torch.zeros(1, 12, 13, 14, dtype=torch.uint8)
    mask[:, 2:10, 2:10, 2:10] = 1
    assert boundary_counts(mask, mask, BINARY, ("pixels", 2))[0, 0].tolist() == [8**3 - 4**3] * 3
    assert float(dice(boundary_counts(mask, mask, BINARY, ("pixels", 2)))) == 1


def test_the_border_of_the_image_is_a_boundary():
    mask = torch.ones(1, 20, 30, dtype=torch.uint8)
    assert boundary_counts(mask, mask, BINARY, ("pixels", 3))[0, 0].tolist() == [20 * 30 - 14 * 24] * 3


def test_a_band_as_wide_as_the_object_is_the_object():
    prediction, mask = blobs(1, 3, (2, 15, 15)), blobs(2, 3, (2, 15, 15))
    assert torch.equal(boundary_counts(prediction, mask, THREE, ("pixels", 99)), count(prediction, mask, THREE))
    assert torch.equal(boundary_counts(prediction, mask, THREE, ("ratio", 1.0)), count(prediction, mask, THREE))


def test_one_class_against_the_rest_is_binary():
    prediction, mask = blobs(1, 3, (2, 25, 25)), blobs(2, 3, (2, 25, 25))
    mask[:, 5:9] = VOID
    for number in range(3):
        alone = torch.where(mask == VOID, VOID, (mask == number).to(torch.uint8))
        binary = boundary_counts((prediction == number).to(torch.uint8), alone, BINARY)
        assert torch.equal(boundary_counts(prediction, mask, THREE)[:, number], binary[:, 0])


def test_ignored_pixels_are_not_counted_and_form_no_boundary():
    mask = square(20, 20)
    mask[0, 40:50, 40:50] = VOID
    whole = boundary_counts(square(20, 20), square(20, 20), BINARY)
    assert torch.equal(boundary_counts(square(20, 20), mask, BINARY), whole)
    noise = torch.where(mask == VOID, draw(1, [0, 1, 77], mask.shape), square(20, 20))
    assert torch.equal(boundary_counts(noise, mask, BINARY), whole)
    mask[0, :, 78:] = VOID
    cut = boundary_counts(square(20, 20), mask, BINARY)
    assert cut[0, 0].tolist() == [58 * 60 - 55 * 54] * 3


def test_all_ignored_and_absent_classes_count_nothing():
    prediction = blobs(1, 2, (2, 16, 16))
    nothing = boundary_counts(prediction, torch.full_like(prediction, VOID), THREE)
    assert torch.equal(nothing, torch.zeros(2, 3, 3, dtype=torch.int64))
    counts = boundary_counts(prediction, prediction, THREE)
    assert counts[:, 2].tolist() == [[0, 0, 0]] * 2
    assert bool(iou(counts)[:, 2].isnan().all())
    assert iou(counts)[:, :2].tolist() == [[1, 1]] * 2


def test_inputs_are_not_modified():
    prediction, mask = blobs(1, 3, (2, 9, 9)), draw(2, [0, 1, 2, VOID], (2, 9, 9))
    before = prediction.clone(), mask.clone()
    boundary_counts(prediction, mask, THREE)
    assert torch.equal(prediction, before[0])
    assert torch.equal(mask, before[1])


def test_more_classes_than_fit_into_a_byte():
    many = Labels([f"c{number}" for number in range(300)])
    prediction = draw(1, [0, 1, 43, 44], (1, 12, 12))
    wide = torch.where(prediction == 44, 299, prediction.to(torch.int32))
    counts = boundary_counts(prediction, wide, many, ("pixels", 1))
    assert counts[0, 44, 1] == counts[0, 299, 2] > 0
    assert counts[0, 256:299].sum() == 0


@pytest.mark.parametrize(
    ("width", "sides", "radius"),
    [
        (("ratio", 0.02), (100, 100), 3),
        (("ratio", 0.02), (10, 10), 1),
        (("ratio", 0.02), (512, 1024), 23),
        (("ratio", 0.02), (100, 100, 100), 3),
        (("ratio", 0.001), (3, 4), 1),
        (("pixels", 7), (3, 4), 7),
    ],
)
def test_width_of_the_band_in_pixels(width, sides, radius):
    assert band_radius(width, sides) == radius


@pytest.mark.parametrize("width", [("ratio", 0), ("ratio", -0.1), ("pixels", 0), ("pixels", 1.5), ("mm", 2)])
def test_invalid_widths_raise(width):
    with pytest.raises(ValueError, match=r"expected width .*got \('"):
        boundary_counts(square(20, 20), square(20, 20), BINARY, width)


def test_invalid_inputs_raise():
    with pytest.raises(ValueError, match=r"\[1, 100, 100\].*got \[1, 90, 90\]"):
        boundary_counts(square(20, 20), square(10, 10, 9, 90), BINARY)
    with pytest.raises(ValueError, match=r"\[B, 2, \*S\]"):
        boundary_counts(square(20, 20), square(20, 20), OVERLAPPING)
    with pytest.raises(ValueError, match=r"labels\.decode"):
        boundary_counts(square(20, 20).float(), square(20, 20), BINARY)
    with pytest.raises(RuntimeError, match="not 0 to 2"):
        boundary_counts(square(20, 20) * 3, square(20, 20), THREE)
    for labels, repeats in ((BINARY, 1), (OVERLAPPING, 2)):
        given = torch.stack([square(20, 20)] * repeats, dim=1)
        with pytest.raises(RuntimeError, match="not 0 or 1"):
            boundary_counts(given * 2, given, labels)


@pytest.mark.parametrize("sides", [(9,), (6, 7), (5, 6, 7)])
def test_maximum_filter_equals_scipy(sides):
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, *sides)))
    expected = ndimage.maximum_filter(
        values.numpy(), size=5, axes=tuple(range(2, values.ndim)), mode="constant", cval=-np.inf
    )
    assert torch.equal(maximum_filter(values, 2), torch.from_numpy(expected))


def examples(device="cpu"):
    """A prediction, a mask and labels of every mode, 2D and 3D."""
    for sides in ((8, 7), (4, 5, 6)):
        numbers = draw(1, [0, 1, 2], (2, *sides)).to(device)
        bits = draw(2, [0, 1], (2, 2, *sides)).to(device)
        yield numbers, numbers, THREE
        yield bits[:, 0], bits[:, 1], BINARY
        yield bits, bits, OVERLAPPING
        yield bits, numbers, REGIONS


def test_counting_does_not_synchronise():
    for prediction, mask, labels in examples():
        with NoWaiting():
            iou(boundary_counts(prediction, mask, labels))


def test_counting_runs_on_meta():
    for prediction, mask, labels in examples("meta"):
        counts = boundary_counts(prediction, mask, labels)
        assert (counts.device.type, counts.dtype) == ("meta", torch.int64)
        assert counts.shape == (2, labels.channels, 3)


def test_counting_is_deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        for given in examples():
            assert torch.equal(boundary_counts(*given), boundary_counts(*given))
    finally:
        torch.use_deterministic_algorithms(False)
