"""Standard errors for the mean of a loss or the difference of two losses.

`TwoWay` models variation over runs and groups of cases; `Folds` models variation over cross-validation folds. Both have
the method `estimate`, which turns signed losses into a value with its standard error and degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from segkit.compare.aggregation import STEP, PerturbedGroups, effective_groups, run_scores
from segkit.compare.run_variances import RunVariances, satterthwaite, sum_of_variances, unstable_losses
from segkit.compare.score_table import Scores
from segkit.compare.shared_seeds import SharedSeeds, shared_seeds

ALPHA = 0.05
MIN_GROUPS = 10


class Inference(NamedTuple):
    """The test that is used, and the population that its results apply to."""

    test: str
    applies_to: str


FOLDS_APPLY_TO = "the losses, for new cases, and for new training sets as far as folds of one set of cases can tell"
INFERENCES = {
    "runs and cases": Inference(
        "two-way t test over runs and groups of cases", "the losses, for new runs and new cases"
    ),
    "runs": Inference("t test over runs", "the losses, for new runs on these cases only"),
    "cases": Inference(
        "paired t interval over groups of cases", "these checkpoints, for new cases, and not to the losses"
    ),
    "nothing": Inference("none", "these checkpoints on these cases only, and not to the losses"),
    "folds": Inference(
        "t test over folds with the variance of Nadeau and Bengio (2003)",
        FOLDS_APPLY_TO,
    ),
    "folds and seeds": Inference(
        "t test over folds with the variance of Nadeau and Bengio (2003), and over seeds that several folds have",
        FOLDS_APPLY_TO,
    ),
}


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with its standard error and degrees of freedom. With `df` 0 it has no interval."""

    value: float
    standard_error: float
    df: float

    def interval(self, alpha: float = ALPHA) -> list[float] | None:
        """The two-sided 1 - alpha confidence interval; None without degrees of freedom."""
        if self.df == 0:
            return None
        half_width = float(special.stdtrit(self.df, 1 - alpha / 2)) * self.standard_error
        return [self.value - half_width, self.value + half_width]

    @property
    def p(self) -> float:
        """The two-sided p-value. If the standard error is 0, it is 1 for a value of 0 and 0 for any other value."""
        if self.standard_error == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.df, -abs(self.value) / self.standard_error))


def group_values(scores: Scores, runs: np.ndarray | None = None, cases: np.ndarray | None = None) -> np.ndarray:
    """One value per run and group of cases, [R, G], whose mean over groups is the score of the run.

    Each value is the score plus the number of groups times the derivative of the score with respect to the weight of
    the group (infinitesimal jackknife, Jaeckel 1972). It equals the plain mean over the group if all groups have equal
    size, every case counts for every class, and the score is a mean.

    Args:
        scores: The table of scores.
        runs: Indices of the runs; None takes all.
        cases: Indices of the cases; None takes all.
    """
    runs = np.arange(len(scores.runs)) if runs is None else runs
    cases = np.arange(len(scores.cases)) if cases is None else cases
    unique_groups, group = np.unique(scores.group[cases], return_inverse=True)
    row = np.full(len(scores.cases), -1)
    row[cases] = group
    weights = PerturbedGroups((row >= 0).astype(float), row, len(unique_groups))
    perturbed = run_scores(scores, weights)[:, runs]
    return (np.real(perturbed) + len(unique_groups) * np.imag(perturbed) / STEP).T


