"""Scores of components against loops over lesions, MONAI's panoptic quality, and values computed by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from monai.metrics.panoptic_quality import compute_panoptic_quality
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from segkit.metrics.case_table import FROM_COUNTS, METRICS
from segkit.metrics.components import COMPONENT_METRICS, ComponentRules, component_scores, find_components, match_by_iou
from segkit.metrics.measured import FAMILIES, MEASURED_METRICS, measure
from segkit.metrics.rules import PER_CASE_METRICS, PRESETS, Rules
from segkit.metrics.surface import surface_scores
from segkit.utils.metric_names import FACTS, is_measured, metric_facts

NAN = math.nan
CASES = [
    pytest.param(sides, spacing, share, seed, id=f"{len(sides)}D, seed {seed}")
    for seed, share in enumerate([0.12, 0.03, 0.06, 0.012])
    for sides, spacing in (((40, 34), (0.7, 1.9)), ((16, 18, 14), (2.5, 0.8, 1.1)))
]


def lesions(seed, sides, share):
    """Two masks of scattered blobs that partly agree."""
    generator = np.random.default_rng(seed)
    common, *own = [gaussian_filter(generator.normal(size=sides), 1.1) for _ in range(3)]
    fields = [common + 0.5 * each for each in own]
    return [field >= np.quantile(field, 1 - share) for field in fields]


def full(dims):
    return ndimage.generate_binary_structure(dims, dims)


def planes(mask, structure=None):
    labels, number = ndimage.label(mask, full(mask.ndim) if structure is None else structure)
    return [labels == each for each in range(1, number + 1)]


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def by_loops(prediction, reference, spacing, dilation, min_volume, penalty, hd95):
    """Lesion by lesion: join what touches after dilation (0 for none), and take all predicted lesions that touch it."""
    structure = ndimage.generate_binary_structure(reference.ndim, 2)

    def dilated(mask):
        return ndimage.binary_dilation(mask, structure, dilation) if dilation else mask

    predicted, used, scores, detected = planes(prediction), set(), [], 0
    for group in planes(dilated(reference)):
        lesion = group & reference
        near = [number for number, plane in enumerate(predicted) if (plane & dilated(lesion)).any()]
        used |= set(near)
        if lesion.sum() * math.prod(spacing) <= min_volume:
            continue
        union = np.any([predicted[number] for number in near], 0) if near else np.zeros_like(lesion)
        distance = surface_scores(union, lesion, spacing, ["hd95"], hd95=hd95)["hd95"] if near else penalty
        detected += bool(near)
        scores.append((dice(union, lesion), distance))
    false = len(predicted) - len(used)
    missed, number = len(scores) - detected, len(scores) + false
    if not number:
        return dict.fromkeys(("lesion_f1", "lesion_dice", "lesion_hd95"), NAN)
    return {
        "lesion_f1": 2 * detected / (2 * detected + missed + false),
        "lesion_dice": sum(score for score, _ in scores) / number,
        "lesion_hd95": (sum(distance for _, distance in scores) + false * penalty) / number,
    }


@pytest.mark.parametrize(("sides", "spacing", "share", "seed"), CASES)
@pytest.mark.parametrize(
    ("rules", "dilation"),
    [
        (ComponentRules(penalty=99.0), 0),
        (ComponentRules(penalty=99.0, min_volume=6.0), 0),
        (ComponentRules(matching="brats", dilation=1, penalty=99.0), 1),
        (ComponentRules(matching="brats", dilation=3, penalty=374.0, min_volume=6.0, hd95="area"), 3),
    ],
    ids=["overlap", "overlap of large", "one dilation", "as BraTS"],
)
def test_lesion_scores_equal_loops(sides, spacing, share, seed, rules, dilation):
    prediction, reference = lesions(seed, sides, share)
    names = ["lesion_f1", "lesion_dice", "lesion_hd95"]
    expected = by_loops(prediction, reference, spacing, dilation, rules.min_volume, rules.penalty, rules.hd95)
    assert component_scores(prediction, reference, spacing, names, rules) == pytest.approx(expected, nan_ok=True)
    assert 0 < expected["lesion_dice"] < expected["lesion_f1"] <= 1


@pytest.mark.parametrize(("sides", "spacing", "share", "seed"), CASES)
def test_panoptic_quality_equals_monai(sides, spacing, share, seed):
    prediction, reference = lesions(seed, sides, share)
    ours = component_scores(prediction, reference, spacing, ["pq", "rq", "sq"])
    instances = [torch.from_numpy(ndimage.label(mask, full(len(sides)))[0]) for mask in (prediction, reference)]
    for ours_name, name in (("pq", "pq"), ("rq", "rq"), ("sq", "sq")):
        theirs = compute_panoptic_quality(*instances, metric_name=name, smooth_numerator=1e-12)
        assert ours[ours_name] == pytest.approx(float(theirs), abs=1e-6)
    assert 0 < ours["pq"] <= ours["rq"]
    rules = ComponentRules(matching="iou")
    assert component_scores(prediction, reference, spacing, ["lesion_f1"], rules)["lesion_f1"] == ours["rq"]


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_matching_by_a_low_iou_is_the_best_of_all(threshold):
    """All one-to-one matchings are tried."""
    ambiguous = 0
    for seed in range(12):
        generator = np.random.default_rng(seed)
        prediction, reference = (generator.random((2, 5, 6)) < 0.35)[:2]
        predicted, known = planes(prediction, None), planes(reference, None)
        iou = np.array([[(a & b).sum() / (a | b).sum() for b in predicted] for a in known]).reshape(len(known), -1)
        iou = np.where(iou > threshold, iou, 0)
        ambiguous += ((iou > 0).sum(0) > 1).any() or ((iou > 0).sum(1) > 1).any()
        wide = np.pad(iou, ((0, 0), (0, len(known))))  # each may stay without a partner
        best = max(
            sum(wide[row, column] for row, column in enumerate(chosen))
            for chosen in itertools.permutations(range(wide.shape[1]), len(known))
        )
        matches, found = match_by_iou(find_components(prediction, reference, ComponentRules()), threshold)
        assert found.sum() == pytest.approx(best)
        assert (found > threshold).all()
        assert len(set(matches.reference)) == len(set(matches.predicted)) == len(found)
    assert ambiguous


def row(text):
    return np.array([[letter == "#" for letter in text]])


def test_scores_by_hand():
    """Three lesions: one is hit by half, one is missed, one is hit by two components; one component is false."""
    reference = row("####...##...#####....")
    prediction = row("##..........#.##...##")
    scores = component_scores(prediction, reference, (1.0, 2.0), COMPONENT_METRICS)
    assert scores["lesion_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["lesion_dice"] == pytest.approx((2 * 2 / 6 + 0 + 2 * 3 / 8 + 0) / 4)
    diagonal = math.hypot(1, 2 * 21)
    # lesions of one row are their own surface, and the farthest pixel decides beyond the 95th percentile
    first = np.percentile([0, 0, 2, 4], 95)
    third = np.percentile([0, 2, 0, 0, 2], 95)
    assert scores["lesion_hd95"] == pytest.approx((first + third + 2 * diagonal) / 4)
    # an IoU of 1/2 is not above 1/2, and neither is one of 2/5
    assert [scores[name] for name in ("pq", "rq", "sq")] == [0, 0, 0]
    rules = ComponentRules(matching="iou", iou=0.4)
    scores = component_scores(prediction, reference, (1.0, 2.0), COMPONENT_METRICS, rules)
    assert [scores[name] for name in ("pq", "rq", "sq")] == pytest.approx([0.5 * 2 / 7, 2 / 7, 0.5])
    assert scores["lesion_f1"] == scores["rq"]
    assert scores["lesion_dice"] == pytest.approx(2 / 3 / 6)


def test_lesions_that_touch_after_dilation_are_one():
    reference, prediction = row("#.....#.........#"), row("....#............")
    assert component_scores(prediction, reference, (1, 1), ["lesion_f1"])["lesion_f1"] == 0
    near = component_scores(
        prediction, reference, (1, 1), ["lesion_f1", "lesion_dice"], ComponentRules(matching="brats")
    )
    assert near == {"lesion_f1": 2 / 3, "lesion_dice": 0}  # detected without a common pixel
    apart = component_scores(prediction, reference, (1, 1), ["lesion_f1"], ComponentRules(matching="brats", dilation=1))
    assert apart["lesion_f1"] == 0


def test_connectivity():
    corner = np.eye(2, dtype=bool)
    one = np.array([[True, False], [False, False]])
    assert component_scores(one, corner, (1, 1), ["lesion_f1"]) == {"lesion_f1": 1}
    direct = component_scores(one, corner, (1, 1), ["lesion_f1"], ComponentRules(connectivity="direct"))
    assert direct == {"lesion_f1": pytest.approx(2 / 3)}


def test_small_lesions_are_left_out_with_what_hits_them():
    reference, prediction = row("#..####"), row("#......")
    scores = component_scores(prediction, reference, (1, 1), ["lesion_f1"], ComponentRules(min_volume=1.0))
    assert scores == {"lesion_f1": 0}  # one missed lesion, no false one
    nothing = component_scores(prediction, reference, (1, 1), ["lesion_dice"], ComponentRules(min_volume=4.0))
    assert math.isnan(nothing["lesion_dice"])


@pytest.mark.parametrize("matching", ["overlap", "iou", "brats"])
@pytest.mark.parametrize("sides", [(6, 5), (4, 6, 5)])
def test_empty_masks(sides, matching):
    nothing, something = np.zeros(sides, bool), np.zeros(sides, bool)
    something[1:3, 1:3] = True
    rules, spacing = ComponentRules(matching=matching, penalty=50.0), (1.0,) * len(sides)
    one_empty = dict.fromkeys(COMPONENT_METRICS, 0.0) | {"lesion_hd95": 50.0}
    assert component_scores(nothing, something, spacing, COMPONENT_METRICS, rules) == one_empty
    assert component_scores(something, nothing, spacing, COMPONENT_METRICS, rules) == one_empty
    neither = component_scores(nothing, nothing, spacing, COMPONENT_METRICS, rules)
    assert all(math.isnan(score) for score in neither.values())
    perfect = dict.fromkeys(COMPONENT_METRICS, 1.0) | {"lesion_hd95": 0.0}
    assert component_scores(something, something, spacing, COMPONENT_METRICS, rules) == perfect


def test_brats_scores_a_case_without_counted_lesions_as_perfect():
    rules = PRESETS["brats2023"]
    small = np.zeros((6, 6, 6), bool)
    small[2, 2, 2] = True
    scores = measure(small, small, (1.0, 1.0, 1.0), ["lesion_dice", "lesion_hd95", "lesion_f1"], rules)
    assert scores == pytest.approx({"lesion_dice": 1, "lesion_hd95": 0, "lesion_f1": NAN}, nan_ok=True)
    scores = measure(~small & False, ~small, (1.0, 1.0, 1.0), ["lesion_dice", "lesion_hd95"], rules)
    assert scores == {"lesion_dice": 0, "lesion_hd95": 374}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"connectivity": "half"}, "connectivity .*full, direct, got 'half'"),
        ({"lesion_matching": "touch"}, "lesion_matching .*overlap, iou, brats, got 'touch'"),
        ({"component_iou": 1.0}, "component_iou .*got 1.0"),
        ({"lesion_dilation": 0}, "lesion_dilation"),
        ({"lesion_min_volume": -1.0}, "lesion_min_volume"),
        ({"lesion_penalty_mm": math.inf}, "lesion_penalty_mm .*worst, got inf"),
        ({"aggregation": {"pq": "global"}}, "pq does not support the aggregation global"),
        ({"aggregation": {"hd90": "micro"}}, "hd90 does not support the aggregation micro"),
    ],
)
def test_invalid_rules_raise(values, message):
    with pytest.raises(ValueError, match=message):
        Rules(**values)


def test_every_metric_is_in_one_family_and_has_a_direction():
    for metric in METRICS:
        families = [name for name, family in FAMILIES.items() if family.contains(metric)]
        assert len(families) == is_measured(metric) == (metric in MEASURED_METRICS), metric
        assert is_measured(metric) != (metric in (*FROM_COUNTS, *PER_CASE_METRICS)), metric
    assert set(METRICS) == set(FACTS)
    assert metric_facts("hd97.5_from_reference") == metric_facts("hd95")
    assert not is_measured("sharpness")


def test_only_what_was_asked_for_is_computed(monkeypatch):
    """Each family is called for its own metrics, and no skeleton or surface is computed for lesions."""
    for name in ("topology_scores", "surface_scores"):
        monkeypatch.setattr(f"segkit.metrics.measured.{name}", None)
    monkeypatch.setattr("segkit.metrics.components.surface_scores", None)
    mask = np.ones((3, 3), bool)
    assert measure(mask, mask, (1, 1), ["pq", "lesion_dice"], Rules()) == {"pq": 1, "lesion_dice": 1}
