"""One battery over every loss in every mode, in 2D and 3D, against loops over pixels and against other libraries."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.labels import Labels
from segkit.losses import LOSSES, RECIPES, WeightedSum, build_loss
from segkit.losses.lovasz import lovasz_losses
from segkit.losses.pixel import focal_factor
from segkit.losses.weights import class_weights

VOID = 255
MODES = ("multiclass", "binary", "multilabel")
SPACES = ((3, 5), (2, 3, 2))

# every member of LOSSES with its defaults, and the options that change the arithmetic, with the modes they fit
VARIANTS = [
    *[({"name": name}, MODES) for name in LOSSES],
    (
        {"name": "cross_entropy", "class_weights": [0.5, 2.0, 1.25], "normalize": "weights"},
        ("multiclass", "multilabel"),
    ),
    ({"name": "cross_entropy", "class_weights": [0.5, 2.0], "normalize": "valid"}, ("binary",)),
    ({"name": "cross_entropy", "class_weights": [0.5, 2.0, 1.25], "normalize": "numel"}, ("multiclass", "multilabel")),
    ({"name": "cross_entropy", "normalize": "valid"}, MODES),
    ({"name": "focal", "gamma": 0.5, "class_weights": [0.5, 2.0, 1.25]}, ("multiclass", "multilabel")),
    ({"name": "focal", "gamma": 1.5, "class_weights": [0.5, 2.0]}, ("binary",)),
    ({"name": "focal", "link": "sigmoid", "class_weights": [0.5, 2.0, 1.25]}, ("multiclass",)),
    ({"name": "dice", "per": "image", "power": 2, "eps": [0.0, 0.5], "empty": "keep"}, MODES),
    ({"name": "dice", "empty": "zero", "class_weights": [0.5, 2.0, 1.25]}, ("multiclass", "multilabel")),
    ({"name": "dice", "background": False, "per": "image", "eps": 0.0}, ("multiclass",)),
    ({"name": "jaccard", "per": "image", "eps": [1.0, 0.5], "empty": "keep"}, MODES),
    ({"name": "jaccard", "power": 2, "empty": "zero"}, MODES),
    ({"name": "lovasz_softmax", "per": "image"}, MODES),
    ({"name": "lovasz_softmax", "classes": "all"}, MODES),
    ({"name": "lovasz_softmax", "per": "image", "classes": ["a", 2]}, ("multiclass", "multilabel")),
]


def cases(*spaces):
    return [
        pytest.param(options, mode, space, id=f"{'-'.join(str(v) for v in options.values())}-{mode}-{len(space)}d")
        for options, modes in VARIANTS
        for mode in modes
        for space in spaces
    ]


DEFAULTS = [pytest.param(name, mode, id=f"{name}-{mode}") for name in LOSSES for mode in MODES]
SOFT = ("cross_entropy", "dice", "jaccard")  # the losses that take soft targets


def labels_of(mode):
    names = ["background", "a"] if mode == "binary" else ["background", "a", "b"]
    return Labels(names, mode=mode, ignore_index=VOID)


def batch(mode, space, seed=0, ignored=0.3, absent=None, dtype=torch.float64):
    """Logits and a mask with ignored pixels; `absent` is a class that no pixel shows."""
    rng = torch.Generator().manual_seed(seed)
    labels = labels_of(mode)
    logits = 2 * torch.randn(2, labels.channels, *space, generator=rng, dtype=dtype)
    shape = (2, labels.channels, *space) if mode == "multilabel" else (2, *space)
    mask = torch.randint(len(labels.names) if mode == "multiclass" else 2, shape, generator=rng, dtype=torch.uint8)
    if absent is not None and mode == "multilabel":
        mask[:, absent] = 0
    elif absent is not None:
        mask[mask == absent] = 0
    mask[torch.rand(shape, generator=rng) < ignored] = VOID
    return logits, mask


def value_and_gradient(loss, logits, mask, **kwargs):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, mask, **kwargs)
    assert value.shape == ()
    return value.detach(), torch.autograd.grad(value, logits)[0]


# --- the oracle: loops over pixels in float64, written from the definitions --------------------------------------


def softmax(z):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def shares_and_valid(mask, labels):
    """Masks as shares [B, K, N] and validity [B, K, N], from class numbers or from channels of 0, 1 and VOID."""
    mask = mask.numpy().reshape(2, -1, math.prod(mask.shape[-(mask.ndim - 2) :]) if labels.mode == "multilabel" else 1)
    if labels.mode != "multilabel":
        mask = mask.reshape(2, 1, -1)
        first = 1 if labels.mode == "binary" else 0
        classes = np.arange(first, first + labels.channels).reshape(1, -1, 1)
        return (mask == classes).astype(float), np.repeat(mask != VOID, labels.channels, axis=1)
    return (mask == 1).astype(float), mask != VOID


def loop_pixel(z, g, valid, labels, weight, gamma=0.0, link=None, class_weights=None, normalize="weights"):
    class_weights = class_weights or [1.0] * len(labels.names)
    total, counts = 0.0, {"weights": 0.0, "valid": 0, "numel": 0}
    exclusive = labels.mode == "multiclass" and link != "sigmoid"
    p = softmax(z) if exclusive else 1 / (1 + np.exp(-z))
    for b in range(z.shape[0]):
        for i in range(z.shape[2]):
            for k in [0] if exclusive else range(z.shape[1]):
                counts["numel"] += 1
                if not valid[b, k, i]:
                    continue
                if exclusive:
                    c = int(np.argmax(g[b, :, i]))
                    truth, w = p[b, c, i], class_weights[c]
                else:
                    truth = p[b, k, i] if g[b, k, i] else 1 - p[b, k, i]
                    w = class_weights[int(g[b, k, i]) if labels.mode == "binary" else k]
                w *= weight[b, i]
                total -= w * (1 - truth) ** gamma * math.log(truth)
                counts["weights"] += w
                counts["valid"] += 1
    return total / counts[normalize]


def loop_mean(losses, counted, class_weights):
    """losses, counted: [groups][classes]; the mean over the counted classes, then over the groups with any."""
    groups = []
    for row, keep in zip(losses, counted, strict=True):
        weights = [w * k for w, k in zip(class_weights, keep, strict=True)]
        if sum(weights) > 0:
            groups.append(sum(x * w for x, w in zip(row, weights, strict=True) if w) / sum(weights))
    return sum(groups) / len(groups) if groups else 0.0


def loop_region(
    z, g, valid, labels, weight, jaccard, per="batch", power=1, eps=1e-5, empty="present", background=True,
    class_weights=None,
):  # fmt: skip
    eps_n, eps_d = eps if isinstance(eps, list) else (eps, eps)
    p = softmax(z) if labels.mode == "multiclass" else 1 / (1 + np.exp(-z))
    channels = z.shape[1]
    class_weights = list(class_weights or [1.0] * channels)
    if not background:
        class_weights[0] = 0.0
    losses, counted = [], []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        row, keep = [], []
        for k in range(channels):
            tp = predicted = reference = 0.0
            for b in images:
                for i in range(z.shape[2]):
                    if valid[b, k, i]:
                        tp += weight[b, i] * min(p[b, k, i], g[b, k, i])
                        predicted += weight[b, i] * p[b, k, i] ** power
                        reference += weight[b, i] * g[b, k, i] ** power
            if jaccard:
                loss = 1 - (tp + eps_n) / (predicted + reference - tp + eps_d)
            else:
                loss = 1 - (2 * tp + eps_n) / (predicted + reference + eps_d)
            row.append(0.0 if empty == "zero" and reference == 0 else loss)
            keep.append(reference > 0 or empty != "present")
        losses.append(row)
        counted.append(keep)
    return loop_mean(losses, counted, class_weights)


def loop_lovasz(z, g, valid, labels, _weight, per="batch", classes="present"):
    """sum_i (m_i - m_{i+1}) * J(the i largest errors), with J as a loss over sets of wrong pixels."""
    p = softmax(z) if labels.mode == "multiclass" else 1 / (1 + np.exp(-z))
    names = list(labels.channel_names)
    channels = range(z.shape[1])
    if isinstance(classes, list):
        channels = [names.index(c) if isinstance(c, str) else c for c in classes]
    losses, counted = [], []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        row, keep = [], []
        for k in channels:
            pixels = [(b, i) for b in images for i in range(z.shape[2]) if valid[b, k, i]]
            pixels.sort(key=lambda at: -abs(g[at[0], k, at[1]] - p[at[0], k, at[1]]))
            truth = {at for at in pixels if g[at[0], k, at[1]]}
            errors = [abs(g[b, k, i] - p[b, k, i]) for b, i in pixels] + [0.0]
            row.append(sum(
                (errors[n - 1] - errors[n]) * n / len(truth.union(pixels[:n])) for n in range(1, len(pixels) + 1)
            ))  # fmt: skip
            keep.append(bool(truth) if classes == "present" else bool(pixels))
        losses.append(row)
        counted.append(keep)
    return loop_mean(losses, counted, [1.0] * len(list(channels)))


def loop(options, logits, mask, labels, pixel_weight=None):
    """The loss that `options` describe, as a float."""
    options = dict(options)
    name = options.pop("name")
    g, valid = shares_and_valid(mask, labels)
    z = logits.numpy().reshape(2, labels.channels, -1)
    weight = np.ones((2, z.shape[2])) if pixel_weight is None else pixel_weight.numpy().reshape(2, -1)
    if name in ("dice", "jaccard"):
        return loop_region(z, g, valid, labels, weight, name == "jaccard", **options)
    if name == "lovasz_softmax":
        return loop_lovasz(z, g, valid, labels, weight, **options)
    return loop_pixel(z, g, valid, labels, weight, **{"gamma": 2.0 if name == "focal" else 0.0, **options})


def loop_gradient(options, logits, mask, labels, pixel_weight=None, step=1e-5):
    """Central differences of the loop."""
    gradient = torch.zeros_like(logits)
    for at in range(logits.numel()):
        sides = []
        for sign in (1, -1):
            moved = logits.clone()
            moved.view(-1)[at] += sign * step
            sides.append(loop(options, moved, mask, labels, pixel_weight))
        gradient.view(-1)[at] = (sides[0] - sides[1]) / (2 * step)
    return gradient


# --- the battery ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "mode", "space"), cases(*SPACES))
def test_value_and_gradient_are_those_of_the_loop(options, mode, space):
    labels = labels_of(mode)
    logits, mask = batch(mode, space)
    value, gradient = value_and_gradient(build_loss(options, labels), logits, mask)
    assert_close(value.item(), loop(options, logits, mask, labels))
    # central differences with step 1e-5 are good for nine digits or so
    assert_close(gradient, loop_gradient(options, logits, mask, labels), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("options", "mode", "space"), cases(SPACES[0]))
def test_an_absent_class(options, mode, space):
    labels = labels_of(mode)
    logits, mask = batch(mode, space, absent=1)
    value, gradient = value_and_gradient(build_loss(options, labels), logits, mask)
    assert_close(value.item(), loop(options, logits, mask, labels))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [*({"name": name} for name in LOSSES if name != "lovasz_softmax"), {"name": "dice", "power": 2, "per": "image"}],
    ids=lambda options: "-".join(str(v) for v in options.values()),
)
def test_pixel_weights_count_pixels_as_often_as_they_say(options, mode):
    labels = labels_of(mode)
    logits, mask = batch(mode, (3, 4))
    weight = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, gradient = value_and_gradient(build_loss(options, labels), logits, mask, pixel_weight=weight)
    assert_close(value.item(), loop(options, logits, mask, labels, weight))
    assert_close(gradient, loop_gradient(options, logits, mask, labels, weight), rtol=1e-5, atol=1e-8)
    ignored = mask == VOID if mode != "multilabel" else (mask == VOID).all(1)
    harmless = torch.where(ignored, torch.nan, weight)
    again = value_and_gradient(build_loss(options, labels), logits, mask, pixel_weight=harmless)
    assert_close(again, (value, gradient), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_all_orders_of_pixels_and_images_are_alike(name, mode):
    loss = build_loss(name, labels_of(mode))
    logits, mask = batch(mode, (4, 5))
    value, gradient = value_and_gradient(loss, logits, mask)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = [x.flatten(-2)[..., order].unflatten(-1, (4, 5)).flip(0) for x in (logits, mask, gradient)]
    assert_close(value_and_gradient(loss, shuffled[0], shuffled[1]), (value, shuffled[2]))


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_ignored_logits_change_neither_value_nor_gradient(name, mode, worst):
    loss = build_loss(name, labels_of(mode))
    logits, mask = batch(mode, (4, 5), dtype=torch.float32)
    ignored = (mask if mode == "multilabel" else mask.unsqueeze(1).expand_as(logits)) == VOID
    value, gradient = value_and_gradient(loss, logits, mask)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()
    poisoned = value_and_gradient(loss, torch.where(ignored, worst, logits), mask)
    assert_close(poisoned, (value, gradient), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_ignoring_pixels_is_cropping_them_away(name, mode):
    loss = build_loss(name, labels_of(mode))
    logits, mask = batch(mode, (4, 6), ignored=0.0)
    mask[..., 4:] = VOID
    value, gradient = value_and_gradient(loss, logits, mask)
    cropped = value_and_gradient(loss, logits[..., :4], mask[..., :4])
    assert_close((value, gradient[..., :4]), cropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("options", "mode", "space"), cases(SPACES[0]))
def test_all_ignored_is_zero_with_gradient_zero(options, mode, space, dtype):
    logits, mask = batch(mode, space, dtype=torch.float32)
    logits = torch.full_like(logits, torch.nan, dtype=dtype)
    value, gradient = value_and_gradient(build_loss(options, labels_of(mode)), logits, torch.full_like(mask, VOID))
    assert value == 0
    assert (gradient == 0).all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize(("options", "mode"), [(o, m) for o, modes in VARIANTS if "per" in o for m in modes])
def test_an_image_that_is_all_ignored_does_not_count(options, mode):
    loss = build_loss(options, labels_of(mode))
    logits, mask = batch(mode, (4, 5))
    mask[1] = VOID
    value, gradient = value_and_gradient(loss, logits, mask)
    assert_close((value, gradient[:1]), value_and_gradient(loss, logits[:1], mask[:1]))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_every_integer_mask_is_the_same(name, mode, dtype):
    loss = build_loss(name, labels_of(mode))
    logits, mask = batch(mode, (4, 5))
    expected = value_and_gradient(loss, logits, mask)
    assert_close(value_and_gradient(loss, logits, mask.to(dtype)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["multiclass", "binary"])
@pytest.mark.parametrize("name", LOSSES)
def test_class_numbers_and_onehot_masks_are_the_same(name, mode):
    loss, labels = build_loss(name, labels_of(mode)), labels_of(mode)
    logits, mask = batch(mode, (4, 5), ignored=0.3 if mode == "multiclass" else 0.0)
    expected = value_and_gradient(loss, logits, mask)
    onehot = torch.stack([mask == c for c in range(3)], 1) if mode == "multiclass" else mask.unsqueeze(1) == 1
    forms = [onehot, onehot.to(torch.uint8)] + [onehot.double(), onehot.float()] * (name in SOFT)
    for form in forms:
        assert_close(value_and_gradient(loss, logits, form), expected)
    assert labels.target(onehot, spatial=2).index is None or mode == "binary"  # so that two paths were compared


@pytest.mark.parametrize("name", LOSSES)
def test_a_onehot_column_with_void_in_it_is_ignored(name):
    loss = build_loss(name, labels_of("multiclass"))
    logits, mask = batch("multiclass", (4, 5), ignored=0.0)
    onehot = torch.stack([mask == c for c in range(3)], 1).to(torch.uint8)
    onehot[:, 0, :2] = VOID  # the other channels there go on saying 1 or 0
    mask[:, :2] = VOID
    assert_close(value_and_gradient(loss, logits, onehot), value_and_gradient(loss, logits, mask))


@pytest.mark.parametrize("name", SOFT)
def test_multilabel_soft_masks_of_0_and_1_are_the_hard_ones(name):
    loss = build_loss(name, labels_of("multilabel"))
    logits, mask = batch("multilabel", (4, 5), ignored=0.0)
    expected = value_and_gradient(loss, logits, mask)
    assert_close(value_and_gradient(loss, logits, mask.double()), expected)


@pytest.mark.parametrize("mode", MODES)
def test_soft_targets(mode):
    labels = labels_of(mode)
    logits, _ = batch(mode, (4, 5))
    probabilities = logits.softmax(1) if mode == "multiclass" else logits.sigmoid()
    soft = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    soft = soft / soft.sum(1, keepdim=True) if mode == "multiclass" else soft
    terms = build_loss(["cross_entropy", {"name": "dice", "power": 2, "eps": 0.0}, "jaccard"], labels).terms(
        logits, soft
    )
    if mode == "multiclass":
        cross_entropy = F.cross_entropy(logits, soft)
    else:
        cross_entropy = F.binary_cross_entropy_with_logits(logits, soft)
    assert_close(terms["cross_entropy"], cross_entropy)
    tp = torch.minimum(probabilities, soft).sum((0, 2, 3))
    squares = (probabilities.square() + soft.square()).sum((0, 2, 3))
    assert_close(terms["dice"], (1 - 2 * tp / squares).mean())
    union = torch.maximum(probabilities, soft).sum((0, 2, 3))
    assert_close(terms["jaccard"], (1 - (tp + 1e-5) / (union + 1e-5)).mean())
    assert build_loss("jaccard", labels)(logits, probabilities) < 1e-12  # least where the prediction is the target


def test_binary_soft_targets_with_class_weights():
    logits, _ = batch("binary", (4, 5))
    soft = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = build_loss({"name": "cross_entropy", "class_weights": [0.5, 4.0]}, labels_of("binary"))
    two = build_loss({"name": "cross_entropy", "class_weights": [0.5, 4.0]}, Labels(["n", "p"]))
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    assert_close(loss(logits, soft), two(both, torch.cat([1 - soft, soft], 1)))


@pytest.mark.parametrize(("options", "mode", "space"), cases(SPACES[0]))
def test_gradcheck(options, mode, space):
    loss = build_loss(options, labels_of(mode))
    logits, mask = batch(mode, space, seed=1)
    assert torch.autograd.gradcheck(lambda z: loss(z, mask), logits.requires_grad_())


@pytest.mark.parametrize("space", SPACES, ids=["2d", "3d"])
@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_channels_last(name, mode, space):
    loss = build_loss(name, labels_of(mode))
    logits, mask = batch(mode, space)
    last = logits.to(memory_format=torch.channels_last if len(space) == 2 else torch.channels_last_3d)
    assert_close(value_and_gradient(loss, last, mask), value_and_gradient(loss, logits, mask), check_stride=False)


@pytest.mark.parametrize(("options", "mode", "space"), cases(*SPACES))
def test_meta_device(options, mode, space):
    logits, mask = batch(mode, space, dtype=torch.float32)
    loss = build_loss(options, labels_of(mode)).to("meta")
    logits = logits.to("meta").requires_grad_()
    loss(logits, mask.to("meta")).backward()
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape


class NoSynchronisation(TorchDispatchMode):
    """Raise where a GPU would have to wait for the host to read a value."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "repeat_interleave.Tensor")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        if name in self.forbidden or name.split(".")[0] in self.forbidden[:-1]:
            raise AssertionError(f"{name} reads a value back")
        if name.startswith(("index.", "index_put")) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise AssertionError("indexing with a boolean reads its count back")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("options", "mode", "space"), cases(*SPACES))