def fit_variance_model(scores: Scores, test_train_ratio: float | None = None) -> TwoWay | Folds:
    """The variance model for a table of scores: `Folds` if folds are evaluated on different cases, else `TwoWay`.

    Distances are negated, so that larger values are better in both models.

    Args:
        scores: The table of scores.
        test_train_ratio: See `Folds`; None assumes that all cases outside a fold are used for training.

    Raises:
        ValueError: A loss has no run in one of the folds.
    """
    loss_of_run, seed_of_run = scores.runs["loss"].to_numpy(), scores.runs["seed"].to_numpy()
    blocks = []
    for runs, cases in scores.blocks:
        values = scores.sign * group_values(scores, runs, cases)
        blocks.append({loss: values[loss_of_run[runs] == loss] for loss in scores.losses})
    if len(blocks) == 1:
        return TwoWay(blocks[0], *effective_groups(scores, *scores.blocks[0]))
    incomplete = [(loss, index) for index, block in enumerate(blocks) for loss, runs in block.items() if not len(runs)]
    if incomplete:
        loss, index = incomplete[0]
        fold = scores.runs["fold"].iloc[scores.blocks[index][0][0]]
        raise ValueError(f"expected every loss in every fold, but {loss} has no run in fold {fold}")
    test_cases = float(np.mean([len(cases) for _runs, cases in scores.blocks]))
    return Folds(
        {loss: [block[loss].mean(1) for block in blocks] for loss in scores.losses},
        seeds={
            loss: [seed_of_run[runs[loss_of_run[runs] == loss]] for runs, _cases in scores.blocks]
            for loss in scores.losses
        },
        test_train_ratio=test_train_ratio or test_cases / (len(scores.cases) - test_cases),
        groups=len(scores.groups),
    )


