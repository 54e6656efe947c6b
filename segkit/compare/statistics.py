"""Do losses differ? From a long table of scores to means, intervals and verdicts.

A loss is a training procedure, so its score varies over runs (seeds) and over cases. Runs are nested in losses and
cases are shared by all runs; the test is a two-way t test over both, as in multi-reader multi-case studies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

RUN = ["loss", "seed", "fold"]
METRICS = ("dice", "iou")
ALPHA = 0.05
MIN_GROUPS, FEW_RUNS, FEW_CASES = 10, 3, 50
Over = Literal["runs and cases", "runs", "cases", "nothing"]
SPEAKS_OF: dict[Over, str] = {
    "runs and cases": "the losses, for new runs and new cases",
    "runs": "the losses, for new runs on these cases only",
    "cases": "these checkpoints, for new cases; nothing is said of the losses",
    "nothing": "these checkpoints on these cases only",
}


def analyse(
    table: pd.DataFrame,
    metric: str = "dice",
    baseline: str | None = None,
    family: Literal["all_pairs", "vs_baseline"] = "all_pairs",
    margin: float = 0.005,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare losses; returns the contents of comparison.json.

    table: a row a loss, seed, fold, case and class, with columns loss, seed, fold, case, group, class and `metric`,
        `dice` or `iou`, between 0 and 1. A run is a (seed, fold). The value is NaN where the class is in neither
        prediction nor reference: if that is so in every run of every loss, the case is not counted for the class;
        otherwise those runs were right and count 1, so that all runs are judged on the same cases.
    baseline: with the family `vs_baseline`, every other loss is compared with it; it is b in its pairs.
    margin: differences smaller than this are of no interest: an interval inside it means `equivalent`.
    classes: the foreground classes, the only ones that count; None takes all but `background`.

    The score of a run is the mean over classes of the means over cases. Cases of one group vary together.
    Intervals and p are two-sided. `p_adjusted` is Holm's, over the pairs that have a p; `ci95_adjusted`, which gives
    the verdict, is Bonferroni's, over all pairs of the family. A loss with one run gets neither p nor verdict; with
    fewer than 10 groups, intervals speak of new runs on the same cases. What is missing is None, with a `reason`.

    Raises ValueError if columns, runs, cases or classes are missing, repeated or out of range.
    """
    rows = _checked_rows(table, metric, classes)
    losses = list(dict.fromkeys(rows["loss"]))
    _check_family(losses, baseline, family, margin)
    runs, values = _group_values(rows, metric)
    samples = {loss: values[(runs["loss"] == loss).to_numpy()] for loss in losses}
    spread = _spread(samples)
    over = _over(samples, spread)
    return {
        "metric": metric,
        "baseline": baseline,
        "family": family,
        "margin": margin,
        "scope": "losses" if spread.run_df and "runs" in over else "checkpoints",
        "classes": list(dict.fromkeys(rows["class"])),
        "cases": int(rows["case"].nunique()),
        "groups": values.shape[1],
        "run_sd": math.sqrt(spread.run) if spread.run_df else None,
        "losses": [_loss_result(loss, runs, samples, spread, over) for loss in losses],
        "pairs": _pair_results(_pairs(losses, baseline, family), samples, spread, over, margin),
        "method": _method(over, _pairs(losses, baseline, family)),
        "warnings": _warnings(rows, samples, over),
    }


