"""Do losses differ? From a long table of scores to means, intervals and verdicts.

A loss is a training procedure: its score varies over runs, nested in losses, and over cases, shared by all runs. The
test is a two-way t test over both, as in multi-reader multi-case studies.
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

Rows = Any  # a DataFrame: pandas says too little of its types for a checker
RUN = ["loss", "seed", "fold"]
METRICS = ("dice", "iou")
ALPHA = 0.05
MIN_GROUPS, FEW_RUNS, FEW_CASES = 10, 3, 50
TESTS = {  # what the intervals extend to: the method, and what the results speak of
    "runs and cases": ("two-way t test over runs and groups of cases", "the losses, for new runs and new cases"),
    "runs": ("t test over runs", "the losses, for new runs on these cases only"),
    "cases": ("paired t interval over groups of cases", "these checkpoints, for new cases; not of the losses"),
    "nothing": ("none", "these checkpoints on these cases only; not of the losses"),
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
        `dice` or `iou`, between 0 and 1. Without a column fold there is one, without a column group every case is a
        group. A run is a (seed, fold). The value is NaN where the class is in neither
        prediction nor reference: if that is so in every run of every loss, the case is not counted for the class;
        otherwise those runs were right and count 1, so that all runs are judged on the same cases.
    baseline: with the family `vs_baseline`, every other loss is compared with it; it is b in its pairs.
    margin: differences smaller than this are of no interest: an interval inside it means `equivalent`.
    classes: the foreground classes, the only ones that count; None takes all but `background`.

    The score of a run is the mean over classes of the means over cases. Cases of one group vary together.
    Intervals and p are two-sided. `p_adjusted` is Holm's, over the pairs that have a p; `ci95_adjusted`, which gives
    the verdict, is Bonferroni's, over all pairs of the family. A loss with one run gets neither p nor verdict; with
    fewer than 10 groups, intervals speak of new runs on the same cases. What is missing is None, with a `reason`.

    Raises ValueError if columns, cases of a run or classes are missing, rows repeated, or values out of range.
    """
    rows = _checked_rows(table, metric, classes)
    losses = rows["loss"].unique().tolist()
    _check_family(losses, baseline, family, margin)
    runs, values = _group_values(rows, metric)
    study = Study({loss: values[(runs["loss"] == loss).to_numpy()] for loss in losses})
    pairs = _pairs(losses, baseline, family)
    return {
        "metric": metric,
        "baseline": baseline,
        "family": family,
        "margin": margin,
        "scope": study.scope,
        "classes": rows["class"].unique().tolist(),
        "cases": int(rows["case"].nunique()),
        "groups": study.groups,
        "losses": [_loss_result(loss, runs[runs["loss"] == loss], study) for loss in losses],
        "pairs": _pair_results(pairs, study, margin),
        "method": _method(study, pairs),
        "warnings": _warnings(rows, metric, study),
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


def _checked_rows(table: Rows, metric: str, classes: Sequence[str] | None) -> Rows:
    """The rows of the classes that count, after checks."""
    if metric not in METRICS:
        raise ValueError(f"expected metric dice or iou, got {metric!r}")
    absent: dict[str, Any] = {"fold": 0, "group": table.get("case")}
    table = table.assign(**{name: value for name, value in absent.items() if name not in table})
    needed = [*RUN, "case", "group", "class", metric]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(f"expected columns {needed}, but {missing} are missing")
    _check_counted(table, metric)
    rows: Rows = table[needed].astype({"class": str, metric: float})
    known = rows["class"].unique().tolist()
    wanted = [name for name in known if name != "background"] if classes is None else list(classes)
    if not wanted or not set(wanted) <= set(known):
        raise ValueError(f"expected rows of the classes {wanted or 'that are foreground'}, got rows of {known}")
    rows = rows[rows["class"].isin(wanted)]
    _check_values(rows, needed[:-1], metric)
    return rows


def _check_values(rows: Rows, keys: list[str], metric: str) -> None:
    empty = [column for column in keys if rows[column].isna().any()]
    if empty:
        raise ValueError(f"expected a value in every row of {empty}, found blanks")
    if not rows[metric].dropna().between(0, 1).all():
        raise ValueError(f"expected {metric} from 0 to 1, got up to {rows[metric].max()}; divide percentages by 100")
    repeated = rows[rows.duplicated([*RUN, "case", "class"])]
    if not repeated.empty:
        raise ValueError(f"expected one row a run, case and class, repeated is {repeated[keys].iloc[0].to_dict()}")
    torn = rows.groupby("case")["group"].nunique()
    if (torn > 1).any():
        raise ValueError(f"expected every case in one group, but case {torn.idxmax()!r} is in {torn.max()}")


def _check_counted(rows: Rows, metric: str) -> None:
    """A case without a value is one in which the class is in neither prediction nor reference; where the counts say
    otherwise, rules that do not count it would count as a perfect score here."""
    if not {"predicted", "reference"} <= set(rows.columns):
        return
    odd = rows[rows[metric].isna() & ((rows["predicted"] > 0) | (rows["reference"] > 0))]
    if len(odd):
        first = odd.iloc[0]
        raise ValueError(
            f"expected a value of {metric} wherever a class is in prediction or reference, got none for class "
            f"{first['class']} of case {first['case']} ({len(odd)} such rows); score the table by one rule first"
        )


def _group_values(rows: Rows, metric: str) -> tuple[Rows, np.ndarray]:
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


def _check_complete(rows: Rows, wide: Rows) -> None:
    """A row that is not there is not the same as a class that is in neither: every run needs every case and class."""
    if len(rows) == wide.size:
        return
    present = rows.assign(there=1).pivot(index=RUN, columns=["class", "case"], values="there").notna()
    loss, seed, fold = present.index[~present.all(axis=1)][0]
    lacking = present.columns[~present.loc[(loss, seed, fold)]]
    shown = ", ".join(f"{case} ({name})" for name, case in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
    raise ValueError(
        f"expected the same cases and classes in every run, but loss {loss}, seed {seed}, fold {fold} lacks {shown}; "
        "evaluate every run on one test set"
    )


class Study:
    """The values of every loss, {loss: [runs, groups]}, and how much they vary.

    run: the variance of a run's score, pooled over losses, with run_df degrees of freedom. residual: for each loss,
        the variance of what neither run nor group explains; pooled for a loss with one run.
    over: what intervals extend to, a key of TESTS: new runs if a loss has two, new cases if there are enough groups.
    """

    def __init__(self, samples: dict[str, np.ndarray]):
        self.samples = samples
        self.groups = next(iter(samples.values())).shape[1]
        self.single = {loss for loss, values in samples.items() if len(values) == 1}
        self.scope = "checkpoints" if len(samples) - len(self.single) < min(2, len(samples)) else "losses"
        freedom = {loss: len(values) - 1 for loss, values in samples.items()}
        self.run_df, cells = sum(freedom.values()), max(self.groups - 1, 1)
        self.run = sum(((v.mean(1) - v.mean()) ** 2).sum() for v in samples.values()) / max(self.run_df, 1)
        left = {loss: v - v.mean(1, keepdims=True) - v.mean(0) + v.mean() for loss, v in samples.items()}
        squares = {loss: (values**2).sum() / cells for loss, values in left.items()}
        pooled = sum(squares.values()) / max(self.run_df, 1)
        self.residual = {loss: squares[loss] / df if df else pooled for loss, df in freedom.items()}
        reach = [name for name, there in (("runs", self.run_df), ("cases", self.groups >= MIN_GROUPS)) if there]
        self.over = " and ".join(reach) or "nothing"

    def estimate(self, signs: dict[str, int]) -> Estimate:
        """The signed sum of the scores of one or two losses: the mean of a loss, or the difference of a pair.

        Var = max(V_run + V_case - V_e, V_run, V_case): both variances hold the residual, so it is taken off once.
        """
        profile = np.sum([sign * self.samples[loss].mean(0) for loss, sign in signs.items()], axis=0)
        shares = {loss: 1 / len(self.samples[loss]) for loss in signs}
        v_run = self.run * sum(shares.values()) if "runs" in self.over else 0.0
        v_case = profile.var(ddof=1) / self.groups if "cases" in self.over else 0.0
        v_e = sum(self.residual[loss] * share for loss, share in shares.items()) / self.groups
        variance = max(v_run + v_case - v_e, v_run, v_case)
        parts = [(v_run, self.run_df), (v_case, self.groups - 1)]
        scaled = sum((part / variance) ** 2 / df for part, df in parts if part > 0)
        df = 1 / scaled if scaled > 0 else self.run_df + self.groups - 1
        return Estimate(float(profile.mean()), math.sqrt(variance), 0.0 if self.over == "nothing" else df)


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


def _loss_result(loss: str, runs: Rows, study: Study) -> dict[str, Any]:
    estimate = study.estimate({loss: 1})
    result: dict[str, Any] = {"name": loss, "mean": estimate.value, "ci95": estimate.interval()}
    if result["ci95"] is None:
        result["reason"] = f"one run a loss and fewer than {MIN_GROUPS} groups of cases"
    scores = study.samples[loss].mean(1).tolist()
    keys = zip(runs["seed"].tolist(), runs["fold"].tolist(), scores, strict=True)
    return result | {"runs": [{"seed": seed, "fold": fold, "mean": score} for seed, fold, score in keys]}


def _pairs(losses: Sequence[str], baseline: str | None, family: str) -> list[tuple[str, str]]:
    """(a, b), in the order of the table; the baseline is always b."""
    if family == "vs_baseline":
        return [(loss, str(baseline)) for loss in losses if loss != baseline]
    return [(b, a) if a == baseline else (a, b) for a, b in itertools.combinations(losses, 2)]


def _pair_results(pairs: Sequence[tuple[str, str]], study: Study, margin: float) -> list[dict[str, Any]]:
    results = [_pair_result(a, b, study, margin, len(pairs)) for a, b in pairs]
    tested = [result for result in results if result["p"] is not None]
    if len(tested) > 1:
        holm: Any = multipletests([result["p"] for result in tested], ALPHA, method="holm")[1]
        for result, p_adjusted in zip(tested, holm.tolist(), strict=True):
            result["p_adjusted"] = p_adjusted
    return results


def _pair_result(a: str, b: str, study: Study, margin: float, family_size: int) -> dict[str, Any]:
    estimate = study.estimate({a: 1, b: -1})
    adjusted = estimate.interval(ALPHA / family_size)
    result = {"a": a, "b": b, "difference": estimate.value, "ci95": estimate.interval(), "ci95_adjusted": adjusted}
    single = " and ".join(loss for loss in (a, b) if loss in study.single)
    if single or adjusted is None:
        reason = f"only one run of {single}: how much runs differ is unknown, so nothing is said of losses"
        return result | {"p": None, "p_adjusted": None, "verdict": None, "reason": reason}
    return result | {"p": estimate.p, "p_adjusted": estimate.p, "verdict": _verdict(adjusted, margin)}


def _verdict(interval: Sequence[float], margin: float) -> str:
    """What a is to b, from the interval of the difference a - b."""
    low, high = interval
    if -margin <= low and high <= margin:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def _method(study: Study, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """How the numbers were made, in words."""
    return {
        "score": "mean over classes of means over cases; a case counts for a class if the class is in the reference or "
        "in the prediction of any run, and a run that rightly has nothing there counts 1",
        "test": TESTS[study.over][0] + (", run variance pooled over losses" if study.run_df else ""),
        "speaks_of": TESTS[study.over][1],
        "p_adjusted": "Holm",
        "ci95_adjusted": f"Bonferroni over {len(pairs)} pair{'s' * (len(pairs) != 1)}; the verdict is read from it",
    }


def _warnings(rows: Rows, metric: str, study: Study) -> list[str]:
    """What a reader should know before believing the verdicts, in plain words."""
    few = ", ".join(f"{loss} {len(values)}" for loss, values in study.samples.items() if len(values) < FEW_RUNS)
    cases, groups = rows["case"].nunique(), study.groups
    counted = set(rows.loc[rows[metric].notna(), "class"])
    never = [name for name in rows["class"].unique() if name not in counted]
    told = [
        (few, f"fewer than {FEW_RUNS} runs ({few}): how much runs differ is hardly known; add seeds"),
        (cases < FEW_CASES, f"{cases} cases, fewer than {FEW_CASES}: intervals are rough and may be too narrow"),
        (groups < MIN_GROUPS, f"{groups} groups of cases, fewer than {MIN_GROUPS}: no interval extends to new cases"),
        (study.over != "runs and cases", f"the results speak of {TESTS[study.over][1]}"),
        (rows["fold"].nunique() > 1, "folds share training images: their runs differ less than independent runs"),
        (never, f"not in the mean, because no case has them: {', '.join(never)}"),
    ]
    return [words for holds, words in told if holds]
