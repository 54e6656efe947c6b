"""`reduction="none"`: the loss of each case, for every loss that of a batch of the case alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from segkit.losses import LOSSES, build_loss

from support.loss_oracle import IGNORE_INDEX, MODES, MODES_OF, batch, labels_of, spec_of


@pytest.mark.parametrize("name", LOSSES)
def test_each_entry_is_the_loss_of_the_case_alone(name):
    mode = MODES_OF.get(name, MODES)[0]
    labels = labels_of(mode)
    logits, mask = batch(mode, (6, 7), seed=4)
    valid = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(3)) < 0.8
    loss = build_loss(spec_of(name), labels, reduction="none")
    leaf = logits.clone().requires_grad_()
    values = loss(leaf, mask, valid=valid)
    assert values.shape == (2,)
    (gradient,) = torch.autograd.grad(values @ torch.tensor([1.0, 3.0], dtype=values.dtype), leaf)
    for case, factor in ((0, 1.0), (1, 3.0)):
        alone = logits[[case]].requires_grad_()
        expected = build_loss(spec_of(name), labels)(alone, mask[[case]], valid=valid[[case]])
        assert_close(values[case], expected)
        assert_close(gradient[[case]], factor * torch.autograd.grad(expected, alone)[0])


def test_terms_weights_and_schedules_of_each_case():
    spec = [{"name": "dice", "weight": {"name": "linear", "start": 0, "end": 2}}, "cross_entropy"]
    loss = build_loss(spec, labels_of("multiclass"), reduction="none")
    logits, mask = batch("multiclass", (6, 7))
    weight = torch.rand(2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    terms = loss.terms(logits, mask, weight)
    assert {name: values.shape for name, values in terms.items()} == {"dice": (2,), "cross_entropy": (2,)}
    loss.set_progress(0.25)
    assert_close(loss(logits, mask.numpy(), weight), 0.5 * terms["dice"] + terms["cross_entropy"])


def test_the_mean_over_cases_equals_the_batch_only_for_means_over_cases():
    """With the same number of valid pixels, and `per: image`."""
    logits, mask = batch("multiclass", (6, 7), ignored=0.0)
    for options in ({"name": "cross_entropy"}, {"name": "dice", "per": "image"}):
        each = build_loss(options, labels_of("multiclass"), reduction="none")(logits, mask)
        assert_close(each.mean(), build_loss(options, labels_of("multiclass"))(logits, mask))
    each = build_loss("dice", labels_of("multiclass"), reduction="none")(logits, mask)
    assert (each.mean() - build_loss("dice", labels_of("multiclass"))(logits, mask)).abs() > 1e-3


def test_a_case_that_is_all_ignored_has_loss_0_and_gradient_0():
    logits, mask = batch("multiclass", (6, 7))
    mask[1], logits[1] = IGNORE_INDEX, math.nan
    leaf = logits.requires_grad_()
    values = build_loss("dice_ce", labels_of("multiclass"), reduction="none")(leaf, mask)
    values.sum().backward()
    assert values[0] > 0
    assert values[1] == 0
    assert (leaf.grad[1] == 0).all()


def test_combinations_that_make_no_sense():
    labels = labels_of("multiclass")
    logits, mask = batch("multiclass", (6, 7))
    with pytest.raises(ValueError, match=r"reduction none .*leave group out"):
        build_loss("dice", labels, group=object(), reduction="none")
    with pytest.raises(ValueError, match="expected reduction as 'batch' or 'none', got 'mean'"):
        build_loss("dice", labels, reduction="mean")
    normaliser = build_loss("cross_entropy", labels).normaliser([mask])
    each = build_loss("cross_entropy", labels, reduction="none")
    with pytest.raises(ValueError, match=r"normaliser .*leave the normaliser out"):
        each(logits, mask, normaliser=normaliser)
    with pytest.raises(ValueError, match=r"of the same cases, got \[1, 2\]"):
        build_loss("dice", labels, reduction="none")(logits, mask[:1])
    with pytest.raises(ValueError, match=r"options among per.* got 'reduction'"):
        build_loss({"name": "dice", "reduction": "none"}, labels)
