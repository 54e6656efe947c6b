"""The committed tables: scores and runs of comparisons, and of single trainings."""

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from segkit.compare.score_table import Scores, read_rows, read_scores
from segkit.compare.variance_models import Folds, TwoWay, fit_variance_model, group_values

DOCS = Path(__file__).parents[2] / "docs"
TABLES = DOCS / "results"
MARGIN, BASELINE, AGAIN = 0.005, "dice_ce", "dice_ce (again)"
DATASETS = {
    "hippocampus": "Hippocampus",
    "isbi2012": "ISBI 2012",
    "chase_db1": "CHASE_DB1",
    "camvid": "CamVid",
    "phantoms": "phantoms",
}


class NotMeasured(Exception):
    """The data of a table are not there yet."""


def table_path(name: str) -> Path:
    path = TABLES / f"{name}.csv"
    if not path.exists():
        raise NotMeasured(name)
    return path


@cache
def rows_of(study: str) -> pd.DataFrame:
    return read_rows(table_path(f"{study}-cases"))


@cache
def scores_of(study: str, metric: str = "dice") -> Scores:
    """The scores of a comparison."""
    return read_scores(rows_of(study), metric)


@cache
def runs_of(study: str) -> pd.DataFrame:
    return pd.read_csv(table_path(f"{study}-runs"))


def measured() -> list[str]:
    """The data sets whose comparison has been made."""
    names = [name for name in DATASETS if (TABLES / f"{name}-cases.csv").exists()]
    if not names:
        raise NotMeasured("comparisons")
    return names


@cache
def model_of(study: str, metric: str = "dice") -> TwoWay | Folds:
    return fit_variance_model(scores_of(study, metric))


def case_samples(study: str) -> dict[str, np.ndarray]:
    """The scores {loss: [runs, cases]}, the mean over classes; with folds, a run is all folds with one seed."""
    scores = scores_of(study)
    values = pd.DataFrame(np.nanmean(scores.values, 2), index=pd.MultiIndex.from_frame(scores.runs[["loss", "seed"]]))
    runs = values.groupby(level=[0, 1], sort=False).first()  # each case belongs to one fold
    samples = {str(loss): runs.loc[loss].to_numpy() for loss in scores.losses}
    return {loss: table[:, ~np.isnan(table).any(0)] for loss, table in samples.items()}


def losses_of(study: str) -> dict[str, np.ndarray]:
    """As `case_samples`, without the second set of runs of the baseline."""
    return {loss: values for loss, values in case_samples(study).items() if loss != AGAIN}


def fold_samples(study: str) -> dict[str, list[np.ndarray]]:
    """The scores {loss: [[runs] for each fold]}."""
    scores = scores_of(study)
    loss_of_run, samples = scores.runs["loss"].to_numpy(), {loss: [] for loss in scores.losses}
    for runs, cases in scores.blocks:
        means = group_values(scores, runs, cases).mean(1)
        for loss in scores.losses:
            samples[loss].append(means[loss_of_run[runs] == loss])
    return samples


def pairs_of(samples: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    names = list(samples)
    return [(a, b) for position, a in enumerate(names) for b in names[position + 1 :]]


def seed_means(runs: list[dict[str, Any]]) -> list[float]:
    """The score of each seed, the mean over its folds."""
    means = defaultdict(list)
    for run in runs:
        means[run["seed"]].append(run["mean"])
    return [float(np.mean(values)) for values in means.values()]


def ranks_of(result: dict[str, Any]) -> dict[str, float]:
    means = {loss["name"]: loss["mean"] for loss in result["losses"]}
    return dict(zip(means, stats.rankdata([-mean for mean in means.values()]), strict=True))
