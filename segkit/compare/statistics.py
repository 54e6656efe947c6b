"""Do losses differ? From a long table of scores to means, intervals and verdicts.

A loss is a training procedure: its score varies over runs, nested in losses, and over cases, shared by all runs. The
test is a two-way t test over both, as in multi-reader multi-case studies; with folds, a t test over them.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from statsmodels.stats.multitest import multipletests

from segkit.compare.aggregation import AGGREGATIONS, check_aggregation, is_there
from segkit.compare.caveats import doubts
from segkit.compare.rankings import rankings
from segkit.compare.score_table import DEFAULT_AGGREGATION, DEFAULT_MARGIN, Missing, Scores, read_scores
from segkit.compare.variance_models import ALPHA, MIN_GROUPS, TESTS, Folds, TwoWay, study_of

MOST_RUNS = 200  # beyond which seeds are said to be no way to a decision
Family = Literal["all_pairs", "vs_baseline"]


def analyse(
    table: pd.DataFrame,
    metric: str = "dice",
    baseline: str | None = None,
    family: Family = "all_pairs",
    margin: float = DEFAULT_MARGIN,
    classes: Sequence[str] | None = None,
    *,
    failed: Mapping[str, Sequence[str]] | None = None,
    missing: Missing = "perfect",
    tested_to_trained: float | None = None,
    aggregation: str = DEFAULT_AGGREGATION,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare losses; returns the contents of comparison.json.

    table: a row a loss, seed, fold, case and class, with columns loss, seed, fold, case, group, class and `metric`, one
        of METRICS: overlaps between 0 and 1, distances in mm. Without a column fold there is one, without a column
        group every case is a group. A run is a (seed, fold). The value is NaN where the class is in neither
        prediction nor reference: if that is so in every run of every loss, the case is not counted for the class;
        otherwise those runs were right and count 1 (a distance: 0), so that all runs are judged on the same cases.
        Where folds hold different cases, a number for each fold of each repetition, a run has those of its fold.
    baseline: with the family `vs_baseline`, every other loss is compared with it; it is b in its pairs.
    margin: differences smaller than this are of no interest: an interval inside it means `equivalent`.
    classes: the foreground classes, the only ones that count; None takes all but `background`.
    failed: runs that came to no end, by loss. What is said of such a loss would rest on the runs that went well, so
        its pairs are undecided.
    missing: what NaN counts where other runs have a value: `right` as above, `wrong` the worst value that there is, for
        tables in which it means that there was no result. A table without the columns tp, predicted and reference does
        not tell which; how many values were filled in is among the warnings then.
    tested_to_trained: with folds, the number of cases that judge by that of those that train, None where all but those
        of the fold do.
    aggregation: how cases and classes become the score of a run: `class_case` the mean over classes of the means over
        cases, `case_class` the other way round, `groups`, `present`, or of counts `global` and `micro`; see
        `segkit.compare.aggregation`.
    resamples, seed: of the bootstrap of ranks; 0 leaves it out.

    Cases of one group vary together.
    A difference is a - b, for distances b - a, so that more is better for a. Intervals and p are two-sided.
    `p_adjusted` is Holm's, over the pairs that have a p; `ci95_adjusted`, which gives the verdict, is Bonferroni's,
    over all pairs of the family. A loss with one run gets neither p nor verdict; with fewer than 10 groups, intervals
    speak of new runs on the same cases. What is missing is None, with a `reason`.

    Raises ValueError if columns, cases of a run or classes are missing, rows repeated, or values out of range.
    """
    scores = read_scores(table, metric, classes, missing, aggregation)
    return analyse_scores(
        scores,
        baseline,
        family,
        margin,
        failed=failed,
        tested_to_trained=tested_to_trained,
        resamples=resamples,
        seed=seed,
    )


