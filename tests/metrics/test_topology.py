"""Betti numbers against homology computed by linear algebra, and clDice against the formula of its paper."""

import itertools
import math
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from segkit.metrics.topology import betti_errors, betti_numbers, cldice, topology_scores
from segkit.utils.errors import MissingExtra
from segkit.utils.morphology import euler_characteristic, label_components, skeleton

CONNECTIVITIES = ["full", "direct"]


def rank(rows):
    """The rank of a matrix over the field of two elements; each row is an integer whose bits are its entries."""
    pivots = {}
    for row in rows:
        while row:
            pivot = row.bit_length()
            if pivot not in pivots:
                pivots[pivot] = row
                break
            row ^= pivots[pivot]
    return len(pivots)


def faces(cell):
    """The boundary of a cell, whose odd coordinates are those along which it extends."""
    for axis, place in enumerate(cell):
        if place % 2:
            yield from ((*cell[:axis], place + step, *cell[axis + 1 :]) for step in (-1, 1))


def cells_of(mask, connectivity):
    """All cells of the complex of a mask, by dimension; see `euler_characteristic`."""
    pixels = set(map(tuple, np.argwhere(mask).tolist()))
    if connectivity == "full":  # closed cubes with their faces
        cells = {tuple(2 * place + 1 for place in pixel) for pixel in pixels}
        for _ in range(mask.ndim):
            cells |= {face for cell in cells for face in faces(cell)}
    else:  # points; a cell is in the complex if all of its corners are
        cells = set()
        for pixel, sides in itertools.product(pixels, itertools.product((0, 1), repeat=mask.ndim)):
            corners = itertools.product(
                *(range(place, place + side + 1) for place, side in zip(pixel, sides, strict=True))
            )
            if pixels.issuperset(corners):
                cells.add(tuple(2 * place + side for place, side in zip(pixel, sides, strict=True)))
    by_dimension = [[] for _ in range(mask.ndim + 1)]
    for cell in sorted(cells):
        by_dimension[sum(place % 2 for place in cell)].append(cell)
    return by_dimension


def by_linear_algebra(mask, connectivity):
    """Betti numbers: the dimension of the cycles less that of the boundaries, over the field of two elements."""
    cells = cells_of(mask, connectivity)
    numbers = [{cell: number for number, cell in enumerate(group)} for group in cells]
    ranks = [0] + [
        rank(sum(1 << numbers[dimension - 1][face] for face in faces(cell)) for cell in cells[dimension])
        for dimension in range(1, mask.ndim + 1)
    ]
    return tuple(len(cells[d]) - ranks[d] - ranks[d + 1] for d in range(mask.ndim))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@pytest.mark.parametrize("sides", [(9, 8), (5, 4, 5)])
def test_betti_numbers_equal_homology(sides, connectivity):
    found = set()
    for seed in range(16):
        generator = np.random.default_rng(seed)
        mask = generator.random(sides) < generator.uniform(0.2, 0.98)
        found.add(betti_numbers(mask, connectivity))
        assert betti_numbers(mask, connectivity) == by_linear_algebra(mask, connectivity)
        euler = sum((-1) ** dimension * len(group) for dimension, group in enumerate(cells_of(mask, connectivity)))
        assert euler_characteristic(mask, connectivity) == euler
    assert all(len(set(column)) > 1 for column in zip(*found, strict=True))


def picture(text):
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def ball(inner, outer, sides=(15, 15, 15)):
    radius = np.linalg.norm(np.indices(sides).T - 7, axis=-1)
    return (radius >= inner) & (radius <= outer)


def torus(sides=(13, 21, 21)):
    z, y, x = np.indices(sides)
    return (np.hypot(y - 10, x - 10) - 6) ** 2 + (z - 6) ** 2 <= 9


RING = picture("..... .###. .#.#. .###. .....")
EIGHT = picture("##### #.#.# #####")
DIAGONAL = picture("#.. .#. ..#")
DIAMOND = picture(".#. #.# .#.")


@pytest.mark.parametrize(
    ("mask", "connectivity", "numbers"),
    [
        (RING, "full", (1, 1)),
        (EIGHT, "full", (1, 2)),
        (EIGHT, "direct", (1, 2)),
        (DIAGONAL, "full", (1, 0)),
        (DIAGONAL, "direct", (3, 0)),
        (DIAMOND, "full", (1, 1)),  # the centre is enclosed by corners
        (DIAMOND, "direct", (4, 0)),
        (~RING, "full", (2, 1)),
        (np.ones((4, 5), bool), "full", (1, 0)),
        (np.zeros((4, 5), bool), "full", (0, 0)),
        (ball(0, 5), "full", (1, 0, 0)),
        (ball(3, 5), "full", (1, 0, 1)),
        (ball(3, 5) | ball(0, 1), "full", (2, 0, 1)),
        (torus(), "full", (1, 1, 0)),
        (torus(), "direct", (1, 1, 0)),
        (np.zeros((3, 3, 3), bool), "full", (0, 0, 0)),
    ],
)
def test_betti_numbers_of_shapes(mask, connectivity, numbers):
    assert betti_numbers(mask, connectivity) == numbers
    for axes in itertools.permutations(range(mask.ndim)):
        assert betti_numbers(np.pad(mask.transpose(axes)[::-1], 2), connectivity) == numbers


