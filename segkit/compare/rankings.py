"""Who comes first, how sure that is, and whether it depends on the way in which cases and classes are averaged.

Runs are drawn within each loss and groups of cases within each fold, together for all losses (Wiesenfarth et al. 2021
draw cases alone; another run is another result too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from segkit.compare.aggregation import AGGREGATIONS, is_there
from segkit.compare.score_table import Scores


@dataclass(frozen=True)
class Draws:
    """How often each run and each case was drawn, in B resamples: [B, R] and [B, N]."""

    runs: np.ndarray
    cases: np.ndarray


def rankings(scores: Scores, pairs: Sequence[tuple[str, str]], resamples: int, seed: int) -> dict[str, Any]:
    """Mean, rank and share of resamples in each rank, for each loss under each rule that the table allows; and for each
    pair, by the rule of the verdicts, which comes first, a bootstrap interval and the share in which a is better."""
    once = Draws(np.ones((1, len(scores.runs))), np.ones((1, len(scores.cases))))
    drawn = _draw(scores, resamples, np.random.default_rng(seed)) if resamples else None
    by_rule, first = {}, None
    for name in dict.fromkeys([scores.aggregation, *AGGREGATIONS]):
        if not is_there(name, scores):
            continue
        means = loss_means(scores, name, once)[0]
        verdicts = ": the rule of the verdicts" if name == scores.aggregation else ""
        found = {
            "words": f"{AGGREGATIONS[name].words}{verdicts}",
            "means": _named(scores, means),
            "ranks": _named(scores, _ranks(scores, means[None])[0]),
        }
        if drawn is not None:
            of_draws = loss_means(scores, name, drawn)
            of_draws = of_draws[~np.isnan(of_draws).any(1)]  # few cases, and none of them drawn that counts
            first = of_draws if first is None else first
            found["shares"] = _shares(scores, of_draws) if len(of_draws) else None
        by_rule[name] = found
    bootstrap = [] if first is None or not len(first) else [_pair(scores, a, b, first) for a, b in pairs]
    return {"resamples": resamples, "rules": by_rule, "pairs": bootstrap}


def loss_means(scores: Scores, aggregation: str, draws: Draws) -> np.ndarray:
    """[B, L]: the mean over the drawn runs of each loss."""
    of_runs = AGGREGATIONS[aggregation].score(scores, draws.cases)
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
