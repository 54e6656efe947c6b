"""Statistics of docs/results.md that `segkit compare` does not report: how many runs and cases a decision needs, what a
test over the cases of single runs would have announced, and the verdicts on a loss against itself.

Samples are {loss: [runs, cases]}, the scores of each run on each case.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from segkit.compare.caveats import separate_runs
from segkit.compare.statistics import pair_results
from segkit.compare.table_checks import Rows
from segkit.compare.variance_models import TwoWay

ALPHA, POWER = 0.05, 0.8
MOST_RUNS, MOST_CASES = 200, 5000  # that are looked for
FAR = 5  # critical values beyond which a difference is found for certain
Samples = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the scores of a loss on a data set.

    Args:
        run: Between runs of a loss.
        interaction: Of what a loss gains on a case beyond what it gains on others.
        residual: What neither explains, of one run on one case.
    """

    run: float
    interaction: float
    residual: float

    @classmethod
    def of(cls, samples: Samples) -> "Spread":
        parts = TwoWay(samples).components()
        return cls(parts["run"], parts["loss x group"], parts["residual"])


def power(difference: float, spread: Spread, runs: int, cases: int, *, new_cases: bool = True, pairs: int = 1) -> float:
    """The probability that a comparison of two losses finds their difference at 5 %, in its direction.

    Args:
        difference: The true difference.
        spread: The standard deviations.
        runs: Number of runs of each loss.
        cases: Number of cases.
        new_cases: Whether the conclusion extends to cases beyond those that were used.
        pairs: Number of pairs of losses that are compared, for Bonferroni's correction. Variances and degrees of
            freedom stay those of two losses.
    """
    v_run = 2 * (spread.run**2 + spread.residual**2 / cases) / runs
    v_case = 2 * spread.interaction**2 / cases if new_cases else 0.0
    run_df, case_df = 2 * (runs - 1), cases - 1
    variance = v_run + v_case
    df = variance**2 / (v_run**2 / run_df + v_case**2 / case_df)
    critical, shift = float(special.stdtrit(df, 1 - ALPHA / pairs / 2)), difference / math.sqrt(variance)
    if shift > FAR * max(critical, 1):
        return 1.0  # scipy's noncentral t distribution is NaN there
    shifted: Any = stats.nct(df, shift)
    return float(shifted.sf(critical))


def runs_needed(difference: float, spread: Spread, cases: int, *, new_cases: bool = True, pairs: int = 1) -> int | None:
    """The smallest number of runs of each loss that finds a difference with a probability of 80 %; None above 200."""
    candidates = range(2, MOST_RUNS + 1)
    return first_that_finds(candidates, lambda n: power(difference, spread, n, cases, new_cases=new_cases, pairs=pairs))


def cases_needed(difference: float, spread: Spread, runs: int) -> int | None:
    """The same for the number of cases; None above 5000."""
    candidates = sorted({min(round(2 * 1.05**step), MOST_CASES) for step in range(162)})
    return first_that_finds(candidates, lambda n: power(difference, spread, runs, n))


def first_that_finds(candidates: Sequence[int], power_of: Callable[[int], float]) -> int | None:
    """The first candidate with a power of 80 %; a bisection, since power grows with the number of runs or cases."""
    index = bisect_left(candidates, POWER, key=power_of)
    return candidates[index] if index < len(candidates) else None


# --- a test over the cases of single runs ----------------------------------------------------------------------------


def naive_verdict(a: np.ndarray, b: np.ndarray) -> int:
    """1 if a Wilcoxon signed-rank test over cases finds run a better (p < 0.05), -1 for run b, 0 if neither."""
    difference = a - b
    if not difference.any():
        return 0
    result: Any = stats.wilcoxon(difference)
    return int(np.sign(difference.mean())) if result.pvalue < ALPHA else 0


