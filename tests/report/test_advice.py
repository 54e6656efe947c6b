"""The first sentences of a comparison: which loss to take, and how sure that is."""

import numpy as np
import pytest

from segkit.compare.statistics import analyse
from segkit.report.advice import advice
from segkit.report.comparison_page import best_first

from support.simulated_tables import long_table


def result(verdicts, *, family="all_pairs", baseline=None, scope="losses", runs=2, mean=0.9, **extra):
    """Contents of comparison.json. verdicts: of pairs `a b`, the losses in the order of their means."""
    names = list(dict.fromkeys(name for pair in verdicts for name in pair.split()))
    pairs = [
        {"a": a, "b": b, "verdict": verdict, "p": 0.5, **extra}
        for (a, b), verdict in ((pair.split(), verdict) for pair, verdict in verdicts.items())
    ]
    return {
        "metric": "dice",
        "losses": [{"name": name, "runs": [1] * runs, "mean": mean - 0.1 * i} for i, name in enumerate(names)],
        "pairs": pairs,
        "scope": scope,
        "family": family,
        "baseline": baseline,
        "margin": 0.005,
    }


CHANCE = "x has the best mean of them, which may be chance."
OF_TWO = "x has the better mean of them, which may be chance."


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({"x y": "better"}, "Take x: it is better than y."),
        ({"x y": "better", "z x": "worse", "y z": None}, "Take x: it is better than every other loss (y and z)."),
        ({"x y": "equivalent"}, "Take either of x and y: they differ by less than 0.005."),
        (
            {"x y": "equivalent", "x z": "equivalent", "z y": "equivalent", "w x": "worse"},
            "Take any of x, y and z: they differ by less than 0.005. w is worse.",
        ),
        (
            {"x y": "equivalent", "x z": "equivalent", "y z": "undecided"},
            f"No loss can be preferred: it is not known yet which of them is best. {CHANCE}",
        ),
        (
            {"x y": "undecided", "x z": "better", "y z": "undecided"},
            f"Take either of x and y: it is not known yet which of the two is better. {OF_TWO} z is worse.",
        ),
        (
            {"x y": "undecided", "x z": "undecided", "y z": "better"},
            f"Take either of x and y: it is not known yet which of the two is better. {OF_TWO} z is worse.",
        ),
        (
            {"x y": "undecided", "x z": "undecided", "y z": "undecided"},
            f"No loss can be preferred: it is not known yet which of them is best. {CHANCE}",
        ),
        ({"x y": None, "z x": "better", "z y": "better"}, "Take z: it is better than every other loss (x and y)."),
        (
            {"x y": "better", "y z": "better", "z x": "better"},
            "No loss can be preferred: each is worse than another one.",
        ),
    ],
)
def test_the_loss_to_take(verdicts, expected):
    assert advice(result(verdicts))[0] == expected


def test_what_would_tell_losses_apart():
    sixteen = advice(result({"x y": "undecided"}, seeds_needed=16))[1]
    assert sixteen.startswith("About 16 runs per loss instead of 2 could tell")
    assert advice(result({"x y": "undecided"}, seeds_needed=None))[1].startswith(
        "Even 200 runs per loss would probably not"
    )
    reason = "runs of x (1) failed; the remaining runs are not a fair sample of the loss"
    assert advice(result({"x y": "undecided"}, reason=reason))[1] == f"R{reason[1:]}."
    assert len(advice(result({"x y": "undecided"}))) == 2, "as for folds, for which it is not computed"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({"x base": "better", "y base": "worse"}, "Take x instead of the baseline base: it is better."),
        (
            {"x base": "better", "y base": "better"},
            "Take either of x and y instead of the baseline base: they are better.",
        ),
        ({"x base": "undecided"}, "Keep the baseline base: no other loss is shown to be better."),
    ],
)
def test_against_a_baseline(verdicts, expected):
    assert advice(result(verdicts, family="vs_baseline", baseline="base"))[0] == expected


def test_a_baseline_without_runs_is_not_recommended():
    found = result({"x base": "undecided", "y base": "undecided"}, family="vs_baseline", baseline="base")
    next(loss for loss in found["losses"] if loss["name"] == "base")["runs"] = []
    (sentence,) = advice(found)
    assert sentence.endswith("the baseline base has no complete runs.")


@pytest.mark.parametrize("verdict", ["equivalent", "undecided"])
def test_networks_that_learned_nothing_recommend_no_loss(verdict):
    found = result({"x y": verdict}, mean=0.02)
    (sentence,) = advice(found)
    assert sentence.startswith("No recommendation: the best mean is 0.0200")
    assert advice(result({"x y": verdict}, mean=0.2))[0].split(":")[0] != "No recommendation"
    assert advice(result({"x y": "better"}, mean=0.02))[0].startswith("Take x")
    against = result({"x y": verdict}, mean=0.02, family="vs_baseline", baseline="y")
    assert advice(against)[0].startswith("No recommendation")
    assert not advice({**found, "metric": "hd95"})[0].startswith("No recommendation"), "a distance of 0 is perfect"


def test_equal_means_have_no_leader():
    found = result({"x y": "undecided"})
    for loss in found["losses"]:
        loss["mean"] = 0.8
    assert advice(found)[0].endswith("Their means are equal.")


def test_one_loss_needs_no_advice():
    assert advice({"losses": [{"name": "x", "runs": [1]}], "pairs": []}) == []


@pytest.mark.parametrize(
    ("runs", "gap", "expected"),
    [
        (4, 0.2, "Take a: it is better than b."),
        (1, 0.2, "These results cannot say which loss to take"),
        (4, 0.0, "No loss can be preferred"),
    ],
)
def test_advice_on_a_table_of_scores(runs, gap, expected):
    random = np.random.default_rng(0)
    case = random.normal(0, 0.02, 30)
    values = {
        name: np.clip(0.6 + shift + case + random.normal(0, 0.02, (runs, 1)) + random.normal(0, 0.01, (runs, 30)), 0, 1)
        for name, shift in (("a", gap), ("b", 0.0))
    }
    found = advice(best_first(analyse(long_table(values))))
    assert found[0].startswith(expected)
    assert len(found) == (1 if runs == 1 else 2 if gap else 3)
