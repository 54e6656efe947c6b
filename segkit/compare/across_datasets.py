"""Losses over several data sets, which then are the units (Demšar 2006): cases of one say nothing of the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from segkit.compare.score_table import METRICS

FEW_DATASETS = 5
FEW_FOR_WILCOXON = 6  # with five its p cannot be below 0.0625


def _basis(result: Mapping[str, Any]) -> dict[str, Any]:
    runs = {loss["name"]: len(loss["runs"]) for loss in result["losses"]}
    return {"cases": result["cases"], "groups": result["groups"], "runs": runs}


def over_datasets(results: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Mean ranks of the losses over data sets, Friedman's test in the form of Iman and Davenport (1980), and Nemenyi's
    test of all pairs; for two losses Wilcoxon's test over data sets.

    results: for each data set the contents of its comparison.json. With fewer than five data sets there are ranks and
    no test, with the `reason`. Raises ValueError if the data sets do not have the same losses.
    """
    losses = sorted({loss["name"] for result in results.values() for loss in result["losses"]})
    means = {name: {loss["name"]: loss["mean"] for loss in result["losses"]} for name, result in results.items()}
    for name, found in means.items():
        if set(found) != set(losses):
            raise ValueError(
                f"expected the losses {', '.join(losses)} in every data set, got {', '.join(found)} in {name}"
            )
    lacking = [f"{loss} in {name}" for name, found in means.items() for loss in losses if found[loss] is None]
    if lacking:
        raise ValueError(f"expected a mean of every loss in every data set, got none of {', '.join(lacking)}")
    table = np.array([[found[loss] for loss in losses] for found in means.values()])
    ranks = stats.rankdata(-METRICS[metric].sign * table, axis=1)
    result: dict[str, Any] = {
        "metric": metric,
        "aggregation": next(iter(results.values()))["aggregation"],
        "datasets": list(results),
        "basis": {name: _basis(result) for name, result in results.items()},
        "means": {name: means[name] for name in results},
        "mean_ranks": dict(zip(losses, ranks.mean(0).tolist(), strict=True)),
        "test": None,
        "p": None,
        "pairs": [],
        "critical_difference": None,
    }
    if len(losses) < 2:
        return result | {"reason": "there is only one loss"}
    if (ranks == ranks[:, :1]).all():
        return result | {"reason": "all losses have the same mean in every data set"}
    few = FEW_DATASETS if len(losses) > 2 else FEW_FOR_WILCOXON
    if len(results) < few:
        return result | {"reason": f"{len(results)} data sets; a test of {len(losses)} losses over them needs {few}"}
    if len(losses) == 2:
        found: Any = stats.wilcoxon(table[:, 0], table[:, 1])
        return result | {"test": "Wilcoxon over data sets", "p": float(found.pvalue)}
    return result | {
        "test": "Friedman over data sets, as Iman and Davenport have it; pairs by Nemenyi",
        "p": iman_davenport(ranks),
        "pairs": nemenyi(ranks, losses),
        "critical_difference": critical_difference(*ranks.shape),
    }


def iman_davenport(ranks: np.ndarray) -> float:
    """p of ranks [data sets, losses]."""
    number, losses = ranks.shape
    statistic: Any = stats.friedmanchisquare(*ranks.T)
    chi2 = float(statistic.statistic)
    left = number * (losses - 1) - chi2
    if left <= 0:
        return 0.0
    return float(stats.f.sf((number - 1) * chi2 / left, losses - 1, (losses - 1) * (number - 1)))


def critical_difference(number: int, count: int, alpha: float = 0.05) -> float:
    """The difference of mean ranks over `number` data sets from which on two of `count` losses differ (Nemenyi)."""
    return float(stats.studentized_range.isf(alpha, count, np.inf)) / math.sqrt(2) * _rank_error(number, count)


def _rank_error(number: int, count: int) -> float:
    """The standard error of a difference of mean ranks, if all orders are as likely."""
    return math.sqrt(count * (count + 1) / (6 * number))


def nemenyi(ranks: np.ndarray, losses: Sequence[str]) -> list[dict[str, Any]]:
    """Difference of mean ranks and p for each pair, adjusted for all of them (Nemenyi 1963)."""
    number, count = ranks.shape
    error = _rank_error(number, count)
    means = dict(zip(losses, ranks.mean(0).tolist(), strict=True))
    return [
        {
            "a": a,
            "b": b,
            "rank_difference": means[a] - means[b],
            "p_adjusted": float(
                stats.studentized_range.sf(abs(means[a] - means[b]) / error * math.sqrt(2), count, np.inf)
            ),
        }
        for a, b in itertools.combinations(losses, 2)
    ]
