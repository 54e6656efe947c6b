"""Learning-rate sweep: short trials that choose a learning rate for each loss on the validation set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from segkit.compare.aggregation import run_scores
from segkit.compare.design import SWEEP_SEED, Design, Unit, unit_overrides
from segkit.compare.score_table import read_scores
from segkit.compare.table_checks import metric_properties
from segkit.compare.unit_results import finished, foreground_classes, unit_rows
from segkit.compare.units import Comparison, folds_of, make_unit
from segkit.config import ConfigError


def make_sweep(comparison: Comparison, *, evaluated_part: str) -> list[Unit]:
    """One trial for each loss and learning rate, on the first fold, evaluated on the validation set.

    Args:
        comparison: The comparison that the trials belong to.
        evaluated_part: The part of the split on which the comparison itself is evaluated.

    Raises:
        ConfigError: The comparison is not evaluated on the test set, so trials would use the same cases.
    """
    design = comparison.design
    if design.sweep is None:
        return []
    if evaluated_part != "test":
        raise ConfigError(
            f"comparison.sweep chooses learning rates on the validation set, but the comparison is evaluated on the "
            f"{evaluated_part} set; it needs a test set: use a split with one, or comparison.folds"
        )
    (repeat, fold), trials = folds_of(design)[0], []
    for loss in design.losses:
        for rate in design.sweep:
            overrides = unit_overrides(design, comparison.base, loss, SWEEP_SEED, repeat, fold, comparison.cache)
            overrides += [f"optimizer.lr={rate!r}", 'evaluation.split="validation"', "evaluation.overlays=false"]
            trials.append(replace(make_unit(comparison, overrides, loss, SWEEP_SEED, 0, "sweep"), lr=rate))
    return trials


def choose_rates(tried: pd.DataFrame, metric: str) -> dict[str, float]:
    """The learning rate with the best validation score for each loss that has a finished trial.

    Args:
        tried: The table that `tried_rates` returns.
        metric: The metric of its scores.
    """
    sign = metric_properties(metric).sign
    signed = tried.assign(score=sign * tried["score"].fillna(-sign * math.inf))
    best: Any = signed.sort_values("score", ascending=False, kind="stable").drop_duplicates("loss")
    return dict(zip(best["loss"].tolist(), best["rate"].tolist(), strict=True))


def tried_rates(trials: Sequence[Unit], design: Design) -> pd.DataFrame:
    """The score of each finished trial, with the columns loss, rate, score and cases (the number of validation cases).

    All trials are evaluated on the same cases, as are all runs of the comparison. A trial without a score, whose cases
    contain no class and which predicts none, has NaN.

    Raises:
        ConfigError: No validation case has a value of the metric.
    """
    done = [unit for unit in trials if finished(unit)]
    columns = ["loss", "rate", "score", "cases"]
    if not done:
        return pd.DataFrame(columns=columns)
    rows = pd.concat(
        [unit_rows(unit, design.metric).assign(seed=number) for number, unit in enumerate(done)], ignore_index=True
    )
    classes = foreground_classes(done[0].config)
    if rows.loc[rows["class"].isin(classes), design.metric].isna().all():
        raise ConfigError(
            f"comparison.sweep chooses learning rates on the validation set, but none of its cases has a value of "
            f"{design.metric}: no reference or prediction contains {', '.join(classes)}; use another split or remove "
            "comparison.sweep"
        )
    scores = read_scores(rows, design.metric, classes, aggregation=design.aggregation)
    score_of = dict(zip(scores.runs["seed"].tolist(), run_scores(scores).tolist(), strict=True))
    return pd.DataFrame(
        [(unit.loss, unit.lr, score_of[number], len(scores.cases)) for number, unit in enumerate(done)],
        columns=columns,
    )