def naive_verdicts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The verdicts on one run of a and one of b, for all choices, [runs of a, runs of b]."""
    return np.array([[naive_verdict(x, y) for y in b] for x in a])


@dataclass(frozen=True)
class Replication:
    """What other runs of both losses say, given that one run of each had a winner (p < 0.05).

    Args:
        announced: Number of draws with a winner, of `draws`.
        confirmed, silent, reversed_: Shares of the draws that share no run with the first: the same winner, none, and
            the other one.
        contradictory: Number of pairs of losses for which some runs show one winner and others the other.
    """

    announced: int
    draws: int
    confirmed: float
    silent: float
    reversed_: float
    contradictory: int


def replication(tables: Sequence[np.ndarray]) -> Replication:
    """Replication over pairs of losses, from the tables of `naive_verdicts`."""
    outcomes = {1: 0, 0: 0, -1: 0}
    for table in tables:
        for (i, j), winner in np.ndenumerate(table):
            if winner:
                others = np.delete(np.delete(table, i, 0), j, 1)
                for same, number in zip(*np.unique(others * winner, return_counts=True), strict=True):
                    outcomes[int(same)] += int(number)
    total = max(sum(outcomes.values()), 1)
    return Replication(
        announced=int(sum((table != 0).sum() for table in tables)),
        draws=int(sum(table.size for table in tables)),
        confirmed=outcomes[1] / total,
        silent=outcomes[0] / total,
        reversed_=outcomes[-1] / total,
        contradictory=sum(bool((table > 0).any() and (table < 0).any()) for table in tables),
    )


def naive_self_rate(values: np.ndarray) -> tuple[int, int]:
    """How often the test finds a winner between two runs of one loss, and the number of pairs of runs."""
    pairs = list(itertools.combinations(values, 2))
    return sum(naive_verdict(a, b) != 0 for a, b in pairs), len(pairs)


# --- what a seed does to all losses ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedBySeeds:
    """What the runs of different losses with the same seed have in common.

    Args:
        seed: Standard deviation of what a seed adds to the scores of all losses.
        rest: Standard deviation of what it adds to one loss beyond that.
        correlation: The mean correlation of two losses over the seeds.
        p: p-value of the F test that seeds add nothing to all losses.
        paired_variance: For the median pair of losses, the variance of the differences of runs with the same seed,
            divided by the sum of the variances of both; 1 if runs are independent.
        wider: Number of pairs for which that ratio is above 1.
    """

    seed: float
    rest: float
    correlation: float
    p: float
    paired_variance: float
    wider: int


def shared_by_seeds(scores: np.ndarray) -> SharedBySeeds:
    """Analysis of variance of scores, [folds, losses, seeds], within the folds; one value in each cell."""
    folds, losses, seeds = scores.shape
    centred = scores - scores.mean(2, keepdims=True)
    seed_effects = centred.mean(1, keepdims=True)
    seed_df, rest_df = folds * (seeds - 1), folds * (losses - 1) * (seeds - 1)
    of_seeds = losses * (seed_effects**2).sum() / seed_df
    of_rest = ((centred - seed_effects) ** 2).sum() / rest_df
    covariances = np.einsum("fas,fbs->ab", centred, centred)  # times the degrees of freedom
    pairs, variances = np.triu_indices(losses, 1), np.diag(covariances)
    ratios = 1 - 2 * covariances[pairs] / np.add.outer(variances, variances)[pairs]
    return SharedBySeeds(
        seed=math.sqrt(max(of_seeds - of_rest, 0.0) / losses),
        rest=math.sqrt(of_rest),
        correlation=float((covariances / np.sqrt(np.outer(variances, variances)))[pairs].mean()),
        p=float(stats.f.sf(of_seeds / of_rest, seed_df, rest_df)),
        paired_variance=float(np.median(ratios)),
        wider=int((ratios > 1).sum()),
    )


# --- a loss against itself -------------------------------------------------------------------------------------------

Halves = tuple[tuple[int, ...], tuple[int, ...]]


def halves(runs: int) -> list[Halves]:
    """All divisions of that many runs into two parts, as equal as possible."""
    everything = set(range(runs))
    parts = [(part, tuple(sorted(everything - set(part)))) for part in itertools.combinations(everything, runs // 2)]
    return parts if runs % 2 else [part for part in parts if 0 in part[0]]


def self_comparisons(
    losses: Sequence[str],
    margin: float,
    make_model: Callable[..., Any],
    samples: Mapping[str, Any],
    **of_runs: Mapping[str, Any],
) -> Rows:
    """The verdict on each loss against itself, for each division of its runs, in a model of all losses.

    Args:
        losses: The losses.
        margin: The margin of equivalence.
        make_model: The variance model of samples like these.
        samples: {loss: values with runs first}, or for folds {loss: [runs of each fold]}.
        of_runs: Other inputs of the model with the same structure.

    Returns:
        A table with the columns loss, division and verdict.
    """
    first, rows = samples[losses[0]], []
    for division, parts in enumerate(halves(len(first[0]) if isinstance(first, list) else len(first))):
        own, *others = (
            {f"{loss}/{side}": chosen(values[loss], parts[side]) for loss in losses for side in (0, 1)}
            for values in (samples, *of_runs.values())
        )
        model = make_model(own, **dict(zip(of_runs, others, strict=True)))
        for loss in losses:
            (result,) = pair_results([(f"{loss}/0", f"{loss}/1")], model, margin, {})
            rows.append((loss, division, result["verdict"]))
    return pd.DataFrame(rows, columns=["loss", "division", "verdict"])


def chosen(values: Any, runs: Sequence[int]) -> Any:
    """Some of the runs."""
    return [fold[list(runs)] for fold in values] if isinstance(values, list) else values[list(runs)]


# --- power on runs at hand -------------------------------------------------------------------------------------------


def found_by_chance(a: np.ndarray, b: np.ndarray, runs: int, margin: float, draws: int = 500) -> dict[str, float]:
    """The verdicts on loss a against loss b with that many runs of each, drawn at random from those at hand.

    An undecided pair whose runs do not overlap, which the report names, is `undecided, but runs separate`.
    """
    generator, found = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = {name: values[generator.permutation(len(values))[:runs]] for name, values in (("a", a), ("b", b))}
        model = TwoWay(drawn)
        results = pair_results([("a", "b")], model, margin, {})
        separate = any(separate_runs(results, model))
        found.append("undecided, but runs separate" if separate else results[0]["verdict"])
    return {verdict: found.count(verdict) / draws for verdict in sorted(set(found))}
