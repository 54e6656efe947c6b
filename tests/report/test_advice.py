"""The first sentences of a comparison: which loss to take, and how sure that is."""

import pytest

from segkit.report.advice import advice


def result(verdicts, *, family="all_pairs", baseline=None, scope="losses", needed=None):
    """Contents of comparison.json. verdicts: of pairs `a b`, the losses in the order of their means."""
    names = list(dict.fromkeys(name for pair in verdicts for name in pair.split()))
    pairs = [
        {"a": a, "b": b, "verdict": verdict, "p": 0.5, **({} if needed is None else {"seeds_needed": needed})}
        for (a, b), verdict in ((pair.split(), verdict) for pair, verdict in verdicts.items())
    ]
    losses = [{"name": name, "runs": [1, 2]} for name in names]
    return {
        "losses": losses,
        "pairs": pairs,
        "scope": scope,
        "family": family,
        "baseline": baseline,
        "margin": 0.005,
        "higher_is_better": True,
    }


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({"x y": "better"}, "Take x: it is better than y."),
        ({"x y": "better", "z x": "worse"}, "Take x: it is better than every other loss (y and z)."),
        ({"x y": "equivalent"}, "Take either of x and y: they differ by less than 0.005."),
        (
            {"x y": "equivalent", "x z": "equivalent", "w x": "worse"},
            "Take any of x, y and z: they differ by less than 0.005. w is worse than x.",
        ),
        (
            {"x y": "undecided", "x z": "better"},
            "Take either of x and y: nothing shows which of them is better. x has the best mean, which may be chance. "
            "z is worse than x.",
        ),
        (
            {"x y": "undecided", "x z": "undecided"},
            "No loss can be preferred: nothing shows which of them is better. "
            "x has the best mean, which may be chance.",
        ),
    ],
)
def test_the_loss_to_take(verdicts, expected):
    assert advice(result(verdicts))[0] == expected


def test_what_would_decide_it():
    (_lead, more, _sure) = advice(result({"x y": "undecided"}, needed=16))
    assert more.startswith("About 16 seeds per loss in all, instead of 2, would show whether one of them is better")
    assert advice(result({"x y": "undecided"}))[1].startswith("More seeds alone would not show which is better")


def test_how_sure_it_is():
    sentence = advice(result({"x y": "better"}))[-1]
    assert "at most 5 in 100 comparisons like this one would call one better or worse by chance" in sentence


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


def test_single_runs_give_no_advice_on_losses():
    (sentence,) = advice(result({"x y": None}, scope="checkpoints"))
    assert "cannot say which loss to take" in sentence


def test_one_loss_needs_no_advice():
    assert advice({"losses": [{"name": "x", "runs": [1]}], "pairs": []}) == []