def analyse_scores(
    scores: Scores,
    baseline: str | None = None,
    family: Family = "all_pairs",
    margin: float = DEFAULT_MARGIN,
    *,
    failed: Mapping[str, Sequence[str]] | None = None,
    tested_to_trained: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """What `analyse` says of a table that was read already."""
    failed = {loss: list(runs) for loss, runs in (failed or {}).items() if runs}
    losses = list(dict.fromkeys([*scores.losses, *failed]))
    _check_family(losses, baseline, family, margin)
    _check_aggregation(scores)
    study = study_of(scores, tested_to_trained)
    pairs = _pairs(losses, baseline, family)
    return {
        "metric": scores.metric,
        "aggregation": scores.aggregation,
        "baseline": baseline,
        "family": family,
        "margin": margin,
        "scope": study.scope,
        "classes": scores.classes,
        "cases": len(scores.cases),
        "groups": study.groups,
        "higher_is_better": scores.sign > 0,
        "losses": [_loss_result(loss, scores, study) for loss in losses],
        "pairs": pair_results(pairs, study, margin, failed),
        "components": study.components(),
        "equal_spread_p": study.equal_p,
        "ranks": rankings(scores, pairs, resamples, seed),
        "method": _method(study, pairs, scores.aggregation),
        "warnings": doubts(scores, study),
    }


def _check_family(losses: Sequence[str], baseline: str | None, family: str, margin: float) -> None:
    if family not in ("all_pairs", "vs_baseline"):
        raise ValueError(f"expected family all_pairs or vs_baseline, got {family!r}")
    if family == "vs_baseline" and baseline is None:
        raise ValueError(f"family vs_baseline needs a baseline, one of {losses}")
    if baseline is not None and baseline not in losses:
        raise ValueError(f"expected a baseline among {losses}, got {baseline!r}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"expected a margin of at least 0, got {margin}")


def _check_aggregation(scores: Scores) -> None:
    check_aggregation(scores.aggregation, scores.metric)
    if not is_there(scores.aggregation, scores):
        raise ValueError(
            f"expected columns tp, predicted and reference for the aggregation {scores.aggregation}, which sums "
            "pixels; some are missing"
        )


def _loss_result(loss: str, scores: Scores, study: TwoWay | Folds) -> dict[str, Any]:
    if loss not in scores.losses:
        reason = "none of its runs, or none of some fold, came to an end"
        return {"name": loss, "mean": None, "ci95": None, "runs": [], "reason": reason}
    sign = scores.sign
    estimate = study.estimate({loss: 1})
    interval = estimate.interval()
    result: dict[str, Any] = {"name": loss, "mean": sign * estimate.value, "ci95": interval}
    if interval is None:
        result["reason"] = f"one run a loss and fewer than {MIN_GROUPS} groups of cases"
    else:
        result["ci95"] = sorted(sign * end for end in interval)
    runs = scores.runs[scores.runs["loss"] == loss]
    means = (sign * study.runs[loss]).tolist()
    keys = zip(runs["seed"].tolist(), runs["fold"].tolist(), means, strict=True)
    return result | {"runs": [{"seed": seed, "fold": fold, "mean": mean} for seed, fold, mean in keys]}


def _pairs(losses: Sequence[str], baseline: str | None, family: str) -> list[tuple[str, str]]:
    """(a, b), in the order of the table; the baseline is always b."""
    if family == "vs_baseline":
        return [(loss, str(baseline)) for loss in losses if loss != baseline]
    return [(b, a) if a == baseline else (a, b) for a, b in itertools.combinations(losses, 2)]


def pair_results(
    pairs: Sequence[tuple[str, str]], study: TwoWay | Folds, margin: float, failed: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Difference, intervals, p, verdict and the number of seeds that would decide, for each pair of a family."""
    results = [_pair_result(a, b, study, margin, len(pairs), failed) for a, b in pairs]
    tested = [result for result in results if result["p"] is not None]
    if len(tested) > 1:
        holm: Any = multipletests([result["p"] for result in tested], ALPHA, method="holm")[1]
        for result, p_adjusted in zip(tested, holm.tolist(), strict=True):
            result["p_adjusted"] = p_adjusted
    return results


def _pair_result(
    a: str, b: str, study: TwoWay | Folds, margin: float, family_size: int, failed: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    lost = " and ".join(f"{loss} ({len(failed[loss])})" for loss in (a, b) if loss in failed)
    if not {a, b} <= set(study.samples):
        nothing = dict.fromkeys(("difference", "ci95", "ci95_adjusted", "p", "p_adjusted"))
        return {
            "a": a,
            "b": b,
            **nothing,
            "verdict": "undecided",
            "reason": f"runs of {lost} failed, and no fair sample is left",
        }
    estimate = study.estimate({a: 1, b: -1})
    adjusted = estimate.interval(ALPHA / family_size)
    result = {"a": a, "b": b, "difference": estimate.value, "ci95": estimate.interval(), "ci95_adjusted": adjusted}
    single = " and ".join(loss for loss in (a, b) if loss in study.single)
    if single or adjusted is None:
        reason = f"only one run of {single}: how much runs differ is unknown, so nothing is said of losses"
        if lost:
            reason = f"runs of {lost} failed, and there is {reason}"
        verdict = "undecided" if lost else None
        return result | {"p": None, "p_adjusted": None, "verdict": verdict, "reason": reason}
    result |= {"p": estimate.p, "p_adjusted": estimate.p, "verdict": _verdict(adjusted, margin)}
    if lost:
        reason = f"runs of {lost} failed; those that went well are no fair sample of the loss"
        return result | {"verdict": "undecided", "reason": reason}
    if isinstance(study, TwoWay) and result["verdict"] == "undecided":
        result["seeds_needed"] = _seeds_needed({a: 1, b: -1}, study, margin, ALPHA / family_size)
    return result


def _verdict(interval: Sequence[float], margin: float) -> str:
    """What a is to b, from the interval of the difference a - b."""
    low, high = interval
    if -margin <= low and high <= margin:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def _seeds_needed(signs: dict[str, int], study: TwoWay, margin: float, alpha: float) -> int | None:
    """The fewest runs a loss with which the verdict would be another, were difference and spread to stay as they are;
    None if more than MOST_RUNS. More runs never make an interval wider."""

    def decided(runs: int) -> bool:
        interval = study.estimate(signs, runs).interval(alpha)
        return interval is not None and _verdict(interval, margin) != "undecided"

    numbers = range(2, MOST_RUNS + 1)
    place = bisect_left(numbers, True, key=decided)
    return numbers[place] if place < len(numbers) else None


def _method(study: TwoWay | Folds, pairs: Sequence[tuple[str, str]], aggregation: str) -> dict[str, str]:
    """How the numbers were made, in words."""
    runs = isinstance(study, TwoWay) and study.run_df
    return {
        "score": AGGREGATIONS[aggregation].in_full + (", within each fold" if isinstance(study, Folds) else ""),
        "test": TESTS[study.over][0] + (", run variance pooled over losses" if runs else ""),
        "speaks_of": TESTS[study.over][1],
        "p_adjusted": "Holm; it may be below 0.05 where the interval, which is a little stricter, says undecided",
        "ci95_adjusted": f"Bonferroni over {len(pairs)} pair{'s' * (len(pairs) != 1)}; the verdict is read from it",
    }
