"""Logits up to the largest number of each type, options beyond all reason, and more pixels than 32 bits count."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.labels import Labels, Target
from segkit.losses import build_loss, chunking, lovasz_kernels
from segkit.losses.lovasz_kernels import EvenBins, histogram_losses

from support.extreme_losses import Try, problem
from support.loss_oracle import DEFAULTS, batch, labels_of, spec_of, value_and_gradient

LARGEST = torch.finfo(torch.float32).max
TWO = Labels(["background", "a"])
BINARY = Labels(["background", "a"], mode="binary")


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e30),
        (torch.float32, LARGEST),
        (torch.bfloat16, 3.38e38),
        (torch.float16, 65504.0),
        (torch.float64, 8e307),
    ],
)
@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_value_and_gradient_at_extreme_logits(name, mode, dtype, size):
    """Compared with plain formulas in float64."""
    logits, mask = batch(mode, (3, 4), dtype=torch.float64)
    logits = (size * logits.sign()).to(dtype)
    assert problem(Try(spec_of(name), labels_of(mode), logits, mask)) is None


@pytest.mark.parametrize(
    ("size", "expected"), [(1e4, 1e4), (1e10, 1e10), (1e30, 2.0**64), (LARGEST, 2.0**64), (math.inf, 2.0**64)]
)
def test_the_loss_of_a_pixel_is_bounded_but_not_its_gradient(size, expected):
    logits = torch.tensor([[[0.0], [-size]]]).expand(1, 2, 1000)
    mask = torch.ones(1, 1000, dtype=torch.uint8)
    value, gradient = value_and_gradient(build_loss("cross_entropy", TWO), logits, mask)
    assert value == pytest.approx(expected, rel=1e-6)
    assert_close(gradient[0].sum(1), torch.tensor([1.0, -1.0]))
    value, gradient = value_and_gradient(build_loss("cross_entropy", BINARY), logits[:, 1:], mask)
    assert value == pytest.approx(expected, rel=1e-6)
    assert gradient.sum() == pytest.approx(-1)


@pytest.mark.parametrize("mode", ["histogram", "exact"])
def test_an_extreme_logit_leaves_the_hinge_of_the_other_pixels(mode):
    loss = build_loss({"name": "lovasz_hinge", "mode": mode}, BINARY)
    logits = torch.tensor([[[LARGEST, -LARGEST, 0.5, -0.5]]])
    value, gradient = value_and_gradient(loss, logits, torch.tensor([[1, 0, 1, 0]], dtype=torch.uint8))
    # the errors are 0, 0, 0.5, 0.5: the Jaccard loss goes from 0 over 1/2 or 1/3 to 2/3
    assert value == pytest.approx(0.5 * 2 / 3, rel=1e-3)
    assert gradient.isfinite().all()
    assert (gradient[0, 0, :2] == 0).all()


@pytest.mark.parametrize("size", [88.0, 95.0, 100.0, 103.0])
@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky"])
def test_probabilities_below_the_normal_numbers_of_an_absent_class(name, size):
    """With eps 0 the slope of their ratio is infinite, but the loss does not depend on it."""
    loss = build_loss({"name": name, "eps": 0.0, "empty": "zero"}, BINARY)
    value, gradient = value_and_gradient(loss, torch.full((1, 1, 2), -size), torch.zeros(1, 2, dtype=torch.uint8))
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_infinite_logits_are_certain_or_give_nan(name, mode):
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, (3, 4), dtype=torch.float32)
    value, gradient = value_and_gradient(loss, torch.where(logits > 1, -math.inf, logits), mask)
    assert value.isfinite()
    assert gradient.isfinite().all()
    value, gradient = value_and_gradient(loss, torch.where(logits > 1, math.inf, logits), mask)
    is_softmax = mode == "multiclass"
    assert (bool(value.isfinite()) and bool(gradient.isfinite().all())) != is_softmax
    value, gradient = value_and_gradient(loss, torch.where(logits > 1, math.nan, logits), mask)
    assert value.isnan() or gradient.isnan().any()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "dice", "eps": 1e300}, r"eps as one number from 0 to 1e\+12.* got 1e\+300"),
        ({"name": "dice", "weight": 1e300}, "loss dice: expected weight .*at most"),
        ({"name": "dice", "weight": {"name": "linear", "end": 1e13}}, "at most .* got end 1"),
        ({"name": "cross_entropy", "class_weights": [1.0, 1e13]}, r"at most 1e\+12 and not all 0, got"),
        ({"name": "tversky", "beta": 1e300}, "alpha, beta from 0 to"),
        ({"name": "focal_tversky", "gamma": 1e300}, "gamma above 0 and at most"),
        ({"name": "focal", "gamma": math.inf}, "gamma of 0 or more, at most"),
        ({"name": "poly_cross_entropy", "epsilon": 1e300}, "epsilon of -1 or more, at most"),
        ({"name": "lovasz_softmax", "bins": 10**9}, "bins of 16 or more, at most 16777216, got 1000000000"),
    ],
)
def test_options_beyond_all_reason(spec, message):
    with pytest.raises(ValueError, match=message):
        build_loss(spec, TWO)


def test_chunks_have_no_more_pixels_than_float32_counts():
    """On a GPU, where chunks are largest; the counts of a chunk are sums in float32."""
    for channels, mode in ((1, "binary"), (2, "multiclass"), (3, "multiclass")):
        labels = BINARY if mode == "binary" else Labels([str(number) for number in range(channels)])
        logits = torch.empty(1, channels, 2**13, 2**13, device="meta")
        target = Target(index=torch.empty(1, 2**13, 2**13, device="meta", dtype=torch.uint8))
        cut = chunking.Batch(logits, target, labels, chunking.activation_of(labels)).chunk_slices()
        assert max(chunk.pixels.stop - chunk.pixels.start for chunk in cut) <= 2**24


def test_histograms_of_more_pixels_than_32_bits_count():
    counts = [[2**31 + 5, 7, 2**20 + 1], [3, 2**31 - 9, 11]]  # background and foreground, errors increasing
    centres = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    value, increments = histogram_losses(torch.tensor(counts), centres)
    reference, hits, background, previous, expected = sum(counts[1]), 0, 0, Fraction(0), Fraction(0)
    for number in reversed(range(3)):
        background, hits = background + counts[0][number], hits + counts[1][number]
        jaccard = 1 - Fraction(reference - hits, reference + background)
        expected, previous = expected + Fraction(number + 1, 4) * (jaccard - previous), jaccard
    assert value.item() == pytest.approx(float(expected), rel=1e-14)
    assert increments.isfinite().all()


def test_many_classes_are_counted_in_little_memory(monkeypatch):
    """The tables of errors are evaluated a few classes at a time, with the same result."""
    labels = Labels([f"class {number}" for number in range(40)])
    rng = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(2, 40, 8, 9, generator=rng), torch.randint(40, (2, 8, 9), generator=rng)
    loss = build_loss({"name": "lovasz_softmax", "bins": 64, "per": "image"}, labels)
    whole = value_and_gradient(loss, logits, mask)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.cumsum.default:
                sizes.append(result.numel())
            return result

    monkeypatch.setattr(lovasz_kernels, "MAX_BINS", 2 * 3 * 2 * 64)  # three classes of two images
    with Sizes():
        assert_close(value_and_gradient(loss, logits, mask), whole, rtol=0, atol=0)
    assert max(sizes) == 2 * 3 * 64
    assert EvenBins(64).number == 64
