"""Who comes first, how sure that is, and whether it depends on the way in which cases and classes are averaged.

Runs are drawn within each loss and groups of cases within each fold, together for all losses (Wiesenfarth et al. 2021
draw cases alone; another run is another result too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from segkit.compare.long_table import Scores, counted_mean


@dataclass(frozen=True)
class Draws:
    """How often each run and each case was drawn, in B resamples: [B, R] and [B, N]."""

    runs: np.ndarray
    cases: np.ndarray


Rule = Callable[[Scores, np.ndarray], np.ndarray]  # weights of cases [B, N] -> scores of runs [B, R]


def rankings(scores: Scores, pairs: Sequence[tuple[str, str]], resamples: int, seed: int) -> dict[str, Any]:
    """Mean, rank and share of resamples in each rank, for each loss under each rule that the table allows; and for each
    pair, by the first rule, a bootstrap interval and the share in which a is better."""
    once = Draws(np.ones((1, len(scores.runs))), np.ones((1, len(scores.cases))))
    drawn = _draw(scores, resamples, np.random.default_rng(seed)) if resamples else None
    by_rule, first = {}, None
    for name, (rule, words) in RULES.items():
        if name in POOLED and (scores.counts is None or scores.metric not in POOLED_SCORES):
            continue
        means = loss_means(scores, rule, once)[0]
        found = {
            "words": words,
            "means": _named(scores, means),
            "ranks": _named(scores, _ranks(scores, means[None])[0]),
        }
        if drawn is not None:
            of_draws = loss_means(scores, rule, drawn)
            of_draws = of_draws[~np.isnan(of_draws).any(1)]  # few cases, and none of them drawn that counts
            first = of_draws if first is None else first
            found["shares"] = _shares(scores, of_draws) if len(of_draws) else None
        by_rule[name] = found
    bootstrap = [] if first is None or not len(first) else [_pair(scores, a, b, first) for a, b in pairs]
    return {"resamples": resamples, "rules": by_rule, "pairs": bootstrap}


def loss_means(scores: Scores, rule: Rule, draws: Draws) -> np.ndarray:
    """[B, L]: the mean over the drawn runs of each loss."""
    of_runs = rule(scores, draws.cases)
    loss_of = scores.runs["loss"].to_numpy()
    columns = []
    for loss in scores.losses:
        own = loss_of == loss
        weights = draws.runs[:, own] * ~np.isnan(of_runs[:, own])
        with np.errstate(invalid="ignore"):
            columns.append((weights * np.nan_to_num(of_runs[:, own])).sum(1) / weights.sum(1))
    return np.stack(columns, 1)


def _draw(scores: Scores, resamples: int, generator: np.random.Generator) -> Draws:
    """Folds, where there are several, are drawn too, with their runs and cases."""
    runs, cases = np.zeros((resamples, len(scores.runs))), np.zeros((resamples, len(scores.cases)))
    folds = _multinomial(generator, len(scores.blocks), resamples)
    loss_of = scores.runs["loss"].to_numpy()
    for place, (of_fold, cases_of_fold) in enumerate(scores.blocks):
        numbers, code = np.unique(scores.group[cases_of_fold], return_inverse=True)
        cases[:, cases_of_fold] = _multinomial(generator, len(numbers), resamples)[:, code]
        for loss in scores.losses:
            own = of_fold[loss_of[of_fold] == loss]
            runs[:, own] = _multinomial(generator, len(own), resamples) * folds[:, [place]]
    return Draws(runs, cases)


def _multinomial(generator: np.random.Generator, things: int, resamples: int) -> np.ndarray:
    return generator.multinomial(things, np.full(things, 1 / things), size=resamples).astype(float)


# --- rules: how the cases and classes of a run become its score ------------------------------------------------------


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means over cases of [R, N], weighted by [B, N], leaving NaN out: [B, R]."""
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ np.where(counted, values, 0.0).T) / (weights @ counted.T.astype(float))


def _mean_of(parts: list[np.ndarray]) -> np.ndarray:
    """Over classes, leaving out those that no drawn case counts."""
    return counted_mean(np.stack(parts), 0)


