"""Scores by the size of a class: strata, their means, counts and intervals."""

import numpy as np
import pytest
import torch

from segkit import Labels
from segkit.metrics.bootstrap import Bootstrap, mean_intervals
from segkit.metrics.case_table import cases_table
from segkit.metrics.rules import Rules
from segkit.metrics.size_strata import SizeStrata, pixel_size, scores_by_size

LABELS = Labels(["background", "a", "b"])
CASES = 60


def table(seed=0, column="reference_ml", size=0.5):
    """The larger a class, the better its Dice; in some cases, a class is missed, or not there."""
    generator = np.random.default_rng(seed)
    reference = generator.integers(1, 101, (CASES, 3))
    reference[:6, 1], reference[:3, 2] = 0, 0
    predicted = reference + generator.integers(0, 9, reference.shape)
    predicted[6:10, 1] = 0
    tp = np.minimum((reference * (0.5 + reference / 220)).astype(int), predicted)
    names = [f"case{number:02d}" for number in range(CASES)]
    groups = [f"patient{number // 2}" for number in range(CASES)]
    counts = np.stack([tp, predicted, reference], -1)
    return cases_table(names, groups, counts, LABELS, columns={column: reference * size})


def test_strata_by_bounds():
    cases = table()
    result = scores_by_size(cases, LABELS, SizeStrata.of([10, 30]), metrics=("dice", "iou"))
    assert (result["unit"], result["strata"]) == ("ml", [10.0, 30.0])
    assert list(result["classes"]) == ["background", "a", "b"]
    for name, by_class in result["classes"].items():
        rows = cases[(cases["class"] == name) & (cases["reference"] > 0)]
        absent = cases[(cases["class"] == name) & (cases["reference"] == 0)]
        assert by_class["spurious"] == (absent["predicted"] > 0).sum()
        bounds = [(0, 10), (10, 30), (30, np.inf)]
        assert sum(stratum["cases"] for stratum in by_class["strata"]) == len(rows)
        for stratum, (low, high) in zip(by_class["strata"], bounds, strict=True):
            inside = rows[(rows["reference_ml"] > low) & (rows["reference_ml"] <= high)]
            assert stratum["above"] == low
            assert stratum["up_to"] == (None if high == np.inf else high)
            assert stratum["cases"] == len(inside) > 5
            assert stratum["missed"] == (inside["predicted"] == 0).sum()
            for metric in ("dice", "iou"):
                assert stratum[metric]["mean"] == pytest.approx(inside[metric].mean())
                assert stratum[metric]["cases"] == len(inside)
            alone = mean_intervals(torch.tensor(inside[["dice"]].to_numpy()), inside["group"].to_numpy(str))
            if alone.reasons[0] is None:
                assert stratum["dice"]["ci95"] == pytest.approx([alone.low[0], alone.high[0]])
                assert stratum["dice"]["ci95"][0] < stratum["dice"]["mean"] < stratum["dice"]["ci95"][1]
    assert sum(stratum["missed"] for stratum in result["classes"]["a"]["strata"]) == 4
    means = [stratum["dice"]["mean"] for stratum in result["classes"]["background"]["strata"]]
    assert means == sorted(means)


def test_equally_many_cases_for_each_class():
    result = scores_by_size(table(), LABELS, SizeStrata.of(3), Rules(exclude_classes=("b",)))
    assert (list(result["classes"]), result["strata"]) == (["background", "a"], 3)
    for name, number in (("background", 60), ("a", 54)):
        strata = result["classes"][name]["strata"]
        sizes = [stratum["cases"] for stratum in strata]
        assert sum(sizes) == number
        assert max(sizes) - min(sizes) <= 3  # equal sizes stay together
        assert [stratum["above"] for stratum in strata[1:]] == [stratum["up_to"] for stratum in strata[:-1]]


def test_a_size_equal_to_a_bound_is_below_it_and_an_empty_stratum_has_a_reason():
    counts = np.array([[[5, 5, 5]] * 3, [[4, 5, 6]] * 3])
    cases = cases_table(["x", "y"], ["x", "y"], counts, LABELS, columns={"reference_mm2": counts[..., 2] * 2.0})
    result = scores_by_size(cases, LABELS, SizeStrata.of([10.0, 11.0]))
    assert result["unit"] == "mm2"
    strata = result["classes"]["a"]["strata"]
    assert [stratum["cases"] for stratum in strata] == [1, 0, 1]
    assert strata[0]["dice"]["mean"] == 1
    assert strata[1]["dice"] == {"mean": None, "ci95": None, "ci95_reason": "no case is counted", "cases": 0}
    assert "ci95_reason" in strata[2]["dice"]


def test_a_class_without_any_case():
    counts = np.zeros((2, 3, 3), int)
    cases = cases_table(["x", "y"], ["x", "y"], counts, LABELS, columns={"reference_ml": np.zeros((2, 3))})
    strata = scores_by_size(cases, LABELS, SizeStrata.of(2))["classes"]["a"]["strata"]
    assert [stratum["cases"] for stratum in strata] == [0]  # there are no sizes to divide


def test_intervals_follow_the_rules():
    wide = scores_by_size(table(), LABELS, SizeStrata.of(2), Rules(bootstrap=Bootstrap(confidence=0.99)))
    narrow = scores_by_size(table(), LABELS, SizeStrata.of(2))
    ends = [result["classes"]["background"]["strata"][0]["dice"]["ci95"] for result in (wide, narrow)]
    assert ends[0][0] < ends[1][0] < ends[1][1] < ends[0][1]


def test_sizes_have_units():
    assert pixel_size((0.5, 2.0)) == 1
    assert pixel_size((1.0, 2.0, 3.0)) == 0.006


@pytest.mark.parametrize("value", [1, 21, [], [5.0, 5.0], [5.0, 3.0], [0.0, 3.0], [1.0, float("inf")]])
def test_invalid_strata_raise(value):
    with pytest.raises(ValueError, match="size_strata"):
        SizeStrata.of(value)
