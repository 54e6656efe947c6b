"""Calibration against loops in float64, torchmetrics, MONAI and known values; no host synchronisation."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from segkit import Labels
from segkit.metrics.calibration import (
    CalibrationCounts,
    brier,
    calibration_counts,
    ece,
    equal_weight_ece,
    mce,
    merge,
    nll,
    reliability,
)

from support.synchronisation import NoWaiting

THREE = Labels(["background", "a", "b"], ignore_index=255)
NO_BACKGROUND = Labels(["sky", "road", "tree"], ignore_index=255)
BINARY = Labels(["no", "yes"], mode="binary", ignore_index=255)
OVERLAPPING = Labels(["whole", "core"], mode="multilabel", ignore_index=255)
REGIONS = Labels(["whole", "core"], mode="multilabel", ignore_index=255, regions={"whole": [1, 2], "core": [2]})
ALL_LABELS = [THREE, NO_BACKGROUND, BINARY, OVERLAPPING, REGIONS]
REGION_NAMES = ["all", "foreground", "boundary"]
HISTOGRAMS = ["pixels", "confidence", "correct", "valid"]
VOID = 255


def softmaxes(seed, shape, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(scale * torch.randn(shape, generator=generator), dim=1)


def sigmoids(seed, shape):
    return torch.sigmoid(1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def draw(seed, values, shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values, dtype=torch.uint8)[torch.randint(len(values), shape, generator=generator)]


def patches(seed, values, shape):
    """Masks of patches with sides of three pixels, so that some pixels are far from every boundary."""
    coarse = draw(seed, values, (shape[0], *(-(-side // 3) for side in shape[1:])))
    for axis in range(1, len(shape)):
        coarse = coarse.repeat_interleave(3, axis)
    return coarse[tuple(slice(side) for side in shape)]


def example(labels, seed=0, sides=(9, 8)):
    """Probabilities [2, K, *S] and a mask with ignored pixels."""
    probabilities = (softmaxes if labels.mode == "multiclass" else sigmoids)(seed, (2, labels.channels, *sides))
    values = [*labels.values, *labels.values, VOID]
    if labels.has_mask_channels:
        return probabilities, torch.stack([patches(seed + 1 + k, values, (2, *sides)) for k in range(2)], dim=1)
    return probabilities, patches(seed + 1, values, (2, *sides))


def kinds(labels):
    return ["classwise"] if labels.mode == "multilabel" else ["toplabel", "classwise"]


CHOICES = [(labels, kind, region) for labels in ALL_LABELS for kind in kinds(labels) for region in REGION_NAMES]


def planes(mask, labels):
    """Reference and validity of each class, bool [B, K, *S], from all forms of masks."""
    if labels.has_mask_channels:
        return (mask == 1).numpy(), (mask != VOID).numpy()
    unions = labels.regions.values() if labels.regions else [[1]] if labels.mode == "binary" else [[0], [1], [2]]
    truth = np.stack([np.isin(mask.numpy(), union) for union in unions], axis=1)
    return truth, np.broadcast_to((mask != VOID).numpy()[:, None], truth.shape)


def in_region(truth, valid, place, region, labels, band):
    """Whether the pixel at `place` of one image is in the region, from planes [K, *S]."""
    if region == "foreground":
        foreground = truth[1:] if labels is THREE else truth
        return bool(foreground[:, *place].any())
    if region == "boundary":
        window = tuple(slice(max(0, at - band), at + band + 1) for at in place)
        around = zip(truth[:, *window], valid[:, *window], strict=True)
        return any(len(set(plane[known].tolist())) > 1 for plane, known in around)
    return True


def events(probability, truth, kind, labels):
    """(row, confidence, correct) of one pixel, from the vectors of its classes."""
    if kind == "classwise":
        return [(k, probability[k], truth[k]) for k in range(labels.channels)]
    if labels.mode == "binary":
        positive = bool(probability[0] > 0.5)
        return [(0, probability[0] if positive else 1 - probability[0], truth[0] == positive)]
    top = int(probability.argmax())
    return [(0, probability[top], truth[top])]


def by_hand(probabilities, mask, labels, kind, region, bins, band=2):
    """Counts by their definition, pixel by pixel in float64."""
    given = probabilities.double().numpy()
    truth, valid = planes(mask, labels)
    rows = labels.channels if kind == "classwise" else 1
    pixels, confidence, correct = np.zeros((3, len(given), rows, bins))
    sums = {name: np.zeros(len(given)) for name in ("brier", "nll", "valid")}
    edges = [np.float64(np.float32(k / bins)) for k in range(1, bins)]
    for case in range(len(given)):
        for place in np.ndindex(*given.shape[2:]):
            counts, p, t = valid[case][:, *place], given[case][:, *place], truth[case][:, *place]
            if not counts.any() or not in_region(truth[case], valid[case], place, region, labels, band):
                continue
            for row, sure, right in events(p, t, kind, labels):
                if counts[row]:
                    where = sum(edge <= sure for edge in edges)
                    pixels[case, row, where] += 1
                    confidence[case, row, where] += sure
                    correct[case, row, where] += right
            sums["valid"][case] += 1
            sums["brier"][case] += ((p - t) ** 2)[counts].sum()
            likelihood = p[t] if labels.mode == "multiclass" else np.where(t, p, 1 - p)[counts]
            sums["nll"][case] -= np.log(likelihood).sum()
    return {"pixels": pixels, "confidence": confidence, "correct": correct, **sums}


@pytest.mark.parametrize(("labels", "kind", "region"), CHOICES)
@pytest.mark.parametrize("sides", [(9, 8), (5, 4, 6)])
def test_counts_match_a_loop_over_pixels(labels, kind, region, sides):
    probabilities, mask = example(labels, sides=sides)
    band = 1
    counts = calibration_counts(probabilities, mask, labels, bins=7, kind=kind, region=region, band=band)
    expected = by_hand(probabilities, mask, labels, kind, region, 7, band)
    for field in fields(CalibrationCounts):
        ours = getattr(counts, field.name)
        assert ours.dtype == (torch.int64 if field.name in ("pixels", "correct", "valid") else torch.float64)
        torch.testing.assert_close(ours.double(), torch.from_numpy(expected[field.name]), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("labels", ALL_LABELS)
@pytest.mark.parametrize("sides", [(9, 8), (5, 4, 6)])
def test_regions_exclude_pixels(labels, sides):
    probabilities, mask = example(labels, sides=sides)
    valid = {
        region: calibration_counts(probabilities, mask, labels, kind="classwise", region=region, band=1).valid
        for region in REGION_NAMES
    }
    assert bool((valid["boundary"] < valid["all"]).all())
    assert torch.equal(valid["foreground"], valid["all"]) == (labels is NO_BACKGROUND)
    assert int(torch.stack(list(valid.values())).min()) > 0


@pytest.mark.parametrize("band", [1, 2, 3])
def test_the_boundary_is_as_wide_as_the_band_on_both_sides(band):
    mask = torch.zeros(1, 10, 12, dtype=torch.uint8)
    mask[:, :, 6:] = 1
    counts = calibration_counts(sigmoids(0, (1, 1, 10, 12)), mask, BINARY, region="boundary", band=band)
    assert counts.valid.tolist() == [10 * 2 * band]
    mask[:, :, 5:7] = VOID
    counts = calibration_counts(sigmoids(0, (1, 1, 10, 12)), mask, BINARY, region="boundary", band=band)
    assert counts.valid.tolist() == [0 if band < 3 else 10 * 2 * (band - 2)]


def test_one_hot_masks_of_exclusive_classes_are_the_same():
    probabilities, mask = example(THREE)
    onehot = torch.stack([mask == number for number in range(3)], dim=1)
    for region in REGION_NAMES:
        counts = calibration_counts(probabilities, mask, THREE, region=region)
        same = calibration_counts(probabilities, onehot, THREE, region=region)
        assert all(torch.equal(getattr(counts, name), getattr(same, name)) for name in HISTOGRAMS)


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.parametrize("seed", range(3))
def test_pooled_top_label_is_that_of_torchmetrics(seed, bins):
    probabilities, mask = softmaxes(seed, (3, 4, 20, 21)), draw(seed + 9, [0, 1, 2, 3, VOID], (3, 20, 21))
    labels = Labels(["a", "b", "c", "d"], ignore_index=VOID)
    counts = calibration_counts(probabilities, mask, labels, bins=bins).pooled()
    for score, norm in ((ece, "l1"), (mce, "max")):
        theirs = multiclass_calibration_error(probabilities, mask.long(), 4, bins, norm, ignore_index=VOID)
        assert float(score(counts)) == pytest.approx(float(theirs), abs=1e-6)


def test_binary_is_that_of_torchmetrics():
    probabilities, mask = sigmoids(1, (3, 1, 20, 21)), draw(2, [0, 1, VOID], (3, 20, 21))
    two = torch.cat([1 - probabilities, probabilities], dim=1)
    of_class = calibration_counts(probabilities, mask, BINARY, kind="classwise").pooled()
    of_decision = calibration_counts(probabilities, mask, BINARY).pooled()
    for score, norm in ((ece, "l1"), (mce, "max")):
        theirs = binary_calibration_error(probabilities[:, 0], mask.long(), 15, norm, ignore_index=VOID)
        assert float(score(of_class)) == pytest.approx(float(theirs), abs=1e-6)
        theirs = multiclass_calibration_error(two, mask.long(), 2, 15, norm, ignore_index=VOID)
        assert float(score(of_decision)) == pytest.approx(float(theirs), abs=1e-6)


def test_confidence_one_is_in_the_last_bin_unlike_in_torchmetrics():
    probabilities = torch.tensor([1.0, 0.95]).repeat(50).view(1, 1, 10, 10)
    mask = torch.tensor([0, 1], dtype=torch.uint8).repeat(50).view(1, 10, 10)
    ours = float(ece(calibration_counts(probabilities, mask, BINARY, bins=10, kind="classwise")))
    assert ours == pytest.approx(abs(0.5 - 0.975))
    theirs = binary_calibration_error(probabilities.flatten(), mask.flatten(), 10)
    assert float(theirs) == pytest.approx((1 + 0.05) / 2)
    below = probabilities.flatten().clamp(max=torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    assert float(binary_calibration_error(below, mask.flatten(), 10)) == pytest.approx(ours)


@pytest.mark.parametrize(("score", "reduction"), [(ece, "expected"), (equal_weight_ece, "average"), (mce, "maximum")])
@pytest.mark.parametrize("bins", [10, 20])
def test_class_wise_scores_of_images_are_those_of_monai(score, reduction, bins):
    probabilities, mask = softmaxes(3, (2, 3, 16, 16)), draw(4, [0, 1, 2], (2, 16, 16))
    onehot = torch.stack([mask == number for number in range(3)], dim=1).float()
    metric = CalibrationErrorMetric(bins, calibration_reduction=reduction, metric_reduction="none")
    theirs = metric(probabilities, onehot)
    ours = score(calibration_counts(probabilities, mask, THREE, bins=bins, kind="classwise"))
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=2e-6)


def calibrated(seed, sharpness=1.0):
    """Probabilities, and masks drawn from them; a sharpness above 1 makes the probabilities overconfident."""
    probabilities = softmaxes(seed, (2, 3, 200, 300))
    flat = probabilities.movedim(1, -1).reshape(-1, 3)
    drawn = torch.multinomial(flat, 1, generator=torch.Generator().manual_seed(seed + 1)).view(2, 200, 300)
    return torch.softmax(sharpness * probabilities.log(), dim=1), drawn.to(torch.uint8)


@pytest.mark.parametrize("kind", ["toplabel", "classwise"])
def test_calibrated_probabilities_have_a_small_error(kind):
    probabilities, mask = calibrated(0)
    counts = calibration_counts(probabilities, mask, THREE, kind=kind).pooled()
    assert bool((ece(counts) < 0.006).all())
    assert bool((mce(counts) < 0.03).all())
    overconfident = calibration_counts(calibrated(0, sharpness=3)[0], mask, THREE, kind=kind).pooled()
    assert bool((ece(overconfident) > 0.05).all())


def test_calibrated_probabilities_have_the_expected_brier_score_and_likelihood():
    probabilities, mask = calibrated(2)
    counts = calibration_counts(probabilities, mask, THREE).pooled()
    variance = (probabilities * (1 - probabilities)).sum(1).mean()
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    assert float(brier(counts)) == pytest.approx(float(variance), abs=0.005)
    assert float(nll(counts)) == pytest.approx(float(entropy), abs=0.01)


def test_scores_of_constant_probabilities():
    probabilities = torch.full((1, 1, 10, 10), 0.75)
    mask = torch.arange(100, dtype=torch.uint8).view(1, 10, 10) < 60
    counts = calibration_counts(probabilities, mask, BINARY)
    for score in (ece, mce, equal_weight_ece):
        assert score(counts).tolist() == [[pytest.approx(0.15, abs=1e-12)]]
    assert float(brier(counts)) == pytest.approx(0.6 * 0.25**2 + 0.4 * 0.75**2)
    assert float(nll(counts)) == pytest.approx(-0.6 * math.log(0.75) - 0.4 * math.log(0.25))


def test_one_bin_compares_accuracy_and_mean_confidence():
    probabilities, mask = softmaxes(5, (1, 3, 20, 20)), draw(6, [0, 1, 2], (1, 20, 20))
    confidence, top = probabilities.max(1)
    expected = abs(float(confidence.double().mean()) - float((top == mask).double().mean()))
    assert float(ece(calibration_counts(probabilities, mask, THREE, bins=1))) == pytest.approx(expected, abs=1e-9)


def test_binary_is_two_exclusive_classes():
    labels = Labels(["background", "yes"], ignore_index=VOID)
    probabilities, mask = example(BINARY, sides=(20, 20))
    two = torch.cat([1 - probabilities, probabilities], dim=1)
    for kind, rows in (("toplabel", slice(None)), ("classwise", slice(1, None))):
        for region in REGION_NAMES:
            binary = calibration_counts(probabilities, mask, BINARY, kind=kind, region=region)
            exclusive = calibration_counts(two, mask, labels, kind=kind, region=region)
            for name in ("pixels", "confidence", "correct"):
                assert torch.equal(getattr(binary, name), getattr(exclusive, name)[:, rows])
            torch.testing.assert_close(2 * brier(binary), brier(exclusive), rtol=1e-6, atol=0)
            torch.testing.assert_close(nll(binary), nll(exclusive), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("labels", "kind", "region"), CHOICES)
def test_predictions_at_ignored_pixels_do_not_matter(labels, kind, region):
    probabilities, mask = example(labels)
    _, valid = planes(mask, labels)
    unknown = torch.where(torch.from_numpy(valid.copy()), probabilities, torch.nan)
    assert bool(unknown.isnan().any())
    before = calibration_counts(probabilities, mask, labels, kind=kind, region=region)
    after = calibration_counts(unknown, mask, labels, kind=kind, region=region)
    assert all(torch.equal(getattr(before, field.name), getattr(after, field.name)) for field in fields(before))


@pytest.mark.parametrize(("labels", "kind", "region"), CHOICES)
def test_nothing_to_count_is_nan(labels, kind, region):
    probabilities, mask = example(labels)
    nothing = torch.full_like(mask, VOID)
    counts = calibration_counts(torch.full_like(probabilities, torch.nan), nothing, labels, kind=kind, region=region)
    assert all(int(getattr(counts, field.name).count_nonzero()) == 0 for field in fields(counts))
    for score in (ece, mce, equal_weight_ece, brier, nll):
        assert score(counts).dtype == torch.float64
        assert bool(score(counts).isnan().all())
    bars = reliability(counts)
    assert bool(bars.accuracy.isnan().all())
    assert bool(bars.confidence.isnan().all())


def test_regions_without_pixels_are_nan():
    mask = torch.zeros(2, 9, 9, dtype=torch.uint8)
    mask[1, 4, 4] = 2
    for region, pixels in (("foreground", 1), ("boundary", 25)):
        counts = calibration_counts(softmaxes(0, (2, 3, 9, 9)), mask, THREE, region=region)
        assert counts.valid.tolist() == [0, pixels]
        assert ece(counts).isnan().flatten().tolist() == [True, False]


def test_an_absent_class_is_always_incorrect():
    probabilities, mask = softmaxes(1, (2, 3, 9, 9)), draw(2, [0, 1], (2, 9, 9))
    counts = calibration_counts(probabilities, mask, THREE, kind="classwise")
    assert int(counts.correct[:, 2].sum()) == 0
    torch.testing.assert_close(ece(counts)[:, 2], probabilities[:, 2].double().mean((1, 2)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["toplabel", "classwise"])
def test_merged_halves_are_the_whole(kind):
    probabilities, mask = softmaxes(1, (4, 3, 30, 31)), draw(2, [0, 1, 2, VOID], (4, 30, 31))
    whole = calibration_counts(probabilities, mask, THREE, kind=kind)
    batches = [calibration_counts(probabilities[at], mask[at], THREE, kind=kind) for at in (slice(1), slice(1, 4))]
    pieces = [
        calibration_counts(probabilities[..., at], mask[..., at], THREE, kind=kind) for at in (slice(9), slice(9, 31))
    ]
    ranks = batches[0].pooled() + batches[1].pooled()
    for ours, expected in ((merge(batches), whole), (pieces[0] + pieces[1], whole), (ranks, whole.pooled())):
        assert all(torch.equal(getattr(ours, name), getattr(expected, name)) for name in HISTOGRAMS)
        for name in ("brier", "nll"):
            torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=1e-12, atol=0)
        for score in (ece, mce, equal_weight_ece):
            assert torch.equal(score(ours), score(expected))


def test_the_order_of_pixels_changes_nothing():
    probabilities, mask = softmaxes(1, (2, 3, 5000)), draw(2, [0, 1, 2, VOID], (2, 5000))
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(3))
    for kind in ("toplabel", "classwise"):
        counts = calibration_counts(probabilities, mask, THREE, kind=kind)
        other = calibration_counts(probabilities[..., order], mask[..., order], THREE, kind=kind)
        assert all(torch.equal(getattr(counts, name), getattr(other, name)) for name in HISTOGRAMS)
        torch.testing.assert_close(counts.brier, other.brier, rtol=1e-12, atol=0)
        torch.testing.assert_close(counts.nll, other.nll, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 15, 20, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_on_an_edge_are_in_the_bin_that_it_begins(bins, dtype):
    edges = torch.tensor([k / bins for k in range(bins + 1)], dtype=dtype)
    mask = torch.ones(1, bins + 1, dtype=torch.uint8)
    counts = calibration_counts(edges.view(1, 1, -1), mask, BINARY, bins=bins, kind="classwise")
    assert counts.pixels[0, 0].tolist() == [1] * (bins - 1) + [2]
    beyond = torch.tensor([[[-1e-4, 1 + 1e-4]]], dtype=dtype)
    counts = calibration_counts(beyond, mask[:, :2], BINARY, bins=bins, kind="classwise")
    assert counts.pixels[0, 0, 0] + counts.pixels[0, 0, -1] == (4 if bins == 1 else 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    probabilities, mask = example(THREE)
    half = calibration_counts(probabilities.to(dtype), mask, THREE)
    single = calibration_counts(probabilities.to(dtype).float(), mask, THREE)
    assert all(torch.equal(getattr(half, field.name), getattr(single, field.name)) for field in fields(half))


def test_the_likelihood_of_what_was_held_impossible_is_clamped():
    mask = torch.ones(1, 4, dtype=torch.uint8)
    for dtype, most in ((torch.float16, 87.34), (torch.float32, 87.34), (torch.float64, 708.4)):
        impossible = calibration_counts(torch.zeros(1, 1, 4, dtype=dtype), mask, BINARY)
        assert float(nll(impossible)) == pytest.approx(most, abs=0.01)
    rare = calibration_counts(torch.full((1, 1, 4), 1e-100, dtype=torch.float64), mask, BINARY)
    assert float(nll(rare)) == pytest.approx(100 * math.log(10))


def test_sums_of_confidence_are_as_exact_as_they_say():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(1, 1, 1000, generator=generator, dtype=torch.float64) * 2.0**-30
    counts = calibration_counts(probabilities, torch.ones(1, 1000, dtype=torch.uint8), BINARY, kind="classwise")
    assert abs(float(counts.confidence.sum() - probabilities.sum())) < 0.1 * 1000 * 2.0**-33
    single = calibration_counts(probabilities[..., :1], torch.ones(1, 1, dtype=torch.uint8), BINARY, kind="classwise")
    assert abs(float(single.confidence.sum() - probabilities[0, 0, 0])) <= 2.0**-33


def test_bars_of_the_diagram():
    probabilities = torch.tensor([[[0.1, 0.2, 0.6, 0.7, 0.9, 0.9]]], dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1, 0, 1]], dtype=torch.uint8)
    bars = reliability(calibration_counts(probabilities, mask, BINARY, bins=4, kind="classwise"))
    assert bars.pixels.tolist() == [[[2, 0, 2, 2]]]
    assert bars.accuracy[0, 0].tolist() == pytest.approx([0.5, math.nan, 1, 0.5], nan_ok=True)
    assert bars.confidence[0, 0].tolist() == pytest.approx([0.15, math.nan, 0.65, 0.9], nan_ok=True, abs=1e-9)


def test_gradients_are_not_followed_and_inputs_are_left_as_they_were():
    probabilities, mask = example(THREE)
    before = probabilities.clone(), mask.clone()
    counts = calibration_counts(probabilities.requires_grad_(), mask, THREE, region="boundary")
    assert not any(getattr(counts, field.name).requires_grad for field in fields(counts))
    assert torch.equal(probabilities, before[0])
    assert torch.equal(mask, before[1])


@pytest.mark.parametrize(
    ("labels", "shape", "mask", "options", "message"),
    [
        (OVERLAPPING, (2, 2, 4, 5), (2, 2, 4, 5), {}, "kind='classwise'"),
        (THREE, (2, 3, 4, 5), (2, 4, 5), {"kind": "per_class"}, "toplabel, classwise.*got 'per_class'"),
        (THREE, (2, 3, 4, 5), (2, 4, 5), {"region": "edge"}, "all, foreground, boundary.*'edge'"),
        (THREE, (2, 3, 4, 5), (2, 4, 5), {"bins": 0}, "at least 1 bin"),
        (THREE, (2, 3, 4, 5), (2, 4, 5), {"band": 0}, "band of at least 1"),
        (THREE, (2, 2, 4, 5), (2, 4, 5), {}, r"\[B, 3, \*S\], got \[2, 2, 4, 5\]"),
        (THREE, (2, 3, 4, 5), (2, 5, 4), {}, r"mask \[2, 4, 5\].*got \[2, 5, 4\]"),
        (BINARY, (2, 2, 4, 5), (2, 4, 5), {}, r"\[B, 1, \*S\]"),
        (OVERLAPPING, (2, 2, 4, 5), (2, 4, 5), {"kind": "classwise"}, "a mask .* for overlapping classes"),
    ],
)
def test_invalid_arguments_raise(labels, shape, mask, options, message):
    with pytest.raises(ValueError, match=message):
        calibration_counts(torch.rand(shape), torch.zeros(mask, dtype=torch.uint8), labels, **options)


def test_what_is_no_probability_or_no_class_is_refused():
    probabilities, mask = example(THREE)
    with pytest.raises(ValueError, match="floating probabilities"):
        calibration_counts(probabilities.int(), mask, THREE)
    with pytest.raises(ValueError, match="integer mask"):
        calibration_counts(probabilities, mask.float(), THREE)
    for wrong in (probabilities.log(), torch.full_like(probabilities, torch.nan)):
        with pytest.raises(RuntimeError, match="not between 0 and 1"):
            calibration_counts(wrong, mask, THREE)


def test_counts_of_different_shapes_cannot_be_added():
    probabilities, mask = example(THREE)
    counts, finer = (calibration_counts(probabilities, mask, THREE, bins=bins) for bins in (10, 20))
    with pytest.raises(ValueError, match=r"\[\(1, 10\), \(1, 20\)\]"):
        merge([counts, finer])
    with pytest.raises(ValueError, match=r"got \[\]"):
        merge([])
    with pytest.raises(ValueError, match=r"\[2, 1, 10\] and \[1, 1, 10\].*merge"):
        counts + counts.pooled()


@pytest.mark.parametrize(("labels", "kind", "region"), CHOICES)
def test_counting_does_not_synchronise(labels, kind, region):
    for sides in ((8, 7), (4, 5, 6)):
        probabilities, mask = example(labels, sides=sides)
        with NoWaiting():
            counts = calibration_counts(probabilities, mask, labels, kind=kind, region=region)
            merged = merge([counts, counts + counts])
            for part in (merged, merged.pooled()):
                ece(part), mce(part), equal_weight_ece(part), brier(part), nll(part), reliability(part)


@pytest.mark.parametrize(("labels", "kind", "region"), CHOICES)
def test_counting_runs_on_meta(labels, kind, region):
    for sides in ((8, 7), (4, 5, 6)):
        given = [tensor.to("meta") for tensor in example(labels, sides=sides)]
        counts = calibration_counts(*given, labels, kind=kind, region=region)
        rows = labels.channels if kind == "classwise" else 1
        assert counts.pixels.shape == counts.confidence.shape == counts.correct.shape == (2, rows, 15)
        assert counts.brier.shape == counts.nll.shape == counts.valid.shape == (2,)
        assert ece(counts.pooled()).shape == mce(counts.pooled()).shape == (1, rows)
        assert (equal_weight_ece(counts).device.type, brier(counts).shape, nll(counts).shape) == ("meta", (2,), (2,))


def test_counting_is_deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        for labels, kind, region in CHOICES:
            counts, again = (calibration_counts(*example(labels), labels, kind=kind, region=region) for _ in range(2))
            assert all(torch.equal(getattr(counts, field.name), getattr(again, field.name)) for field in fields(counts))
    finally:
        torch.use_deterministic_algorithms(False)
