"""The learning-rate search of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from segkit.compare.aggregation import run_scores
from segkit.compare.design import SWEEP_SEED, Design, Unit, unit_overrides
from segkit.compare.score_table import METRICS, read_scores
from segkit.compare.units import Comparison, _folds, _unit, finished, foreground_of, unit_rows
from segkit.config import ConfigError


def make_sweep(comparison: Comparison, *, judged: str) -> list[Unit]:
    """One run for each loss and learning rate, on the first fold, judged on the validation part.

    judged: the part that the comparison itself is judged on, which has to be another one.
    """
    design = comparison.design
    if design.sweep is None:
        return []
    if judged != "test":
        raise ConfigError(
            f"comparison.sweep chooses learning rates on the validation part, which judges here too ({judged}); use a "
            "split with a test part, or comparison.folds"
        )
    (repeat, fold), units = _folds(design)[0], []
    for loss in design.losses:
        for rate in design.sweep:
            given = unit_overrides(design, comparison.base, loss, SWEEP_SEED, repeat, fold, comparison.cache)
            given += [f"optimizer.lr={rate!r}", 'evaluation.split="validation"', "evaluation.overlays=false"]
            units.append(replace(_unit(comparison, given, loss, SWEEP_SEED, 0, "sweep"), lr=rate))
    return units


def choose_rates(tried: pd.DataFrame, metric: str) -> dict[str, float]:
    """For each loss, the learning rate that did best on the validation part; none where no trial came to an end. tried:
    what `tried_rates` gives."""
    signed = tried.assign(score=METRICS[metric].sign * tried["score"].fillna(-METRICS[metric].sign * math.inf))
    best: Any = signed.sort_values("score", ascending=False, kind="stable").drop_duplicates("loss")
    return dict(zip(best["loss"].tolist(), best["rate"].tolist(), strict=True))


def tried_rates(trials: Sequence[Unit], design: Design) -> pd.DataFrame:
    """The score of each loss with each learning rate: loss, rate, score, and the cases that judged. All trials are
    judged on the same cases, as all runs of the comparison are."""
    done = [unit for unit in trials if finished(unit)]
    columns = ["loss", "rate", "score", "cases"]
    if not done:
        return pd.DataFrame(columns=columns)
    rows = pd.concat(
        [unit_rows(unit, design.metric).assign(seed=place) for place, unit in enumerate(done)], ignore_index=True
    )
    classes = foreground_of(done[0].config)
    if rows.loc[rows["class"].isin(classes), design.metric].isna().all():
        raise ConfigError(
            f"comparison.sweep chooses learning rates on the validation part, but none of its cases has a value of "
            f"{design.metric}: {', '.join(classes)} is in no reference and in no prediction; use another split, or "
            "leave the sweep out"
        )
    scores = read_scores(rows, design.metric, classes, "perfect", design.aggregation)
    of_run = dict(zip(scores.runs["seed"].tolist(), run_scores(scores).tolist(), strict=True))
    found = [(unit.loss, unit.lr, of_run[place], len(scores.cases)) for place, unit in enumerate(done)]
    return pd.DataFrame(found, columns=columns)
