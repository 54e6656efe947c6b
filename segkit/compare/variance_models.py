"""How sure a mean or a difference of losses is: over runs and groups of cases, or over folds.

Both kinds of study have `estimate`, from signed losses to a value with its standard error and degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from segkit.compare.aggregation import carrying_groups, run_scores
from segkit.compare.score_table import Scores

ALPHA = 0.05
MIN_GROUPS = 10
STEP = 1e-20
UNEQUAL = 0.2  # p below which runs are taken to spread unequally
TESTS = {  # what the intervals extend to: the method, and what the results speak of
    "runs and cases": ("two-way t test over runs and groups of cases", "the losses, for new runs and new cases"),
    "runs": ("t test over runs", "the losses, for new runs on these cases only"),
    "cases": ("paired t interval over groups of cases", "these checkpoints, for new cases; not of the losses"),
    "nothing": ("none", "these checkpoints on these cases only; not of the losses"),
    "folds": (
        "t test over folds with the variance of Nadeau and Bengio (2003)",
        "the losses, for new training sets and new cases",
    ),
}


@dataclass(frozen=True)
class Estimate:
    """A mean or difference, with its standard error and degrees of freedom; df 0: no interval."""

    value: float
    error: float
    df: float

    def interval(self, alpha: float = ALPHA) -> list[float] | None:
        if self.df == 0:
            return None
        half = float(special.stdtrit(self.df, 1 - alpha / 2)) * self.error
        return [self.value - half, self.value + half]

    @property
    def p(self) -> float:
        """Two-sided; where nothing varies, 1 for no difference and 0 for any."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.df, -abs(self.value) / self.error))


def group_values(scores: Scores, runs: np.ndarray | None = None, cases: np.ndarray | None = None) -> np.ndarray:
    """A value a run and group, [R, G], whose mean over groups is the score of the run. runs, cases: their numbers, None
    for all.

    The score plus the number of groups times its derivative by the weight of the group (the infinitesimal jackknife,
    Jaeckel 1972). Where groups are equal, every case is counted for every class and the score is a mean, that is the
    plain mean of the group.
    """
    runs = np.arange(len(scores.runs)) if runs is None else runs
    cases = np.arange(len(scores.cases)) if cases is None else cases
    numbers, group = np.unique(scores.group[cases], return_inverse=True)
    weights = np.zeros((len(numbers), len(scores.cases)), complex)
    weights[:, cases] = 1
    weights[group, cases] += 1j * STEP  # the derivative is the imaginary part, and nothing is rounded off
    found = run_scores(scores, weights)[:, runs]
    return (np.real(found) + len(numbers) * np.imag(found) / STEP).T


def study_of(scores: Scores, tested_to_trained: float | None = None) -> TwoWay | Folds:
    """Better is larger in both, so distances are turned round. tested_to_trained: see `Folds`."""
    loss_of = scores.runs["loss"].to_numpy()
    parts = []
    for runs, cases in scores.blocks:
        values = scores.sign * group_values(scores, runs, cases)
        parts.append({loss: values[loss_of[runs] == loss] for loss in scores.losses})
    if len(parts) == 1:
        return TwoWay(parts[0], *carrying_groups(scores, *scores.blocks[0]))
    lacking = [(loss, place) for place, part in enumerate(parts) for loss, runs in part.items() if not len(runs)]
    if lacking:
        loss, place = lacking[0]
        fold = scores.runs["fold"].iloc[scores.blocks[place][0][0]]
        raise ValueError(f"expected every loss in every fold, but {loss} has no run in fold {fold}")
    tested = float(np.mean([len(cases) for _runs, cases in scores.blocks]))
    return Folds(
        {loss: [part[loss].mean(1) for part in parts] for loss in scores.losses},
        tested_to_trained=tested_to_trained or tested / (len(scores.cases) - tested),
        groups=len(scores.groups),
    )


