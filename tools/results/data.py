"""The committed tables: scores and runs of comparisons, and of single trainings."""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from segkit.compare.aggregation import run_scores
from segkit.compare.design import FOLD_SEED_OFFSET
from segkit.compare.score_table import DEFAULT_AGGREGATION, Scores, read_rows, read_scores
from segkit.compare.statistics import pair_results
from segkit.compare.table_checks import Rows
from segkit.compare.variance_models import Folds, TwoWay, fit_variance_model, group_values

DOCS = Path(__file__).parents[2] / "docs"
TABLES = DOCS / "results"
MARGIN, MUCH_WORSE = 0.005, 0.05
BASELINE, AGAIN = "dice_ce", "dice_ce (again)"
DATASETS = {
    "hippocampus": "Hippocampus",
    "isbi2012": "ISBI 2012",
    "chase_db1": "CHASE_DB1",
    "camvid": "CamVid",
    "phantoms": "phantoms",
}
SAME_SEEDS = "isbi2012_same_seeds"  # the comparison of ISBI 2012 as segkit made it when all folds had the same seeds


class NotMeasured(Exception):
    """The data of a table are not there yet."""


def table_path(name: str) -> Path:
    path = TABLES / f"{name}.csv"
    if not path.exists():
        raise NotMeasured(name)
    return path


@cache
def rows_of(study: str) -> Rows:
    """The long table of a study, or of several that score the same cases, joined by +."""
    return pd.concat([read_rows(table_path(f"{name}-cases")) for name in study.split("+")], ignore_index=True)


@cache
def scores_of(study: str, metric: str = "dice", aggregation: str = DEFAULT_AGGREGATION) -> Scores:
    """The scores of a comparison."""
    rows = rows_of(study)
    if metric == "iou":  # it is not in the committed tables, since it follows from the counts
        rows = rows.assign(iou=rows["tp"] / (rows["predicted"] + rows["reference"] - rows["tp"]))
    return read_scores(rows, metric, aggregation=aggregation)


@cache
def runs_of(study: str) -> Rows:
    """What each run took, and its calibration."""
    return pd.read_csv(table_path(f"{study}-runs"))


def measured() -> list[str]:
    """The data sets whose comparison has been made."""
    names = [name for name in DATASETS if (TABLES / f"{name}-cases.csv").exists()]
    if not names:
        raise NotMeasured("comparisons")
    return names


@cache
def model_of(study: str, metric: str = "dice", aggregation: str = DEFAULT_AGGREGATION) -> TwoWay | Folds:
    """The variance model of all losses, as `segkit compare` makes it."""
    return fit_variance_model(scores_of(study, metric, aggregation))


@cache
def means_of(study: str, metric: str = "dice", aggregation: str = DEFAULT_AGGREGATION) -> dict[str, float]:
    """The mean score of each loss."""
    scores, model = scores_of(study, metric, aggregation), model_of(study, metric, aggregation)
    return {loss: scores.sign * model.estimate({loss: 1}).value for loss in scores.losses}


def competitive(study: str) -> list[str]:
    """The losses whose mean Dice is at most 5 points below the best."""
    means = means_of(study)
    return [loss for loss, mean in means.items() if mean >= max(means.values()) - MUCH_WORSE]


def distinct(study: str) -> list[str]:
    """As `competitive`, without the second set of runs of the baseline."""
    return [loss for loss in competitive(study) if loss != AGAIN]


def verdicts(
    study: str, pairs: Sequence[tuple[str, str]], metric: str = "dice", aggregation: str = DEFAULT_AGGREGATION
) -> list[dict[str, Any]]:
    """The results of a family of pairs, with Bonferroni's correction over the family; positive differences favour a."""
    return pair_results(pairs, model_of(study, metric, aggregation), MARGIN, {})


def case_samples(study: str) -> dict[str, np.ndarray]:
    """The scores {loss: [runs, cases]}, the mean over classes; with folds, a run is all folds with one seed."""
    scores = scores_of(study)
    index = pd.MultiIndex.from_arrays([scores.runs["loss"], design_seeds(scores.runs)])
    with warnings.catch_warnings(action="ignore"):  # a run of a fold has no score on the cases of other folds
        values = pd.DataFrame(np.nanmean(scores.values, 2), index=index)
    runs = values.groupby(level=[0, 1], sort=False).first()  # each case belongs to one fold
    runs = runs.loc[:, runs.notna().all()]  # all losses on the same cases
    return {str(loss): runs.loc[loss].to_numpy() for loss in scores.losses}


def losses_of(study: str) -> dict[str, np.ndarray]:
    """As `case_samples`, without the second set of runs of the baseline."""
    return {loss: values for loss, values in case_samples(study).items() if loss != AGAIN}


def design_seeds(runs: Any) -> Any:
    """The seeds of runs as in the design, which gives the runs of each fold seeds of their own (`seed_of_fold`)."""
    return runs["seed"] % FOLD_SEED_OFFSET


def distinct_samples(study: str) -> dict[str, np.ndarray]:
    """As `case_samples`, of the losses of `distinct`."""
    samples = case_samples(study)
    return {loss: samples[loss] for loss in distinct(study)}


def fold_samples(study: str) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]]:
    """The scores and the seeds of runs, each {loss: [[runs] for each fold]}; one fold without cross-validation."""
    scores = scores_of(study)
    loss_of_run, seed_of_run = scores.runs["loss"].to_numpy(), scores.runs["seed"].to_numpy()
    samples, seeds = ({loss: [] for loss in scores.losses} for _ in range(2))
    for runs, cases in scores.blocks:
        means = group_values(scores, runs, cases).mean(1)
        for loss in scores.losses:
            own = loss_of_run[runs] == loss
            samples[loss].append(means[own])
            seeds[loss].append(seed_of_run[runs[own]])
    return samples, seeds


def pairs_of(losses: Iterable[str]) -> list[tuple[str, str]]:
    return list(itertools.combinations(losses, 2))


def seed_means(scores: Scores, loss: str) -> list[float]:
    """The score of each seed of a loss, the mean over its folds."""
    own = (scores.runs["loss"] == loss).to_numpy()
    runs: Rows = scores.runs[own].assign(score=run_scores(scores)[own], seed=design_seeds(scores.runs)[own])
    return runs.groupby("seed")["score"].mean().tolist()


def ranks_of(means: Mapping[str, float]) -> dict[str, float]:
    """The rank of each loss by its mean, 1 for the best."""
    return dict(zip(means, stats.rankdata([-mean for mean in means.values()]).tolist(), strict=True))