def test_nothing_is_read_back(options, mode, space):
    loss = build_loss(options, labels_of(mode))
    logits, mask = batch(mode, space)
    with NoSynchronisation():
        loss(logits.requires_grad_(), mask).backward()


def test_the_mode_that_forbids_reading_back_works():
    values = torch.ones(3)
    for read in (
        lambda: values[0].item(),
        lambda: values[values > 0],
        lambda: values.nonzero(),
        lambda: bool(values.all()),
    ):
        with NoSynchronisation(), pytest.raises(AssertionError, match="back"):
            read()


@pytest.mark.compile
@pytest.mark.parametrize("mode", MODES)
def test_all_terms_compile_to_one_graph_for_every_shape(mode):
    loss = build_loss([*LOSSES, {"name": "dice", "per": "image", "power": 2}], labels_of(mode))
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for seed, space in enumerate([(4, 5), (6, 3), (5, 9), (8, 7), (3, 10)]):
        logits, mask = batch(mode, space, seed=seed)
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            values = value_and_gradient(compiled, logits, mask)
        assert_close(values, value_and_gradient(loss, logits, mask))


# --- identities ------------------------------------------------------------------------------------------------


def test_jaccard_is_dice_over_two_minus_dice_class_by_class():
    for only in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]):
        spec = [{"name": name, "eps": 0.0, "class_weights": only} for name in ("dice", "jaccard")]
        logits, mask = batch("multiclass", (4, 5))
        terms = build_loss(spec, labels_of("multiclass")).terms(logits, mask)
        overlap = 1 - terms["dice"]
        assert_close(1 - terms["jaccard"], overlap / (2 - overlap))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_softmax_over_two_classes_is_the_sigmoid_of_the_difference(name):
    logits, mask = batch("multiclass", (4, 5), absent=2)
    options = {"name": name, "class_weights": [0.5, 2.0]}
    softmax = build_loss(options, Labels(["background", "a"], ignore_index=VOID))(logits[:, :2], mask)
    sigmoid = build_loss(options, labels_of("binary"))(logits[:, 1:2] - logits[:, :1], mask)
    assert_close(softmax, sigmoid)


