"""Which loss to take, and how sure that is, in words for readers who know nothing of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIRRORED = {"better": "worse", "worse": "better"}


def enumerated(names: Sequence[str]) -> str:
    """Names as an enumeration in words."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def advice(result: Mapping[str, Any]) -> list[str]:
    """The advice, one sentence each. result: the contents of comparison.json, the best loss first."""
    losses = [loss["name"] for loss in result["losses"] if loss["runs"]]
    if len(losses) < 2 or not result["pairs"]:
        return []
    if result["scope"] == "checkpoints":
        return [
            "These results cannot say which loss to take: they are of single trainings, whose scores would differ with "
            "another seed. Train each loss with several seeds."
        ]
    if result["family"] == "vs_baseline":
        return [_advice_against(result), _sureness(result)]
    best, *others = losses
    verdicts = {other: _verdict_on(result, best, other) for other in others}
    worse = [other for other in others if verdicts[other] == "better"]
    equal = [other for other in others if verdicts[other] == "equivalent"]
    open_ = [other for other in others if verdicts[other] not in ("better", "equivalent")]
    if not open_ and not equal:
        return [f"Take {best}: it is better than {_all(others)}.", _sureness(result)]
    behind = f" {enumerated(worse)} {'is' if len(worse) == 1 else 'are'} worse than {best}." if worse else ""
    if not open_:
        margin = f"{result['margin']:g}"
        return [f"Take {_any_of([best, *equal])}: they differ by less than {margin}.{behind}", _sureness(result)]
    alike = _any_of([best, *equal, *open_])
    lead = f"Take {alike}" if worse else "No loss can be preferred"
    return [
        f"{lead}: nothing shows which of them is better. {best} has the best mean, which may be chance.{behind}",
        _more_seeds(result, best, open_),
        _sureness(result),
    ]


def _advice_against(result: Mapping[str, Any]) -> str:
    """Whether to leave the baseline, with which all other losses were compared."""
    baseline = result["baseline"]
    better = [pair["a"] for pair in result["pairs"] if pair["verdict"] == "better"]
    if not better:
        return f"Keep the baseline {baseline}: no other loss is shown to be better."
    they_are = "it is" if len(better) == 1 else "they are"
    return f"Take {_any_of(better)} instead of the baseline {baseline}: {they_are} better."


def _verdict_on(result: Mapping[str, Any], a: str, b: str) -> str | None:
    """The verdict on a, compared with b."""
    for pair in result["pairs"]:
        if (pair["a"], pair["b"]) == (a, b):
            return pair["verdict"]
        if (pair["a"], pair["b"]) == (b, a):
            return MIRRORED.get(pair["verdict"], pair["verdict"])
    return None


def _any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{'either' if len(names) == 2 else 'any'} of {enumerated(names)}"


def _all(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"every other loss ({enumerated(names)})"


def _more_seeds(result: Mapping[str, Any], best: str, others: Sequence[str]) -> str:
    """How many more trainings could decide it."""
    wanted = [{best, other} for other in others]
    pairs = [pair for pair in result["pairs"] if {pair["a"], pair["b"]} in wanted]
    needed = [number for pair in pairs if (number := pair.get("seeds_needed")) is not None]
    if len(needed) < len(others):
        return "More seeds alone would not show which is better: the cases are too few or too different."
    seeds = max(len(loss["runs"]) for loss in result["losses"] if loss["name"] in (best, *others))
    return (
        f"About {max(needed)} seeds per loss in all, instead of {seeds}, would show whether one of them is better, if "
        "differences and variances stay as they are."
    )


def _sureness(result: Mapping[str, Any]) -> str:
    """How often such statements are wrong."""
    tested = sum(pair["p"] is not None for pair in result["pairs"])
    if not tested:
        return "Nothing was tested."
    return (
        "How sure: among losses that are in truth equal, at most 5 in 100 comparisons like this one would call "
        f"{'any' if tested > 1 else 'one'} better or worse by chance. This holds for images and training like these."
    )
