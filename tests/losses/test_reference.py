"""Value and gradient of every loss in every mode, in 2D and 3D, against plain differentiable formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from segkit.losses import LOSSES, build_loss

from support.loss_loops import loop
from support.loss_oracle import (
    IGNORE_INDEX,
    MODES,
    ON_HOST,
    SOFT,
    SPACES,
    SPATIAL,
    UNWEIGHTED,
    batch,
    cases,
    labels_of,
    spec_of,
    value_and_gradient,
)
from support.reference_losses import REFERENCES, reference, spatial_references

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def reference_value_and_gradient(options, logits, mask, labels, pixel_weight=None):
    return value_and_gradient(lambda z, m: reference(options, z, m, labels, pixel_weight), logits, mask)


def test_every_loss_has_a_reference():
    assert {*REFERENCES, *spatial_references()} == LOSSES.keys()


# the references of losses that depend on where pixels lie are compared with other libraries, in test_spatial.py
POINTWISE = [case for case in cases(*SPACES) if case.values[0]["name"] not in SPATIAL]


@pytest.mark.parametrize(("options", "mode", "space"), POINTWISE)
def test_the_references_equal_loops_over_pixels(options, mode, space):
    labels = labels_of(mode)
    logits, mask = batch(mode, space)
    assert_close(reference(options, logits, mask, labels).item(), loop(options, logits, mask, labels), **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (*UNWEIGHTED, *SPATIAL)])
def test_weighted_references_equal_loops_over_pixels(name, mode):
    labels = labels_of(mode)
    logits, mask = batch(mode, (3, 4))
    weight = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = loop(spec_of(name), logits, mask, labels, weight)
    assert_close(reference(spec_of(name), logits, mask, labels, weight).item(), expected, **TOLERANCE)


@pytest.mark.parametrize(("options", "mode", "space"), [*cases(*SPACES), *cases(*SPACES, variants=ON_HOST)])
def test_value_and_gradient_equal_the_reference(options, mode, space):
    labels = labels_of(mode)
    logits, mask = batch(mode, space)
    result = value_and_gradient(build_loss(options, labels), logits, mask)
    assert_close(result, reference_value_and_gradient(options, logits, mask, labels), **TOLERANCE)


@pytest.mark.parametrize(("options", "mode", "space"), cases(SPACES[0]))
def test_an_absent_class(options, mode, space):
    labels = labels_of(mode)
    logits, mask = batch(mode, space, absent=1)
    value, gradient = value_and_gradient(build_loss(options, labels), logits, mask)
    assert gradient.isfinite().all()
    assert_close((value, gradient), reference_value_and_gradient(options, logits, mask, labels), **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [*(spec_of(name) for name in LOSSES if name not in UNWEIGHTED), {"name": "dice", "power": 2, "per": "image"}],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_pixel_weights(options, mode):
    labels = labels_of(mode)
    logits, mask = batch(mode, (3, 4))
    weight = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, gradient = value_and_gradient(build_loss(options, labels), logits, mask, pixel_weight=weight)
    expected = reference_value_and_gradient(options, logits, mask, labels, weight)
    assert_close((value, gradient), expected, **TOLERANCE)
    ignored = mask == IGNORE_INDEX if mode != "multilabel" else (mask == IGNORE_INDEX).all(1)
    with_nan = torch.where(ignored, torch.nan, weight)  # at ignored pixels only
    again = value_and_gradient(build_loss(options, labels), logits, mask, pixel_weight=with_nan)
    assert_close(again, (value, gradient), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "mode", "space"), [case for case in cases((4, 5)) if case.values[0]["name"] in SOFT]
)
def test_soft_targets(options, mode, space):
    labels = labels_of(mode)
    logits, _ = batch(mode, space)
    soft = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    soft = soft / soft.sum(1, keepdim=True) if mode == "multiclass" else soft
    result = value_and_gradient(build_loss(options, labels), logits, soft)
    assert_close(result, reference_value_and_gradient(options, logits, soft, labels), **TOLERANCE)