def test_lovasz_over_two_classes_is_the_sigmoid_of_the_difference():
    logits, mask = batch("multiclass", (4, 5), absent=2)
    options = {"name": "lovasz_softmax", "classes": ["a"]}
    softmax = build_loss(options, Labels(["background", "a"], ignore_index=VOID))(logits[:, :2], mask)
    sigmoid = build_loss("lovasz_softmax", labels_of("binary"))(logits[:, 1:2] - logits[:, :1], mask)
    assert_close(softmax, sigmoid)


@pytest.mark.parametrize("mode", MODES)
def test_focal_with_gamma_0_is_the_cross_entropy(mode):
    weights = [0.5, 2.0, 1.25][: len(labels_of(mode).names)]
    logits, mask = batch(mode, (4, 5))
    focal = build_loss({"name": "focal", "gamma": 0, "class_weights": weights}, labels_of(mode))
    cross_entropy = build_loss({"name": "cross_entropy", "class_weights": weights}, labels_of(mode))
    expected = value_and_gradient(cross_entropy, logits, mask)
    assert_close(value_and_gradient(focal, logits, mask), expected, rtol=0, atol=0)


def test_regions_are_the_masks_that_they_stand_for():
    regions = Labels(["whole", "core"], "multilabel", VOID, regions={"whole": [1, 2], "core": [2]})
    masks = Labels(["whole", "core"], "multilabel", VOID)
    logits, mask = batch("multiclass", (4, 5))
    logits, expanded = logits[:, :2], torch.stack([(mask > 0).to(torch.uint8), (mask == 2).to(torch.uint8)], 1)
    expanded[(mask == VOID).unsqueeze(1).expand_as(expanded)] = VOID
    spec = [*LOSSES, {"name": "cross_entropy", "normalize": "valid"}]
    assert_close(build_loss(spec, regions).terms(logits, mask), build_loss(spec, masks).terms(logits, expanded))


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
    expected = (-torch.expm1(log_likelihood.double())) ** 0.5
    assert_close(focal_factor(log_likelihood, 0.5), expected.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 512, 512, generator=rng).to(dtype)
    mask = torch.randint(3, (2, 512, 512), generator=rng, dtype=torch.uint8)
    loss = build_loss(list(LOSSES), labels_of("multiclass"))
    terms = loss.terms(logits, mask)
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert_close(terms, loss.terms(logits.double(), mask), check_dtype=False)


