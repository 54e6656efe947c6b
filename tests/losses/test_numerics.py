"""Numerical edge cases: certain predictions, half precision, millions of pixels, and absent classes."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch.testing import assert_close

from segkit.labels import Labels
from segkit.losses import LOSSES, build_loss
from segkit.losses.lovasz_kernels import sorted_increments
from segkit.losses.pixel import FocalLog

from support.loss_oracle import MODES, MODES_OF, batch, labels_of, spec_of, value_and_gradient

# --- numerical edge cases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("mode", MODES)
def test_focal_gradients_are_finite_where_the_prediction_is_certain(mode, gamma):
    loss = build_loss({"name": "focal", "gamma": gamma}, labels_of(mode))
    for size in (5.0, 17.0, 90.0, 105.0, 1e4):  # until p is 1, 1 - p is denormal, and 1 - p is 0
        logits, mask = batch(mode, (4, 5), dtype=torch.float32)
        _, gradient = value_and_gradient(loss, size * logits.sign(), mask)
        assert gradient.isfinite().all()


def test_the_focal_factor_is_accurate_near_certainty():
    log_likelihood = torch.tensor([-1e-20, -1e-9, -1e-3, -0.0499, -0.0501, -2.0])
    expected = -log_likelihood.double() * (-torch.expm1(log_likelihood.double())) ** 0.5
    assert_close(
        FocalLog(0.5).value(log_likelihood), expected.float(), rtol=2e-6, atol=0
    )  # a relative error, however small the value


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "lovasz_softmax"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype, name):
    """The sum over eight million pixels is beyond the range of half precision."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 2, 1024, 1024, generator=rng).to(dtype)
    mask = torch.randint(2, (8, 1024, 1024), generator=rng, dtype=torch.uint8)
    loss = build_loss(name, Labels(["background", "a"]))

    def scaled(logits, mask):  # like a gradient scaler; the unscaled gradient of a pixel underflows in half precision
        return 2.0**20 * loss(logits, mask)

    value, gradient = value_and_gradient(scaled, logits, mask)
    expected, exact = value_and_gradient(scaled, logits.double(), mask)
    assert value.dtype == torch.float32
    assert_close(value, expected, check_dtype=False)
    assert gradient.dtype == dtype
    assert_close(gradient, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_logits(dtype):
    logits, mask = batch("multiclass", (32, 32), dtype=torch.float32)
    loss = build_loss([spec_of(name) for name in LOSSES if name not in MODES_OF], labels_of("multiclass"))
    value, gradient = value_and_gradient(loss, logits.to(dtype), mask)
    expected, exact = value_and_gradient(loss, logits.to(dtype).double(), mask)
    assert_close(value, expected, check_dtype=False)
    assert gradient.dtype == dtype
    assert_close(gradient, exact.to(dtype))


@pytest.mark.parametrize(("name", "mode"), [("lovasz_softmax", "multiclass"), ("lovasz_hinge", "multilabel")])
@pytest.mark.parametrize("per", ["batch", "image"])
def test_the_histogram_keeps_its_error_bound(name, mode, per):
    logits, mask = batch(mode, (96, 96))
    options = {"name": name, "per": per}
    value, gradient = value_and_gradient(build_loss({**options, "mode": "exact"}, labels_of(mode)), logits, mask)
    for bins in (64, 4096, 65536):
        binned, binned_gradient = value_and_gradient(
            build_loss({**options, "bins": bins}, labels_of(mode)), logits, mask
        )
        bound = 1 / (2 * bins) if name == "lovasz_softmax" else 8 / bins * value + 2**-8
        assert abs(binned - value) <= bound
    # the hinge puts errors below 2^-8 into one bin, although their order affects the gradient
    assert (binned_gradient - gradient).norm() < 5e-3 * gradient.norm()


def test_lovasz_gradients_keep_their_digits():
    rng = torch.Generator().manual_seed(0)
    errors = torch.randperm(500_000, generator=rng).view(1, -1) / 500_000  # without ties, whose order is arbitrary
    foreground = torch.rand(1, 500_000, generator=rng) < 0.01
    single = sorted_increments(errors, foreground, torch.ones_like(foreground))
    # the definition, in float64: differences of 1 - I / U along the falling errors
    order = errors[0].argsort(descending=True)
    hits = foreground[0, order].double().cumsum(0)
    union = foreground.sum() + torch.arange(1, 500_001) - hits
    curve = 1 - (foreground.sum() - hits) / union
    double = torch.zeros(500_000, dtype=torch.float64)
    double[order] = curve.diff(prepend=curve.new_zeros(1))
    # subtracting successive float32 values would give an error of half a percent here
    assert (single[0] - double).norm() / double.norm() < 1e-6


def test_a_class_that_is_absent_everywhere_with_eps_0():
    logits = torch.full((1, 1, 2, 2), -1e4, requires_grad=True)  # so that the probability is 0, too
    value = build_loss({"name": "dice", "eps": 0.0}, labels_of("binary"))(
        logits, torch.zeros(1, 2, 2, dtype=torch.uint8)
    )
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("spec", ["cross_entropy", {"name": "focal", "gamma": 0.0}, "topk_cross_entropy", "dice"])
def test_a_class_with_a_logit_of_minus_infinity_has_no_effect(spec):
    """The result is the same as without the class, if no pixel has it."""
    logits, mask = batch("multiclass", (4, 5), absent=2)
    excluded = logits.clone()
    excluded[:, 2] = -torch.inf
    value, gradient = value_and_gradient(build_loss(spec, labels_of("multiclass")), excluded, mask)
    two = Labels(["background", "a"], ignore_index=255)
    assert_close((value, gradient[:, :2]), value_and_gradient(build_loss(spec, two), logits[:, :2], mask))
    assert (gradient[:, 2] == 0).all()


MULTICLASS_THREE = Labels(["a", "b", "c"], ignore_index=255)
BINARY_TWO = Labels(["no", "yes"], mode="binary", ignore_index=255)


def test_masks_of_more_pixels_than_float32_counts_are_accepted():
    """16,974,593 pixels: class counts rounded to float32 would not add up to the number of pixels."""
    mask = torch.zeros(1, 257, 257, 257, dtype=torch.uint8)
    mask[0, 0, 0, :3] = torch.tensor([1, 2, 2])
    logits = torch.zeros(()).expand(1, 3, 257, 257, 257)
    assert build_loss("cross_entropy", MULTICLASS_THREE)(logits, mask).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("mode", ["histogram", "exact"])
@pytest.mark.parametrize(("name", "labels"), [("lovasz_softmax", MULTICLASS_THREE), ("lovasz_hinge", BINARY_TWO)])
def test_nan_logits_give_a_nan_loss(name, labels, mode):
    logits = torch.randn(1, labels.channels, 8, 8)
    logits[0, 0, 2, 3] = math.nan
    value = build_loss({"name": name, "mode": mode}, labels)(logits, torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert value.isnan()


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "dice_ce", "lovasz_softmax"])
def test_a_mask_that_is_modified_before_the_backward_raises(name):
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    mask = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8)
    value = build_loss(name, MULTICLASS_THREE)(logits, mask)
    mask[mask == 0] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "lovasz_softmax"])
