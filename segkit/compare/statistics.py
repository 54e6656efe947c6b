"""Statistical comparison of losses: from a long table of scores to means, intervals and verdicts.

A loss is treated as a training procedure. Its score varies over runs, which are nested in losses, and over cases, which
all runs share. The test is a two-way t test over both, as in multi-reader multi-case studies; with cross-validation
folds it is a t test over folds.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from segkit.compare.aggregation import check_aggregation, is_available, run_scores, score_in_words
from segkit.compare.caveats import caveats, separate_runs
from segkit.compare.rankings import rankings
from segkit.compare.score_table import DEFAULT_AGGREGATION, DEFAULT_MARGIN, Missing, Scores, read_scores
from segkit.compare.table_checks import metric_properties
from segkit.compare.variance_models import ALPHA, MIN_GROUPS, Folds, TwoWay, fit_variance_model

MAX_RUNS = 200  # largest number of runs per loss that `seeds_needed` reports
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
    missing: Missing = "absent",
    test_train_ratio: float | None = None,
    aggregation: str = DEFAULT_AGGREGATION,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare losses on a long table of scores.

    A run is one (seed, fold) of a loss. Cases of one group, such as scans of one patient, are treated as dependent.

    A value is NaN if the class is absent from both prediction and reference. The case then does not count for the class
    in this run, as in an evaluation by the rules `segkit`, so that no other run changes the score of a run.

    A difference is a - b for overlaps and b - a for distances, so a positive difference favours a. Intervals and
    p-values are two-sided. `p_adjusted` uses Holm's correction over the pairs that have a p-value. `ci95_adjusted`,
    from which the verdict is read, uses Bonferroni's correction over all pairs of the family. A loss with one run, or
    with one seed in all folds, gets neither p-value nor verdict. With fewer than 10 groups, intervals apply to new runs
    on the same cases only.

    Args:
        table: One row per loss, seed, fold, case and class, with the columns `loss`, `seed`, `fold`, `case`, `group`,
            `class` and the metric. Without `fold` all rows belong to one fold; without `group` every case is a group of
            its own. If folds hold different cases, each fold of each repetition needs its own number. Runs of different
            folds have the same `seed` only if they began with the same random numbers. The optional columns `tp`,
            `predicted` and `reference` hold pixel counts.
        metric: Any metric with one value per class and case of which one direction is better: a fraction such as
            `dice`, a distance in mm such as `hd95`, or a number of errors such as `betti_error`.
        baseline: The loss that is b in each of its pairs. With the family `vs_baseline`, every other loss is compared
            with it.
        family: The pairs to compare and to adjust for: `all_pairs` or `vs_baseline`.
        margin: Differences up to this size are practically equivalent. An adjusted interval within +- margin gives the
            verdict `equivalent`.
        classes: The foreground classes to average over; None takes all classes except `background`.
        failed: Names of failed runs by loss. The remaining runs are not a fair sample of such a loss, so its pairs are
            `undecided`.
        missing: How a NaN counts if other runs have a value: not (`absent`, as described above), as `perfect` (1 for
            overlaps, 0 for distances), or as `worst` (0, for overlaps only) for tables in which NaN means that there is
            no result. Without pixel counts, a correct prediction of nothing and no result cannot be distinguished, and
            the warnings state the number of such values.
        test_train_ratio: With folds, the number of test cases of a fold divided by its number of training cases. None
            assumes that all cases outside the fold are used for training.
        aggregation: How the scores of cases and classes become the score of a run: `class_case` (mean over cases per
            class, then over classes), `case_class`, `groups`, `absent_perfect`, or, from pixel counts, `global` and
            `micro`.
        resamples: Number of bootstrap resamples for the ranks; 0 omits the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        The contents of `comparison.json`: settings (such as `metric`, `aggregation`, `missing`, `baseline`, `margin`),
        what the numbers are based on (`classes`, `cases`, `groups`), the `losses` with mean, interval and runs, the
        `pairs` with difference, intervals, p-values and verdict, variance `components`, `ranks`, the `method` in words
        and `warnings`. A value that cannot be computed is None, and a `reason` next to it gives the cause.

    Raises:
        ValueError: Columns, classes or cases of a run are missing, rows are repeated, values are out of range, or an
            option has an unknown value.
    """
    scores = read_scores(table, metric, classes, missing, aggregation)
    return analyse_scores(
        scores,
        baseline,
        family,
        margin,
        failed=failed,
        test_train_ratio=test_train_ratio,
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
    test_train_ratio: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare losses like `analyse`, on a table that `read_scores` has already read."""
    failed = {loss: list(runs) for loss, runs in (failed or {}).items() if runs}
    losses = list(dict.fromkeys([*scores.losses, *failed]))
    _check_family(losses, baseline, family, margin)
    _check_scores(scores)
    model = fit_variance_model(scores, test_train_ratio)
    pairs = _pairs(losses, baseline, family)
    facts = metric_properties(scores.metric)
    low, high = facts.minimum, facts.maximum
    compared = pair_results(pairs, model, margin, failed)
    return {
        "metric": scores.metric,
        "aggregation": scores.aggregation,
        "missing": scores.missing,
        "baseline": baseline,
        "family": family,
        "margin": margin,
        "scope": model.scope,
        "classes": scores.classes,
        "cases": len(scores.cases),
        "groups": model.groups,
        "higher_is_better": scores.sign > 0,
        "losses": [_possible(_loss_result(loss, scores, model), low, high) for loss in losses],
        "pairs": [_possible(pair, low - high, high - low) for pair in compared],
        "components": model.components(),
        "equal_spread_p": model.equal_spread_p,
        "ranks": rankings(scores, pairs, resamples, seed),
        "method": _method(model, pairs, score_in_words(scores)),
        "warnings": [*caveats(scores, model), *separate_runs(compared, model)],
    }


def _possible(result: dict[str, Any], low: float, high: float) -> dict[str, Any]:
    """The result of a loss or pair with intervals that end where the score does: with few runs they would go beyond."""
    intervals = {key: result[key] for key in ("ci95", "ci95_adjusted") if result.get(key) is not None}
    return result | {key: [min(max(end, low), high) for end in ends] for key, ends in intervals.items()}


def _check_family(losses: Sequence[str], baseline: str | None, family: str, margin: float) -> None:
    if family not in ("all_pairs", "vs_baseline"):
        raise ValueError(f"expected family all_pairs or vs_baseline, got {family!r}")
    if family == "vs_baseline" and baseline is None:
        raise ValueError(f"family vs_baseline needs a baseline, one of {losses}")
    if baseline is not None and baseline not in losses:
        raise ValueError(f"expected a baseline among {losses}, got {baseline!r}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"expected a margin of at least 0, got {margin}")


def _check_scores(scores: Scores) -> None:
    check_aggregation(scores.aggregation, scores.metric)
    if not is_available(scores.aggregation, scores):
        raise ValueError(
            f"expected columns tp, predicted and reference for the aggregation {scores.aggregation}, which sums "
            "pixel counts; at least one of them is missing"
        )
    without = np.flatnonzero(np.isnan(run_scores(scores)))
    if len(without):
        run = scores.runs.iloc[without[0]]
        raise ValueError(
            f"expected a score of every run, but loss {run['loss']}, seed {run['seed']}, fold {run['fold']} has none "
            f"({len(without)} such run{'s' * (len(without) > 1)}): its cases contain none of the classes, and it "
            "predicts none; use other classes, folds that contain them, or the aggregation absent_perfect"
        )


def _loss_result(loss: str, scores: Scores, model: TwoWay | Folds) -> dict[str, Any]:
    if loss not in scores.losses:
        reason = "no run of this loss finished, or one of its folds has no finished run"
        return {"name": loss, "mean": None, "ci95": None, "runs": [], "reason": reason}
    sign = scores.sign
    estimate = model.estimate({loss: 1})
    interval = estimate.interval()
    result: dict[str, Any] = {"name": loss, "mean": sign * estimate.value, "ci95": interval}
    if interval is None:
        result["reason"] = f"one run per loss and fewer than {MIN_GROUPS} groups of cases"
    else:
        result["ci95"] = sorted(sign * end for end in interval)
    runs = scores.runs[scores.runs["loss"] == loss]
    means = (sign * model.runs[loss]).tolist()
    keys = zip(runs["seed"].tolist(), runs["fold"].tolist(), means, strict=True)
    return result | {"runs": [{"seed": seed, "fold": fold, "mean": mean} for seed, fold, mean in keys]}


def _pairs(losses: Sequence[str], baseline: str | None, family: str) -> list[tuple[str, str]]:
    """The pairs (a, b) of a family in the order of the table; the baseline is always b."""
    if family == "vs_baseline":
        return [(loss, str(baseline)) for loss in losses if loss != baseline]
    return [(b, a) if a == baseline else (a, b) for a, b in itertools.combinations(losses, 2)]


def pair_results(
    pairs: Sequence[tuple[str, str]], model: TwoWay | Folds, margin: float, failed: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Difference, intervals, p-values, verdict and the number of seeds needed for a verdict, for each pair."""
    results = [_pair_result(a, b, model, margin, len(pairs), failed) for a, b in pairs]
    tested = [result for result in results if result["p"] is not None]
    for result, p_adjusted in zip(tested, holm([result["p"] for result in tested]), strict=True):
        result["p_adjusted"] = p_adjusted
    return results


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def _pair_result(
    a: str, b: str, model: TwoWay | Folds, margin: float, family_size: int, failed: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    failures = " and ".join(f"{loss} ({len(failed[loss])})" for loss in (a, b) if loss in failed)
    if not {a, b} <= set(model.samples):
        numbers = dict.fromkeys(("difference", "ci95", "ci95_adjusted", "p", "p_adjusted"))
        reason = f"runs of {failures} failed, so there are no complete results to compare"
        return {"a": a, "b": b, **numbers, "verdict": "undecided", "reason": reason}
    estimate = model.estimate({a: 1, b: -1})
    adjusted = estimate.interval(ALPHA / family_size)
    result = {"a": a, "b": b, "difference": estimate.value, "ci95": estimate.interval(), "ci95_adjusted": adjusted}
    single = " and ".join(loss for loss in (a, b) if loss in model.single)
    if single or adjusted is None:
        reason = model.why_single.format(losses=single)
        if failures:
            reason = f"runs of {failures} failed; {reason}"
        verdict = "undecided" if failures else None
        return result | {"p": None, "p_adjusted": None, "verdict": verdict, "reason": reason}
    result |= {"p": estimate.p, "p_adjusted": estimate.p, "verdict": _verdict(adjusted, margin)}
    if failures:
        reason = f"runs of {failures} failed; the remaining runs are not a fair sample of the loss"
        return result | {"verdict": "undecided", "reason": reason}
    if isinstance(model, TwoWay) and result["verdict"] == "undecided":
        result["seeds_needed"] = _seeds_needed({a: 1, b: -1}, model, margin, ALPHA / family_size)
    return result


def _verdict(interval: Sequence[float], margin: float) -> str:
    """The verdict on a compared with b, from the interval of the difference a - b."""
    low, high = interval
    if -margin <= low and high <= margin:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def _seeds_needed(signs: dict[str, int], model: TwoWay, margin: float, alpha: float) -> int | None:
    """The smallest number of runs per loss that would give a verdict if difference and variances stay as they are.

    None if it exceeds `MAX_RUNS`. The search is a bisection, because more runs never widen an interval.
    """

    def decided(runs: int) -> bool:
        interval = model.estimate(signs, runs).interval(alpha)
        return interval is not None and _verdict(interval, margin) != "undecided"

    run_numbers = range(2, MAX_RUNS + 1)
    index = bisect_left(run_numbers, True, key=decided)
    return run_numbers[index] if index < len(run_numbers) else None


def _method(model: TwoWay | Folds, pairs: Sequence[tuple[str, str]], score: str) -> dict[str, str]:
    """The method in words."""
    pooled = isinstance(model, TwoWay) and model.run_df
    return {
        "score": score + (", within each fold" if isinstance(model, Folds) else ""),
        "test": model.inference.test + (", run variance pooled over losses" if pooled else ""),
        "speaks_of": model.inference.applies_to,
        "p_adjusted": "Holm's method, which is slightly less strict than the interval: the adjusted p-value of an "
        "undecided pair can be below 0.05",
        "ci95_adjusted": f"Bonferroni over {len(pairs)} pair{'s' * (len(pairs) != 1)}",
    }