def test_lovasz_gradients_keep_their_digits():
    rng = torch.Generator().manual_seed(0)
    errors = torch.randperm(500_000, generator=rng).view(1, -1) / 500_000  # no ties, whose order is free
    foreground = torch.rand(1, 500_000, generator=rng) < 0.01
    _, single = value_and_gradient(lambda e, g: lovasz_losses(e, g).sum(), errors, foreground)
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


# --- the sum of terms -------------------------------------------------------------------------------------------


def test_terms_are_named_and_unweighted_and_the_call_weighs_them():
    spec = [{"name": "dice", "weight": 0.25}, {"name": "cross_entropy", "weight": 3}, {"name": "dice", "per": "image"}]
    loss = build_loss(spec, labels_of("multiclass"))
    logits, mask = batch("multiclass", (4, 5))
    terms = loss.terms(logits, mask)
    assert list(terms) == ["dice", "cross_entropy", "dice_2"]
    for name, term in zip(terms, spec, strict=True):
        assert_close(terms[name], build_loss({**term, "weight": 1}, labels_of("multiclass"))(logits, mask))
    assert_close(loss(logits, mask), 0.25 * terms["dice"] + 3 * terms["cross_entropy"] + terms["dice_2"])
    assert list(loss.state_dict()) == ["weights"]
    loss.weights[1] = 0
    assert_close(loss(logits, mask), 0.25 * terms["dice"] + terms["dice_2"])


