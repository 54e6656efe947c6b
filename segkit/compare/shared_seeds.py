"""What seeds add to a loss in several folds of a cross-validation.

Runs with the same seed begin with the same weights and the same random numbers, whatever their fold. What a seed adds
to a loss is then alike in all folds that have the seed, and the variance over folds does not contain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9


@dataclass(frozen=True)
class SharedSeeds:
    """The variance of the mean of a loss over folds that comes from seeds that are in several folds.

    Args:
        variance: The variance of the mean from these seeds and from the residual.
        residual: The part of it from what neither seed nor fold explains.
        df: Degrees of freedom; 0 if the runs cannot tell what a seed adds, such as with one and the same seed in all
            folds. The variances are then unknown, and 0 here.
    """

    variance: float
    residual: float
    df: float


def shared_seeds(runs: Sequence[np.ndarray], seeds: Sequence[np.ndarray]) -> SharedSeeds | None:
    """The part of seeds in the mean of a loss; None if no seed is in two folds.

    With s seeds in each of J folds, `variance` is MS_seed / (s J) and `residual` is MS_residual / (s J), from the mean
    squares of a two-way analysis of variance, and `df` is s - 1. Where folds lack some seeds, the variance component of
    seeds is estimated by products of the scores of one seed in two folds, each minus the mean of its fold.

    Args:
        runs: The scores of the runs of each fold.
        seeds: Their seeds.
    """
    values, present = _by_seed(runs, seeds)
    shared = present.sum(1) > 1
    if not shared.any():
        return None
    folds, in_fold = values.shape[1], present.sum(0)  # the number of seeds of each fold
    centred = np.where(present, values - values.sum(0) / in_fold, 0.0)
    weight = present.astype(float)
    common = weight.T @ weight  # seeds that two folds have in common, [J, J]
    pair = np.triu_indices(folds, 1)
    # the expected product of two centred seed effects, of variance 1, summed over the common seeds
    expected = (common * (1 - 1 / in_fold - 1 / in_fold[:, None] + common / np.outer(in_fold, in_fold)))[pair]
    if expected.sum() < ROUNDING:
        return SharedSeeds(0.0, 0.0, 0.0)
    of_seed = (centred.T @ centred)[pair].sum() / expected.sum()
    within_folds = (centred**2).sum() / (in_fold - 1).sum()
    shares = (weight / (folds * in_fold)).sum(1)  # of each seed in the mean over folds
    residual = max(within_folds - of_seed, 0.0) * (1 / (folds**2 * in_fold)).sum()
    variance = max(of_seed * (shares[shared] ** 2).sum() + residual, 0.0)
    return SharedSeeds(float(variance), float(residual), float(expected.sum() / len(expected)))


def _by_seed(runs: Sequence[np.ndarray], seeds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of each seed in each fold, [seeds, folds], and where there is one; 0 elsewhere.

    Several runs of one seed in a fold are averaged.
    """
    row = {seed: number for number, seed in enumerate(dict.fromkeys(seed for fold in seeds for seed in fold.tolist()))}
    sums, counts = np.zeros((2, len(row), len(runs)))
    for fold, (scores, own) in enumerate(zip(runs, seeds, strict=True)):
        rows = [row[seed] for seed in own.tolist()]
        np.add.at(sums[:, fold], rows, scores)
        np.add.at(counts[:, fold], rows, 1)
    return sums / np.maximum(counts, 1), counts > 0
