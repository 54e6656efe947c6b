"""Losses of boundaries, centrelines and components: against MONAI and SciPy, and what they punish on made shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.losses import BoundaryLoss, HausdorffDTLoss, LogHausdorffDTLoss
from monai.losses.cldice import SoftclDiceLoss, soft_skel
from scipy.ndimage import binary_erosion, binary_opening, distance_transform_edt, generate_binary_structure
from torch.testing import assert_close

from segkit.labels import Labels
from segkit.losses import build_loss
from segkit.losses.deep_supervision import DeepSupervision
from segkit.losses.soft_skeleton import skeleton_gradient, soft_skeleton
from segkit.losses.target_maps import BorderMap, ComponentMap, DistanceMap, maps_of_mask, maps_of_target
from segkit.utils.morphology import distance_to, label_components, skeleton, taxicab_radius, widened_skeleton

from support.loss_oracle import batch, labels_of, value_and_gradient

BINARY = Labels(["background", "vessel"], mode="binary")
CONFIDENT = 4.0  # the size of a logit


def logits_of(mask):
    """Logits of a confident prediction of a bool mask [*S], [1, 1, *S]."""
    return CONFIDENT * (2 * torch.from_numpy(mask.astype(np.float64)) - 1)[None, None]


def loss_of(spec, predicted, reference):
    return build_loss(spec, BINARY)(logits_of(predicted), torch.from_numpy(reference.astype(np.uint8))[None]).item()


def onehot(mask):
    return torch.stack([mask == channel for channel in range(3)], 1).double()


# --- other libraries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("space", [(9, 11), (5, 6, 7)])
def test_boundary_equals_monai(space, background):
    logits, mask = batch("multiclass", space, ignored=0.0)
    spec = {"name": "boundary", "distance": "mm", "offset": False, "per": "image", "background": background}
    monai = BoundaryLoss(softmax=True, include_background=background)
    expected = value_and_gradient(lambda z, _: monai(z, onehot(mask)), logits, mask)
    assert_close(
        value_and_gradient(build_loss(spec, labels_of("multiclass")), logits, mask), expected, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_hausdorff_equals_monai(alpha, log):
    logits, mask = batch("multiclass", (9, 11), ignored=0.0)
    spec = {"name": "hausdorff", "distance": "mm", "one_sided": False, "per": "image", "alpha": alpha, "log": log}
    monai = (LogHausdorffDTLoss if log else HausdorffDTLoss)(softmax=True, alpha=alpha)
    expected = value_and_gradient(lambda z, _: monai(z, onehot(mask)), logits, mask)
    assert_close(
        value_and_gradient(build_loss(spec, labels_of("multiclass")), logits, mask), expected, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("space", [(9, 11), (6, 5, 7)])
@pytest.mark.parametrize("iterations", [0, 1, 3, 10])
def test_the_soft_skeleton_and_its_gradient_equal_those_of_monai(space, iterations):
    x = torch.rand(1, 1, *space, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leaf = x.clone().requires_grad_()
    expected = soft_skel(leaf, iterations)
    (gradient,) = torch.autograd.grad((slope * expected).sum(), leaf)
    assert_close(soft_skeleton(x, iterations), expected.detach())
    assert_close(skeleton_gradient(x, iterations, None, slope), gradient)


def test_cldice_equals_monai_where_its_constants_vanish():
    """MONAI adds constants to numerators and denominators, and one more to the harmonic mean."""
    logits, mask = batch("multiclass", (24, 20), ignored=0.0)
    monai = SoftclDiceLoss(iter_=3, smooth_nr=0.0, smooth_dr=1e-12, smooth=1e-12)
    spec = {"name": "cldice", "iterations": 3, "eps": [0.0, 1e-12], "per": "image", "class_weights": [0.0, 1.0, 0.0]}
    expected = value_and_gradient(lambda z, _: monai(z.softmax(1)[:, 1:2], onehot(mask)[:, 1:2]), logits, mask)
    assert_close(value_and_gradient(build_loss(spec, labels_of("multiclass")), logits, mask), expected)


# --- maps -------------------------------------------------------------------------------------------------------------


def test_distances_are_in_mm_and_do_not_end_at_ignored_pixels():
    mask = np.zeros((5, 8), np.uint8)
    mask[:, :3] = 1
    mask[:, 5:] = 255
    labels = Labels(["background", "vessel"], mode="binary", ignore_index=255)
    distances = DistanceMap("signed", "mm", (0,))
    (values,) = maps_of_mask([distances], labels, mask, [3.0, 0.5]).values()
    # columns 0 to 2 are the class, 3 and 4 are not; the smallest spacing is subtracted inside
    assert values[0, 0, :5].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    (unsigned,) = maps_of_mask([DistanceMap("unsigned", "mm", (0,))], labels, mask, [3.0, 0.5]).values()
    assert unsigned[0, 0, :5].tolist() == [1.5, 1.0, 0.5, 0.5, 1.0]


def test_the_diagonal_is_that_of_the_pixels_that_are_not_ignored():
    mask = np.full((10, 10), 255, np.uint8)
    mask[2:5, 2:6] = [0, 0, 1, 1]
    labels = Labels(["background", "vessel"], mode="binary", ignore_index=255)
    in_mm, in_diagonals = (
        next(iter(maps_of_mask([DistanceMap("signed", unit, (0,))], labels, mask, [1.0, 1.0]).values()))
        for unit in ("mm", "diagonal")
    )
    assert_close(in_diagonals[0, 2:5, 2:6] * 5, in_mm[0, 2:5, 2:6])  # 3 x 4 pixels


def test_pixels_are_the_smallest_spacing():
    mask = np.zeros((4, 6), np.uint8)
    mask[:, :3] = 1
    in_mm, in_pixels = (
        next(iter(maps_of_mask([DistanceMap("unsigned", unit, (0,))], BINARY, mask, [3.0, 0.5]).values()))
        for unit in ("mm", "pixels")
    )
    assert_close(in_pixels, in_mm / 0.5)


def test_distances_of_images_are_exact():
    rng = np.random.default_rng(0)
    for sides, spacing in (
        ((60, 45), [1.0] * 2),
        ((1024, 7), [0.3] * 2),
        ((40, 50), [0.7, 1.0]),
        ((1100, 8), [1.0] * 2),
    ):
        mask = rng.random(sides) < 0.02
        mask[0, 0] = True
        assert_close(distance_to(mask, spacing), distance_transform_edt(~mask, sampling=spacing), rtol=1e-12, atol=0)
    corner = np.zeros((1024, 1024), bool)
    corner[0, 0] = True
    assert_close(distance_to(corner, [1.0, 1.0]), distance_transform_edt(~corner), rtol=1e-12, atol=0)


def test_the_radius_is_the_number_of_erosions_that_empty_a_mask():
    shape = np.random.default_rng(0).random((40, 30)) < 0.97
    cross, eroded, steps = generate_binary_structure(2, 1), shape, 0
    while eroded.any():
        eroded, steps = binary_erosion(eroded, cross, border_value=1), steps + 1
    assert taxicab_radius(shape) == steps > 2
    assert taxicab_radius(np.zeros((4, 4), bool)) == 0


def test_the_measured_iterations_keep_the_centre_of_every_structure():
    shape = np.zeros((40, 40), bool)
    shape[5:18, 5:35] = True
    radius = taxicab_radius(shape)
    x = torch.from_numpy(shape.astype(np.float64))[None, None]
    complete = soft_skeleton(x, 50)
    assert_close(soft_skeleton(x, radius - 1), complete)
    assert soft_skeleton(x, radius - 2)[complete > 0].min() == 0


def test_every_component_has_a_skeleton_inside():
    rng = np.random.default_rng(0)
    boxes = [np.pad(np.ones(sides, bool), 1) for sides in itertools.product((1, 2, 4), repeat=3)]
    blobs = [binary_opening(rng.random((9, 10, 11)) < 0.75) for _number in range(6)]
    for mask in [binary_erosion(rng.random((30, 40)) < 0.9), *boxes, *blobs]:
        components, count = label_components(mask)
        for radius in (0, 2):
            thin = widened_skeleton(mask, radius)
            assert not (thin & ~mask).any()
            assert np.unique(components[thin]).tolist() == list(range(1, count + 1))


def test_the_skeleton_of_a_tube_of_even_width_runs_along_it():
    """Thinning in 3D removes such a tube entirely."""
    thin = skeleton(np.pad(np.ones((4, 4, 30), bool), 2))
    assert 26 <= thin.sum() <= 30
    assert label_components(thin)[1] == 1


def test_skeletons_of_coarser_heads_never_reward_a_missed_structure():
    """The middle pixels of the blocks of a coarse mask miss most of a thin line; its skeleton has all blocks."""
    rows, columns = np.mgrid[:64, :64]
    lines = (abs(rows - columns) <= 1) | (abs(rows + columns - 50) <= 1)
    mask = torch.from_numpy(lines.astype(np.uint8))[None]
    loss = build_loss("skeleton_recall", BINARY)
    heads = [torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True) for side in (64, 16)]
    maps = maps_of_target(loss.maps, BINARY, BINARY.target(mask, 2), None, torch.float64)
    DeepSupervision(loss)(heads, mask, maps=maps).backward()
    for head in heads:
        assert (head.grad <= 0).all()
        assert (head.grad < 0).any()


def test_component_slots_have_room_for_every_component():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.2):
        mask = (rng.random((32, 32)) < share).astype(np.uint8)
        components = ComponentMap("component", (0,))
        maps = maps_of_mask([components], BINARY, mask, [1.0, 1.0])
        assert len(maps[components.slots]) > maps[components.name].max()


def test_border_weights_between_two_objects():
    mask = np.zeros((1, 11), np.uint8)
    mask[0, [0, 10]] = 1
    border = BorderMap(10.0, 5.0, (0,))
    (weight,) = maps_of_mask([border], BINARY, mask, [1.0, 1.0]).values()
    expected = 10 * np.exp(-(10.0**2) / (2 * 5.0**2))  # d1 + d2 is 10 everywhere in between
    assert_close(weight[0, 0, 1:10], np.full(9, expected, np.float32))
    assert (weight[0, 0, [0, 10]] == 0).all()


@pytest.mark.parametrize("spec", ["boundary", "skeleton_recall", "component_dice", "border_cross_entropy"])
def test_maps_of_the_loader_give_the_loss_of_the_bare_mask(spec):
    labels = labels_of("multiclass")
    loss = build_loss(spec, labels)
    logits, mask = batch("multiclass", (12, 15), dtype=torch.float32)
    per_image = [maps_of_mask(loss.maps, labels, one.numpy(), [2.0, 0.5]) for one in mask]
    maps = {name: torch.from_numpy(np.stack([arrays[name] for arrays in per_image])) for name in per_image[0]}
    expected = value_and_gradient(loss, logits, mask, spacing=[[2.0, 0.5]] * 2)
    assert_close(value_and_gradient(loss, logits, mask, maps=maps), expected)


def test_missing_maps_are_named():
    loss = build_loss(["dice", "boundary"], labels_of("multiclass"))
    logits, mask = batch("multiclass", (4, 5))
    with pytest.raises(ValueError, match=r"distance-signed.*got none"):
        loss(logits, mask, maps={})
    name = loss.maps[0].name
    for shape in ((2, 3, 5, 4), (3, 4, 5), (1, 3, 4, 5)):
        with pytest.raises(ValueError, match=rf"map {name} of shape \[2, 3, 4, 5\]"):
            loss(logits, mask, maps={name: torch.zeros(shape)})
    with pytest.raises(ValueError, match="spacing of 2 images with 2 axes"):
        loss(logits, mask, spacing=[[1.0, 1.0]])


# --- what the losses punish -------------------------------------------------------------------------------------------


@pytest.fixture
def vessel():
    """A vessel 5 pixels wide and 80 long; the same with a cut of 2 pixels; the same without its rim."""
    whole = np.zeros((40, 100), bool)
    whole[18:23, 10:90] = True
    cut, thin = whole.copy(), whole.copy()
    cut[:, 49:51] = False
    thin[[18, 22]] = False
    return whole, cut, thin


@pytest.mark.parametrize("spec", [{"name": "cldice", "iterations": 3}, {"name": "skeleton_recall", "radius": 0}])
def test_a_cut_costs_the_losses_of_centrelines_more_than_a_lost_rim(vessel, spec):
    whole, cut, thin = vessel
    perfect = loss_of(spec, whole, whole)
    assert loss_of(spec, cut, whole) - perfect > 10 * max(loss_of(spec, thin, whole) - perfect, 1e-6)
    assert loss_of("dice", cut, whole) < loss_of("dice", thin, whole)  # Dice sees it the other way round


def test_the_loss_of_boundaries_grows_with_the_distance_of_a_false_positive(vessel):
    whole, _, _ = vessel
    for spec in ("boundary", "surface", "hausdorff"):
        losses = []
        for row in (16, 10, 2):
            spurious = whole.copy()
            spurious[row, 40:43] = True
            losses.append(loss_of(spec, spurious, whole))
        assert losses == sorted(losses)
        assert losses[2] > losses[0]


@pytest.mark.parametrize("of", ["component", "region"])
def test_a_missed_small_lesion_costs_component_dice_more_than_a_rim_of_a_large_one(of):
    lesions = np.zeros((64, 64), bool)
    lesions[5:45, 5:45] = True
    lesions[55:58, 55:58] = True
    missed, rim = lesions.copy(), lesions.copy()
    missed[50:] = False
    rim[5, 5:45] = False
    spec = {"name": "component_dice", "of": of}
    perfect = loss_of(spec, lesions, lesions)
    assert loss_of(spec, missed, lesions) - perfect > 5 * (loss_of(spec, rim, lesions) - perfect)
    assert loss_of("dice", missed, lesions) < loss_of("dice", rim, lesions)


def test_a_perfect_prediction_has_almost_no_loss(vessel):
    whole, _, _ = vessel
    logits = 40 * (2 * torch.from_numpy(whole.astype(np.float64)) - 1)[None, None]
    mask = torch.from_numpy(whole.astype(np.uint8))[None]
    for spec in (
        "boundary",
        "surface",
        "hausdorff",
        {"name": "cldice", "iterations": 3},
        "skeleton_recall",
        "component_dice",
    ):
        assert build_loss(spec, BINARY)(logits, mask) < 1e-6


def test_narrow_gaps_weigh_more_than_open_background():
    mask = np.zeros((40, 40), bool)
    mask[5:15, 5:15] = mask[5:15, 17:27] = True
    in_gap, open_space = mask.copy(), mask.copy()
    in_gap[5:15, 15:17] = True
    open_space[30:32, 5:15] = True  # as many wrong pixels
    assert loss_of("border_cross_entropy", in_gap, mask) > 2 * loss_of("border_cross_entropy", open_space, mask)
    assert loss_of("cross_entropy", in_gap, mask) == pytest.approx(loss_of("cross_entropy", open_space, mask))


# --- options ----------------------------------------------------------------------------------------------------------


def test_measured_iterations_follow_the_widest_foreground_class():
    labels = labels_of("multiclass")
    radius = [[30, 4, 2], [30, 1, 7]]
    assert build_loss("cldice", labels, {"radius": radius}).members[0].iterations == 6
    one_class = {"name": "cldice", "class_weights": [0.0, 1.0, 0.0]}
    assert build_loss(one_class, labels, {"radius": radius}).members[0].iterations == 3
    with pytest.raises(ValueError, match="iterations: measured needs the radii"):
        build_loss("cldice", labels)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "cldice", "iterations": -1}, "iterations from 0 to 1000"),
        ({"name": "skeleton_recall", "radius": -1}, "radius from 0"),
        ({"name": "hausdorff", "alpha": 0.0}, "alpha above 0"),
        ({"name": "border_cross_entropy", "sigma": 0.0}, "sigma above 0"),
        ({"name": "boundary", "class_weights": [1.0, 0.0, 0.0]}, "no class is left"),
    ],
)
def test_options_out_of_range(spec, message):
    with pytest.raises(ValueError, match=message):
        build_loss(spec, labels_of("multiclass"))


@pytest.mark.parametrize(
    "name", ["boundary", "hausdorff", "surface", "skeleton_recall", "component_dice", "border_cross_entropy"]
)
def test_soft_targets_are_refused(name):
    logits, _ = batch("multilabel", (4, 5))
    with pytest.raises(ValueError, match="hard targets"):
        build_loss(name, labels_of("multilabel"))(logits, logits.sigmoid())
