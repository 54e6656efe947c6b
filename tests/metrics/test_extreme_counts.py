"""Counts above 2^31, a thousand classes, and more cases than a table of all resamples would fit into memory."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.labels import Labels
from segkit.losses.class_weights import class_weights
from segkit.metrics import bootstrap, overlap
from segkit.metrics.bootstrap import Bootstrap, mean_intervals, median_intervals, ratio_intervals, resampled_weights
from segkit.metrics.boundary import boundary_counts
from segkit.metrics.calibration import QUANTUM, calibration_counts, ece
from segkit.metrics.case_table import cases_table
from segkit.metrics.counts import _pair_bins, count, pixel_counts
from segkit.metrics.summary import summarise

THOUSAND = Labels([f"class {number}" for number in range(1000)])
TP, PREDICTED, REFERENCE = 2**31 + 3, 2**40 + 1, 2**33 + 7  # float32 rounds all of them


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of a result."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def random_masks(classes, side):
    rng = np.random.default_rng(0)
    return tuple(torch.from_numpy(rng.integers(0, classes, (2, side, side)).astype(np.int32)) for _ in range(2))


def test_a_thousand_classes_are_counted_without_a_onehot_mask():
    prediction, mask = random_masks(1000, 64)
    with LargestTensor() as largest:
        pixels = pixel_counts(prediction, mask, THOUSAND)
    assert largest.elements <= 2 * 1001**2  # the confusion matrices; one-hot masks have 8 million elements
    for image in range(2):
        predicted, reference = prediction[image].numpy().ravel(), mask[image].numpy().ravel()
        expected = [
            np.bincount(reference[predicted == reference], minlength=1000),
            np.bincount(predicted, minlength=1000),
            np.bincount(reference, minlength=1000),
        ]
        np.testing.assert_array_equal(pixels.counts[image].numpy(), np.stack(expected, -1))


def test_boundaries_of_many_classes_without_a_onehot_mask():
    labels = Labels([f"class {number}" for number in range(100)])
    prediction, mask = random_masks(100, 24)
    with LargestTensor() as largest:
        counts = boundary_counts(prediction, mask, labels)
    assert largest.elements <= 20 * prediction.numel()
    # single pixels are nothing but boundary
    assert torch.equal(counts, count(prediction, mask, labels))


def test_pairs_of_more_classes_than_32_bits_number():
    last = torch.tensor([49_999], dtype=torch.int32)
    assert _pair_bins(last, last, 50_000).item() == 49_999 * 50_001 + 49_999


def test_parts_of_a_volume_are_added_one_after_the_other(monkeypatch):
    labels = Labels(["background", "a", "b"], ignore_index=255)
    rng = torch.Generator().manual_seed(0)
    prediction, mask = (torch.randint(3, (2, 7, 11), generator=rng) for _ in range(2))
    whole = pixel_counts(prediction, mask, labels)
    monkeypatch.setattr("segkit.metrics.counts.CHUNK_SIZE", {"cpu": 5})
    parts = pixel_counts(prediction, mask, labels)
    assert all(torch.equal(getattr(parts, name), getattr(whole, name)) for name in vars(whole))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.complex64])
@pytest.mark.parametrize("function", [count, boundary_counts])
def test_masks_of_types_that_torch_cannot_compare(function, dtype):
    mask = torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"expected .* mask .*got {dtype}"):
        function(mask, mask.to(dtype), THOUSAND)


@pytest.mark.parametrize(("shape", "message"), [((3,), "a prediction"), ((0, 4, 4), "at least one pixel")])
def test_masks_without_pixels_or_batch(shape, message):
    mask = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        boundary_counts(mask, mask, THOUSAND)


def test_scores_of_counts_above_32_bits():
    counts = torch.tensor([TP, PREDICTED, REFERENCE])
    expected = {
        overlap.dice: Fraction(2 * TP, PREDICTED + REFERENCE),
        overlap.iou: Fraction(TP, PREDICTED + REFERENCE - TP),
        overlap.precision: Fraction(TP, PREDICTED),
        overlap.recall: Fraction(TP, REFERENCE),
        overlap.volume_difference: Fraction(PREDICTED - REFERENCE, REFERENCE),
    }
    for score, value in expected.items():
        assert score(counts).item() == pytest.approx(float(value), rel=1e-15)


def test_the_table_sums_counts_above_32_bits():
    labels = Labels(["background", "a"])
    counts = np.array([[[TP, PREDICTED, REFERENCE]] * 2] * 3, dtype=np.int64)
    table = cases_table(list("xyz"), list("xyz"), counts, labels)
    assert table["predicted"].sum() == 6 * PREDICTED
    pooled = summarise(table, labels, intervals=False)["global"]
    assert pooled["classes"]["a"]["dice"] == pytest.approx(2 * TP / (PREDICTED + REFERENCE), rel=1e-15)


def test_class_weights_of_counts_above_32_bits():
    pixels = [[2**40 + 1, 3], [2**33, 5]]
    total = 2**40 + 1 + 2**33 + 8
    expected = [total / (2 * (2**40 + 1 + 2**33)), total / 16]
    assert class_weights("inverse", pixels).tolist() == pytest.approx(expected, rel=1e-14)


def test_confidences_of_more_pixels_than_32_bits_count():
    assert 2**32 / QUANTUM < 2**63
    labels = Labels(["no", "yes"], mode="binary")
    probabilities = torch.full((1, 1, 3), 0.75)
    counts = calibration_counts(probabilities, torch.tensor([[1, 1, 0]]), labels)
    assert counts.confidence.sum().item() == 2.25
    assert ece(counts).item() == pytest.approx(0.75 - 2 / 3)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.random((60, 3)))
    values[::7, 1] = math.nan
    groups = rng.integers(0, 40, 60)
    settings = Bootstrap(resamples=101, seed=3)

    def everything():
        results = (
            mean_intervals(values, groups, settings),
            median_intervals(values, groups, settings),
            ratio_intervals(values, values + 1, groups, settings),
        )
        return resampled_weights(40, 101, 3), [np.stack([result.low, result.high]) for result in results]

    weights, bounds = everything()
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS", 160)  # four resamples
    some_weights, some_bounds = everything()
    assert torch.equal(weights, some_weights)
    np.testing.assert_allclose(some_bounds, bounds, rtol=1e-12)


def test_a_hundred_thousand_cases_take_little_memory():
    with LargestTensor() as largest:
        mean_intervals(torch.rand(100_000, 1), np.arange(100_000), Bootstrap(resamples=200))
    assert largest.elements <= 2**23  # all resamples at once have 20 million weights


def test_mcc_of_large_counts_has_all_digits():
    """A background that is nearly everything, where the other usual form of the numerator loses eight digits."""
    pixels, tp, predicted, reference = 10**10, 10**10 - 17, 10**10 - 12, 10**10 - 11
    fp, fn = predicted - tp, reference - tp
    tn = pixels - predicted - fn
    square = Fraction((tp * tn - fp * fn) ** 2, (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    ours = overlap.mcc(torch.tensor([tp, predicted, reference]), torch.tensor(pixels)).item()
    assert ours == pytest.approx(math.sqrt(square), rel=1e-12)
    assert 0.4 < ours < 0.6