def test_a_hollow_torus_has_two_tunnels_and_a_cavity():
    z, y, x = np.indices((17, 31, 31))
    distance = (np.hypot(y - 15, x - 15) - 9) ** 2 + (z - 8) ** 2
    assert betti_numbers((distance <= 25) & (distance >= 6)) == (1, 2, 1)


def test_components_are_labelled_from_one():
    for mask, full, direct in ((DIAGONAL, 1, 3), (np.stack([DIAGONAL] * 2), 1, 3), (np.zeros((2, 2), bool), 0, 0)):
        for connectivity, number in (("full", full), ("direct", direct)):
            labels, found = label_components(mask, connectivity)
            assert found == number == len(np.unique(labels[mask]))
            assert (labels > 0).tolist() == mask.tolist()


def test_betti_errors_count_structures():
    two = picture("#.#.. ..... .....")
    assert betti_errors(two, EIGHT) == {
        "betti0_error": 1,
        "betti1_error": 2,
        "betti2_error": 0,
        "betti_error": 3,
    }
    assert betti_errors(two, two[::-1])["betti_error"] == 0  # components in the wrong places
    assert betti_errors(np.zeros_like(EIGHT), EIGHT)["betti_error"] == 3
    assert betti_errors(ball(3, 5), ball(0, 5))["betti2_error"] == 1
    assert topology_scores(DIAGONAL, DIAMOND, ["betti0_error"], "direct") == {"betti0_error": 1}


# --- clDice -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def morphology():
    return pytest.importorskip("skimage.morphology", reason="needs scikit-image")


def vessels(seed, sides):
    generator = np.random.default_rng(seed)
    fields = [gaussian_filter(generator.normal(size=sides), 1.5) for _ in range(3)]
    fields = [fields[0] + 0.5 * own for own in fields[1:]]
    return [np.abs(field) < np.quantile(np.abs(field), 0.3) for field in fields]


@pytest.mark.parametrize("sides", [(30, 25), (14, 15, 13)])
@pytest.mark.parametrize("seed", range(4))
def test_cldice_equals_the_formula_of_the_paper(sides, seed, morphology):
    prediction, reference = vessels(seed, sides)
    lines = [morphology.skeletonize(mask).astype(bool) for mask in (prediction, reference)]
    precision = (lines[0] * reference).sum() / lines[0].sum()
    sensitivity = (lines[1] * prediction).sum() / lines[1].sum()
    expected = 2 * precision * sensitivity / (precision + sensitivity)
    assert cldice(prediction, reference) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1
    assert cldice(reference, prediction) == pytest.approx(expected, abs=1e-12)
    # crop and margin do not matter
    assert cldice(np.pad(prediction, 3), np.pad(reference, 3)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("morphology")
def test_cldice_punishes_a_cut_and_not_a_rim():
    vessel = np.zeros((20, 60), bool)
    vessel[7:14, 3:57] = True
    cut, eroded = vessel.copy(), vessel.copy()
    cut[:, 20:35] = False
    eroded[7], eroded[13] = False, False
    assert eroded.sum() < cut.sum() + 10  # about as many pixels are missing
    assert cldice(vessel, vessel) == 1
    assert cldice(eroded, vessel) > 0.95 > 0.9 > cldice(cut, vessel)


@pytest.mark.usefixtures("morphology")
def test_cldice_of_empty_and_separate_masks():
    nothing, something, apart = (np.zeros((9, 9), bool) for _ in range(3))
    something[2:4, 2:7], apart[6:8, 2:7] = True, True
    assert math.isnan(cldice(nothing, nothing))
    assert cldice(nothing, something) == cldice(something, nothing) == cldice(something, apart) == 0


@pytest.mark.usefixtures("morphology")
def test_the_skeleton_keeps_the_topology():
    for mask in (*vessels(0, (30, 25)), torus()):
        thin = skeleton(mask)
        assert thin.sum() < mask.sum()
        assert not (thin & ~mask).any()
        assert betti_numbers(thin)[:2] == betti_numbers(mask)[:2]


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(
        MissingExtra, match=r"the metric cldice requires the package skimage.*segkit-trainer\[topology\]"
    ):
        cldice(EIGHT, EIGHT)