def test_no_tensor_is_kept_alive_after_the_backward(name):
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    mask = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8)
    images = (logits * 1, mask.clone())
    references = [weakref.ref(image) for image in images]
    value = build_loss(name, MULTICLASS_THREE)(*images)
    value.backward()
    del images
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert value.isfinite()


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "poly_cross_entropy"])
@pytest.mark.parametrize("size", [8.0, 16.0, 30.0])
def test_gradients_of_confident_negatives_keep_their_digits(name, size):
    """1 - (1 - p) would lose all digits of a small p."""
    logits = -size * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).add(0.5)
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    loss = build_loss(name, BINARY_TWO)
    gradients = []
    for precision in (torch.float32, torch.float64):
        leaf = logits.to(precision).requires_grad_()
        gradients.append(torch.autograd.grad(loss(leaf, mask), leaf)[0].double())
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-5


@pytest.mark.parametrize("options", [{"name": "cross_entropy", "class_weights": [0.3, 1.7, 0.9]}, {"name": "focal"}])
def test_autocast_does_not_change_the_loss(options):
    options = options if options["name"] != "focal" else {**options, "alpha": [0.3, 0.7, 0.9]}
    logits = torch.randn(1, 3, 16, 16, requires_grad=True)
    mask = torch.randint(0, 3, (1, 16, 16), dtype=torch.uint8)
    loss = build_loss(options, MULTICLASS_THREE)
    plain = loss(logits, mask)
    (expected,) = torch.autograd.grad(plain, logits)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, mask)
        (gradient,) = torch.autograd.grad(value, logits)
    assert torch.equal(value, plain)
    assert torch.equal(gradient, expected)


