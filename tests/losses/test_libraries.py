"""Losses compared with those of torch, MONAI, smp and kornia, with explicit options."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from segkit.losses import build_loss

from support.loss_oracle import IGNORE_INDEX, MODES, batch, labels_of, value_and_gradient


def hard_batch():
    """Exclusive classes in float32 without ignored pixels; every class is in every image."""
    return batch("multiclass", (16, 17), ignored=0.0, dtype=torch.float32)


@pytest.fixture
def quiet():
    """Suppress warnings: MONAI warns about its own defaults, and other libraries on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def agree(options, oracle, logits, mask, labels=None, **tolerance):
    """Assert that value and gradient of the loss equal those of `oracle`, a function of the logits."""
    segkit_result = value_and_gradient(build_loss(options, labels or labels_of("multiclass")), logits, mask)
    library_result = value_and_gradient(lambda z, _: oracle(z), logits, mask)
    assert_close(segkit_result, library_result, **tolerance)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.25]])
def test_cross_entropy_equals_torch(weights):
    logits, mask = batch("multiclass", (16, 17), dtype=torch.float32)
    weight = None if weights is None else torch.tensor(weights)
    options = {"name": "cross_entropy", "class_weights": weights}
    agree(options, lambda z: F.cross_entropy(z, mask.long(), weight=weight, ignore_index=IGNORE_INDEX), logits, mask)
    onehot = F.one_hot(mask.long().clamp(max=2), 3).movedim(-1, 1).float() * (mask != IGNORE_INDEX).unsqueeze(1)
    # with probabilities as targets, torch divides by the number of all pixels
    agree({**options, "normalize": "numel"}, lambda z: F.cross_entropy(z, onehot, weight=weight), logits, mask)


def test_binary_and_multilabel_cross_entropy_equal_torch():
    for mode in ("binary", "multilabel"):
        logits, mask = batch(mode, (16, 17), ignored=0.0, dtype=torch.float32)
        onehot = mask.view_as(logits).float()
        oracle = lambda z, onehot=onehot: F.binary_cross_entropy_with_logits(z, onehot)  # noqa: E731
        agree("cross_entropy", oracle, logits, mask, labels_of(mode))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("options", "library_options"),
    [
        ({}, {}),
        ({"per": "batch"}, {"batch": True}),
        ({"power": 2}, {"squared_pred": True}),
        ({"background": False}, {"include_background": False}),
        ({"eps": [0.5, 0.25]}, {"smooth_nr": 0.5, "smooth_dr": 0.25}),
        # MONAI's form is (2 tp + eps) / (2 union + eps)
        ({"name": "jaccard", "eps": 0.5e-5}, {"jaccard": True}),
        ({"name": "jaccard", "eps": [0.5, 0.25]}, {"jaccard": True, "smooth_nr": 1.0, "smooth_dr": 0.5}),
    ],
)
def test_dice_and_jaccard_equal_monai(options, library_options):
    losses = pytest.importorskip("monai.losses")
    logits, mask = hard_batch()
    oracle = losses.DiceLoss(softmax=True, to_onehot_y=True, **library_options)
    options = {"name": "dice", "per": "image", "empty": "keep", **options}
    agree(options, lambda z: oracle(z, mask.unsqueeze(1)), logits, mask)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("name", "eps"), [("dice", 1e-5), ("jaccard", 0.5e-5)])