class TwoWay:
    """Variation over runs, which are nested in losses, and over groups of cases, which all runs share.

    Args:
        samples: The values of each loss, {loss: [runs, groups]}; larger is better.
        effective_groups: The effective number of groups behind the score, for the class that has the fewest.
        limiting_class: The name of that class.

    Attributes:
        run_variances: The variances of the runs of all losses with more than one run.
        unstable: The losses whose runs vary far more than those of the others. They have their own variances and do not
            enter `usual_variances`, that of the others.
        equal_spread_p: p-value of Bartlett's test that runs spread equally in all losses but the unstable ones. Below
            `UNEQUAL`, a loss has mostly its own variance, see `RunVariances.of_sum`.
            `tools/simulate_comparisons.py` measures the error rates.
        residual: For each loss, the variance that neither run nor group explains; pooled for a loss with one run.
        over: The key of `INFERENCES` that describes what intervals extend to: new runs if at least two losses have
            several runs, new cases if the effective number of groups is at least `MIN_GROUPS`.
    """

    why_single = "only one run of {losses}: the variation between runs is unknown, so losses cannot be compared"

    def __init__(
        self, samples: Mapping[str, np.ndarray], effective_groups: float = math.inf, limiting_class: str | None = None
    ):
        self.samples = dict(samples)
        self.groups = next(iter(samples.values())).shape[1]
        self.effective_groups, self.limiting_class = min(effective_groups, self.groups), limiting_class
        self.single = {loss for loss, values in samples.items() if len(values) == 1}
        # if only one loss has several runs, its spread says nothing about the other losses
        self.scope = "checkpoints" if len(samples) - len(self.single) < min(2, len(samples)) else "losses"

        run_df = {loss: len(values) - 1 for loss, values in samples.items()}
        self.run_df = sum(run_df.values())
        residuals = {loss: v - v.mean(1, keepdims=True) - v.mean(0) + v.mean() for loss, v in samples.items()}
        squares = {loss: (values**2).sum() / max(self.groups - 1, 1) for loss, values in residuals.items()}
        pooled = sum(squares.values()) / max(self.run_df, 1)
        self.residual = {loss: squares[loss] / df if df else pooled for loss, df in run_df.items()}

        repeated = {loss: scores for loss, scores in self.runs.items() if len(scores) > 1}
        self.run_variances = RunVariances(repeated)
        self.unstable = unstable_losses(self.run_variances)
        usual = {loss: scores for loss, scores in repeated.items() if loss not in self.unstable}
        self.usual_variances = RunVariances(usual) if self.unstable else self.run_variances
        self.equal_spread_p = self.usual_variances.equal_spread_p

        over_runs = bool(self.run_df) and self.scope == "losses"
        over_cases = self.effective_groups >= MIN_GROUPS
        self.over = " and ".join(name for name, holds in (("runs", over_runs), ("cases", over_cases)) if holds)
        self.over = self.over or "nothing"

    @property
    def runs(self) -> dict[str, np.ndarray]:
        """The score of each run; larger is better."""
        return {loss: values.mean(1) for loss, values in self.samples.items()}

    @property
    def inference(self) -> Inference:
        """The test, and what its results apply to."""
        return INFERENCES[self.over]

    def estimate(self, signs: Mapping[str, int], runs: int | None = None) -> Estimate:
        """The signed sum of the scores of one or two losses: the mean of a loss, or the difference of a pair.

        Its variance is max(V_run + V_case - V_residual, V_run, V_case). The variance over runs and the variance over
        cases both contain the residual variance, so it is subtracted once.

        Args:
            signs: The sign of each loss, {"a": 1} for a mean and {"a": 1, "b": -1} for a difference.
            runs: Predict the estimate for this number of runs per loss, if values and variances stay as they are.
        """
        run_counts = {loss: len(self.samples[loss]) for loss in signs}
        group_means = np.sum([sign * self.samples[loss].mean(0) for loss, sign in signs.items()], axis=0)
        v_residual = self._residual_variance(run_counts)
        v_case = self._case_variance(group_means)
        if runs is not None:
            run_counts = dict.fromkeys(signs, runs)
            v_observed, v_residual = v_residual, self._residual_variance(run_counts)
            v_case = max(v_case - v_observed, 0.0) + v_residual if v_case else 0.0
        v_run, run_df = self._run_variance(run_counts, runs)
        variance = max(v_run + v_case - v_residual, v_run, v_case)
        df = self._degrees_of_freedom(variance, v_run, run_df, v_case)
        return Estimate(float(group_means.mean()), math.sqrt(variance), df)

    def _residual_variance(self, run_counts: Mapping[str, int]) -> float:
        """Variance of the signed sum from what neither run nor group explains."""
        return sum(self.residual[loss] / count for loss, count in run_counts.items()) / self.groups

    def _case_variance(self, group_means: np.ndarray) -> float:
        """Variance of the signed sum over groups of cases; 0 if intervals do not extend to new cases."""
        if "cases" not in self.over:
            return 0.0
        return self.effective_groups / (self.effective_groups - 1) * group_means.var() / self.groups

    def _run_variance(self, run_counts: Mapping[str, int], runs: int | None) -> tuple[float, float]:
        """Variance of the signed sum over runs, and its degrees of freedom.

        An unstable loss has its own variance, the others that of all stable losses.

        Args:
            run_counts: The number of runs of each loss.
            runs: With a number, the degrees of freedom are those of so many runs of every loss.
        """
        if "runs" not in self.over:
            return 0.0, 0.0
        shares = {loss: 1 / count for loss, count in run_counts.items() if loss not in self.unstable}
        parts = [self.usual_variances.of_sum(shares)] if shares else []
        if runs is not None:
            growth = (runs - 1) * len(self.usual_variances.dfs) / max(self.usual_variances.df, 1)
            parts = [(variance, df * growth) for variance, df in parts]
        for loss in self.unstable & run_counts.keys():
            df = self.run_variances.dfs[loss] if runs is None else runs - 1
            parts.append((self.run_variances.of_loss[loss] / run_counts[loss], df))
        return sum_of_variances(parts)

    def _degrees_of_freedom(self, variance: float, v_run: float, run_df: float, v_case: float) -> float:
        """Satterthwaite's degrees of freedom; 0 if there is no interval."""
        if self.over == "nothing":
            return 0.0
        case_df = self.effective_groups - 1
        return satterthwaite(variance, [(v_run, run_df), (v_case, case_df)]) or self.run_df + case_df

    def components(self) -> dict[str, float]:
        """Standard deviations of runs, groups of cases, the interaction of loss and group, residual, and loss means.

        Negative variance estimates are set to 0.
        """
        means = np.stack([values.mean(0) for values in self.samples.values()])
        losses, groups = means.shape
        residual = float(np.mean(list(self.residual.values())))
        inverse_runs = np.mean([1 / len(values) for values in self.samples.values()])
        interactions = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
        interaction = (interactions**2).sum() / max((losses - 1) * (groups - 1), 1)
        group = means.mean(0).var(ddof=1) if groups > 1 else 0.0
        between = means.mean(1).var(ddof=1) if losses > 1 else 0.0
        loss_by_group = interaction - residual * inverse_runs
        variances = {
            "run": self.usual_variances.pooled - residual / groups,
            "group": group - interaction / losses,
            "loss x group": loss_by_group,
            "residual": residual,
            "loss": between - self.run_variances.pooled * inverse_runs - max(loss_by_group, 0.0) / groups,
        }
        return {name: math.sqrt(max(float(value), 0.0)) for name, value in variances.items()}


