"""Test-time augmentation and ensembles against plain loops in float64."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn

from segkit import Labels
from segkit.inference.averaged_network import AveragedNetwork, entropy
from segkit.inference.ensemble import Ensemble, averaged_slabs
from segkit.inference.orientations import AS_IT_IS, Orientation, trained_orientations
from segkit.inference.predictor import Predictor
from segkit.inference.windows import Slab

CPU = torch.device("cpu")
THREE = Labels(["background", "left", "right"])
BINARY = Labels(["background", "a"], mode="binary")
OVERLAPPING = Labels(["a", "b"], mode="multilabel")
MODES = pytest.mark.parametrize("labels", [THREE, BINARY, OVERLAPPING], ids=lambda labels: labels.mode)
FLIPS = [("horizontal_flip", {"p": 0.5}), ("vertical_flip", {"p": 0.5})]
TURN = ("rotate90", {"p": 0.5})


def network(labels, seed, dims=2, channels=2):
    """A convolution that is not symmetric, so that each orientation gives another result."""
    generator = torch.Generator().manual_seed(seed)
    layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, labels.channels, 3, padding=1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    return layer


def image(*sides, channels=2, seed=0):
    return torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(seed))


def probabilities64(labels, logits):
    logits = logits.detach().double()
    return torch.softmax(logits, 1) if labels.mode == "multiclass" else torch.sigmoid(logits)


# --- orientations ----------------------------------------------------------------------------------------------------


def test_the_orientations_of_a_square_are_its_eight_symmetries():
    """Flips and quarter turns generate the dihedral group, in which half a turn and both flips are the same."""
    orientations = trained_orientations([*FLIPS, TURN], 2)
    square = torch.arange(9).view(1, 1, 3, 3)
    seen = {tuple(orientation.apply(square).flatten().tolist()) for orientation in orientations}
    flat = square[0, 0].numpy()
    expected = {tuple(np.rot90(turned, turn).ravel().tolist()) for turned in (flat, flat.T) for turn in range(4)}
    assert len(orientations) == 8
    assert seen == expected
    assert orientations[0] == AS_IT_IS


@pytest.mark.parametrize(
    ("transforms", "dims", "number"),
    [
        ([], 2, 1),
        ([FLIPS[0]], 2, 2),
        (FLIPS, 2, 4),
        ([TURN], 2, 4),
        ([FLIPS[0], TURN], 2, 8),
        ([("horizontal_flip", {"p": 0})], 2, 1),
        ([("affine", {"rotate": 10.0})], 2, 1),
        ([("flip", {"axes": "all", "p": 0.5})], 3, 8),
        ([("flip", {"axes": [0, -1], "p": 0.5})], 3, 4),
        ([("flip", {"axes": "all", "p": 0.5})], 2, 4),
    ],
)
def test_only_what_the_training_allowed(transforms, dims, number):
    orientations = trained_orientations(transforms, dims)
    assert len(orientations) == number
    volume = torch.randn(1, 2, *range(3, 3 + dims))
    for orientation in orientations:
        assert torch.equal(orientation.undo(orientation.apply(volume)), volume)
    assert len({str(orientation) for orientation in orientations}) == number


def test_turns_are_left_out_where_the_network_does_not_take_them():
    assert trained_orientations([*FLIPS, TURN], 2, turns=False) == trained_orientations(FLIPS, 2)


def test_classes_that_change_places_leave_no_doubt():
    """Half a turn gives the image of two flips; only the flips exchange left and right, so neither is used."""
    sure = trained_orientations([*FLIPS, TURN], 2, exchanges=True)
    assert sure == [AS_IT_IS], "each symmetry of the square is a turn and a flip, with and without an exchange"
    one = trained_orientations([FLIPS[0], TURN], 2, exchanges=True)
    assert one == [
        AS_IT_IS,
        *(
            Orientation(turn, flips)
            for turn, flips in [(0, (1,)), (1, ()), (1, (1,)), (2, ()), (2, (1,)), (3, ()), (3, (1,))]
        ),
    ]
    places = {tuple(orientation.apply(torch.arange(4).view(1, 1, 2, 2)).flatten().tolist()) for orientation in sure}
    assert (3, 2, 1, 0) not in places
    assert len(trained_orientations(FLIPS, 2, exchanges=True)) == 4


# --- the average of networks -----------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("dims", [2, 3])
def test_the_average_is_that_of_a_loop(labels, dims):
    seen = image(*(5, 6, 7)[:dims])
    networks = [network(labels, seed, dims) for seed in range(3)]
    axes = [chosen for number in range(dims + 1) for chosen in itertools.combinations(range(dims), number)]
    averaged = AveragedNetwork(networks, labels, [Orientation(0, flips) for flips in axes], disagreement=True)
    output = averaged(seen)
    each = []
    for flips in axes:
        turned = seen.flip([axis + 2 for axis in flips])
        each += [probabilities64(labels, layer(turned)).flip([axis + 2 for axis in flips]) for layer in networks]
    mean = torch.stack(each).mean(0)
    logits, disagreement = output[:, : labels.channels], output[:, labels.channels :]
    torch.testing.assert_close(labels.probabilities(logits.double()), mean, rtol=1e-5, atol=1e-6)
    expected = entropy_by_scipy(mean, labels) - np.mean([entropy_by_scipy(part, labels) for part in each], axis=0)
    np.testing.assert_allclose(disagreement.detach().numpy(), expected, atol=2e-6)
    assert expected.max() > 0.01


def entropy_by_scipy(probabilities, labels):
    """[1, 1, *S], or [1, K, *S] for overlapping classes."""
    values = probabilities.numpy()
    if labels.mode == "multiclass":
        return scipy.stats.entropy(values, axis=1)[:, None]
    return scipy.stats.entropy(np.stack([values, 1 - values]), axis=0)


@MODES
def test_entropy(labels):
    values = torch.rand(1, labels.channels, 4, 5)
    values = values / values.sum(1, keepdim=True) if labels.mode == "multiclass" else values
    np.testing.assert_allclose(entropy(values, labels), entropy_by_scipy(values, labels), rtol=1e-5)
    certain = torch.zeros(1, labels.channels, 2, 2)
    certain[:, 0] = 1
    assert torch.equal(
        entropy(certain, labels), torch.zeros(1, labels.channels if labels.mode == "multilabel" else 1, 2, 2)
    )


def test_quarter_turns_are_turned_back():
    """A network that gives the vertical gradient sees the horizontal one in a turned image."""
    gradient = nn.Conv2d(1, 2, (3, 1), padding=(1, 0), bias=False)
    with torch.no_grad():
        gradient.weight.copy_(torch.tensor([[[[-1.0], [0.0], [1.0]]], [[[1.0], [0.0], [-1.0]]]]))
    labels = Labels(["background", "a"])
    seen = image(6, 8, channels=1)
    turned = AveragedNetwork([gradient], labels, [Orientation(1)])(seen)
    expected = probabilities64(labels, gradient(torch.rot90(seen, 1, (2, 3))))
    expected = torch.rot90(expected, -1, (2, 3))
    torch.testing.assert_close(labels.probabilities(turned.double()), expected, rtol=1e-5, atol=1e-6)
    assert turned.shape[2:] == (6, 8)


@pytest.mark.parametrize(("dims", "left_right"), [(2, 1), (3, 0)])
def test_left_and_right_change_places(dims, left_right):
    """A network that labels by position, the lower half of the axis left, gives the same in a flipped image."""

    class ByPosition(nn.Module):
        def forward(self, seen):
            side = seen.shape[left_right + 2]
            is_left = (torch.arange(side) < side // 2).float()
            shape = [1] * (dims + 1)
            shape[left_right + 1] = side
            left = is_left.view(shape).expand(1, 1, *seen.shape[2:])
            return torch.cat([torch.zeros_like(left), 4 * left, 4 * (1 - left)], 1)

    seen = image(*(4, 6, 8)[:dims])
    plain = ByPosition()(seen)
    flip = Orientation(0, (left_right,))
    averaged = AveragedNetwork([ByPosition()], THREE, [AS_IT_IS, flip], [(1, 2)])(seen)
    torch.testing.assert_close(THREE.probabilities(averaged), THREE.probabilities(plain), rtol=1e-5, atol=1e-6)
    without = AveragedNetwork([ByPosition()], THREE, [AS_IT_IS, flip])(seen)
    assert (THREE.probabilities(without) - THREE.probabilities(plain)).abs().max() > 0.4


@MODES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_output_that_is_not_finite_stays_recognisable(labels, value):
    class Broken(nn.Module):
        def forward(self, seen):
            logits = torch.zeros(1, labels.channels, *seen.shape[2:])
            logits[:, 0, 1, 2] = value
            return logits

    averaged = AveragedNetwork([network(labels, 0), Broken()], labels)
    prediction = Predictor(averaged.eval(), labels, CPU).predict(image(4, 5)[0], (4, 5))
    assert int(prediction.nonfinite) == 1


@MODES
def test_certain_predictions_have_finite_logits(labels):
    certain = torch.zeros(1, labels.channels, 2, 2)
    certain[:, 0] = 1
    logits = labels.logits(certain)
    assert logits.isfinite().all()
    torch.testing.assert_close(labels.probabilities(logits), certain, rtol=0, atol=1e-6)


# --- predictors with different views ---------------------------------------------------------------------------------


def predictor(labels, seed, **options):
    return Predictor(network(labels, seed).eval(), labels, CPU, **options)


@MODES
def test_predictors_of_other_spacings_are_averaged_on_the_grid_of_the_image(labels):
    """One sees the image as it is, in windows; one a coarser image as a whole; one a finer image in other windows."""
    size = (30, 22)
    parts = [
        predictor(labels, 0, window=(16, 16)),
        predictor(labels, 1),
        predictor(labels, 2, window=(24, 12), overlap=0.25),
    ]
    images = [image(30, 22)[0], image(17, 12, seed=1)[0], image(45, 33, seed=2)[0]]
    weights = (1.0, 2.0, 1.0)
    found = Ensemble(tuple(parts), weights).predict(images, size, keep_logits=True)
    each = [
        probabilities64(labels, part.predict(seen, size, keep_logits=True).logits)
        for part, seen in zip(parts, images, strict=True)
    ]
    mean = sum(weight * part for weight, part in zip(weights, each, strict=True)) / 4
    torch.testing.assert_close(labels.probabilities(found.logits.double()), mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.mask, labels.decode(labels.logits(mean)))
    assert int(found.nonfinite) == 0
    assert found.disagreement is None


@MODES
def test_disagreement_of_parts_is_that_of_all_their_networks(labels):
    """Networks in two parts differ as much as the same networks in one."""
    networks = [network(labels, seed) for seed in range(3)]
    seen = image(9, 8)
    together = AveragedNetwork(networks, labels, disagreement=True)(seen)
    parts = [
        AveragedNetwork(networks[:2], labels, disagreement=True)(seen),
        AveragedNetwork(networks[2:], labels, disagreement=True)(seen),
    ]
    streams = [iter([Slab(0, part, 1)]) for part in parts]
    (slab,) = averaged_slabs(streams, (2.0, 1.0), labels)
    torch.testing.assert_close(slab.logits[:, labels.channels :], together[:, labels.channels :], rtol=1e-4, atol=2e-6)


def test_slabs_of_any_thickness_meet():
    values = torch.randn(2, 1, 3, 12, 5)
    cuts = [[0, 4, 5, 12], [0, 1, 2, 9, 12]]
    streams = [
        iter([Slab(start, part[:, :, start:stop], 0) for start, stop in itertools.pairwise(cut)])
        for part, cut in zip(values, cuts, strict=True)
    ]
    slabs = list(averaged_slabs(streams, (1.0, 1.0), THREE))
    assert [(slab.start, slab.stop) for slab in slabs] == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 9), (9, 12)]
    found = torch.cat([slab.logits for slab in slabs], 2)
    torch.testing.assert_close(F.softmax(found, 1), F.softmax(values, 2).mean(0), rtol=1e-5, atol=1e-6)


def test_disagreement_in_windows_and_on_another_grid():
    """It is interpolated like the probabilities, and blended in windows; of equal networks it is 0 everywhere."""
    same = network(THREE, 0)
    for options in ({}, {"window": (8, 8)}):
        averaged = AveragedNetwork([same, same], THREE, disagreement=True).eval()
        found = Predictor(averaged, THREE, CPU, disagreement=True, **options).predict(image(16, 12)[0], (24, 18))
        assert found.disagreement.shape == (1, 1, 24, 18)
        assert found.disagreement.abs().max() < 1e-6
        differing = AveragedNetwork([same, network(THREE, 1)], THREE, disagreement=True).eval()
        found = Predictor(differing, THREE, CPU, disagreement=True, **options).predict(image(16, 12)[0], (24, 18))
        assert 0.01 < found.disagreement.mean() < np.log(2) + 1e-6
        assert found.disagreement.min() >= 0
