"""Compound losses, losses for soft labels, MCC, OHEM, margins and positive weights, against other definitions."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from segkit.labels import Labels
from segkit.losses import build_loss
from segkit.losses.correlation import MatthewsCorrelation
from segkit.losses.logarithmic import log_cosh
from segkit.losses.shared_pass import Statistics

from support.loss_oracle import IGNORE_INDEX, batch, labels_of, value_and_gradient

TWO = Labels(["background", "a"], ignore_index=IGNORE_INDEX)
EQUAL = {"rtol": 1e-9, "atol": 1e-11}


def agree(options, oracle, logits, mask, labels, **tolerance):
    """Assert that value and gradient of the loss equal those of `oracle`, a function of the logits."""
    found = value_and_gradient(build_loss(options, labels), logits, mask)
    assert_close(found, value_and_gradient(lambda z, _: oracle(z), logits, mask), **(tolerance or EQUAL))


def two_classes(logits):
    """Logits of absence and presence for the logits of one channel."""
    return torch.cat([torch.zeros_like(logits), logits], 1)


def soft_batch(mode="multiclass"):
    logits, _mask = batch(mode, (5, 6))
    soft = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return logits, soft / soft.sum(1, keepdim=True) if mode == "multiclass" else soft


# --- positive weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["weights", "valid", "numel"])
@pytest.mark.parametrize(("mode", "weights"), [("binary", 3.0), ("multilabel", 0.4), ("multilabel", [2.0, 0.5, 1.0])])
def test_positive_weights_equal_those_of_torch(mode, weights, normalize):
    logits, mask = batch(mode, (5, 6), ignored=0.0)
    pos_weight = torch.tensor(weights, dtype=torch.float64)
    pos_weight = pos_weight.view(-1, 1, 1) if pos_weight.ndim else pos_weight
    oracle = torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight)
    options = {"name": "cross_entropy", "positive_weights": weights, "normalize": normalize}
    targets = mask.view_as(logits).double()
    agree(options, lambda z: oracle(z, targets), logits, mask, labels_of(mode))
    soft = soft_batch(mode)[1]
    agree(options, lambda z: oracle(z, soft), logits, soft, labels_of(mode))


@pytest.mark.parametrize(
    ("weights", "mode", "message"),
    [
        (2.0, "multiclass", "positive_weights .*use class_weights"),
        ([1.0, 2.0], "multilabel", r"a list for background, a, b, got \[1.0, 2.0\]"),
        (-1.0, "binary", "positive_weights of 0 or more.* got -1.0"),
        (math.nan, "binary", "got nan"),
    ],
)
def test_invalid_positive_weights(weights, mode, message):
    with pytest.raises(ValueError, match=message):
        build_loss({"name": "cross_entropy", "positive_weights": weights}, labels_of(mode))


# --- soft labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize(("name", "same"), [("jaccard_metric", "jaccard"), ("dice_semimetric", "dice")])
def test_metric_losses_of_hard_targets_equal_dice_and_jaccard(name, same, variant):
    options = {"eps": [0.5, 1.0], "per": "image", "class_weights": [0.3, 2.1, 1.25]}
    logits, mask = batch("multiclass", (5, 6))
    expected = value_and_gradient(build_loss({"name": same, **options}, labels_of("multiclass")), logits, mask)
    loss = build_loss({"name": name, "variant": variant, **options}, labels_of("multiclass"))
    assert_close(value_and_gradient(loss, logits, mask), expected)


@pytest.mark.parametrize(("name", "same", "factor"), [("jaccard_metric", "jaccard", 1), ("dice_semimetric", "dice", 2)])
def test_metric_losses_of_soft_targets(name, same, factor):
    """Variant 1 is `jaccard` or `dice`; variant 2 has the product of the papers, and is never smaller."""
    labels = labels_of("multiclass")
    logits, soft = soft_batch()
    first, second = (build_loss({"name": name, "variant": variant}, labels) for variant in (1, 2))
    assert_close(value_and_gradient(first, logits, soft), value_and_gradient(build_loss(same, labels), logits, soft))

    def oracle(z):
        p = z.softmax(1)
        product, difference = (p * soft).sum((0, 2, 3)), (p - soft).abs().sum((0, 2, 3))
        return (1 - (factor * product + 1e-5) / (factor * product + difference + 1e-5)).mean()

    agree({"name": name, "variant": 2}, oracle, logits, soft, labels)
    assert second(logits, soft) > first(logits, soft)
    for loss in (first, second):
        assert loss(soft.log(), soft) < 1e-12


# --- Matthews correlation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["image", "batch"])
def test_mcc_equals_monai(per):
    losses = pytest.importorskip("monai.losses")
    logits, mask = batch("multiclass", (16, 17), ignored=0.0)
    oracle = losses.MCCLoss(softmax=True, to_onehot_y=True, batch=per == "batch")
    agree(
        {"name": "mcc", "per": per, "eps": 1e-12}, lambda z: oracle(z, mask[:, None]), logits, mask,
        labels_of("multiclass"),
    )  # fmt: skip


def test_binary_mcc_equals_smp():
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, mask = batch("binary", (16, 17), ignored=0.0)
    oracle = losses.MCCLoss(eps=0.7)
    agree(
        {"name": "mcc", "eps": 0.7}, lambda z: oracle(z.sigmoid(), mask.double()[:, None]), logits, mask,
        labels_of("binary"),
    )  # fmt: skip


def test_mcc_of_certain_predictions_is_the_correlation_of_two_masks():
    generator = torch.Generator().manual_seed(0)
    mask, predicted = (torch.rand(1, 40, 40, generator=generator) < share for share in (0.3, 0.4))
    predicted |= mask & (torch.rand(1, 40, 40, generator=generator) < 0.5)
    correlation = torch.corrcoef(torch.stack([mask.flatten(), predicted.flatten()]).double())[0, 1]
    logits = 2000.0 * predicted.double()[:, None] - 1000
    value = build_loss({"name": "mcc", "eps": 1e-12}, labels_of("binary"))(logits, mask.to(torch.uint8))
    assert value.item() == pytest.approx(1 - correlation.item(), rel=1e-9)


@pytest.mark.parametrize("share", [0.5, 1e-5, 1 - 1e-5])
def test_mcc_of_large_images_in_float32(share):
    """Compared with logits in float64."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(1, 2048, 2048, generator=generator) < share).to(torch.uint8)
    logits = 4 * mask.float()[:, None] - 2 + torch.randn(1, 1, 2048, 2048, generator=generator)
    loss = build_loss("mcc", labels_of("binary"))
    value, gradient = value_and_gradient(loss, logits, mask)
    expected, exact = value_and_gradient(loss, logits.double(), mask)
    assert value.item() == pytest.approx(expected.item(), abs=2e-5)
    assert (gradient - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize(
    ("tp", "predicted", "reference"),
    [(16_000_003, 16_000_011, 16_000_005), (7, 9, 12), (8_000_000, 8_000_001, 8_000_400), (3, 15_999_999, 5)],
)
def test_mcc_of_counts_whose_products_have_more_digits_than_float32(tp, predicted, reference):
    """Against integers, of 16,000,020 pixels: products of counts reach 2.6e14, and nearly cancel."""
    pixels = 16_000_020
    fp, fn = predicted - tp, reference - tp
    tn = pixels - tp - fp - fn
    denominator = math.sqrt(tp + fp) * math.sqrt(tp + fn) * math.sqrt(tn + fp) * math.sqrt(tn + fn)
    sums = Statistics(*(torch.tensor([[float(count)]]) for count in (tp, predicted, reference, pixels)))
    loss = MatthewsCorrelation(labels=labels_of("binary"), eps=1e-12)
    assert loss.score(sums).item() == pytest.approx(1 - (tp * tn - fp * fn) / denominator, abs=1e-6)


def test_mcc_leaves_out_a_class_that_covers_everything():
    logits, mask = batch("multilabel", (4, 5))
    mask[:, 2] = 1
    value, gradient = value_and_gradient(build_loss("mcc", labels_of("multilabel")), logits, mask)
    only = build_loss({"name": "mcc", "class_weights": [1.0, 1.0, 0.0]}, labels_of("multilabel"))
    assert_close((value, gradient), value_and_gradient(only, logits, mask))


# --- unified focal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [None, 1])
@pytest.mark.parametrize("options", [{}, {"variant": "symmetric", "per": "image", "empty": "keep"}, {"empty": "zero"}])
@pytest.mark.parametrize("name", ["unified_focal", "margin_label_smoothing"])
def test_a_binary_loss_equals_that_of_two_classes(name, options, absent):
    options = {"margin": 1.0} if name == "margin_label_smoothing" else options
    logits, mask = batch("binary", (5, 6), absent=absent)
    loss = build_loss({"name": name, **options}, TWO)
    agree({"name": name, **options}, lambda z: loss(two_classes(z), mask), logits, mask, labels_of("binary"))


def test_unified_focal_equals_monai_with_its_focal_part_doubled():
    """MONAI takes probabilities, averages the focal part over pixels and two channels, and swaps the two weights."""
    losses = pytest.importorskip("monai.losses.unified_focal_loss")
    logits, mask = batch("multiclass", (16, 17), ignored=0.0, absent=2)
    logits = logits[:, :2]
    options = {"delta": 0.7, "gamma": 0.3}
    focal = losses.AsymmetricFocalLoss(to_onehot_y=True, epsilon=1e-30, **options)
    tversky = losses.AsymmetricFocalTverskyLoss(to_onehot_y=True, epsilon=1e-30, **options)

    def oracle(z):
        p = z.softmax(1)
        return 0.2 * tversky(p, mask[:, None]) + 0.8 * 2 * focal(p, mask[:, None])

    own = {"name": "unified_focal", "per": "image", "empty": "keep", "eps": 1e-30, "balance": 0.2, **options}
    agree(own, oracle, logits, mask, TWO)


@pytest.mark.parametrize("variant", ["symmetric", "asymmetric"])
def test_unified_focal_of_several_classes_equals_the_authors_formula(variant):
    """Written from the formulas of their code for every class, the first one being the background."""
    delta, gamma, eps = 0.6, 0.5, 1e-7
    logits, mask = batch("multiclass", (5, 6), ignored=0.0)
    g = F.one_hot(mask.long(), 3).movedim(-1, 1).double()

    def oracle(z):
        p = z.softmax(1)
        tp, fn, fp = ((a * b).sum((2, 3)) for a, b in ((p, g), (1 - p, g), (p, 1 - g)))
        region = 1 - (tp + eps) / (tp + delta * fn + (1 - delta) * fp + eps)
        powered = region.pow(1 - gamma)
        nll = -(g * p.log())
        focal = nll * (1 - p).pow(gamma)
        if variant == "asymmetric":
            powered = torch.cat([region[:, :1], powered[:, 1:]], 1)
            focal = torch.cat([focal[:, :1], nll[:, 1:]], 1)
        weights = torch.tensor([1 - delta, delta, delta], dtype=torch.float64).view(1, 3, 1, 1)
        return 0.5 * powered.mean() + 0.5 * (weights * focal).sum(1).mean()

    options = {"name": "unified_focal", "variant": variant, "per": "image", "empty": "keep", "eps": eps}
    agree(options, oracle, logits, mask, labels_of("multiclass"))


def test_unified_focal_with_gamma_0_is_tversky_and_a_weighted_cross_entropy():
    logits, mask = batch("multiclass", (5, 6))
    labels = labels_of("multiclass")
    unified = build_loss({"name": "unified_focal", "gamma": 0.0, "balance": 0.3}, labels)
    weighted = {"name": "cross_entropy", "class_weights": [0.4, 0.6, 0.6], "normalize": "valid", "weight": 0.7}
    parts = build_loss([{"name": "tversky", "alpha": 0.4, "beta": 0.6, "weight": 0.3}, weighted], labels)
    assert_close(value_and_gradient(unified, logits, mask), value_and_gradient(parts, logits, mask))


# --- logarithms ---------------------------------------------------------------------------------------------------


def test_log_cosh_keeps_its_digits():
    values = torch.tensor([0.0, 1e-6, -1e-3, 0.3, 0.999, 1.0, 1.001, -5.0, 1e4])
    exact = values.double()
    expected = torch.where(exact.abs() < 100, exact.clamp(-100, 100).cosh().log(), exact.abs() - math.log(2))
    expected = torch.where(exact.abs() < 1e-2, exact.square() / 2 - exact**4 / 12, expected)
    assert_close(log_cosh(values), expected.float(), rtol=1e-6, atol=0)


def test_log_cosh_dice_of_one_class():
    logits, mask = batch("binary", (5, 6))
    dice = build_loss("dice", labels_of("binary"))
    agree("log_cosh_dice", lambda z: dice(z, mask).cosh().log(), logits, mask, labels_of("binary"))


def test_exponential_log_with_gamma_1_is_logarithmic_dice_and_the_cross_entropy():
    logits, mask = batch("binary", (5, 6))
    labels = labels_of("binary")
    dice, cross_entropy = build_loss("dice", labels), build_loss("cross_entropy", labels)

    def oracle(z):
        return -0.8 * (1 - dice(z, mask)).log() + 0.2 * cross_entropy(z, mask)

    agree({"name": "exponential_log", "gamma": 1.0}, oracle, logits, mask, labels)


def test_exponential_log_with_the_weights_of_the_paper():
    """w_c = sqrt(sum_k f_k / f_c), f_c being the number of pixels of a class."""
    labels = labels_of("multiclass")
    logits, mask = batch("multiclass", (5, 6))
    counts = torch.tensor([40, 15, 5], dtype=torch.float64)
    weights = math.sqrt(3) * (60 / (3 * counts)).sqrt()
    assert_close(weights, (60 / counts).sqrt())
    options = {"name": "exponential_log", "dice_weight": 0.0, "normalize": "valid"}
    own = build_loss({**options, "class_weights": "sqrt_inverse"}, labels, counts.int()[None].numpy())
    valid = mask != IGNORE_INDEX

    def oracle(z):
        logs = -z.log_softmax(1).movedim(1, -1)[valid]
        at_class = logs.gather(1, mask[valid].long()[:, None])[:, 0]
        return (weights[mask[valid].long()] * at_class**0.3).mean()

    expected = value_and_gradient(lambda z, _: 0.2 * oracle(z) / math.sqrt(3), logits, mask)
    assert_close(value_and_gradient(own, logits, mask), expected, **EQUAL)


# --- OHEM and margins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "kept"), [(0.9, 5), (0.1, 30), (0.001, 30)])
def test_ohem_equals_the_selection_with_sorted_probabilities(threshold, kept):
    """Keeps p < max(threshold, the (kept + 1)-th smallest p), as mmseg and PIDNet do, and takes the mean over these."""
    logits, mask = batch("multiclass", (8, 9))
    valid = mask != IGNORE_INDEX

    def oracle(z):
        losses = F.cross_entropy(z, torch.where(valid, mask, 0).long(), reduction="none")[valid]
        p = (-losses).exp()
        limit = max(threshold, p.sort().values[kept].item())
        return losses[p < limit].mean()

    options = {"name": "ohem_cross_entropy", "threshold": threshold, "min_share": 0.0, "min_pixels": kept}
    agree(options, oracle, logits, mask, labels_of("multiclass"))


def test_ohem_without_hard_pixels():
    logits, mask = batch("multiclass", (8, 9), ignored=0.0)
    sure = 30.0 * F.one_hot(mask.long(), 3).movedim(-1, 1).double()
    none = build_loss({"name": "ohem_cross_entropy", "min_share": 0.0}, labels_of("multiclass"))
    value, gradient = value_and_gradient(none, sure, mask)
    assert value == 0
    assert (gradient == 0).all()
    topk = build_loss({"name": "topk_cross_entropy", "share": 0.25}, labels_of("multiclass"))
    least = build_loss({"name": "ohem_cross_entropy", "threshold": 1e-9, "min_share": 0.25}, labels_of("multiclass"))
    assert_close(value_and_gradient(least, logits, mask), value_and_gradient(topk, logits, mask))


def test_margin_label_smoothing_equals_its_definition():
    """Rows of valid pixels, as in the authors' code: the mean of the cross-entropy plus that of the penalty."""
    logits, mask = batch("multiclass", (8, 9))
    valid = mask != IGNORE_INDEX

    def oracle(z):
        rows = z.movedim(1, -1)[valid]
        excess = F.relu(rows.max(1, keepdim=True).values - rows - 2.0)
        return F.cross_entropy(rows, mask[valid].long()) + 0.3 * excess.mean()

    options = {"name": "margin_label_smoothing", "margin": 2.0, "penalty": 0.3}
    agree(options, oracle, logits, mask, labels_of("multiclass"))
    without = {**options, "penalty": 0.0}
    cross_entropy = build_loss("cross_entropy", labels_of("multiclass"))
    agree(without, lambda z: cross_entropy(z, mask), logits, mask, labels_of("multiclass"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mcc", "eps": 0.0}, "eps from 1e-12"),
        ({"name": "unified_focal", "gamma": 1.0}, "gamma of at least 0 and less than 1, got .* gamma 1.0"),
        ({"name": "unified_focal", "delta": 1.5}, "got delta 1.5"),
        ({"name": "exponential_log", "eps": 0.0}, "logarithm of Dice needs eps of at least 1e-12, got 0"),
        ({"name": "exponential_log", "gamma": 0.0}, "gamma above 0 and at most 5, got 0"),
        ({"name": "exponential_log", "dice_weight": -1.0}, "dice_weight and cross_entropy_weight from 0 .*-1.0"),
        ({"name": "ohem_cross_entropy", "threshold": 0.0}, "threshold above 0 and at most 1, got 0"),
        ({"name": "ohem_cross_entropy", "min_share": 1.5}, "min_share between 0 and 1 .* got 1.5"),
        ({"name": "margin_label_smoothing", "margin": -1.0}, "got margin -1.0"),
        ({"name": "jaccard_metric", "variant": 3}, "expected variant as 1 or 2, got 3"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        build_loss(options, labels_of("multiclass"))


@pytest.fixture(autouse=True)
def quiet():
    """Suppress the warnings that libraries give on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
