"""Which loss to take, and how sure that is, in words for readers who know nothing of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from segkit.utils.metric_names import FRACTION, metric_facts

MIRRORED = {"better": "worse", "worse": "better"}
HARDLY_LEARNED = 0.1  # best mean of a score between 0 and 1, below which equal losses are no recommendation


def enumerated(names: Sequence[str]) -> str:
    """Names as an enumeration in words."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def advice(result: Mapping[str, Any]) -> list[str]:
    """The advice, one sentence each; none where there is nothing to choose from.

    result: the contents of comparison.json, the best loss first.
    """
    losses = [loss["name"] for loss in result["losses"] if loss["runs"]]
    if len(losses) < 2 or not result["pairs"]:
        return []
    if result["scope"] == "checkpoints":
        return [
            "These results cannot say which loss to take: at most one loss has several runs, and the score of a single "
            "run would differ with another seed. Train each loss with several seeds."
        ]
    if all(pair["verdict"] is None for pair in result["pairs"]):
        return [f"These results cannot say which loss to take: {result['pairs'][0]['reason']}."]
    if (
        not any(pair["verdict"] in MIRRORED for pair in result["pairs"])
        and (best := _hardly_learned(result)) is not None
    ):
        return [
            f"No recommendation: the best mean is {best:.4f}, so the networks have hardly learned the task. Check the "
            "data and the learning rate, and train longer before losses are compared."
        ]
    if result["family"] == "vs_baseline":
        return _advice_against(result, losses)
    candidates = [loss for loss in losses if not any(_verdict(result, other, loss) == "better" for other in losses)]
    worse = [loss for loss in losses if loss not in candidates]
    behind = f" {enumerated(worse)} {'is' if len(worse) == 1 else 'are'} worse." if worse else ""
    pairs = list(combinations(candidates, 2))
    if not candidates:  # verdicts that go in a circle
        return ["No loss can be preferred: each is worse than another one.", _sureness(result)]
    if not pairs:
        (best,) = candidates
        if all(_verdict(result, best, other) == "better" for other in worse):
            return [f"Take {best}: it is better than {_all(worse)}.", _sureness(result)]
        return [f"Take {best}: no other loss is better.{behind}", _sureness(result)]
    if all(_verdict(result, *pair) == "equivalent" for pair in pairs):
        alike = f"they differ by less than {result['margin']:g}"
        return [f"Take {_any_of(candidates)}: {alike}.{behind}", _sureness(result)]
    lead = f"Take {_any_of(candidates)}" if worse else "No loss can be preferred"
    known = "which of the two is better" if len(candidates) == 2 else "which of them is best"
    mean = "better" if len(candidates) == 2 else "best"
    chance = f"{candidates[0]} has the {mean} mean of them, which may be chance."
    if len({_shown_mean(result, loss) for loss in candidates}) == 1:
        chance = "Their means are equal."
    undecided = [pair for pair in pairs if _verdict(result, *pair) != "equivalent"]
    return [
        f"{lead}: it is not known yet {known}. {chance}{behind}",
        *_more_seeds(result, undecided),
        _sureness(result),
    ]


def _advice_against(result: Mapping[str, Any], losses: Sequence[str]) -> list[str]:
    """Whether to leave the baseline, with which all other losses were compared."""
    baseline = result["baseline"]
    if baseline not in losses:
        return [f"These results cannot say which loss to take: the baseline {baseline} has no complete runs."]
    better = [pair["a"] for pair in result["pairs"] if pair["verdict"] == "better"]
    if not better:
        return [f"Keep the baseline {baseline}: no other loss is shown to be better.", _sureness(result)]
    they_are = "it is" if len(better) == 1 else "they are"
    return [f"Take {_any_of(better)} instead of the baseline {baseline}: {they_are} better.", _sureness(result)]


def _hardly_learned(result: Mapping[str, Any]) -> float | None:
    """The best mean if it is close to 0 of 1, which says more about the trainings than about the losses."""
    best = max(loss["mean"] for loss in result["losses"] if loss["mean"] is not None)
    return best if metric_facts(result["metric"]) == FRACTION and best < HARDLY_LEARNED else None


def _shown_mean(result: Mapping[str, Any], name: str) -> str:
    (mean,) = [loss["mean"] for loss in result["losses"] if loss["name"] == name]
    return f"{mean:.4f}"


def _verdict(result: Mapping[str, Any], a: str, b: str) -> str | None:
    """The verdict on a, compared with b."""
    pair = _pair(result, a, b)
    if pair is None:
        return None
    return pair["verdict"] if pair["a"] == a else MIRRORED.get(pair["verdict"], pair["verdict"])


def _pair(result: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any] | None:
    return next((pair for pair in result["pairs"] if {pair["a"], pair["b"]} == {a, b}), None)


def _any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{'either' if len(names) == 2 else 'any'} of {enumerated(names)}"


def _all(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"every other loss ({enumerated(names)})"


def _more_seeds(result: Mapping[str, Any], undecided: Sequence[tuple[str, str]]) -> list[str]:
    """How many trainings could tell losses apart; nothing where that was not computed, as for folds."""
    pairs = [pair for names in undecided if (pair := _pair(result, *names)) is not None]
    if not all("seeds_needed" in pair for pair in pairs):
        reasons = dict.fromkeys(pair["reason"] for pair in pairs if pair.get("reason"))
        return [f"{reason[:1].upper()}{reason[1:]}." for reason in reasons]
    needed = [pair["seeds_needed"] for pair in pairs]
    if None in needed:
        return ["Even 200 runs per loss would probably not tell all of them apart."]
    seeds = max(len(loss["runs"]) for loss in result["losses"])
    return [
        f"About {max(needed)} runs per loss instead of {seeds} could tell them apart, if the differences stay as they "
        "are now, which is not certain."
    ]


def _sureness(result: Mapping[str, Any]) -> str:
    """How often such statements are wrong: a wrong verdict needs an adjusted interval that misses the difference, and
    all of them together do so in 5 % of the comparisons."""
    if all(pair["p"] is None for pair in result["pairs"]):
        return "Nothing was tested."
    return (
        "How sure: if the assumptions of the test hold, about 5 of 100 comparisons like this one call a loss better, "
        "worse or equivalent although it is not; the caveats tell where they may not hold."
    )