class TwoWay:
    """The values of every loss, {loss: [runs, groups]}, and how much they vary.

    run: the variance of a run's score, pooled over losses, with run_df degrees of freedom. Where Bartlett's test doubts
        that runs spread alike (equal_p below UNEQUAL), a loss's variance is the mean of its own and the pooled one, and
        degrees of freedom are those of the losses' own variances; the error rates of both are in docs/comparing.md.
    residual: for each loss, the variance of what neither run nor group explains; pooled for a loss with one run.
    carrying: groups that carry the score, by the class `scarcest` that has the fewest.
    over: what intervals extend to, a key of TESTS: new runs if a loss has two, new cases if enough groups carry the
        score.
    """

    def __init__(self, samples: Mapping[str, np.ndarray], carrying: float = math.inf, scarcest: str | None = None):
        self.samples = dict(samples)
        self.groups = next(iter(samples.values())).shape[1]
        self.carrying, self.scarcest = min(carrying, self.groups), scarcest
        self.single = {loss for loss, values in samples.items() if len(values) == 1}
        self.scope = "checkpoints" if len(samples) - len(self.single) < min(2, len(samples)) else "losses"
        freedom = {loss: len(values) - 1 for loss, values in samples.items()}
        self.run_df, cells = sum(freedom.values()), max(self.groups - 1, 1)
        left = {loss: v - v.mean(1, keepdims=True) - v.mean(0) + v.mean() for loss, v in samples.items()}
        squares = {loss: (values**2).sum() / cells for loss, values in left.items()}
        pooled = sum(squares.values()) / max(self.run_df, 1)
        self.residual = {loss: squares[loss] / df if df else pooled for loss, df in freedom.items()}
        self.own = {loss: float(v.mean(1).var(ddof=1)) for loss, v in samples.items() if len(v) > 1}
        self.freedom = {loss: freedom[loss] for loss in self.own}
        self.run = sum(self.own[loss] * df for loss, df in self.freedom.items()) / max(self.run_df, 1)
        self.equal_p = _bartlett(list(self.own.values()), list(self.freedom.values()))
        over_runs = self.run_df and self.scope == "losses"  # with one run of all losses but one nothing is said of them
        reach = [name for name, there in (("runs", over_runs), ("cases", self.carrying >= MIN_GROUPS)) if there]
        self.over = " and ".join(reach) or "nothing"

    @property
    def runs(self) -> dict[str, np.ndarray]:
        """The score of each run, better being larger."""
        return {loss: values.mean(1) for loss, values in self.samples.items()}

    def estimate(self, signs: Mapping[str, int], runs: int | None = None) -> Estimate:
        """The signed sum of the scores of one or two losses: the mean of a loss, or the difference of a pair.

        Var = max(V_run + V_case - V_e, V_run, V_case): both variances hold the residual, so it is taken off once.
        runs: what the estimate would be with so many runs a loss that vary as these do.
        """
        profile = np.sum([sign * self.samples[loss].mean(0) for loss, sign in signs.items()], axis=0)
        shares = {loss: 1 / len(self.samples[loss]) for loss in signs}
        few = self.carrying / (self.carrying - 1) if "cases" in self.over else 0.0
        v_case = few * profile.var() / self.groups
        v_e = sum(self.residual[loss] * share for loss, share in shares.items()) / self.groups
        if runs is not None:
            planned = sum(self.residual[loss] for loss in signs) / runs / self.groups
            v_case = max(v_case - v_e, 0.0) + planned if v_case else 0.0
            v_e, shares = planned, dict.fromkeys(signs, 1 / runs)
        v_run, run_df = self._run_variance(shares)
        if runs is not None:
            run_df *= (runs - 1) * len(self.own) / max(self.run_df, 1)
        variance = max(v_run + v_case - v_e, v_run, v_case)
        parts = [(v_run, run_df), (v_case, self.carrying - 1)]
        scaled = sum((part / variance) ** 2 / df for part, df in parts if part > 0)
        df = 1 / scaled if scaled > 0 else self.run_df + self.carrying - 1
        return Estimate(float(profile.mean()), math.sqrt(variance), 0.0 if self.over == "nothing" else df)

    def _run_variance(self, shares: Mapping[str, float]) -> tuple[float, float]:
        """Of the signed sum, with its degrees of freedom (Satterthwaite 1946)."""
        if "runs" not in self.over:
            return 0.0, 0.0
        if self.equal_p >= UNEQUAL:
            return self.run * sum(shares.values()), self.run_df
        weights = {loss: share / 2 if loss in self.own else 0.0 for loss, share in shares.items()}
        rest = sum(shares.values()) - sum(weights.values())
        parts = {
            loss: (weights.get(loss, 0.0) + rest * df / self.run_df) * self.own[loss]
            for loss, df in self.freedom.items()
        }
        variance = sum(parts.values())
        return variance, variance**2 / sum(part**2 / self.freedom[loss] for loss, part in parts.items())

    def components(self) -> dict[str, float]:
        """Standard deviations: of runs, of groups of cases, of what a loss makes of a group, of the rest, and of the
        losses' means. Estimates that come out negative are 0."""
        means = np.stack([values.mean(0) for values in self.samples.values()])
        losses, groups = means.shape
        residual = float(np.mean(list(self.residual.values())))
        runs = np.mean([1 / len(values) for values in self.samples.values()])
        own = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
        interaction = (own**2).sum() / max((losses - 1) * (groups - 1), 1)
        group = means.mean(0).var(ddof=1) if groups > 1 else 0.0
        between = means.mean(1).var(ddof=1) if losses > 1 else 0.0
        variances = {
            "run": self.run - residual / groups,
            "group": group - interaction / losses,
            "loss x group": interaction - residual * runs,
            "residual": residual,
            "loss": between - self.run * runs - max(interaction - residual * runs, 0.0) / groups,
        }
        return {name: math.sqrt(max(float(value), 0.0)) for name, value in variances.items()}