def test_terms_share_their_passes():
    class Counting(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls.append(func.name())
            return func(*args, **(kwargs or {}))

    spec = ["cross_entropy", "focal", "dice", "jaccard", {"name": "dice", "per": "image"}, {"name": "dice", "power": 2}]
    loss = build_loss(spec, labels_of("multiclass"))
    with Counting() as counting:
        loss(*batch("multiclass", (4, 5)))
    assert counting.calls.count("aten::_log_softmax") == 1
    assert counting.calls.count("aten::_softmax") == 2  # power 1 and power 2


def test_a_mapping_a_name_and_a_list_are_the_same_loss():
    logits, mask = batch("multiclass", (4, 5))
    values = [build_loss(spec, labels_of("multiclass"))(logits, mask) for spec in ("dice", {"name": "dice"}, ["dice"])]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_the_sum_of_its_terms(name):
    census = [[9, 5, 1], [8, 4, 0]]
    before = copy.deepcopy(RECIPES[name])
    logits, mask = batch("multiclass", (4, 5))
    loss = build_loss(name, labels_of("multiclass"), census=census)
    parts = [build_loss(term, labels_of("multiclass"), census)(logits, mask) for term in RECIPES[name]]
    assert isinstance(loss, WeightedSum)
    assert_close(loss(logits, mask), torch.stack(parts).sum())
    assert RECIPES[name] == before


# --- class weights from a census -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda rows: np.array(rows, dtype=np.int32)])
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("inverse", [120 / (3 * 80), 120 / (3 * 30), 120 / (3 * 10)]),
        ("sqrt_inverse", [0.5**0.5, (4 / 3) ** 0.5, 2.0]),
        # shares: 80 of 120, 30 of 120, and 10 of the 60 pixels of the only case that has the third
        ("median_frequency", [0.25 / (80 / 120), 1.0, 0.25 / (10 / 60)]),
        ("enet", [1 / math.log(1.02 + 80 / 120), 1 / math.log(1.02 + 0.25), 1 / math.log(1.02 + 10 / 120)]),
    ],
)
def test_class_weights_follow_from_a_census(method, expected, form):
    census = form([[50, 10, 0], [30, 20, 10]])
    assert_close(class_weights(method, census), torch.tensor(expected, dtype=torch.float64))
    logits, mask = batch("multiclass", (4, 5))
    by_name = build_loss({"name": "cross_entropy", "class_weights": method}, labels_of("multiclass"), census)
    by_list = build_loss({"name": "cross_entropy", "class_weights": expected}, labels_of("multiclass"))
    assert_close(by_name(logits, mask), by_list(logits, mask))