class Folds:
    """Variation over cross-validation folds; the runs of a fold are averaged.

    Folds share training cases, so their scores vary less than those of independent training sets. The variance of a
    mean over J folds is therefore (1 / J + test_train_ratio) s^2 (Nadeau and Bengio 2003). This assumes that the scores
    of two folds correlate as little as their test cases overlap with all cases; what the training sets have in common
    can make the correlation larger (`tools/simulate_comparisons.py --tables folds`).

    For seeds that are in several folds, the variance of the mean over seeds is added (`shared_seeds`). As over runs,
    seeds of different losses are taken as independent.

    Args:
        samples: The scores of each loss in each fold, {loss: [[runs] for each fold]}; larger is better.
        test_train_ratio: Number of test cases of a fold divided by its number of training cases.
        groups: Number of groups of cases.
        seeds: The seeds of `samples`; None if no seed is in two folds.

    Attributes:
        shared_seeds: The part of seeds in the mean of each loss that has seeds in several folds.
        single: The losses of which nothing tells what a seed adds, such as those with one seed in all folds. They get
            no verdict.
    """

    scope = "losses"
    why_single = (
        "all folds of {losses} have one and the same seed: what it adds to a loss in every fold is unknown, so losses "
        "cannot be compared; if the folds began with different random numbers, give each a seed of its own"
    )

    def __init__(
        self,
        samples: Mapping[str, list[np.ndarray]],
        *,
        test_train_ratio: float,
        groups: int,
        seeds: Mapping[str, Sequence[np.ndarray]] | None = None,
    ):
        self.folds = len(next(iter(samples.values())))
        found = {} if seeds is None else {loss: shared_seeds(runs, seeds[loss]) for loss, runs in samples.items()}
        self.shared_seeds: dict[str, SharedSeeds] = {loss: part for loss, part in found.items() if part is not None}
        self.single = {loss for loss, part in self.shared_seeds.items() if part.df == 0}
        self.over = "folds and seeds" if self.shared_seeds.keys() - self.single else "folds"
        self.scores = {loss: np.array([runs.mean() for runs in folds]) for loss, folds in samples.items()}
        self.samples = {loss: np.concatenate(folds)[:, None] for loss, folds in samples.items()}
        self.groups, self.equal_spread_p = groups, 1.0
        self.test_train_ratio = test_train_ratio
        variances = [runs.var(ddof=1) for folds in samples.values() for runs in folds if len(runs) > 1]
        self.run_sd = math.sqrt(float(np.mean(variances))) if variances else None

    @property
    def runs(self) -> dict[str, np.ndarray]:
        """The score of each run; larger is better."""
        return {loss: values[:, 0] for loss, values in self.samples.items()}

    @property
    def inference(self) -> Inference:
        """The test, and what its results apply to."""
        return INFERENCES[self.over]

    def estimate(self, signs: Mapping[str, int]) -> Estimate:
        """The signed sum of the scores of one or two losses."""
        fold_scores = np.sum([sign * self.scores[loss] for loss, sign in signs.items()], axis=0)
        v_fold = (1 / self.folds + self.test_train_ratio) * float(fold_scores.var(ddof=1))
        of_seeds = [self.shared_seeds[loss] for loss in signs if loss in self.shared_seeds]
        v_seed, v_residual = sum(part.variance for part in of_seeds), sum(part.residual for part in of_seeds)
        # both variances contain the residual one, as in `TwoWay.estimate`
        variance = max(v_fold + v_seed - v_residual, v_fold, v_seed)
        parts = [(v_fold, self.folds - 1), *((part.variance, part.df) for part in of_seeds)]
        df = satterthwaite(variance, parts) or self.folds - 1
        return Estimate(float(fold_scores.mean()), math.sqrt(variance), df)

    def components(self) -> dict[str, float]:
        """Standard deviations of folds, the interaction of loss and fold, loss means, and, if available, runs."""
        table = np.stack(list(self.scores.values()))
        interactions = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        components = {
            "fold": float(table.mean(0).std(ddof=1)),
            "loss x fold": math.sqrt((interactions**2).sum() / max((len(table) - 1) * (self.folds - 1), 1)),
            "loss": float(table.mean(1).std(ddof=1)) if len(table) > 1 else 0.0,
        }
        return components if self.run_sd is None else {"run": self.run_sd, **components}
