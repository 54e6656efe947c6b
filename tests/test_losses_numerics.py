"""Losses where numbers are hard: certainty, half precision, millions of pixels, nothing at all."""

from __future__ import annotations

import pytest
import torch
from loss_oracle import MODES, MODES_OF, batch, labels_of, value_and_gradient
from torch.testing import assert_close

from segkit.losses import LOSSES, build_loss
from segkit.losses.lovasz_methods import sorted_increments
from segkit.losses.pixel import FocalLog

# --- numbers that are hard ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("mode", MODES)
def test_focal_gradients_are_finite_where_the_prediction_is_certain(mode, gamma):
    loss = build_loss({"name": "focal", "gamma": gamma}, labels_of(mode))
    for size in (5.0, 17.0, 90.0, 105.0, 1e4):  # up to where p is 1, 1 - p is denormal, and 1 - p is 0
        logits, mask = batch(mode, (4, 5), dtype=torch.float32)
        _, gradient = value_and_gradient(loss, size * logits.sign(), mask)
        assert gradient.isfinite().all()


def test_the_focal_factor_is_accurate_near_certainty():
    log_likelihood = torch.tensor([-1e-20, -1e-9, -1e-3, -2.0])
    expected = -log_likelihood.double() * (-torch.expm1(log_likelihood.double())) ** 0.5
    assert_close(FocalLog(0.5).value(log_likelihood), expected.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 512, 512, generator=rng).to(dtype)
    mask = torch.randint(3, (2, 512, 512), generator=rng, dtype=torch.uint8)
    loss = build_loss([name for name in LOSSES if name not in MODES_OF], labels_of("multiclass"))
    terms = loss.terms(logits, mask)
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert_close(terms, loss.terms(logits.double(), mask), check_dtype=False)


def test_lovasz_gradients_keep_their_digits():
    rng = torch.Generator().manual_seed(0)
    errors = torch.randperm(500_000, generator=rng).view(1, -1) / 500_000  # no ties, whose order is free
    foreground = torch.rand(1, 500_000, generator=rng) < 0.01
    single = sorted_increments(errors, foreground, torch.ones_like(foreground))
    # the definition, in float64: differences of 1 - I / U along the falling errors
    order = errors[0].argsort(descending=True)
    hits = foreground[0, order].double().cumsum(0)
    union = foreground.sum() + torch.arange(1, 500_001) - hits
    curve = 1 - (foreground.sum() - hits) / union
    double = torch.zeros(500_000, dtype=torch.float64)
    double[order] = curve.diff(prepend=curve.new_zeros(1))
    # differencing the curve in float32 is off by half a percent here
    assert (single[0] - double).norm() / double.norm() < 1e-6


def test_a_class_that_is_nowhere_with_eps_0():
    logits = torch.full((1, 1, 2, 2), -1e4, requires_grad=True)  # so that the probability is 0 as well
    value = build_loss({"name": "dice", "eps": 0.0}, labels_of("binary"))(
        logits, torch.zeros(1, 2, 2, dtype=torch.uint8)
    )
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()
