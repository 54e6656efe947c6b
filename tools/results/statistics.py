"""Statistics of docs/results.md that `segkit compare` does not report: how many runs and cases a decision needs, what a
test over the cases of single runs would have announced, and the verdicts on a loss against itself.

All functions take samples, {loss: [runs, cases]}, the scores of each run on each case.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from segkit.compare.statistics import pair_results
from segkit.compare.variance_models import Folds, TwoWay

ALPHA, POWER = 0.05, 0.8
MOST_RUNS, MOST_CASES = 200, 5000  # that are looked for
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


def power(difference: float, spread: Spread, runs: int, cases: int, *, new_cases: bool = True) -> float:
    """The probability that a comparison of two losses finds their difference at 5 %.

    new_cases: whether the conclusion extends to cases beyond those that were used.
    """
    v_run = 2 * (spread.run**2 + spread.residual**2 / cases) / runs
    v_case = 2 * spread.interaction**2 / cases if new_cases else 0.0
    run_df, case_df = 2 * (runs - 1), cases - 1
    variance = v_run + v_case
    df = variance**2 / (v_run**2 / run_df + v_case**2 / case_df)
    critical = special.stdtrit(df, 1 - ALPHA / 2)
    shifted: Any = stats.nct(df, difference / math.sqrt(variance))
    return float(shifted.sf(critical) + shifted.cdf(-critical))


def runs_needed(difference: float, spread: Spread, cases: int, *, new_cases: bool = True) -> int | None:
    """The smallest number of runs of each loss that finds a difference with a probability of 80 %; None above 200."""
    candidates = range(2, MOST_RUNS + 1)
    return next((n for n in candidates if power(difference, spread, n, cases, new_cases=new_cases) >= POWER), None)


def cases_needed(difference: float, spread: Spread, runs: int) -> int | None:
    """The same for the number of cases; None above 5000."""
    candidates = sorted({round(2 * 1.05**step) for step in range(161)})
    return next((n for n in candidates if n <= MOST_CASES and power(difference, spread, runs, n) >= POWER), None)


# --- a test over the cases of single runs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Naive:
    """What Wilcoxon's test over cases announces about a pair of losses, for each choice of one run of each."""

    a: str
    b: str
    first: int
    second: int
    draws: int

    @property
    def contradictory(self) -> bool:
        """Whether some runs show that a is better, and others that b is."""
        return self.first > 0 and self.second > 0


def naive_pairs(samples: Samples) -> list[Naive]:
    """The announcements (p < 0.05) for all pairs of losses; one of a and one of b in each draw."""
    results = []
    for a, b in itertools.combinations(samples, 2):
        signs = [naive_verdict(x, y) for x, y in itertools.product(samples[a], samples[b])]
        results.append(Naive(a, b, signs.count(1), signs.count(-1), len(signs)))
    return results


def naive_verdict(a: np.ndarray, b: np.ndarray) -> int:
    """1 if a Wilcoxon signed-rank test over cases finds run a better (p < 0.05), -1 for run b, 0 if neither."""
    difference = a - b
    if not difference.any():
        return 0
    result: Any = stats.wilcoxon(difference)
    return int(np.sign(difference.mean())) if result.pvalue < ALPHA else 0


# --- a loss against itself -------------------------------------------------------------------------------------------


def self_comparisons(samples: Samples, margin: float) -> dict[str, str]:
    """The verdict on each loss against itself: its first runs, rounded down, against the others."""
    verdicts = {}
    for loss, values in samples.items():
        half = len(values) // 2
        model = TwoWay({"a": values[:half], "b": values[half:]})
        verdicts[loss] = pair_results([("a", "b")], model, margin, {})[0]["verdict"]
    return verdicts


def fold_self_comparisons(samples: Mapping[str, Sequence[np.ndarray]], ratio: float, margin: float) -> dict[str, str]:
    """The same for folds, {loss: [[runs] for each fold]}."""
    verdicts = {}
    for loss, folds in samples.items():
        half = len(folds[0]) // 2
        halves = {"a": [runs[:half] for runs in folds], "b": [runs[half:] for runs in folds]}
        model = Folds(halves, test_train_ratio=ratio, groups=len(folds))
        verdicts[loss] = pair_results([("a", "b")], model, margin, {})[0]["verdict"]
    return verdicts


def found_by_chance(a: np.ndarray, b: np.ndarray, runs: int, margin: float, draws: int = 500) -> dict[str, float]:
    """The verdicts on loss a against loss b with that many runs of each, drawn at random from those at hand."""
    generator, verdicts = np.random.default_rng(0), []
    for _ in range(draws):
        chosen = {name: values[generator.permutation(len(values))[:runs]] for name, values in (("a", a), ("b", b))}
        verdicts.append(pair_results([("a", "b")], TwoWay(chosen), margin, {})[0]["verdict"])
    return {verdict: verdicts.count(verdict) / draws for verdict in sorted(set(verdicts))}
