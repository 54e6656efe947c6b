"""Variances of the runs of losses, which may spread unequally, and sums of variances with their degrees of freedom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special, stats

UNEQUAL = 0.2  # p-value of Bartlett's test below which the spread of runs is treated as unequal
PRIOR_DF = 2  # degrees of freedom that the typical variance counts as, where spreads are unequal
MIN_TYPICAL = 3  # losses that a typical variance needs
HARDLY_VARIES = 0.01  # of the pooled standard deviation, up to which a loss does not enter the typical variance
ROUNDING = 1e-14  # of a score, up to which runs are equal
UNSTABLE = 6  # times the standard deviation of the other losses, from which on a loss is set aside
MIN_STABLE = 2  # losses that remain when the unstable ones are set aside


class RunVariances:
    """The variances of the runs of some losses, which have two runs or more.

    Args:
        runs: The score of each run, {loss: [runs]}.

    Attributes:
        of_loss, dfs: The variance of each loss and its degrees of freedom.
        pooled, df: The pooled variance and its degrees of freedom.
        typical: The geometric mean of the variances, corrected for its bias (Smyth 2004), which a few losses with wide
            runs hardly change; the pooled variance if fewer than three losses vary, and None of two losses.
        equal_spread_p: p-value of Bartlett's test that runs spread equally in all losses.
    """

    def __init__(self, runs: Mapping[str, np.ndarray]):
        self.of_loss = {loss: _variance(scores) for loss, scores in runs.items()}
        self.dfs = {loss: len(scores) - 1 for loss, scores in runs.items()}
        self.df = sum(self.dfs.values())
        self.pooled = sum(self.of_loss[loss] * df for loss, df in self.dfs.items()) / max(self.df, 1)
        self.typical = None if len(runs) == 2 else self._typical_variance()
        self.equal_spread_p = equal_spread_p(list(runs.values()))

    def of_sum(self, shares: Mapping[str, float]) -> tuple[float, float]:
        """The variance of a signed sum, and its degrees of freedom (Satterthwaite 1946).

        If runs may spread unequally, a loss has its own variance, moderated by the typical one, if there is one, which
        counts as `PRIOR_DF` degrees of freedom in the mean but adds none. A comparison of two losses is then the test
        of Welch (1947). A loss with one run has the pooled variance.

        Args:
            shares: The reciprocal of the number of runs of each loss in the sum.
        """
        if self.equal_spread_p >= UNEQUAL:
            return self.pooled * sum(shares.values()), self.df
        single = sum(share for loss, share in shares.items() if loss not in self.of_loss)
        parts = {loss: single * df / self.df * self.of_loss[loss] for loss, df in self.dfs.items()}
        for loss in shares.keys() & parts.keys():
            parts[loss] += shares[loss] * self._moderated(loss)
        return sum_of_variances([(part, self.dfs[loss]) for loss, part in parts.items() if part > 0])

    def _moderated(self, loss: str) -> float:
        """The variance of the runs of a loss where spreads are unequal."""
        own, df = self.of_loss[loss], self.dfs[loss]
        return own if self.typical is None else (PRIOR_DF * self.typical + df * own) / (PRIOR_DF + df)

    def _typical_variance(self) -> float:
        """The geometric mean of the variances of losses that vary, whose logarithms are corrected for their bias."""
        logarithms = [
            math.log(variance) - float(special.digamma(self.dfs[loss] / 2)) + math.log(self.dfs[loss] / 2)
            for loss, variance in self.of_loss.items()
            if variance > HARDLY_VARIES**2 * self.pooled
        ]
        return math.exp(sum(logarithms) / len(logarithms)) if len(logarithms) >= MIN_TYPICAL else self.pooled


def unstable_losses(variances: RunVariances) -> set[str]:
    """The losses whose runs vary far more than those of the others.

    The loss with the largest variance is compared with the others, then the next one with the rest. It is unstable if
    its standard deviation is `UNSTABLE` times that of the others, and an F test agrees at 1 % (corrected for the number
    of losses). At least two losses remain.
    """
    remaining, unstable = dict(variances.dfs), set[str]()
    for loss in sorted(remaining, key=lambda loss: -variances.of_loss[loss]):
        others = {other: df for other, df in remaining.items() if other != loss}
        if len(others) < MIN_STABLE:
            break
        others_df = sum(others.values())
        pooled = sum(variances.of_loss[other] * df for other, df in others.items()) / others_df
        ratio = variances.of_loss[loss] / pooled if pooled else math.inf
        likely = stats.f.sf(ratio, remaining[loss], others_df) * len(variances.dfs) < 0.01
        if variances.of_loss[loss] == 0 or ratio < UNSTABLE**2 or not likely:
            break
        unstable.add(loss)
        remaining = others
    return unstable


def equal_spread_p(samples: Sequence[np.ndarray]) -> float:
    """p-value of Bartlett's test (1937) that all samples have equal variances.

    It is 1 if there are fewer than two samples or if no sample varies, and 0 if only some samples vary.
    """
    varies = [bool(_variance(sample)) for sample in samples]
    if len(samples) < 2 or not any(varies):
        return 1.0
    if not all(varies):
        return 0.0
    result: Any = stats.bartlett(*samples)
    return 1.0 if math.isnan(result.pvalue) else float(result.pvalue)  # NaN for equal variances


def _variance(scores: np.ndarray) -> float:
    """The variance of the scores of runs; 0 if they are equal but for rounding."""
    variance = float(scores.var(ddof=1))
    return 0.0 if variance <= (ROUNDING * np.abs(scores).max()) ** 2 else variance


def sum_of_variances(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of independent variances with their degrees of freedom (Satterthwaite 1946)."""
    variance = sum(part for part, _df in parts)
    return variance, satterthwaite(variance, parts) or sum(df for _part, df in parts)


def satterthwaite(variance: float, parts: Sequence[tuple[float, float]]) -> float:
    """The degrees of freedom of a variance from those of its parts (Satterthwaite 1946); 0 if all parts are 0."""
    scaled = sum((part / variance) ** 2 / df for part, df in parts if part > 0)
    return 1 / scaled if scaled > 0 else 0.0
