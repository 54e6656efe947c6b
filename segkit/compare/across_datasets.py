"""Comparison of losses across data sets, with each data set as one observation (Demšar 2006)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from segkit.compare.table_checks import metric_properties

FEW_DATASETS = 5
FEW_FOR_WILCOXON = 6  # with five data sets the p-value cannot be below 0.0625


def _basis(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of cases, groups and runs of one data set."""
    runs = {loss["name"]: len(loss["runs"]) for loss in result["losses"]}
    return {"cases": result["cases"], "groups": result["groups"], "runs": runs}


def over_datasets(results: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Mean ranks of the losses across data sets, with a test.

    The test is Friedman's in the form of Iman and Davenport (1980), followed by Nemenyi's test of all pairs. Two losses
    are compared with Wilcoxon's signed-rank test. With fewer than five data sets (six for two losses) there are ranks
    but no test, and a `reason`.

    Args:
        results: The contents of comparison.json for each data set.
        metric: The metric that all of them use.

    Returns:
        The contents of datasets.json.

    Raises:
        ValueError: The data sets do not have the same losses, or a loss has no mean in one of them.
    """
    losses = sorted({loss["name"] for result in results.values() for loss in result["losses"]})
    means = {name: {loss["name"]: loss["mean"] for loss in result["losses"]} for name, result in results.items()}
    for name, loss_means in means.items():
        if set(loss_means) != set(losses):
            raise ValueError(
                f"expected the losses {', '.join(losses)} in every data set, got {', '.join(loss_means)} in {name}"
            )
    without_mean = [
        f"{loss} in {name}" for name, loss_means in means.items() for loss in losses if loss_means[loss] is None
    ]
    if without_mean:
        raise ValueError(f"expected a mean of every loss in every data set, got none for {', '.join(without_mean)}")
    table = np.array([[loss_means[loss] for loss in losses] for loss_means in means.values()])
    ranks = stats.rankdata(-metric_properties(metric).sign * table, axis=1)
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
    needed = FEW_DATASETS if len(losses) > 2 else FEW_FOR_WILCOXON
    if len(results) < needed:
        reason = f"a test of {len(losses)} losses needs at least {needed} data sets, and there are {len(results)}"
        return result | {"reason": reason}
    if len(losses) == 2:
        wilcoxon: Any = stats.wilcoxon(table[:, 0], table[:, 1])
        return result | {"test": "Wilcoxon signed-rank test over data sets", "p": float(wilcoxon.pvalue)}
    return result | {
        "test": "Friedman test over data sets (Iman and Davenport), with Nemenyi's test for pairs",
        "p": iman_davenport(ranks),
        "pairs": nemenyi(ranks, losses),
        "critical_difference": critical_difference(*ranks.shape),
    }


def iman_davenport(ranks: np.ndarray) -> float:
    """p-value of Friedman's test in the form of Iman and Davenport (1980), for ranks [data sets, losses]."""
    datasets, losses = ranks.shape
    friedman: Any = stats.friedmanchisquare(*ranks.T)
    chi2 = float(friedman.statistic)
    remainder = datasets * (losses - 1) - chi2
    if remainder <= 0:
        return 0.0
    return float(stats.f.sf((datasets - 1) * chi2 / remainder, losses - 1, (losses - 1) * (datasets - 1)))


def critical_difference(datasets: int, losses: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference: mean ranks that differ by more are significantly different."""
    return float(stats.studentized_range.isf(alpha, losses, np.inf)) / math.sqrt(2) * _rank_error(datasets, losses)


def _rank_error(datasets: int, losses: int) -> float:
    """Standard error of a difference of mean ranks under the null hypothesis that all orders are equally likely."""
    return math.sqrt(losses * (losses + 1) / (6 * datasets))


def nemenyi(ranks: np.ndarray, losses: Sequence[str]) -> list[dict[str, Any]]:
    """Difference of mean ranks and adjusted p-value for each pair (Nemenyi 1963), from ranks [data sets, losses]."""
    datasets, count = ranks.shape
    error = _rank_error(datasets, count)
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