def test_soft_targets_equal_monai_with_soft_labels(name, eps, power, mode):
    losses = pytest.importorskip("monai.losses")
    logits, _mask = batch(mode, (5, 6, 7), ignored=0.0, dtype=torch.float32)
    soft = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))
    soft = soft / soft.sum(1, keepdim=True) if mode == "multiclass" else soft
    activation = {"softmax": True} if mode == "multiclass" else {"sigmoid": True}
    oracle = losses.DiceLoss(**activation, jaccard=name == "jaccard", squared_pred=power == 2, soft_label=True)
    options = {"name": name, "per": "image", "empty": "keep", "eps": eps, "power": power}
    agree(options, lambda z: oracle(z, soft), logits, soft, labels_of(mode))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_a_prediction_equal_to_its_soft_target_has_the_least_loss(name, power):
    loss = build_loss({"name": name, "power": power, "eps": 0.0}, labels_of("multilabel"))
    shares = torch.full((1, 3, 4, 4), 0.3, dtype=torch.float64)
    probabilities = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    values = torch.stack([loss(torch.logit(p).expand_as(shares), shares) for p in probabilities])
    assert values.argmin() == 29  # p = 0.3
    torch.testing.assert_close(values[29], torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    assert ((values >= -1e-12) & (values <= 1)).all()


@pytest.mark.usefixtures("quiet")
def test_multilabel_dice_equals_monai():
    losses = pytest.importorskip("monai.losses")
    logits, mask = batch("multilabel", (5, 6, 7), ignored=0.0, dtype=torch.float32)
    oracle = losses.DiceLoss(sigmoid=True)
    options = {"name": "dice", "per": "image", "empty": "keep"}
    agree(options, lambda z: oracle(z, mask), logits, mask, labels_of("multilabel"))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_focal_equals_monai_times_the_number_of_classes(gamma):
    losses = pytest.importorskip("monai.losses")
    logits, mask = hard_batch()
    oracle = losses.FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True)
    # MONAI averages over pixels times classes, although all but one class of a pixel contribute 0
    agree({"name": "focal", "gamma": gamma}, lambda z: 3 * oracle(z, mask.unsqueeze(1)), logits, mask)


@pytest.mark.parametrize("mode", MODES)
def test_sigmoid_focal_equals_torchvision(mode):
    ops = pytest.importorskip("torchvision.ops")
    logits, mask = batch(mode, (16, 17), ignored=0.0, dtype=torch.float32)
    onehot = torch.stack([mask == c for c in range(3)], 1) if mode == "multiclass" else mask.view_as(logits)
    oracle = lambda z: ops.sigmoid_focal_loss(z, onehot.float(), alpha=-1, gamma=2, reduction="mean")  # noqa: E731
    agree({"name": "focal", "activation": "sigmoid"}, oracle, logits, mask, labels_of(mode))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("absent", [None, 2])
def test_dice_jaccard_and_lovasz_equal_smp(absent):
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, mask = batch("multiclass", (16, 17), ignored=0.0, absent=absent, dtype=torch.float32)
    dice, jaccard = losses.DiceLoss("multiclass", smooth=0.5), losses.JaccardLoss("multiclass", smooth=0.5)
    # smp halves numerator and denominator of Dice before it adds its smooth
    agree({"name": "dice", "eps": 1.0, "empty": "zero"}, lambda z: dice(z, mask.long()), logits, mask)
    agree({"name": "jaccard", "eps": 0.5, "empty": "zero"}, lambda z: jaccard(z, mask.long()), logits, mask)
    lovasz = losses.LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)
    mask[:, 3:6] = IGNORE_INDEX
    # smp subtracts successive float32 values, which costs its gradient digits
    agree(
        {"name": "lovasz_softmax", "mode": "exact"},
        lambda z: lovasz(z, mask.long()),
        logits,
        mask,
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.usefixtures("quiet")
def test_lovasz_and_dice_equal_kornia():
    losses = pytest.importorskip("kornia.losses")
    logits, mask = batch("multiclass", (16, 17), ignored=0.0, absent=2)
    options = {"name": "lovasz_softmax", "mode": "exact", "per": "image", "classes": "all"}
    agree(options, lambda z: losses.lovasz_softmax_loss(z, mask.long()), logits, mask)
    options = {"name": "dice", "per": "image", "eps": [0.0, 1e-8]}
    agree(options, lambda z: losses.dice_loss(z, mask.long(), average="macro"), logits, mask)
