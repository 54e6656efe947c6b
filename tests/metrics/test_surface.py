"""Surface scores against MONAI, MedPy, SciPy and published values; empty masks, borders, axes and spacing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric import binary as medpy
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from scipy.spatial.distance import cdist

from segkit.metrics import surface
from segkit.metrics.surface import (
    SURFACE_METRICS,
    SurfaceDistances,
    average_surface_distance,
    hausdorff,
    hausdorff95,
    image_diagonal,
    is_surface_metric,
    surface_dice,
    surface_distances,
    surface_scores,
)
from segkit.utils.morphology import boundary, crop_to_foreground, distances_between

NAN, INF = math.nan, math.inf
SIDES = st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple)
SPACING = st.lists(st.sampled_from([0.3, 0.75, 1.0, 2.6]), min_size=3, max_size=3)
DEFINITIONS = [
    {"hd95": "directed", "assd": "pooled", "nsd": "area"},
    {"hd95": "pooled", "assd": "mean_of_means", "nsd": "voxel"},
    {"hd95": "area"},
]
CASES = [
    pytest.param(sides, spacing, seed, id=f"{len(sides)}d-{seed}")
    for seed in range(8)
    for sides, spacing in (((22, 17), (0.7, 1.9)), ((9, 14, 11), (2.5, 0.8, 1.1)))
]


def blobs(seed, sides):
    """Two masks of smooth shapes that partly agree; with an odd seed they fill one side of the image."""
    generator = np.random.default_rng(seed)
    common, *own = [gaussian_filter(generator.normal(size=sides), sigma=1.2) for _ in range(3)]
    fields = [common + 0.6 * each for each in own]
    masks = [field >= np.quantile(field, 0.7) for field in fields]
    if seed % 2:
        masks[0][:2] = True
        masks[1][:1] = True
    return masks


def boxes(shape, *corners):
    """A mask of boxes, each given as (start, stop) along every axis."""
    mask = np.zeros(shape, dtype=bool)
    for corner in corners:
        mask[tuple(slice(start, stop) for start, stop in corner)] = True
    return mask


def tensors(*masks):
    return [torch.from_numpy(mask)[None, None] for mask in masks]


def by_definition(prediction, reference, spacing):
    """All distances between the two boundaries, then the minimum of each row and column."""
    points = [np.argwhere(mask ^ binary_erosion(mask)) * np.array(spacing) for mask in (prediction, reference)]
    distances = cdist(*points)
    return distances.min(1), distances.min(0)


@pytest.mark.parametrize(("sides", "spacing", "seed"), CASES)
def test_voxel_scores_equal_monai(sides, spacing, seed):
    prediction, reference = blobs(seed, sides)
    ours = surface_scores(prediction, reference, spacing, SURFACE_METRICS, tolerance_mm=0.9, nsd="voxel")
    pair = tensors(prediction, reference)
    both = {"include_background": True, "spacing": spacing}
    theirs = {
        "hd": compute_hausdorff_distance(*pair, **both),
        "hd95": compute_hausdorff_distance(*pair, percentile=95, **both),
        "assd": compute_average_surface_distance(*pair, symmetric=True, **both),
        "nsd": compute_surface_dice(*pair, [0.9], **both),
    }
    assert ours == pytest.approx({name: value.item() for name, value in theirs.items()}, rel=1e-5)
    assert ours["hd"] > ours["assd"] > 0
    assert 0 < ours["nsd"] < 1


@pytest.mark.parametrize(("sides", "spacing", "seed"), CASES)
def test_percentiles_and_single_directions_equal_monai(sides, spacing, seed):
    prediction, reference = blobs(seed, sides)
    pair, both = tensors(prediction, reference), {"include_background": True, "spacing": spacing}
    swapped = pair[::-1]
    theirs = {
        "hd50": compute_hausdorff_distance(*pair, percentile=50, **both),
        "hd99.5": compute_hausdorff_distance(*pair, percentile=99.5, **both),
        "hd_from_prediction": compute_hausdorff_distance(*pair, directed=True, **both),
        "hd_from_reference": compute_hausdorff_distance(*swapped, directed=True, **both),
        "hd90_from_prediction": compute_hausdorff_distance(*pair, directed=True, percentile=90, **both),
        "hd90_from_reference": compute_hausdorff_distance(*swapped, directed=True, percentile=90, **both),
        "asd_from_prediction": compute_average_surface_distance(*pair, **both),
        "asd_from_reference": compute_average_surface_distance(*swapped, **both),
    }
    for mode in ({}, {"hd95": "pooled", "assd": "mean_of_means"}):
        names = [name for name in theirs if not mode or "from" in name]  # of one direction, the modes are the same
        ours = surface_scores(prediction, reference, spacing, names, **mode)
        assert ours == pytest.approx({name: theirs[name].item() for name in names}, rel=1e-5)
    assert len({round(value.item(), 6) for value in theirs.values()}) > 5


def test_directions_say_what_is_wrong():
    """A spurious pixel is far from the reference; a missed one is far from the prediction."""
    reference = boxes((12, 30), ((2, 6), (2, 6)))
    spurious = reference | boxes((12, 30), ((3, 4), (25, 26)))
    names = ["hd_from_prediction", "hd_from_reference", "hd99_from_reference"]
    assert surface_scores(spurious, reference, (1, 1), names) == {
        "hd_from_prediction": 20,
        "hd_from_reference": 0,
        "hd99_from_reference": 0,
    }
    assert surface_scores(reference, spurious, (1, 1), names)["hd_from_reference"] == 20


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, True) for name in ("hd", "hd1", "hd99.5", "hd95_from_reference", "asd_from_prediction", "nsd")),
        *((name, False) for name in ("hd0", "hd100", "hd05", "hd95.0", "hd95.", "asd", "assd_from_prediction")),
        *((name, False) for name in ("hd_from_", "hd_from_case", "nsd_from_prediction", "HD95", "hd٩")),
    ],
)
def test_names_of_distances(name, known):
    assert is_surface_metric(name) == known
    if not known:
        with pytest.raises(ValueError, match=r"expected metrics to be some of .*hd90 \(any percentile\)"):
            surface_scores(SPECK, SQUARE, (1, 1), [name])


@pytest.mark.parametrize("tolerance", [0.3, 1.0, 2.2])
@pytest.mark.parametrize(("sides", "spacing", "seed"), CASES)
def test_area_nsd_equals_monai(sides, spacing, seed, tolerance):
    prediction, reference = blobs(seed, sides)
    ours = surface_scores(prediction, reference, spacing, ["nsd"], tolerance_mm=tolerance)
    theirs = compute_surface_dice(
        *tensors(prediction, reference), [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
    )
    assert ours == {"nsd": pytest.approx(theirs.item(), rel=1e-5)}


@pytest.mark.parametrize(("sides", "spacing", "seed"), CASES)
def test_area_hd95_is_the_weighted_percentile_of_monai_areas(sides, spacing, seed):
    prediction, reference = blobs(seed, sides)
    edges, distances, areas = get_edge_surface_distance(
        *map(torch.from_numpy, (prediction, reference)), spacing=spacing, use_subvoxels=True, symmetric=True
    )
    percentiles = []
    for edge, distance, area in zip(edges, distances, areas, strict=True):
        order = np.argsort(distance.numpy())
        share = np.cumsum(area[edge].numpy()[order], dtype=float)
        percentiles.append(distance.numpy()[order][np.flatnonzero(share >= 0.95 * share[-1])[0]])
    ours = surface_scores(prediction, reference, spacing, ["hd95"], hd95="area")
    assert ours == {"hd95": pytest.approx(max(percentiles), rel=1e-5)}


@pytest.mark.parametrize(("sides", "spacing", "seed"), CASES)
def test_pooled_scores_equal_medpy(sides, spacing, seed):
    prediction, reference = blobs(seed, sides)
    ours = surface_scores(prediction, reference, spacing, ["hd", "hd95", "assd"], hd95="pooled")
    theirs = {name: getattr(medpy, name)(prediction, reference, voxelspacing=spacing) for name in ours}
    assert ours == pytest.approx(theirs)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9999), sides=SIDES, spacing=SPACING)
def test_scores_equal_their_definitions(seed, sides, spacing):
    spacing = spacing[: len(sides)]
    prediction, reference = blobs(seed, sides)
    ways = by_definition(prediction, reference, spacing)
    distances = surface_distances(prediction, reference, spacing)
    for ours, theirs in zip((distances.from_prediction, distances.from_reference), ways, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert (distances.prediction_weights == 1).all()
    assert (distances.reference_weights == 1).all()
    assert hausdorff(distances) == pytest.approx(max(way.max() for way in ways))
    assert hausdorff95(distances) == pytest.approx(max(np.percentile(way, 95) for way in ways))
    assert average_surface_distance(distances, "mean_of_means") == pytest.approx(np.mean([way.mean() for way in ways]))
    assert surface_dice(distances, 1.05) == pytest.approx(np.mean(np.concatenate(ways) <= 1.05))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9999), sides=SIDES, spacing=SPACING)
def test_morphology_equals_scipy(seed, sides, spacing):
    spacing = spacing[: len(sides)]
    first, second = blobs(seed, sides)
    np.testing.assert_array_equal(boundary(first), first ^ binary_erosion(first))
    forward, backward = distances_between(first, second, spacing)
    np.testing.assert_allclose(forward, distance_transform_edt(~second, sampling=spacing)[first])
    np.testing.assert_allclose(backward, distance_transform_edt(~first, sampling=spacing)[second])


def test_crop_leaves_one_pixel_of_background():
    first, second = boxes((9, 8), ((3, 5), (0, 1))), boxes((9, 8), ((4, 6), (2, 5)))
    before = first.copy(), second.copy()
    cropped = crop_to_foreground(first, second)
    np.testing.assert_array_equal(cropped[0], boxes((5, 7), ((1, 3), (1, 2))))
    np.testing.assert_array_equal(cropped[1], boxes((5, 7), ((2, 4), (3, 6))))
    np.testing.assert_array_equal((first, second), before)
    assert [mask.any() for mask in crop_to_foreground(first & second, first & second)] == [False, False]


# What is published of five pairs of masks on which libraries disagree. `area` values are those of DeepMind's
# surface-distance 0.1, run on these masks; voxel values are MONAI's and MedPy's.
SQUARE = boxes((20, 20), ((4, 12), (4, 12)))
SPECK = SQUARE | boxes((20, 20), ((17, 18), (17, 18)))
LARGE = boxes((40, 40), ((4, 24), (4, 24)))
AND_SMALL = LARGE | boxes((40, 40), ((34, 37), (34, 37)))
AT_BORDER, SHORTER = boxes((12, 12), ((0, 6), (0, 6))), boxes((12, 12), ((0, 6), (0, 5)))
PIXEL, BESIDE = boxes((7, 7), ((2, 3), (2, 3))), boxes((7, 7), ((2, 3), (4, 5)))
CUBE, SHIFTED = boxes((12,) * 3, *[((2, 8),) * 3]), boxes((12,) * 3, ((3, 9), (2, 8), (2, 8)))


@pytest.mark.parametrize(
    ("prediction", "reference", "metric", "definition", "published"),
    [
        (SPECK, SQUARE, "hd", {}, 8.485281),
        (SPECK, SQUARE, "hd95", {"hd95": "directed"}, 0),
        (SPECK, SQUARE, "hd95", {"hd95": "pooled"}, 0),
        (SPECK, SQUARE, "hd95", {"hd95": "area"}, 7.810250),
        (SPECK, SQUARE, "assd", {"assd": "pooled"}, 0.148865),
        (SPECK, SQUARE, "assd", {"assd": "mean_of_means"}, 0.146298),
        (SPECK, SQUARE, "nsd", {"nsd": "area"}, 0.956138),
        (AND_SMALL, LARGE, "hd95", {"hd95": "directed"}, 16.916801),
        (AND_SMALL, LARGE, "hd95", {"hd95": "pooled"}, 0.777817),
        (AND_SMALL, LARGE, "hd95", {"hd95": "area"}, 17.029386),
        (AND_SMALL, LARGE, "nsd", {"nsd": "area"}, 0.935731),
        (SHORTER, AT_BORDER, "assd", {"assd": "pooled"}, 0.263158),
        (PIXEL, BESIDE, "assd", {"assd": "pooled"}, 2),
        (PIXEL, BESIDE, "nsd", {"nsd": "voxel"}, 0),
        (PIXEL, BESIDE, "nsd", {"nsd": "area"}, 0.5),
    ],
)
def test_published_values(prediction, reference, metric, definition, published):
    score = surface_scores(prediction, reference, (1, 1), [metric], **definition)
    assert score == {metric: pytest.approx(published, abs=1e-6)}


def test_published_values_of_a_cube_a_thick_slice_away():
    for elements, published in (("voxel", 116 / 152), ("area", 0.889617)):
        score = surface_scores(SHIFTED, CUBE, (5, 1, 1), ["nsd"], tolerance_mm=2, nsd=elements)
        assert score == {"nsd": pytest.approx(published, abs=1e-6)}
    assert surface_scores(SHIFTED, CUBE, (5, 1, 1), ["hd", "assd"]) == pytest.approx({"hd": 5, "assd": 200 / 152})


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "of_prediction", "of_reference"),
    [
        (SPECK, SQUARE, (1, 1), 0.655004, 0),
        (SHORTER, AT_BORDER, (1, 1), 0.240057, 0.280975),
        (PIXEL, BESIDE, (1, 1), 1.5, 1.5),
        (SHIFTED, CUBE, (5, 1, 1), 0.593019, 0.593019),
    ],
)
def test_published_means_over_areas(prediction, reference, spacing, of_prediction, of_reference):
    distances = surface_distances(prediction, reference, spacing, "area")
    means = [
        np.average(distances.from_prediction, weights=distances.prediction_weights),
        np.average(distances.from_reference, weights=distances.reference_weights),
    ]
    assert means == pytest.approx([of_prediction, of_reference], abs=1e-6)
    assert average_surface_distance(distances, "mean_of_means") == pytest.approx(np.mean(means))


def test_lengths_and_areas_of_a_box_have_cut_corners():
    y, x, z = 0.5, 1.7, 3.0
    rectangle = boxes((9, 8), ((2, 7), (3, 6)))
    contour = surface_distances(rectangle, rectangle, (y, x), "area").prediction_weights
    assert contour.sum() == pytest.approx(2 * (4 * y + 2 * x) + 4 * math.hypot(y, x) / 2)
    box = boxes((8, 8, 8), ((0, 5), (1, 4), (3, 5)))
    area = surface_distances(box, box, (y, x, z), "area").reference_weights
    a, b, c = 4 * y, 2 * x, 1 * z
    faces = 2 * (a * b + a * c + b * c)
    edges = 4 * (a * math.hypot(x, z) + b * math.hypot(y, z) + c * math.hypot(y, x)) / 2
    assert area.sum() == pytest.approx(faces + edges + 8 * math.hypot(x * z, y * z, y * x) / 8)


@pytest.mark.parametrize("definition", DEFINITIONS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 9999), sides=SIDES, spacing=SPACING)
def test_scores_are_invariant(seed, sides, spacing, definition):
    spacing = spacing[: len(sides)]
    prediction, reference = blobs(seed, sides)
    scores = surface_scores(prediction, reference, spacing, SURFACE_METRICS, **definition)
    others = {
        "the masks change places": (reference, prediction, spacing),
        "axes are permuted": (prediction.T, reference.T, spacing[::-1]),
        "an axis is flipped": (prediction[::-1], reference[::-1], spacing),
        "the image is larger": (np.pad(prediction, 2), np.pad(reference, 2), spacing),
        "pixels lie in another order": (np.asfortranarray(prediction), np.asfortranarray(reference), spacing),
    }
    for change, arguments in others.items():
        assert surface_scores(*arguments, SURFACE_METRICS, **definition) == pytest.approx(scores, rel=1e-6), change


@pytest.mark.parametrize("definition", DEFINITIONS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 9999), sides=SIDES, spacing=SPACING)
def test_distances_scale_with_the_spacing(seed, sides, spacing, definition):
    spacing = spacing[: len(sides)]
    masks = blobs(seed, sides)
    before = [mask.copy() for mask in masks]
    once = surface_scores(*masks, spacing, SURFACE_METRICS, tolerance_mm=1.5, **definition)
    doubled = [2 * step for step in spacing]
    twice = surface_scores(*masks, doubled, SURFACE_METRICS, tolerance_mm=3, **definition)
    expected = {name: value if name == "nsd" else 2 * value for name, value in once.items()}
    assert twice == pytest.approx(expected)
    np.testing.assert_array_equal(masks, before)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("sides", [(6, 5), (4, 6, 5)])
def test_empty_masks(sides, definition):
    nothing, spacing = np.zeros(sides, dtype=bool), (2.0,) * len(sides)
    something = boxes(sides, ((1, 4),) * len(sides))
    missed = {"hd": INF, "hd95": INF, "assd": INF, "nsd": 0.0}
    assert surface_scores(nothing, something, spacing, SURFACE_METRICS, **definition) == missed
    assert surface_scores(something, nothing, spacing, SURFACE_METRICS, **definition) == missed
    neither = surface_scores(nothing, nothing, spacing, SURFACE_METRICS, **definition)
    assert neither == pytest.approx(dict.fromkeys(SURFACE_METRICS, NAN), nan_ok=True)
    spurious = surface_distances(something, nothing, spacing, definition.get("nsd", "area"))
    assert len(spurious.from_prediction) == len(spurious.prediction_weights) > 0
    assert np.isinf(spurious.from_prediction).all()
    assert len(spurious.from_reference) == len(spurious.reference_weights) == 0
    same = surface_scores(something, something, spacing, SURFACE_METRICS, **definition)
    assert same == {"hd": 0, "hd95": 0, "assd": 0, "nsd": 1}


def test_the_surface_of_a_full_mask_is_the_image_border():
    full, centre = np.ones((5, 5), dtype=bool), boxes((5, 5), ((2, 3), (2, 3)))
    distances = surface_distances(full, centre, (1, 1))
    assert len(distances.from_prediction) == 16
    assert (hausdorff(distances), distances.from_reference.tolist()) == (pytest.approx(math.sqrt(8)), [2.0])


@pytest.mark.parametrize("elements", ["voxel", "area"])
def test_single_pixels_have_the_distance_of_their_centres(elements):
    first, second = boxes((9, 9, 9), ((1, 2),) * 3), boxes((9, 9, 9), ((4, 5), (1, 2), (7, 8)))
    distances = surface_distances(first, second, (1.0, 1.0, 0.5), elements)
    if elements == "voxel":
        assert distances.from_prediction.tolist() == [pytest.approx(math.hypot(3, 3))]
    assert hausdorff(distances) == pytest.approx(math.hypot(3, 3))
    assert len(distances.from_prediction) == (1 if elements == "voxel" else 8)


def by_hand(from_prediction, from_reference, prediction_weights=None, reference_weights=None):
    values = [np.asarray(each, dtype=float) for each in (from_prediction, from_reference)]
    weights = [
        np.ones(len(value)) if given is None else np.asarray(given, dtype=float)
        for value, given in zip(values, (prediction_weights, reference_weights), strict=True)
    ]
    return SurfaceDistances(*values, *weights)


def test_weights_are_used_by_area_modes_only():
    distances = by_hand([3, 0, 1], [5, 2], [1, 6, 1], [0.2, 9.8])
    assert hausdorff(distances) == 5
    assert average_surface_distance(distances) == pytest.approx((4 + 20.6) / 18)
    assert average_surface_distance(distances, "mean_of_means") == pytest.approx((4 / 8 + 20.6 / 10) / 2)
    assert surface_dice(distances, 0) == pytest.approx(6 / 18)
    assert surface_dice(distances, 1) == pytest.approx(7 / 18)
    assert surface_dice(distances, 2) == pytest.approx(16.8 / 18)
    assert hausdorff95(distances) == pytest.approx(4.85)
    assert hausdorff95(distances, "pooled") == pytest.approx(4.6)
    assert hausdorff95(distances, "area") == 3


@pytest.mark.parametrize("weight", [1.0, 0.9, 1 / 3, 1.3])
def test_rounding_does_not_change_the_percentile(weight):
    distances = by_hand(np.arange(100), [0], np.full(100, weight), [1])
    assert hausdorff95(distances, "area") == 94


@pytest.mark.parametrize(("step", "tolerance"), [(0.1, 0.3), (0.7, 2.1), (float(np.float32(0.1)), 0.3)])
def test_a_distance_equal_to_the_tolerance_is_within_it(step, tolerance):
    first, second = boxes((9, 3), ((1, 2), (1, 2))), boxes((9, 3), ((4, 5), (1, 2)))
    for elements in ("voxel", "area"):
        score = surface_scores(first, second, (step, step), ["nsd"], tolerance_mm=tolerance, nsd=elements)
        assert score == {"nsd": 1.0}
        score = surface_scores(first, second, (step, step), ["nsd"], tolerance_mm=tolerance * 0.999, nsd=elements)
        assert score["nsd"] < 1


def test_each_kind_of_surface_is_computed_once(monkeypatch):
    kinds = []

    def counted(prediction, reference, spacing, elements):
        kinds.append(elements)
        return surface_distances(prediction, reference, spacing, elements)

    monkeypatch.setattr(surface, "surface_distances", counted)
    assert list(surface_scores(SPECK, SQUARE, (1, 1), SURFACE_METRICS)) == list(SURFACE_METRICS)
    assert sorted(kinds) == ["area", "voxel"]
    kinds.clear()
    assert list(surface_scores(SPECK, SQUARE, (1, 1), ["nsd", "hd95"], nsd="voxel")) == ["nsd", "hd95"]
    assert kinds == ["voxel"]


def test_diagonal_is_the_brats_score_of_a_missed_tumour():
    assert image_diagonal((240, 240, 155), (1, 1, 1)) == pytest.approx(373.128664)
    assert image_diagonal((30, 40), (0.2, 0.2)) == pytest.approx(10)
    corners = boxes((30, 40), ((0, 1), (0, 1))), boxes((30, 40), ((29, 30), (39, 40)))
    assert 9.6 < surface_scores(*corners, (0.2, 0.2), ["hd"])["hd"] < 10
    with pytest.raises(ValueError, match="2 positive spacings"):
        image_diagonal((30, 40), (1, 1, 1))


FLAT = np.ones((4, 5), dtype=bool)


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "message"),
    [
        (FLAT, FLAT.T, (1, 1), r"same shape \[\*S\].*got \[4, 5\] and \[5, 4\]"),
        (FLAT[0], FLAT[0], (1,), r"2D or 3D, got \[5\] and \[5\]"),
        (FLAT[None, None], FLAT[None, None], (1, 1, 1, 1), r"2D or 3D, got \[1, 1, 4, 5\].*batch and channel"),
        (FLAT.astype(np.uint8), FLAT, (1, 1), "the prediction as a NumPy array of bool, got ndarray of uint8"),
        (FLAT, FLAT * 1.0, (1, 1), "the reference as a NumPy array of bool, got ndarray of float64"),
        (torch.from_numpy(FLAT), FLAT, (1, 1), r"got Tensor of torch\.bool.*\.cpu\(\)\.numpy\(\)"),
        (FLAT, FLAT, (1, 1, 1), r"2 positive spacings in mm.*got \[1, 1, 1\].*\[1\.0, 1\.0\] to measure in pixels"),
        (FLAT, FLAT, (1, 0), r"positive spacings.*got \[1, 0\]"),
        (FLAT, FLAT, (-1, 1), r"positive spacings.*got \[-1, 1\]"),
        (FLAT, FLAT, (NAN, 1), r"positive spacings.*got \[nan, 1\]"),
        (FLAT, FLAT, (INF, 1), r"positive spacings.*got \[inf, 1\]"),
    ],
)
def test_invalid_inputs_raise(prediction, reference, spacing, message):
    with pytest.raises(ValueError, match=message):
        surface_scores(prediction, reference, spacing, ["hd"])
    with pytest.raises(ValueError, match=message):
        surface_distances(prediction, reference, spacing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["hd", "dice"]}, "metrics .*hd, hd95, assd, nsd, .*got 'dice'"),
        ({"hd95": "max"}, "hd95 .*directed, pooled, area, got 'max'"),
        ({"assd": "area"}, "assd .*pooled, mean_of_means, got 'area'"),
        ({"nsd": "surfel"}, "nsd .*voxel, area, got 'surfel'"),
        ({"tolerance_mm": -0.1}, "tolerance of 0 mm or more, got -0.1"),
        ({"tolerance_mm": INF}, "tolerance of 0 mm or more, got inf"),
        ({"tolerance_mm": NAN}, "tolerance of 0 mm or more, got nan"),
    ],
)
def test_unknown_definitions_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        surface_scores(**({"prediction": FLAT, "reference": FLAT, "spacing": (1, 1), "metrics": ["nsd"]} | arguments))


def test_unknown_modes_raise():
    distances = by_hand([], [])
    for function in (hausdorff95, average_surface_distance):
        with pytest.raises(ValueError, match=r"mode .*pooled.*got 'median'"):
            function(distances, "median")
    with pytest.raises(ValueError, match=r"elements .*voxel, area, got 'pixel'"):
        surface_distances(FLAT, FLAT, (1, 1), "pixel")
