"""What a reader should know before believing the verdicts of a table, in plain words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from segkit.compare.score_table import Scores
from segkit.compare.variance_models import MIN_GROUPS, TESTS, UNEQUAL, Folds, TwoWay

FEW_RUNS, FEW_CASES, FEW_FOLDS = 3, 50, 5
FEW_FOR_SPREADS = 8  # runs, below which unequal spreads are often not noticed


def doubts(scores: Scores, study: TwoWay | Folds) -> list[str]:
    """A sentence for each thing that could make the verdicts say more than they know."""
    of_study = _of_two_way(study) if isinstance(study, TwoWay) else _of_folds(scores, study)
    return [*_of_runs(study), *of_study, *_of_cases(scores, study), *_of_spread(study), *_of_values(scores, study)]


def _of_runs(study: TwoWay | Folds) -> Iterator[str]:
    few = ", ".join(f"{loss} {len(values)}" for loss, values in study.samples.items() if len(values) < FEW_RUNS)
    if few:
        yield f"fewer than {FEW_RUNS} runs ({few}): how much runs differ is hardly known; add seeds"


def _of_folds(scores: Scores, study: Folds) -> Iterator[str]:
    if study.folds < FEW_FOLDS:
        yield (
            f"{study.folds} folds, fewer than {FEW_FOLDS}: intervals are wide, and how much folds differ is hardly "
            "known; add folds or repeats"
        )
    if unequal := _absent_in_folds(scores):
        yield (
            f"not every class has cases in every fold (none has {unequal}): the means of those folds are over fewer "
            "classes"
        )
    if torn := _torn_groups(scores):
        yield (
            f"cases of one group lie in several folds ({torn}): what one fold was trained on tells of what it is "
            "judged by, and scores are too high; keep groups together"
        )


def _of_two_way(study: TwoWay) -> Iterator[str]:
    if study.groups < MIN_GROUPS:
        yield f"{study.groups} groups of cases, fewer than {MIN_GROUPS}: no interval extends to new cases"
    elif study.carrying < MIN_GROUPS:
        yield _few_carry(study)


def _of_cases(scores: Scores, study: TwoWay | Folds) -> Iterator[str]:
    cases = len(scores.cases)
    if cases < FEW_CASES:
        yield f"{cases} cases, fewer than {FEW_CASES}: intervals are rough and may be too narrow"
    if spurious := _without_reference(scores):
        yield (
            f"no reference has {spurious}, and some run predicts it: its score is of false positives alone; leave it "
            "out with evaluation.exclude_classes, of a table with --classes"
        )
    if study.over not in ("runs and cases", "folds"):
        yield f"the results speak of {TESTS[study.over][1]}"
    if scores.runs["fold"].nunique() > 1 and isinstance(study, TwoWay):
        yield "folds share training images: their runs differ less than independent runs"


def _of_spread(study: TwoWay | Folds) -> Iterator[str]:
    """How far the losses' own runs lie apart, which the test takes to be alike."""
    if study.equal_p < UNEQUAL:
        yield (
            f"runs of the losses may spread unequally (Bartlett's test, p {study.equal_p:.2g}; standard deviations "
            f"{_spreads(study)}): each loss's own spread counts half, beside the common one"
        )
    elif isinstance(study, TwoWay) and study.run_df and _too_few_for_spreads(study):
        yield (
            f"with fewer than {FEW_FOR_SPREADS} runs a loss, runs that spread unequally are often not noticed; "
            "verdicts are then wrong somewhat more often than they say"
        )


def _too_few_for_spreads(study: TwoWay) -> bool:
    return len(study.samples) > 1 and min(map(len, study.samples.values())) < FEW_FOR_SPREADS


def _of_values(scores: Scores, study: TwoWay | Folds) -> Iterator[str]:
    if scores.filled and scores.counts is None:
        yield (
            f"{scores.filled} values are missing where other runs have one, and count as {scores.missing}; the table "
            "does not say whether the class was rightly not found or there was no result"
        )
    parts = study.components()
    if isinstance(study, TwoWay) and len(study.samples) > 2 and study.run_df and parts["loss"] < parts["run"]:
        yield (
            f"the losses differ less (standard deviation {parts['loss']:.4f}) than runs of one loss do "
            f"({parts['run']:.4f}): these data can hardly tell them apart"
        )
    never = [name for number, name in enumerate(scores.classes) if np.isnan(scores.values[..., number]).all()]
    if never:
        yield f"not in the mean, because no case has them: {', '.join(never)}"


def _few_carry(study: TwoWay) -> str:
    of_class = f"of the class {study.scarcest}" if study.scarcest is not None else "of all classes"
    return (
        f"as few as {study.carrying:.3g} groups of cases carry the score {of_class}, fewer than {MIN_GROUPS}: no "
        "interval extends to new cases; leave the class out with evaluation.exclude_classes, of a table with "
        "--classes, or add cases"
    )


def _torn_groups(scores: Scores) -> str:
    """Groups that lie in folds which have no case in common."""
    parts = [set(cases.tolist()) for _runs, cases in scores.blocks]
    shared: set[int] = set()
    for one, other in itertools.combinations(parts, 2):
        if not one & other:
            shared |= set(scores.group[list(one)].tolist()) & set(scores.group[list(other)].tolist())
    names = [str(scores.groups[number]) for number in sorted(shared)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _without_reference(scores: Scores) -> str:
    if scores.counts is None:
        return ""
    sums = scores.counts.sum((0, 1))
    return ", ".join(
        name
        for name, (_, predicted, reference) in zip(scores.classes, sums, strict=True)
        if predicted and not reference
    )


def _absent_in_folds(scores: Scores) -> str:
    """Which classes have no case in which folds, in words."""
    found = []
    ever = np.flatnonzero((~np.isnan(scores.values)).any((0, 1)))
    for runs, cases in scores.blocks if len(scores.blocks) > 1 else []:
        there = (~np.isnan(scores.values[np.ix_(runs, cases)])).any((0, 1))
        names = [scores.classes[number] for number in np.setdiff1d(ever, np.flatnonzero(there))]
        if names:
            found.append(f"{', '.join(names)} in fold {scores.runs['fold'].iloc[runs[0]]}")
    return "; ".join(found)


def _spreads(study: TwoWay | Folds) -> str:
    own = study.own if isinstance(study, TwoWay) else {}
    return ", ".join(f"{loss} {math.sqrt(variance):.4f}" for loss, variance in own.items())