def _check_family(losses: Sequence[str], baseline: str | None, family: str, margin: float) -> None:
    if family not in ("all_pairs", "vs_baseline"):
        raise ValueError(f"expected family all_pairs or vs_baseline, got {family!r}")
    if family == "vs_baseline" and baseline is None:
        raise ValueError(f"family vs_baseline needs a baseline, one of {losses}")
    if baseline is not None and baseline not in losses:
        raise ValueError(f"expected a baseline among {losses}, got {baseline!r}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"expected a margin of at least 0, got {margin}")


def _checked_rows(table: pd.DataFrame, metric: str, classes: Sequence[str] | None) -> pd.DataFrame:
    """The rows of the classes that count, after checks."""
    if metric not in METRICS:
        raise ValueError(f"expected metric dice or iou, got {metric!r}")
    needed = [*RUN, "case", "group", "class", metric]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(f"expected columns {needed}, but {missing} are missing")
    rows = table[needed].astype({"class": str, metric: float})
    known = list(dict.fromkeys(rows["class"]))
    wanted = [name for name in known if name != "background"] if classes is None else list(classes)
    absent = [name for name in wanted if name not in known]
    if absent or not wanted:
        raise ValueError(f"expected rows of the classes {wanted}, {absent or 'none'} not found among {known}")
    rows = rows[rows["class"].isin(wanted)]
    _check_values(rows, needed[:-1], metric)
    return rows


def _check_values(rows: pd.DataFrame, keys: list[str], metric: str) -> None:
    empty = [column for column in keys if rows[column].isna().any()]
    if empty:
        raise ValueError(f"expected a value in every row of {empty}, found blanks")
    outside = rows.loc[(rows[metric] < 0) | (rows[metric] > 1), metric]
    if not outside.empty:
        raise ValueError(f"expected {metric} between 0 and 1, got {outside.iloc[0]}; divide percentages by 100")
    repeated = rows[rows.duplicated([*RUN, "case", "class"])]
    if not repeated.empty:
        raise ValueError(f"expected one row a run, case and class, but this one is repeated: {_first(repeated, keys)}")
    torn = rows.groupby("case")["group"].nunique()
    if (torn > 1).any():
        raise ValueError(f"expected every case in one group, but case {torn.idxmax()!r} is in {torn.max()}")


def _first(rows: pd.DataFrame, columns: list[str]) -> str:
    return ", ".join(f"{column} {rows[column].iloc[0]}" for column in columns)


def _group_values(rows: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The runs [R] and a value a run and group, [R, G], whose mean over groups is the score of the run.

    Scores are means over classes of means over counted cases, and groups differ in size, so a group's value is the
    score plus the group's share of the deviations (the linearised cluster mean). Where groups are equal and every
    case is counted for every class, that is the plain mean of the group.
    """
    wide = rows.pivot(index=RUN, columns=["class", "case"], values=metric)
    _check_complete(rows, wide)
    wide = wide.loc[:, wide.notna().any()].fillna(1.0)
    if wide.shape[1] == 0:
        raise ValueError(f"expected a class with a value of {metric} in some case, found none")
    group_of = rows.drop_duplicates("case").set_index("case")["group"]
    class_code, names = pd.factorize(wide.columns.get_level_values("class"))
    group_code, groups = pd.factorize(wide.columns.get_level_values("case").map(group_of))
    class_means = _sums(wide.to_numpy(), class_code) / np.bincount(class_code)
    deviation = (wide.to_numpy() - class_means[:, class_code]) / np.bincount(class_code)[class_code]
    values = class_means.mean(1, keepdims=True) + _sums(deviation, group_code) * len(groups) / len(names)
    return wide.index.to_frame(index=False), values


def _sums(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Sums of the columns of [R, M] that share a code, [R, number of codes]."""
    return np.stack([np.bincount(code, weights=row) for row in values])


def _check_complete(rows: pd.DataFrame, wide: pd.DataFrame) -> None:
    """A row that is not there is not the same as a class that is in neither: every run needs every case and class."""
    present = rows.assign(there=1).pivot(index=RUN, columns=["class", "case"], values="there").notna()
    for run in wide.index[~present.all(axis=1)]:
        lacking = present.columns[~present.loc[run]]
        shown = ", ".join(f"{case} ({name})" for name, case in lacking[:5])
        raise ValueError(
            f"expected every run to have the same cases and classes, but loss {run[0]}, seed {run[1]}, fold {run[2]} "
            f"lacks {len(lacking)}: {shown}{', ...' if len(lacking) > 5 else ''}; losses are compared on the same "
            "cases, so evaluate every run on one test set"
        )


@dataclass(frozen=True)
class Spread:
    """How much runs vary. run: the variance of a run's score, pooled over losses, with run_df degrees of freedom (0:
    no loss has two runs). residual: for each loss, the variance of what neither its run nor the group explains.
    """

    run: float
    run_df: int
    residual: dict[str, float]


def _spread(samples: dict[str, np.ndarray]) -> Spread:
    freedom = {loss: len(values) - 1 for loss, values in samples.items()}
    run_df, groups = sum(freedom.values()), next(iter(samples.values())).shape[1]
    if run_df == 0:
        return Spread(0.0, 0, dict.fromkeys(samples, 0.0))
    run = sum(float(((values.mean(1) - values.mean()) ** 2).sum()) for values in samples.values()) / run_df
    squares = {
        loss: float(((v - v.mean(1, keepdims=True) - v.mean(0) + v.mean()) ** 2).sum()) for loss, v in samples.items()
    }
    cells = max(groups - 1, 1)
    pooled = sum(squares.values()) / (run_df * cells)
    residual = {loss: squares[loss] / (df * cells) if df else pooled for loss, df in freedom.items()}
    return Spread(run, run_df, residual)


def _over(samples: dict[str, np.ndarray], spread: Spread) -> Over:
    """What intervals extend to: new runs if some loss has two runs, new cases if there are enough groups."""
    groups = next(iter(samples.values())).shape[1]
    if groups >= MIN_GROUPS:
        return "runs and cases" if spread.run_df else "cases"
    return "runs" if spread.run_df else "nothing"


@dataclass(frozen=True)
class Estimate:
    """A mean or difference, with its standard error and Satterthwaite degrees of freedom; df 0: no interval."""

    value: float
    error: float
    df: float

    def interval(self, alpha: float = ALPHA) -> list[float] | None:
        if self.df == 0:
            return None
        half = float(stats.t.ppf(1 - alpha / 2, self.df)) * self.error
        return [self.value - half, self.value + half]

    @property
    def p(self) -> float:
        """Two-sided; where nothing varies, 1 for no difference and 0 for any."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.df))


def _estimate(signs: dict[str, int], samples: dict[str, np.ndarray], spread: Spread, over: Over) -> Estimate:
    """The signed sum of the scores of one or two losses: the mean of a loss, or the difference of a pair.

    Var = max(V_run + V_case - V_e, V_run, V_case): both variances hold the residual, so it is taken off once.
    """
    profile = sum(sign * samples[loss].mean(0) for loss, sign in signs.items())
    assert isinstance(profile, np.ndarray)
    value, groups = float(profile.mean()), len(profile)
    if over == "nothing":
        return Estimate(value, 0.0, 0)
    v_run = spread.run * sum(1 / len(samples[loss]) for loss in signs) if over != "cases" else 0.0
    v_case = float(profile.var(ddof=1)) / groups if over != "runs" else 0.0
    v_e = sum(spread.residual[loss] / (len(samples[loss]) * groups) for loss in signs)
    variance = max(v_run + v_case - v_e, v_run, v_case)
    shares = [(v_run, spread.run_df), (v_case, groups - 1)]
    scaled = sum((part / variance) ** 2 / df for part, df in shares if part > 0) if variance > 0 else 0.0
    return Estimate(value, math.sqrt(variance), 1 / scaled if scaled > 0 else spread.run_df + groups - 1)


def _loss_result(
    loss: str, runs: pd.DataFrame, samples: dict[str, np.ndarray], spread: Spread, over: Over
) -> dict[str, Any]:
    estimate = _estimate({loss: 1}, samples, spread, over)
    keys = runs.loc[runs["loss"] == loss, ["seed", "fold"]].to_numpy().tolist()
    scores = samples[loss].mean(1).tolist()
    result: dict[str, Any] = {"name": loss, "mean": estimate.value, "ci95": estimate.interval()}
    if result["ci95"] is None:
        result["reason"] = _no_interval()
    named = zip(keys, scores, strict=True)
    return result | {"runs": [{"seed": seed, "fold": fold, "mean": score} for (seed, fold), score in named]}


def _no_interval() -> str:
    return f"one run a loss and fewer than {MIN_GROUPS} groups of cases"


def _pairs(losses: Sequence[str], baseline: str | None, family: str) -> list[tuple[str, str]]:
    """(a, b), in the order of the table; the baseline is always b."""
    if family == "vs_baseline":
        return [(loss, str(baseline)) for loss in losses if loss != baseline]
    return [(b, a) if a == baseline else (a, b) for a, b in itertools.combinations(losses, 2)]


def _pair_results(
    pairs: Sequence[tuple[str, str]], samples: dict[str, np.ndarray], spread: Spread, over: Over, margin: float
) -> list[dict[str, Any]]:
    estimates = [_estimate({a: 1, b: -1}, samples, spread, over) for a, b in pairs]
    single = [[loss for loss in pair if len(samples[loss]) == 1] for pair in pairs]
    p = [None if alone else estimate.p for alone, estimate in zip(single, estimates, strict=True)]
    known = [value for value in p if value is not None]
    holm = iter(multipletests(known, ALPHA, method="holm")[1].tolist() if known else [])
    results = []
    for (a, b), estimate, alone, value in zip(pairs, estimates, single, p, strict=True):
        adjusted = estimate.interval(ALPHA / len(pairs))
        result = {"a": a, "b": b, "difference": estimate.value, "ci95": estimate.interval()}
        result |= {"ci95_adjusted": adjusted, "p": value, "p_adjusted": None if alone else next(holm)}
        result["verdict"] = None if alone or adjusted is None else _verdict(adjusted, margin)
        if alone:
            only = " and ".join(alone)
            result["reason"] = (
                f"only one run of {only}: how much runs differ is unknown, so the losses are not compared"
            )
        results.append(result)
    return results


def _verdict(interval: Sequence[float], margin: float) -> str:
    """What a is to b, from the interval of the difference a - b."""
    low, high = interval
    if -margin <= low and high <= margin:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def _method(over: Over, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How the numbers were made, in words."""
    return {
        "score": "mean over classes of means over cases; a case counts for a class that any run of any loss or the "
        "reference has there, and a run that rightly has nothing there counts 1",
        "test": {
            "runs and cases": "two-way t test over runs and groups of cases, run variance pooled over losses",
            "runs": "t test over runs, run variance pooled over losses",
            "cases": "paired t interval over groups of cases",
            "nothing": "none",
        }[over],
        "speaks_of": SPEAKS_OF[over],
        "p_adjusted": "Holm",
        "ci95_adjusted": f"Bonferroni over {len(pairs)} pairs; the verdict is read from it",
    }


def _warnings(rows: pd.DataFrame, samples: dict[str, np.ndarray], over: Over) -> list[str]:
    """What a reader should know before believing the verdicts, in plain words."""
    cases, groups = rows["case"].nunique(), next(iter(samples.values())).shape[1]
    few = {loss: len(values) for loss, values in samples.items() if len(values) < FEW_RUNS}
    told = []
    if few:
        counts = ", ".join(f"{loss} {runs}" for loss, runs in few.items())
        told.append(f"fewer than {FEW_RUNS} runs ({counts}): how much runs differ is hardly known; add seeds")
    if cases < FEW_CASES:
        told.append(f"{cases} cases, fewer than {FEW_CASES}: intervals are rough and may be too narrow")
    if groups < MIN_GROUPS:
        told.append(f"{groups} groups of cases, fewer than {MIN_GROUPS}: no interval extends to new cases")
    if over in ("runs", "cases", "nothing"):
        told.append(f"the results speak of {SPEAKS_OF[over]}")
    if rows["fold"].nunique() > 1:
        told.append("runs of several folds share training images, so they differ less than independent runs would")
    return told