def test_the_median_over_an_even_number_of_classes_is_the_middle_of_two():
    assert_close(
        class_weights("median_frequency", [[60, 40]]), torch.tensor([0.5 / 0.6, 0.5 / 0.4], dtype=torch.float64)
    )


# --- other libraries -------------------------------------------------------------------------------------------


def hard_batch():
    """Exclusive classes in float32 without ignored pixels, every class in every image."""
    return batch("multiclass", (16, 17), ignored=0.0, dtype=torch.float32)


@pytest.fixture
def quiet():
    """MONAI warns about its own defaults, and other libraries on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def agree(options, oracle, logits, mask, labels=None, **tolerance):
    """Value and gradient of the loss and of `oracle`, a function of the logits."""
    ours = value_and_gradient(build_loss(options, labels or labels_of("multiclass")), logits, mask)
    theirs = value_and_gradient(lambda z, _: oracle(z), logits, mask)
    assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.25]])
def test_cross_entropy_is_torchs(weights):
    logits, mask = batch("multiclass", (16, 17), dtype=torch.float32)
    weight = None if weights is None else torch.tensor(weights)
    options = {"name": "cross_entropy", "class_weights": weights}
    agree(options, lambda z: F.cross_entropy(z, mask.long(), weight=weight, ignore_index=VOID), logits, mask)
    onehot = F.one_hot(mask.long().clamp(max=2), 3).movedim(-1, 1).float() * (mask != VOID).unsqueeze(1)
    # torch divides by the number of all pixels where targets are probabilities
    agree({**options, "normalize": "numel"}, lambda z: F.cross_entropy(z, onehot, weight=weight), logits, mask)


def test_binary_and_multilabel_cross_entropy_are_torchs():
    for mode in ("binary", "multilabel"):
        logits, mask = batch(mode, (16, 17), ignored=0.0, dtype=torch.float32)
        onehot = mask.view_as(logits).float()
        oracle = lambda z, onehot=onehot: F.binary_cross_entropy_with_logits(z, onehot)  # noqa: E731
        agree("cross_entropy", oracle, logits, mask, labels_of(mode))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("ours", "theirs"),
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
def test_dice_and_jaccard_are_monais(ours, theirs):
    losses = pytest.importorskip("monai.losses")
    logits, mask = hard_batch()
    oracle = losses.DiceLoss(softmax=True, to_onehot_y=True, **theirs)
    options = {"name": "dice", "per": "image", "empty": "keep", **ours}
    agree(options, lambda z: oracle(z, mask.unsqueeze(1)), logits, mask)


@pytest.mark.usefixtures("quiet")
def test_multilabel_dice_is_monais():
    losses = pytest.importorskip("monai.losses")
    logits, mask = batch("multilabel", (5, 6, 7), ignored=0.0, dtype=torch.float32)
    oracle = losses.DiceLoss(sigmoid=True)
    options = {"name": "dice", "per": "image", "empty": "keep"}
    agree(options, lambda z: oracle(z, mask), logits, mask, labels_of("multilabel"))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_focal_is_monais_times_the_classes(gamma):
    losses = pytest.importorskip("monai.losses")
    logits, mask = hard_batch()
    oracle = losses.FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True)
    # MONAI's mean runs over pixels times classes, though all but one class of a pixel add nothing
    agree({"name": "focal", "gamma": gamma}, lambda z: 3 * oracle(z, mask.unsqueeze(1)), logits, mask)


@pytest.mark.parametrize("mode", MODES)
def test_sigmoid_focal_is_torchvisions(mode):
    ops = pytest.importorskip("torchvision.ops")
    logits, mask = batch(mode, (16, 17), ignored=0.0, dtype=torch.float32)
    onehot = torch.stack([mask == c for c in range(3)], 1) if mode == "multiclass" else mask.view_as(logits)
    oracle = lambda z: ops.sigmoid_focal_loss(z, onehot.float(), alpha=-1, gamma=2, reduction="mean")  # noqa: E731
    agree({"name": "focal", "link": "sigmoid"}, oracle, logits, mask, labels_of(mode))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("absent", [None, 2])
def test_dice_jaccard_and_lovasz_are_smps(absent):
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, mask = batch("multiclass", (16, 17), ignored=0.0, absent=absent, dtype=torch.float32)
    dice, jaccard = losses.DiceLoss("multiclass", smooth=0.5), losses.JaccardLoss("multiclass", smooth=0.5)
    # smp adds its smooth to numerator and denominator of Dice after halving both
    agree({"name": "dice", "eps": 1.0, "empty": "zero"}, lambda z: dice(z, mask.long()), logits, mask)
    agree({"name": "jaccard", "eps": 0.5, "empty": "zero"}, lambda z: jaccard(z, mask.long()), logits, mask)
    lovasz = losses.LovaszLoss("multiclass", ignore_index=VOID)
    mask[:, 3:6] = VOID
    # smp differences a float32 curve, which costs its gradient digits
    agree("lovasz_softmax", lambda z: lovasz(z, mask.long()), logits, mask, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("quiet")
def test_lovasz_and_dice_are_kornias():
    losses = pytest.importorskip("kornia.losses")
    logits, mask = batch("multiclass", (16, 17), ignored=0.0, absent=2)
    options = {"name": "lovasz_softmax", "per": "image", "classes": "all"}
    agree(options, lambda z: losses.lovasz_softmax_loss(z, mask.long()), logits, mask)
    options = {"name": "dice", "per": "image", "eps": [0.0, 1e-8]}
    agree(options, lambda z: losses.dice_loss(z, mask.long(), average="macro"), logits, mask)


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "mode", "message"),
    [
        ("dise", "multiclass", r"among cross_entropy.*dice_ce.*got 'dise'; did you mean dice\?"),
        ("weighted_crossentropy", "multiclass", "did you mean weighted_cross_entropy"),
        ({"name": "dize"}, "multiclass", "got 'dize'; did you mean dice"),
        ({"weight": 1.0}, "multiclass", "expected a loss name among .* got None"),
        ({"name": "dice_ce", "weight": 2}, "multiclass", "dice_ce is a recipe"),
        ([], "multiclass", r"a list of these, got \[\]"),
        (3, "multiclass", "expected a loss as a name, a mapping .* got 3"),
        ({"name": "dice", "pre": "image"}, "multiclass", "loss dice, mode multiclass: .* got 'pre'; did you mean per"),
        ({"name": "dice", "labels": None}, "multiclass", "expected options among per, power.* got 'labels'"),
        ({"name": "dice", "per": "imge"}, "binary", "mode binary: expected per as 'batch' or 'image', got 'imge'; did"),
        ({"name": "dice", "power": 3}, "multiclass", "expected power as 1 or 2, got 3"),
        ({"name": "dice", "power": True}, "multiclass", "expected power as 1 or 2, got True"),
        ({"name": "dice", "background": "yes"}, "multiclass", "expected background as true or false, got 'yes'"),
        ({"name": "dice", "eps": "small"}, "multiclass", "expected eps as a number or a list of a number, got 'small'"),
        ({"name": "dice", "eps": -1.0}, "multiclass", "loss dice, mode multiclass: expected eps .* got -1.0"),
        ({"name": "dice", "eps": [1.0, 1.0, 1.0]}, "multiclass", r"\[numerator, denominator\], got \[1.0, 1.0, 1.0\]"),
        ({"name": "jaccard", "empty": "keep", "eps": 0}, "multiclass", "jaccard.* keep divides 0 by 0"),
        ({"name": "dice", "background": False}, "binary", "mode binary: background: false .* there is none"),
        ({"name": "dice", "background": False}, "multilabel", "channels are background, a, b"),
        ({"name": "dice", "background": False, "class_weights": [1, 0, 0]}, "multiclass", "all other classes are 0"),
        ({"name": "dice", "class_weights": [1.0, 2.0]}, "binary", "only 'a' has a channel"),
        ({"name": "dice", "weight": -1}, "multiclass", "loss dice: expected weight as a number of 0 or more, got -1"),
        ({"name": "dice", "weight": "1"}, "multiclass", "got '1'"),
        ({"name": "dice", "weight": math.nan}, "multiclass", "got nan"),
        ({"name": "cross_entropy", "normalize": "mean"}, "multiclass", "'weights' or 'valid' or 'numel', got 'mean'"),
        ({"name": "cross_entropy", "class_weights": [1.0, 2.0]}, "multiclass", "3 class_weights, for background, a, b"),
        ({"name": "cross_entropy", "class_weights": [1.0]}, "binary", "2 class_weights, for background, a, got 1"),
        ({"name": "cross_entropy", "class_weights": [1.0, -1.0]}, "binary", "of 0 or more"),
        ({"name": "cross_entropy", "class_weights": [0.0, 0.0]}, "binary", "not all 0"),
        ({"name": "cross_entropy", "class_weights": "median"}, "binary", "did you mean median_frequency"),
        ({"name": "cross_entropy", "class_weights": "inverse"}, "multiclass", "pass census=.*or give the weights"),
        ("weighted_cross_entropy", "multiclass", "cross_entropy, mode multiclass: class_weights 'median_freq"),
        ({"name": "focal", "gamma": -0.5}, "multiclass", "gamma of 0 or more, got -0.5"),
        ({"name": "focal", "link": "softmax"}, "binary", "focal, mode binary: .* over two classes it is the sigmoid"),
        ({"name": "focal", "link": "softmax"}, "multilabel", "classes exclude each other"),
        ({"name": "lovasz_softmax", "classes": ["c"]}, "multiclass", "lovasz_softmax, mode multiclass: .* among back"),
        ({"name": "lovasz_softmax", "classes": [3]}, "multiclass", r"\(or 0 to 2\), got \[3\]"),
        ({"name": "lovasz_softmax", "classes": ["a", 1]}, "multiclass", "different classes"),
        ({"name": "lovasz_softmax", "classes": []}, "multiclass", "present, all, or a list"),
        ({"name": "lovasz_softmax", "classes": "presnt"}, "multiclass", "did you mean present"),
        ({"name": "lovasz_softmax", "classes": ["background"]}, "binary", r"among a \(or 1 to 1\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(spec, mode, message):
    with pytest.raises(ValueError, match=message):
        build_loss(spec, labels_of(mode))


@pytest.mark.parametrize(
    ("census", "message"),
    [
        ([[5, 3, 0], [1, 2, 0]], "no training case contains b"),
        ([[5, 3], [1, 2]], r"census \[cases, 3\] .* got \[2, 2\]"),
        ([5, 3, 1], r"census \[cases, 3\] .* got \[3\]"),
        ([[5, 3, -1]], "none of them negative"),
    ],
)
def test_what_no_weights_follow_from(census, message):
    with pytest.raises(ValueError, match=message):
        build_loss({"name": "dice", "class_weights": "inverse"}, labels_of("multiclass"), census)


def test_an_unknown_method():
    with pytest.raises(ValueError, match="inverse, sqrt_inverse, median_frequency, enet, got 'invers'"):
        class_weights("invers", [[1, 1]])


@pytest.mark.parametrize("name", ["focal", "lovasz_softmax"])
def test_soft_targets_are_refused_where_they_mean_nothing(name):
    loss = build_loss(name, labels_of("multiclass"))
    with pytest.raises(ValueError, match=f"{name} is defined for hard targets"):
        loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 1 / 3))


def test_lovasz_refuses_pixel_weights():
    loss = build_loss("lovasz_softmax", labels_of("multiclass"))
    mask = torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="lovasz_softmax counts pixels"):
        loss(torch.zeros(1, 3, 2, 2), mask, pixel_weight=torch.ones(1, 2, 2))


@pytest.mark.parametrize(
    ("logits", "mask", "weight", "message"),
    [
        ((1, 2, 4, 4), (1, 4, 4), None, r"floating logits \[B, 3, \*S\], .* background, a, b, got \[1, 2, 4, 4\]"),
        ((3, 4), (3, 4), None, r"got \[3, 4\]"),
        ((1, 3, 4, 4), (1, 4, 5), None, r"expected a mask to fit logits \[1, 3, 4, 4\], .* got \[1, 4, 5\]"),
        ((2, 3, 4, 4), (1, 4, 4), None, r"expected a mask to fit .* got \[1, 4, 4\]"),
        ((1, 3, 4, 4), (1, 2, 4, 4), None, r"expected a mask .* got \[1, 2, 4, 4\]"),
        ((1, 3, 4, 4), (1, 4, 4), (1, 1, 4, 4), r"expected a pixel_weight to fit .* got \[1, 1, 4, 4\]"),
    ],
)
def test_shapes_that_do_not_fit(logits, mask, weight, message):
    loss = build_loss("dice", labels_of("multiclass"))
    with pytest.raises(ValueError, match=message):
        loss(
            torch.zeros(logits),
            torch.zeros(mask, dtype=torch.uint8),
            None if weight is None else torch.ones(weight),
        )


def test_logits_must_be_floating():
    with pytest.raises(ValueError, match=r"expected floating logits .* torch\.int64"):
        build_loss("dice", labels_of("binary"))(torch.zeros(1, 1, 2, 2).long(), torch.zeros(1, 2, 2).long())
