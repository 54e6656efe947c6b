"""Properties that every loss has in every mode, identities between losses, and the sum of terms."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.labels import Labels
from segkit.losses import LOSSES, RECIPES, WeightedSum, build_loss, chunking
from segkit.losses.deep_supervision import DeepSupervision
from segkit.losses.gradient_diagnostics import term_gradients

from support.loss_oracle import (
    DEFAULTS,
    EXACT,
    IGNORE_INDEX,
    MODES,
    MODES_OF,
    SOFT,
    SPACES,
    SPATIAL,
    VARIANTS,
    batch,
    cases,
    labels_of,
    maps_of,
    spec_of,
    value_and_gradient,
)
from support.synchronisation import NoWaiting

# --- properties of every loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_the_order_of_pixels_and_images_has_no_effect(name, mode):
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, (4, 5))
    value, gradient = value_and_gradient(loss, logits, mask)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    order = order if name not in SPATIAL else torch.arange(20).view(4, 5).flip(0, 1).flatten()
    shuffled = [x.flatten(-2)[..., order].unflatten(-1, (4, 5)).flip(0) for x in (logits, mask, gradient)]
    assert_close(value_and_gradient(loss, shuffled[0], shuffled[1]), (value, shuffled[2]))


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_logits_at_ignored_pixels_change_neither_value_nor_gradient(name, mode, worst):
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, (4, 5), dtype=torch.float32)
    ignored = (mask if mode == "multilabel" else mask.unsqueeze(1).expand_as(logits)) == IGNORE_INDEX
    value, gradient = value_and_gradient(loss, logits, mask)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()
    poisoned = value_and_gradient(loss, torch.where(ignored, worst, logits), mask)
    assert_close(poisoned, (value, gradient), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_ignoring_pixels_equals_cropping_them_away(name, mode):
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, (4, 6), ignored=0.0)
    mask[..., 4:] = IGNORE_INDEX
    value, gradient = value_and_gradient(loss, logits, mask)
    cropped = value_and_gradient(loss, logits[..., :4], mask[..., :4])
    assert_close((value, gradient[..., :4]), cropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("options", "mode", "space"), cases(SPACES[0]))
def test_all_ignored_is_zero_with_gradient_zero(options, mode, space, dtype):
    logits, mask = batch(mode, space, dtype=torch.float32)
    logits = torch.full_like(logits, torch.nan, dtype=dtype)
    value, gradient = value_and_gradient(
        build_loss(options, labels_of(mode)), logits, torch.full_like(mask, IGNORE_INDEX)
    )
    assert value == 0
    assert (gradient == 0).all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize(("options", "mode"), [(o, m) for o, modes in VARIANTS if "per" in o for m in modes])
def test_an_image_that_is_all_ignored_does_not_count(options, mode):
    loss = build_loss(options, labels_of(mode))
    logits, mask = batch(mode, (4, 5))
    mask[1] = IGNORE_INDEX
    value, gradient = value_and_gradient(loss, logits, mask)
    assert_close((value, gradient[:1]), value_and_gradient(loss, logits[:1], mask[:1]))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_every_integer_dtype_gives_the_same_result(name, mode, dtype):
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, (4, 5))
    expected = value_and_gradient(loss, logits, mask)
    assert_close(value_and_gradient(loss, logits, mask.to(dtype)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "mode"), [(n, m) for n in LOSSES for m in MODES_OF.get(n, MODES) if m != "multilabel"]
)
def test_class_numbers_and_onehot_masks_give_the_same_result(name, mode):
    loss, labels = build_loss(spec_of(name), labels_of(mode)), labels_of(mode)
    logits, mask = batch(mode, (4, 5), ignored=0.3 if mode == "multiclass" else 0.0)
    expected = value_and_gradient(loss, logits, mask)
    onehot = torch.stack([mask == c for c in range(3)], 1) if mode == "multiclass" else mask.unsqueeze(1) == 1
    forms = [onehot, onehot.to(torch.uint8)] + [onehot.double(), onehot.float()] * (name in SOFT)
    for form in forms:
        assert_close(value_and_gradient(loss, logits, form), expected)
    assert labels.target(onehot, spatial=2).index is None or mode == "binary"  # so two code paths were compared


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MODES_OF])
def test_a_onehot_pixel_with_the_ignore_value_is_ignored(name):
    loss = build_loss(spec_of(name), labels_of("multiclass"))
    logits, mask = batch("multiclass", (4, 5), ignored=0.0)
    onehot = torch.stack([mask == c for c in range(3)], 1).to(torch.uint8)
    onehot[:, 0, :2] = IGNORE_INDEX  # the other channels remain 1 or 0
    mask[:, :2] = IGNORE_INDEX
    assert_close(value_and_gradient(loss, logits, onehot), value_and_gradient(loss, logits, mask))


@pytest.mark.parametrize("name", SOFT)
def test_multilabel_soft_masks_of_0_and_1_equal_hard_masks(name):
    loss = build_loss(spec_of(name), labels_of("multilabel"))
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
    product = (probabilities * soft).sum((0, 2, 3))
    squares = (probabilities.square() + soft.square()).sum((0, 2, 3))
    assert_close(terms["dice"], (1 - 2 * product / squares).mean())
    union = torch.maximum(probabilities, soft).sum((0, 2, 3))
    assert_close(terms["jaccard"], (1 - (tp + 1e-5) / (union + 1e-5)).mean())
    assert (
        build_loss("jaccard", labels)(logits, probabilities) < 1e-12
    )  # minimal where the prediction equals the target


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
    assert torch.autograd.gradcheck(lambda z: loss(z, mask), logits.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("options", "mode"), [(options, mode) for options, modes in VARIANTS for mode in modes])
def test_chunks_do_not_change_the_result(options, mode, layout, monkeypatch):
    loss = build_loss(options, labels_of(mode))
    logits, mask = batch(mode, (11, 17))  # 187 pixels: chunks of 64, 64 and 59
    whole = value_and_gradient(loss, logits, mask)
    monkeypatch.setattr(chunking, "ELEMENTS", {"cpu": 64})
    assert len(list(chunking.chunk_slices(logits))) == 6
    assert_close(value_and_gradient(loss, logits.to(memory_format=layout), mask), whole, check_stride=False)


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_any_layout_and_a_second_backward(name, mode):
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, (6, 7))
    transposed = logits.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()  # columns first in memory
    value = loss(transposed, mask)
    (first,) = torch.autograd.grad(value, transposed, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(value, transposed)
    assert_close((value.detach(), first), value_and_gradient(loss, logits, mask), check_stride=False)
    assert_close(second, first)


@pytest.mark.parametrize("space", SPACES, ids=["2d", "3d"])
@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_channels_last(name, mode, space):
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, space)
    last = logits.to(memory_format=torch.channels_last if len(space) == 2 else torch.channels_last_3d)
    assert_close(value_and_gradient(loss, last, mask), value_and_gradient(loss, logits, mask), check_stride=False)


@pytest.mark.parametrize(("options", "mode", "space"), cases(*SPACES))
def test_meta_device(options, mode, space):
    logits, mask = batch(mode, space, dtype=torch.float32)
    loss = build_loss(options, labels_of(mode))
    maps = {name: values.to("meta") for name, values in maps_of(loss, mask, len(space)).get("maps", {}).items()}
    logits = logits.to("meta").requires_grad_()
    loss.to("meta")(logits, mask.to("meta"), maps=maps).backward()
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize(("options", "mode", "space"), cases(*SPACES))
def test_no_host_synchronisation(options, mode, space):
    loss = build_loss(options, labels_of(mode))
    logits, mask = batch(mode, space)
    given = maps_of(loss, mask, len(space))
    with NoWaiting():
        loss(logits.requires_grad_(), mask, **given).backward()


# tracing the backward pass as well takes three quarters of the time, and differs little between modes
BACKENDS = [
    ("multiclass", "eager"),
    ("binary", "eager"),
    ("multilabel", "eager"),
    pytest.param("multiclass", "aot_eager", marks=pytest.mark.slow),
    pytest.param("binary", "aot_eager", marks=pytest.mark.slow),
    pytest.param("multilabel", "aot_eager", marks=pytest.mark.slow),
]


@pytest.mark.compile
@pytest.mark.parametrize(("mode", "backend"), BACKENDS)
def test_all_terms_compile_to_one_graph_for_every_shape(mode, backend):
    once = (  # nearly the code of another loss, and compiling takes seconds
        *("ohem_cross_entropy", "dice_semimetric", "jaccard_metric", "log_cosh_dice", "exponential_log"),
        *("unified_focal", "surface", "hausdorff", "skeleton_recall", "margin_label_smoothing"),
    )
    names = [
        spec_of(name)
        for name in LOSSES
        if mode in MODES_OF.get(name, MODES) and (mode == "multiclass" or name not in once)
    ]
    exact = [{**spec, **EXACT[spec["name"]]} for spec in names if spec["name"] in EXACT]
    loss = build_loss([*names, *exact, {"name": "dice", "per": "image", "power": 2}], labels_of(mode))
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for seed, space in enumerate([(4, 5), (6, 3), (5, 9), (8, 7), (3, 10)]):
        logits, mask = batch(mode, space, seed=seed)
        ignored = mask == IGNORE_INDEX
        logits = logits.masked_fill(ignored if ignored.ndim == logits.ndim else ignored.unsqueeze(1), math.nan)
        given = maps_of(loss, mask, 2)
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            values = value_and_gradient(compiled, logits, mask, **given)
        assert_close(values, value_and_gradient(loss, logits, mask, **given))
    logits, mask = batch(mode, (7, 6))
    logits = 1.7e308 * logits.sign()  # so that differences overflow
    given = maps_of(loss, mask, 2)
    with torch.compiler.set_stance("fail_on_recompile"):
        value, gradient = value_and_gradient(compiled, logits, mask, **given)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert_close((value, gradient), value_and_gradient(loss, logits, mask))


# --- identities ------------------------------------------------------------------------------------------------


def test_jaccard_is_dice_over_two_minus_dice_class_by_class():
    for only in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]):
        spec = [{"name": name, "eps": 0.0, "class_weights": only} for name in ("dice", "jaccard")]
        logits, mask = batch("multiclass", (4, 5))
        terms = build_loss(spec, labels_of("multiclass")).terms(logits, mask)
        overlap = 1 - terms["dice"]
        assert_close(1 - terms["jaccard"], overlap / (2 - overlap))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_softmax_over_two_classes_equals_the_sigmoid_of_the_difference(name):
    logits, mask = batch("multiclass", (4, 5), absent=2)
    options = {"name": name, "class_weights": [0.5, 2.0]}
    softmax = build_loss(options, Labels(["background", "a"], ignore_index=IGNORE_INDEX))(logits[:, :2], mask)
    sigmoid = build_loss(options, labels_of("binary"))(logits[:, 1:2] - logits[:, :1], mask)
    assert_close(softmax, sigmoid)


def test_lovasz_over_two_classes_equals_the_sigmoid_of_the_difference():
    logits, mask = batch("multiclass", (4, 5), absent=2)
    options = {"name": "lovasz_softmax", "classes": ["a"]}
    softmax = build_loss(options, Labels(["background", "a"], ignore_index=IGNORE_INDEX))(logits[:, :2], mask)
    sigmoid = build_loss("lovasz_softmax", labels_of("binary"))(logits[:, 1:2] - logits[:, :1], mask)
    assert_close(softmax, sigmoid)


@pytest.mark.parametrize("mode", MODES)
def test_focal_with_gamma_0_is_the_cross_entropy(mode):
    weights = [0.5, 2.0, 1.25][: len(labels_of(mode).names)]
    logits, mask = batch(mode, (4, 5))
    focal = build_loss({"name": "focal", "gamma": 0, "class_weights": weights}, labels_of(mode))
    cross_entropy = build_loss({"name": "cross_entropy", "class_weights": weights}, labels_of(mode))
    expected = value_and_gradient(cross_entropy, logits, mask)
    assert_close(value_and_gradient(focal, logits, mask), expected)


def test_regions_equal_their_expanded_masks():
    regions = Labels(["whole", "core"], "multilabel", IGNORE_INDEX, regions={"whole": [1, 2], "core": [2]})
    masks = Labels(["whole", "core"], "multilabel", IGNORE_INDEX)
    logits, mask = batch("multiclass", (4, 5))
    logits, expanded = logits[:, :2], torch.stack([(mask > 0).to(torch.uint8), (mask == 2).to(torch.uint8)], 1)
    expanded[(mask == IGNORE_INDEX).unsqueeze(1).expand_as(expanded)] = IGNORE_INDEX
    spec = [*map(spec_of, LOSSES), {"name": "cross_entropy", "normalize": "valid"}]
    assert_close(build_loss(spec, regions).terms(logits, mask), build_loss(spec, masks).terms(logits, expanded))


# --- the sum of terms -------------------------------------------------------------------------------------------


def test_terms_are_named_and_unweighted_and_the_call_weights_them():
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


@pytest.mark.parametrize("mode", MODES)
def test_every_term_of_a_sum_of_all_losses_is_that_of_the_loss_alone(mode):
    specs = [spec_of(name) for name in LOSSES if mode in MODES_OF.get(name, MODES)]
    logits, mask = batch(mode, (4, 5))
    terms = build_loss(specs, labels_of(mode)).terms(logits, mask)
    assert_close(terms, {spec["name"]: build_loss(spec, labels_of(mode))(logits, mask) for spec in specs})


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
    assert counting.calls.count("aten::_log_softmax.out") == 1
    assert counting.calls.count("aten::_softmax.out") == 1


def test_a_name_a_mapping_and_a_list_give_the_same_loss():
    logits, mask = batch("multiclass", (4, 5))
    values = [build_loss(spec, labels_of("multiclass"))(logits, mask) for spec in ("dice", {"name": "dice"}, ["dice"])]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_equals_the_sum_of_its_terms(name):
    class_counts = {"pixels": [[9, 5, 1], [8, 4, 0]], "radius": [[4, 3, 1], [4, 3, 0]]}
    before = copy.deepcopy(RECIPES[name])
    logits, mask = batch("multiclass", (4, 5))
    loss = build_loss(name, labels_of("multiclass"), class_counts=class_counts)
    loss.set_progress(1.0)
    at_the_end = {"boundary": 0.1}  # of the run; all other weights are 1
    terms = [{**term, "weight": at_the_end.get(term["name"], 1.0)} for term in RECIPES[name]]
    parts = [build_loss(term, labels_of("multiclass"), class_counts)(logits, mask) for term in terms]
    assert isinstance(loss, WeightedSum)
    assert_close(loss(logits, mask), torch.stack(parts).sum())
    assert RECIPES[name] == before


# --- pixels that are valid for some classes only ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "generalized_dice", "cross_entropy", "focal"])
def test_classes_without_annotation_at_some_pixels(name):
    """For overlapping classes, `valid` [B, K, *S] equals the ignore value in a mask with channels."""
    loss = build_loss(spec_of(name), labels_of("multilabel"))
    logits, mask = batch("multilabel", (4, 5))
    valid = mask != IGNORE_INDEX
    filled = torch.where(valid, mask, 0)
    assert_close(value_and_gradient(loss, logits, filled, valid=valid), value_and_gradient(loss, logits, mask))


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "lovasz_softmax"])
def test_a_class_without_annotation_in_any_image_is_left_out(name):
    labels = labels_of("multiclass")
    logits, mask = batch("multiclass", (4, 5), ignored=0.0, absent=2)
    valid = torch.tensor([True, True, False]).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    options = {"name": name, **EXACT.get(name, {})}
    value, gradient = value_and_gradient(build_loss(options, labels), logits, mask, valid=valid)
    only = {"classes": [0, 1]} if name == "lovasz_softmax" else {"class_weights": [1.0, 1.0, 0.0]}
    expected = value_and_gradient(build_loss({**options, **only}, labels), logits, mask)
    assert_close((value, gradient), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_valid_map_equals_an_ignored_mask(name):
    mode = MODES_OF.get(name, MODES)[0]
    loss = build_loss(spec_of(name), labels_of(mode))
    logits, mask = batch(mode, (4, 5))
    valid = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(3)) < 0.6
    expected = value_and_gradient(loss, logits, torch.where(valid, mask, IGNORE_INDEX))
    assert_close(value_and_gradient(loss, logits, mask, valid=valid), expected)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "topk_cross_entropy", "poly_cross_entropy"])
def test_pixel_losses_with_a_softmax_refuse_validity_per_class(name):
    logits, mask = batch("multiclass", (4, 5))
    valid = torch.ones(2, 3, 4, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"{name} under a softmax.*valid"):
        build_loss(spec_of(name), labels_of("multiclass"))(logits, mask, valid=valid)


def test_mask_values_that_are_no_class_raise():
    logits, mask = batch("multiclass", (4, 5))
    mask[0, 0, 0] = 7
    for name in ("dice", "lovasz_softmax", "topk_cross_entropy"):
        with pytest.raises(RuntimeError, match="255"):
            build_loss(spec_of(name), labels_of("multiclass"))(logits, mask)


# --- schedules of term weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "expected"),  # after 0, 1/4, 1/2 and 1 of the run
    [
        (2, [2, 2, 2, 2]),
        ({"name": "constant", "value": 3}, [3, 3, 3, 3]),
        ({"name": "linear", "start": 1, "end": 0}, [1, 0.75, 0.5, 0]),
        ({"name": "linear", "begin": 0.25, "until": 0.75}, [0, 0, 0.5, 1]),
        ({"name": "cosine"}, [0, (1 - math.cos(math.pi / 4)) / 2, 0.5, 1]),
        ({"name": "after", "fraction": 0.5, "value": 2, "before": 0.5}, [0.5, 0.5, 2, 2]),
    ],
)
def test_weights_follow_the_progress_of_the_run(weight, expected):
    loss = build_loss([{"name": "dice", "weight": weight}, "cross_entropy"], labels_of("multiclass"))
    logits, mask = batch("multiclass", (4, 5))
    terms = loss.terms(logits, mask)
    for progress, current in zip([0, 0.25, 0.5, 1], expected, strict=True):
        loss.set_progress(progress)
        assert_close(loss(logits, mask), current * terms["dice"] + terms["cross_entropy"])


def test_a_second_derivative_raises():
    for name in [name for name in LOSSES if name not in MODES_OF]:
        logits, mask = batch("multiclass", (4, 5))
        value = build_loss(spec_of(name), labels_of("multiclass"))(logits.requires_grad_(), mask)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(value, logits, create_graph=True)


# --- deep supervision -------------------------------------------------------------------------------------------


def heads(sizes=((8, 8), (4, 4), (2, 2))):
    rng = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, *size, generator=rng, dtype=torch.float64) for size in sizes]
    return logits, torch.randint(3, (2, 8, 8), generator=rng, dtype=torch.uint8)


def test_deep_supervision_equals_the_weighted_losses_of_the_heads():
    logits, mask = heads()
    loss = build_loss("dice_ce", labels_of("multiclass"))
    parts = [loss(logits[0], mask), loss(logits[1], mask[:, 1::2, 1::2]), loss(logits[2], mask[:, 2::4, 2::4])]
    assert_close(DeepSupervision(loss)(logits, mask), (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)
    assert_close(DeepSupervision(loss, drop_last=True)(logits, mask), (2 * parts[0] + parts[1]) / 3)


@pytest.mark.parametrize("drop_last", [False, True])
def test_one_head_gives_the_loss_itself(drop_last):
    logits, mask = heads()
    loss = build_loss("dice_ce", labels_of("multiclass"))
    wrapped = DeepSupervision(loss, drop_last=drop_last)
    assert_close(wrapped(logits[0], mask), loss(logits[0], mask))
    assert_close(wrapped(logits[:1], mask), loss(logits[0], mask))


def test_a_head_with_weight_0_has_gradient_0_even_for_nan_logits():
    logits, mask = heads()
    logits[2].fill_(math.nan)
    for head in logits:
        head.requires_grad_()
    DeepSupervision(build_loss("dice", labels_of("multiclass")), drop_last=True)(logits, mask).backward()
    assert (logits[2].grad == 0).all()
    assert all((head.grad != 0).any() for head in logits[:2])


@pytest.mark.parametrize("drop_last", [False, True])
def test_micro_batches_of_heads_add_up(drop_last):
    logits, mask = heads()
    mask[0, :5] = IGNORE_INDEX
    loss = DeepSupervision(
        build_loss([{"name": "dice", "per": "image"}, "cross_entropy"], labels_of("multiclass")), drop_last=drop_last
    )
    whole = loss(logits, mask)
    normaliser = loss.normaliser([mask[:1], mask[1:]], sizes=[tuple(head.shape[2:]) for head in logits])
    parts = [
        loss([head[image : image + 1] for head in logits], mask[image : image + 1], normaliser=normaliser)
        for image in range(2)
    ]
    assert_close(sum(parts), whole)
    with pytest.raises(ValueError, match="normaliser for each of 2 heads, got 3"):
        loss(logits[:2], mask, normaliser=normaliser)


def test_heads_whose_sides_do_not_divide():
    logits, mask = heads(((8, 8), (3, 3)))
    with pytest.raises(ValueError, match=r"\[8, 8\], got \[3, 3\]"):
        DeepSupervision(build_loss("dice", labels_of("multiclass")))(logits, mask)


# --- gradients of terms -----------------------------------------------------------------------------------------


def test_term_gradients():
    spec = [{"name": "dice", "weight": 2}, {"name": "cross_entropy", "weight": 0.5}]
    loss = build_loss(spec, labels_of("multiclass"))
    logits, mask = batch("multiclass", (4, 5))
    result = term_gradients(loss, logits, mask)
    gradients = [
        value_and_gradient(build_loss(term["name"], labels_of("multiclass")), logits, mask)[1] for term in spec
    ]
    norms = [gradient.norm() for gradient in gradients]
    assert_close(torch.stack(list(result["norm"].values())), torch.stack(norms), check_dtype=False)
    assert_close(result["share"]["dice"], 2 * norms[0] / (2 * norms[0] + 0.5 * norms[1]), check_dtype=False)
    cosine = (gradients[0] * gradients[1]).sum() / (norms[0] * norms[1])
    assert_close(result["cosine"]["dice, cross_entropy"], cosine, check_dtype=False)