def _over_classes(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean_of([_weighted(values[..., number], weights) for number in range(values.shape[2])])


def class_case(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _over_classes(scores.values, weights)


def case_class(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _weighted(counted_mean(scores.values, 2), weights)


def present(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _over_classes(scores.present, weights)


def groups(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """A group's mean for each class, then over groups, whose weight is that of any of their cases."""
    first = np.unique(scores.group, return_index=True)[1]
    of_group = np.eye(len(first))[scores.group].T  # [G, N]
    parts = [_weighted(scores.values[..., number], of_group).T for number in range(scores.values.shape[2])]
    return _mean_of([_weighted(part, weights[:, first]) for part in parts])


def median(scores: Scores, weights: np.ndarray) -> np.ndarray:
    return _mean_of([_weighted_median(scores.values[..., number], weights) for number in range(scores.values.shape[2])])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[B, R] from [R, N] and [B, N]: of the values, each taken as often as its weight says."""
    columns = []
    for row in values:
        order = np.argsort(row)[: (~np.isnan(row)).sum()]
        if not len(order):
            columns.append(np.full(len(weights), np.nan))
            continue
        below = np.cumsum(weights[:, order], 1)
        half = below[:, -1:] / 2
        last = len(order) - 1
        upper, lower = (below > half).argmax(1), (below >= half).argmax(1)
        middle = (row[order][np.minimum(lower, last)] + row[order][np.minimum(upper, last)]) / 2
        columns.append(np.where(below[:, -1] > 0, middle, np.nan))
    return np.stack(columns, 1)


def pooled(scores: Scores, weights: np.ndarray) -> np.ndarray:
    assert scores.counts is not None
    return _mean_of([_overlap(scores, weights, [number]) for number in range(scores.counts.shape[2])])


def micro(scores: Scores, weights: np.ndarray) -> np.ndarray:
    assert scores.counts is not None
    return _overlap(scores, weights, list(range(scores.counts.shape[2])))


def _overlap(scores: Scores, weights: np.ndarray, classes: list[int]) -> np.ndarray:
    """Of the counts of some classes, summed over cases: [B, R]."""
    assert scores.counts is not None
    sums = np.einsum("bn,rnk->brk", weights, scores.counts[:, :, classes].sum(2))
    hit, whole = sums[..., 0], sums[..., 1] + sums[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * hit / whole if scores.metric == "dice" else hit / (whole - hit)


RULES: dict[str, tuple[Rule, str]] = {
    "class_case": (class_case, "mean over cases for each class, then over classes: the rule of the verdicts"),
    "case_class": (case_class, "mean over classes for each case, then over cases"),
    "groups": (groups, "as the first, but the cases of a group are averaged before"),
    "present": (present, "as the first, but a run's case where class and prediction are both empty is left out"),
    "median": (median, "median over cases for each class, then mean over classes"),
    "global": (pooled, "counts summed over cases for each class, then mean over classes"),
    "micro": (micro, "counts summed over cases and classes"),
}
POOLED, POOLED_SCORES = ("global", "micro"), ("dice", "iou")


# --- what comes of the draws -----------------------------------------------------------------------------------------


def _ranks(scores: Scores, means: np.ndarray, method: Literal["average", "min"] = "average") -> np.ndarray:
    """1 for the best, [B, L]; equal ones share the mean of their ranks, or the best of them."""
    return stats.rankdata(-scores.sign * means, method, axis=1)


def _named(scores: Scores, values: np.ndarray) -> dict[str, float | None]:
    named = zip(scores.losses, values.tolist(), strict=True)
    return {loss: None if np.isnan(value) else value for loss, value in named}


def _shares(scores: Scores, means: np.ndarray) -> dict[str, list[float]]:
    """For each loss, the share of resamples in which it came first, second, ...; ties go to the better rank."""
    places = _ranks(scores, means, "min").astype(int)
    counted = [np.bincount(column - 1, minlength=len(scores.losses)) / len(places) for column in places.T]
    return {loss: shares.tolist() for loss, shares in zip(scores.losses, counted, strict=True)}


def _pair(scores: Scores, a: str, b: str, means: np.ndarray) -> dict[str, Any]:
    """None for a loss without scores, as all its runs failed."""
    column = {loss: number for number, loss in enumerate(scores.losses)}
    if not {a, b} <= set(column):
        return {"a": a, "b": b, "ci95_bootstrap": None, "better_in": None}
    difference = scores.sign * (means[:, column[a]] - means[:, column[b]])
    low, high = np.percentile(difference, (2.5, 97.5)).tolist()
    better = float((difference > 0).mean() + (difference == 0).mean() / 2)
    return {"a": a, "b": b, "ci95_bootstrap": [low, high], "better_in": better}