class Folds:
    """The scores of every loss in every fold, {loss: [[runs] of each fold]}; the runs of a fold are averaged.

    Folds share training cases, so that their scores vary less than new training sets would make them: the variance of
    a mean over J folds is (1 / J + tested / trained) s^2 (Nadeau & Bengio 2003). tested_to_trained: of the cases of a
    fold, those that judge by those that train.
    """

    over, scope = "folds", "losses"

    def __init__(self, samples: Mapping[str, list[np.ndarray]], *, tested_to_trained: float, groups: int):
        self.folds = len(next(iter(samples.values())))
        self.scores = {loss: np.array([runs.mean() for runs in folds]) for loss, folds in samples.items()}
        self.samples = {loss: np.concatenate(folds)[:, None] for loss, folds in samples.items()}
        self.groups, self.single, self.equal_p = groups, set[str](), 1.0
        self.ratio = tested_to_trained
        spread = [runs.var(ddof=1) for folds in samples.values() for runs in folds if len(runs) > 1]
        self.run_sd = math.sqrt(float(np.mean(spread))) if spread else None

    @property
    def runs(self) -> dict[str, np.ndarray]:
        return {loss: values[:, 0] for loss, values in self.samples.items()}

    def estimate(self, signs: Mapping[str, int]) -> Estimate:
        """The signed sum of the scores of one or two losses."""
        profile = np.sum([sign * self.scores[loss] for loss, sign in signs.items()], axis=0)
        variance = (1 / self.folds + self.ratio) * profile.var(ddof=1)
        return Estimate(float(profile.mean()), math.sqrt(variance), self.folds - 1)

    def components(self) -> dict[str, float]:
        """Standard deviations: over folds, of what a loss makes of a fold, of the losses' means, and of runs of a fold
        where there are several."""
        table = np.stack(list(self.scores.values()))
        own = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        found = {
            "fold": float(table.mean(0).std(ddof=1)),
            "loss x fold": math.sqrt((own**2).sum() / max((len(table) - 1) * (self.folds - 1), 1)),
            "loss": float(table.mean(1).std(ddof=1)) if len(table) > 1 else 0.0,
        }
        return found if self.run_sd is None else {"run": self.run_sd, **found}


def _bartlett(variances: list[float], freedom: list[int]) -> float:
    """p of Bartlett's test (1937) that the variances are of one size; 1 where there is nothing to compare."""
    if len(variances) < 2 or not any(variances):
        return 1.0
    if not all(variances):
        return 0.0
    own, df = np.array(variances), np.array(freedom, float)
    total = df.sum()
    pooled = (own * df).sum() / total
    factor = 1 + ((1 / df).sum() - 1 / total) / (3 * (len(own) - 1))
    statistic = (total * math.log(pooled) - (df * np.log(own)).sum()) / factor
    return float(special.chdtrc(len(own) - 1, statistic))