def test_the_normaliser_accepts_integer_one_hot_masks():
    index = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    index[0, 0] = 255
    onehot = MULTICLASS_THREE.onehot(index).to(torch.uint8)
    loss, logits = build_loss("cross_entropy", MULTICLASS_THREE), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="spatial=3 or spatial=2"):
        loss.normaliser([onehot])
    value = loss(logits, onehot, normaliser=loss.normaliser([onehot], spatial=2))
    assert value == loss(logits, index, normaliser=loss.normaliser([index]))
    binary, mask = build_loss("cross_entropy", BINARY_TWO), torch.rand(2, 8, 8) < 0.5
    whole = binary(logits[:, :1], mask)
    assert binary(logits[:, :1], mask, normaliser=binary.normaliser([mask])) == pytest.approx(whole.item())


def test_weights_follow_the_schedule_after_load_state_dict():
    loss, other = (build_loss("ce_then_lovasz", MULTICLASS_THREE) for _ in range(2))
    loss.set_progress(1.0)
    other.load_state_dict(loss.state_dict())
    fresh = build_loss("ce_then_lovasz", MULTICLASS_THREE)
    other.set_progress(0.0)
    assert torch.equal(other.weights, fresh.weights)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice"])
def test_class_weights_have_the_precision_of_the_logits(name):
    weights = [0.3, 0.7, 1.1]
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=rng, dtype=torch.float64)
    mask = torch.randint(3, (2, 8, 8), generator=rng)
    options = {} if name == "dice" else {"normalize": "valid"}
    value = build_loss({"name": name, "class_weights": weights, **options}, MULTICLASS_THREE)(logits, mask)
    p, onehot = logits.softmax(1), torch.nn.functional.one_hot(mask, 3).movedim(-1, 1).double()
    truth, w = (p * onehot).sum(1), torch.tensor(weights, dtype=torch.float64)
    overlap, size = (p * onehot).sum((0, 2, 3)), (p + onehot).sum((0, 2, 3))
    expected = {
        "cross_entropy": (-truth.log() * w[mask]).mean(),
        "focal": (-((1 - truth) ** 2) * truth.log() * w[mask]).mean(),
        "dice": (w * (1 - (2 * overlap + 1e-5) / (size + 1e-5))).sum() / w.sum(),
    }
    assert_close(value, expected[name], rtol=1e-13, atol=0)


def test_a_loss_can_be_pickled_and_copied():
    loss = build_loss("ce_then_lovasz", MULTICLASS_THREE)
    logits, mask = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        other.set_progress(1.0)
        loss.set_progress(1.0)
        assert torch.equal(other(logits, mask), loss(logits, mask))


@pytest.mark.parametrize(
    ("share", "rounding", "pixels", "expected"),
    [(0.1, "up", 30, 3), (0.1, "up", 31, 4), (0.1, "down", 39, 3), (0.29, "down", 100, 29), (0.1, "down", 1, 1)],
)
def test_the_number_of_pixels_in_a_share(share, rounding, pixels, expected):
    loss = build_loss({"name": "topk_cross_entropy", "share": share, "rounding": rounding}, MULTICLASS_THREE)
    logits = torch.randn(1, 3, pixels, 1, dtype=torch.float64)
    mask = torch.randint(3, (1, pixels, 1))
    losses = torch.nn.functional.cross_entropy(logits, mask, reduction="none").flatten()
    assert_close(loss(logits, mask), losses.topk(expected).values.mean())


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MODES_OF])
def test_the_value_has_the_dtype_of_the_arithmetic(name):
    loss = build_loss(spec_of(name), labels_of("multiclass"))
    mask = torch.randint(3, (2, 8, 8))
    for dtype, expected in ((torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        assert loss(torch.randn(2, 3, 8, 8).to(dtype), mask).dtype == expected


def test_a_device_without_float64_gets_the_buffers_in_float32():
    """Simulated by a function that raises for float64, as MPS does."""
    loss = build_loss(
        [{"name": "focal", "class_weights": [0.3, 1, 2]}, {"name": "dice", "weight": 0.7}], MULTICLASS_THREE
    )

    def move(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("cannot convert to float64")
        return tensor.clone()

    loss._apply(move)
    assert {buffer.dtype for buffer in loss.buffers()} == {torch.float32}
    assert loss(torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))).isfinite()
