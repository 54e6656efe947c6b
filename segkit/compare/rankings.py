"""Ranks of losses, how stable they are, and whether they depend on the aggregation of cases and classes.

The bootstrap resamples runs within each loss and groups of cases within each fold, jointly for all losses. Wiesenfarth
et al. (2021) resample cases alone; here runs are resampled too, because another training gives another score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from segkit.compare.aggregation import AGGREGATIONS, is_available
from segkit.compare.score_table import Scores

CHUNK = 2**21  # weights of cases in memory at a time
DRAWN = np.uint16  # how often one of n items is drawn in n draws: more than 65535 times is impossible in practice


@dataclass(frozen=True)
class Draws:
    """How often each run and each case was drawn in B resamples: [B, R] and [B, N]."""

    runs: np.ndarray
    cases: np.ndarray

    def chunks(self) -> Iterator[Draws]:
        """The resamples in chunks whose weights take at most `CHUNK` numbers."""
        rows = max(1, CHUNK // self.cases.shape[1])
        for start in range(0, len(self.cases), rows):
            chunk = slice(start, start + rows)
            yield Draws(self.runs[chunk].astype(float), self.cases[chunk].astype(float))


def rankings(scores: Scores, pairs: Sequence[tuple[str, str]], resamples: int, seed: int) -> dict[str, Any]:
    """Ranks of all losses by every aggregation that the table allows, and bootstrap results for each pair.

    Returns:
        `rules`: for each aggregation, that of the verdicts first, the mean and rank of each loss and its share of
        resamples in each rank. `pairs`: for each pair, by the aggregation of the verdicts, a bootstrap interval of the
        difference and the share of resamples in which a is better. `resamples`: their number.
    """
    observed = Draws(np.ones((1, len(scores.runs))), np.ones((1, len(scores.cases))))
    drawn = _draw(scores, resamples, np.random.default_rng(seed)) if resamples else None
    results, verdict_means = {}, None
    for name in dict.fromkeys([scores.aggregation, *AGGREGATIONS]):
        if not is_available(name, scores):
            continue
        means = loss_means(scores, name, observed)[0]
        suffix = " (used for the verdicts)" if name == scores.aggregation else ""
        result = {
            "words": f"{AGGREGATIONS[name].description}{suffix}",
            "means": _by_loss(scores, means),
            "ranks": _by_loss(scores, _ranks(scores, means[None])[0]),
        }
        if drawn is not None:
            resampled = np.concatenate([loss_means(scores, name, chunk) for chunk in drawn.chunks()])
            resampled = resampled[~np.isnan(resampled).any(1)]  # drop resamples in which some loss has no score
            verdict_means = resampled if verdict_means is None else verdict_means
            result["shares"] = _rank_shares(scores, resampled) if len(resampled) else None
        results[name] = result
    bootstrap = (
        []
        if verdict_means is None or not len(verdict_means)
        else [_pair_bootstrap(scores, a, b, verdict_means) for a, b in pairs]
    )
    return {"resamples": resamples, "rules": results, "pairs": bootstrap}


def loss_means(scores: Scores, aggregation: str, draws: Draws) -> np.ndarray:
    """The mean over the drawn runs of each loss, [B, L]."""
    scores_of_runs = AGGREGATIONS[aggregation].score(scores, draws.cases)
    loss_of_run = scores.runs["loss"].to_numpy()
    columns = []
    for loss in scores.losses:
        selected = loss_of_run == loss
        weights = draws.runs[:, selected] * ~np.isnan(scores_of_runs[:, selected])
        with np.errstate(invalid="ignore"):
            columns.append((weights * np.nan_to_num(scores_of_runs[:, selected])).sum(1) / weights.sum(1))
    return np.stack(columns, 1)


def _draw(scores: Scores, resamples: int, generator: np.random.Generator) -> Draws:
    """Resample groups of cases and runs; folds, if there are several, are resampled with their runs and cases.

    Folds whose runs have the same seeds draw the same seeds.
    """
    runs = np.zeros((resamples, len(scores.runs)), DRAWN)
    cases = np.zeros((resamples, len(scores.cases)), DRAWN)
    folds = _multinomial(generator, len(scores.blocks), resamples)
    loss_of_run, seed_of_run = scores.runs["loss"].to_numpy(), scores.runs["seed"].to_numpy()
    drawn_runs: dict[tuple[Any, ...], np.ndarray] = {}
    for number, (fold_runs, fold_cases) in enumerate(scores.blocks):
        unique_groups, group = np.unique(scores.group[fold_cases], return_inverse=True)
        drawn_groups = _multinomial(generator, len(unique_groups), resamples)
        for row, drawn in enumerate(drawn_groups):  # all at once would copy the whole array
            cases[row, fold_cases] = drawn[group]
        for loss in scores.losses:
            loss_runs = fold_runs[loss_of_run[fold_runs] == loss]
            key = loss, *seed_of_run[loss_runs].tolist()
            if key not in drawn_runs:
                drawn_runs[key] = _multinomial(generator, len(loss_runs), resamples)
            runs[:, loss_runs] = drawn_runs[key] * folds[:, [number]]
    return Draws(runs, cases)


def _multinomial(generator: np.random.Generator, items: int, resamples: int) -> np.ndarray:
    """How often each item is drawn, [resamples, items]; drawn in chunks, whose numbers are those of one draw."""
    drawn = np.empty((resamples, items), DRAWN)
    rows = max(1, CHUNK // items)
    for start in range(0, resamples, rows):
        part = drawn[start : start + rows]
        part[:] = generator.multinomial(items, np.full(items, 1 / items), size=len(part))
    return drawn


# --- statistics of the resamples -------------------------------------------------------------------------------------


def _ranks(scores: Scores, means: np.ndarray, method: Literal["average", "min"] = "average") -> np.ndarray:
    """Ranks [B, L], 1 for the best; ties get the mean or the best of their ranks."""
    return stats.rankdata(-scores.sign * means, method, axis=1, nan_policy="omit")


def _by_loss(scores: Scores, values: np.ndarray) -> dict[str, float | None]:
    by_loss = zip(scores.losses, values.tolist(), strict=True)
    return {loss: None if np.isnan(value) else value for loss, value in by_loss}


def _rank_shares(scores: Scores, means: np.ndarray) -> dict[str, list[float]]:
    """For each loss, the share of resamples in each rank; ties get the better rank."""
    ranks = _ranks(scores, means, "min").astype(int)
    shares = [np.bincount(column - 1, minlength=len(scores.losses)) / len(ranks) for column in ranks.T]
    return {loss: share.tolist() for loss, share in zip(scores.losses, shares, strict=True)}


def _pair_bootstrap(scores: Scores, a: str, b: str, means: np.ndarray) -> dict[str, Any]:
    """Percentile interval of the difference, and the share of resamples in which a is better; a tie counts half.

    Both are None if one of the losses has no scores because its runs failed.
    """
    column = {loss: number for number, loss in enumerate(scores.losses)}
    if not {a, b} <= set(column):
        return {"a": a, "b": b, "ci95_bootstrap": None, "better_in": None}
    difference = scores.sign * (means[:, column[a]] - means[:, column[b]])
    low, high = np.percentile(difference, (2.5, 97.5)).tolist()
    better = float((difference > 0).mean() + (difference == 0).mean() / 2)
    return {"a": a, "b": b, "ci95_bootstrap": [low, high], "better_in": better}
