"""Caveats: properties of a table that limit how far its verdicts can be trusted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segkit.compare.run_variances import UNEQUAL
from segkit.compare.score_table import Scores
from segkit.compare.variance_models import ALPHA, MIN_GROUPS, Folds, TwoWay
from segkit.utils.text import listed

FEW_RUNS, FEW_CASES, FEW_FOLDS = 3, 50, 5
FEW_FOR_SPREADS = 8  # runs per loss below which unequal spread often goes undetected
LISTED_GROUPS = 5


def caveats(scores: Scores, model: TwoWay | Folds) -> list[str]:
    """One sentence for each property of the data that weakens the verdicts."""
    model_caveats = _two_way_caveats(model) if isinstance(model, TwoWay) else _fold_caveats(scores, model)
    return [
        *_run_caveats(model),
        *model_caveats,
        *_case_caveats(scores, model),
        *_spread_caveats(model),
        *_value_caveats(scores, model),
    ]


def separate_runs(pairs: Sequence[Mapping[str, Any]], model: TwoWay | Folds) -> Iterator[str]:
    """One sentence for each undecided pair of which all runs of one loss are above all runs of the other.

    A test of means decides little if runs are skewed, such as when one run fails. The ranks of the runs then still show
    the difference on these cases. Two equal losses are separate with probability 2 / C(m + n, m), the exact p-value of
    the rank-sum test (Wilcoxon 1945). The sentence appears if that, times the number of pairs, is below 0.05. Folds
    share cases and training cases, so their runs are not independent and get no such sentence.
    """
    if isinstance(model, Folds):
        return
    runs = model.runs
    for pair in pairs:
        if pair["verdict"] != "undecided" or "reason" in pair:
            continue
        above, below = sorted((pair["a"], pair["b"]), key=lambda loss: runs[loss].mean(), reverse=True)
        p = len(pairs) * 2 / math.comb(len(runs[above]) + len(runs[below]), len(runs[above]))
        if p < ALPHA and runs[above].min() > runs[below].max():
            adjusted = f"adjusted for {len(pairs)} pair{'s' * (len(pairs) != 1)}"
            yield (
                f"{above} and {below} are undecided, although every run of {above} is better than every run of "
                f"{below}: on these cases, equal losses would do so with a probability of {p:.2g} (exact test of "
                f"ranks, {adjusted}); look at the runs, which may spread unevenly, and at the cases"
            )


def _run_caveats(model: TwoWay | Folds) -> Iterator[str]:
    few = ", ".join(f"{loss} {len(values)}" for loss, values in model.samples.items() if len(values) < FEW_RUNS)
    if few:
        yield f"fewer than {FEW_RUNS} runs ({few}): the variation between runs is poorly estimated; add seeds"


def _fold_caveats(scores: Scores, model: Folds) -> Iterator[str]:
    if model.folds < FEW_FOLDS:
        yield (
            f"{model.folds} folds, fewer than {FEW_FOLDS}: intervals are wide and the variation between folds is "
            "poorly estimated; add folds"
        )
    yield (
        "folds share their training cases, and the test cannot see what one loss gains from this set of cases as a "
        "whole: if training sets move scores as much as seeds do, 6 % of equal losses got a verdict with 5 folds, 10 % "
        "with 10, and 7 and 15 % with three repetitions of these (simulated)"
    )
    if model.shared_seeds.keys() - model.single:
        yield (
            "several folds have the same seeds, so their runs are taken to have begun alike, and the variance over "
            "seeds widens the intervals; if they did not, give the runs of each fold seeds of their own in the table"
        )
    if absent := _classes_absent_in_folds(scores):
        yield f"some folds have no case of some classes ({absent}): the means of these folds average fewer classes"
    if groups := _groups_in_several_folds(scores):
        yield (
            f"cases of one group are in several folds ({groups}): training and test cases are then related, which "
            "inflates the scores; keep each group in one fold"
        )


def _two_way_caveats(model: TwoWay) -> Iterator[str]:
    if model.groups < MIN_GROUPS:
        yield f"{model.groups} groups of cases, fewer than {MIN_GROUPS}: no interval extends to new cases"
    elif model.effective_groups < MIN_GROUPS:
        yield _few_effective_groups(model)


def _case_caveats(scores: Scores, model: TwoWay | Folds) -> Iterator[str]:
    cases = len(scores.cases)
    if cases < FEW_CASES:
        yield f"{cases} cases, fewer than {FEW_CASES}: intervals are approximate and may be too narrow"
    if classes := _classes_without_reference(scores):
        yield (
            f"{classes}: absent from every reference but predicted by some runs, so the score depends on false "
            "positives alone; exclude the class with evaluation.exclude_classes, or --classes for a table"
        )
    if classes := _classes_of_some_runs(scores):
        yield (
            f"{classes}: neither in the reference nor predicted in all cases of some runs, so the means of these runs "
            "average fewer classes than those of the others; exclude the class, or use folds that contain it"
        )
    if isinstance(model, TwoWay) and model.over != "runs and cases":
        yield f"the results apply to {model.inference.applies_to}"
    if scores.runs["fold"].nunique() > 1 and isinstance(model, TwoWay):
        yield "folds share training images, so their runs vary less than independent runs would"
        if scores.runs.duplicated(["loss", "seed"]).any():
            yield (
                "runs of different folds with the same seed count as independent runs, although they begin alike: with "
                "five folds, up to a third of simulated comparisons of equal losses got a verdict; give the runs of "
                "each fold seeds of their own"
            )


def _spread_caveats(model: TwoWay | Folds) -> Iterator[str]:
    """Whether the runs of all losses vary equally, which the test assumes."""
    if isinstance(model, TwoWay) and model.unstable:
        yield (
            f"the runs of {', '.join(sorted(model.unstable))} vary far more than those of the other losses (standard "
            f"deviations {_standard_deviations(model)}): they do not enter the variance of the others"
        )
    if model.equal_spread_p < UNEQUAL:
        yield (
            f"runs may vary more for some losses than for others (Bartlett's test, p {model.equal_spread_p:.2g}; "
            f"standard deviations {_standard_deviations(model)}): the test uses mostly each loss's own variance, so "
            "that intervals are wide for losses with wide runs"
        )
    elif isinstance(model, TwoWay) and model.run_df and _too_few_to_detect_unequal_spread(model):
        yield (
            f"fewer than {FEW_FOR_SPREADS} runs per loss: an unequal spread of runs often goes undetected, and false "
            "verdicts are then more frequent than the nominal 5 % (up to 10 % in simulations)"
        )


def _too_few_to_detect_unequal_spread(model: TwoWay) -> bool:
    return len(model.samples) > 1 and min(map(len, model.samples.values())) < FEW_FOR_SPREADS


def _value_caveats(scores: Scores, model: TwoWay | Folds) -> Iterator[str]:
    if scores.number_missing and scores.counts is None:
        treatment = "do not count" if scores.missing == "absent" else f"are scored as {scores.missing}"
        yield (
            f"{scores.number_missing} values are missing for cases in which other runs have a value, and {treatment}; "
            "the table does not say whether the class was correctly not predicted or there is no result"
        )
    components = model.components()
    if isinstance(model, TwoWay) and len(model.samples) > 2 and model.run_df and components["loss"] < components["run"]:
        yield (
            f"losses differ less (standard deviation {components['loss']:.4f}) than the runs of one loss "
            f"({components['run']:.4f}): these data can hardly distinguish them"
        )
    uncounted = [name for number, name in enumerate(scores.classes) if np.isnan(scores.values[..., number]).all()]
    if uncounted:
        yield f"excluded from the mean because no case has the class: {', '.join(uncounted)}"


def _few_effective_groups(model: TwoWay) -> str:
    classes = f"the class {model.limiting_class}" if model.limiting_class is not None else "all classes"
    return (
        f"the score of {classes} rests on effectively {model.effective_groups:.3g} groups of cases, fewer than "
        f"{MIN_GROUPS}: no interval extends to new cases; add cases, or exclude the class with "
        "evaluation.exclude_classes, or --classes for a table"
    )


def _groups_in_several_folds(scores: Scores) -> str:
    """The groups with cases in folds that have no case in common, as text."""
    folds = [set(cases.tolist()) for _runs, cases in scores.blocks]
    shared: set[int] = set()
    for first, second in itertools.combinations(folds, 2):
        if not first & second:
            shared |= set(scores.group[list(first)].tolist()) & set(scores.group[list(second)].tolist())
    names = [str(scores.groups[number]) for number in sorted(shared)]
    return listed(names, limit=LISTED_GROUPS)


def _classes_without_reference(scores: Scores) -> str:
    """The classes that some run predicts but no reference contains."""
    if scores.counts is None:
        return ""
    sums = scores.counts.sum((0, 1))
    return ", ".join(
        name
        for name, (_, predicted, reference) in zip(scores.classes, sums, strict=True)
        if predicted and not reference
    )


def _classes_absent_in_folds(scores: Scores) -> str:
    """The classes without a case in some fold, as text."""
    if len(scores.blocks) < 2:
        return ""
    descriptions = []
    counted_anywhere = np.flatnonzero((~np.isnan(scores.values)).any((0, 1)))
    for runs, cases in scores.blocks:
        counted = (~np.isnan(scores.values[np.ix_(runs, cases)])).any((0, 1))
        names = [scores.classes[number] for number in np.setdiff1d(counted_anywhere, np.flatnonzero(counted))]
        if names:
            descriptions.append(f"{', '.join(names)} in fold {scores.runs['fold'].iloc[runs[0]]}")
    return "; ".join(descriptions)


def _classes_of_some_runs(scores: Scores) -> str:
    """The classes that count in some runs and not in others with the same cases, as text."""
    found: set[int] = set()
    for runs, cases in scores.blocks:
        counted = (~np.isnan(scores.values[np.ix_(runs, cases)])).any(1)
        found |= set(np.flatnonzero(counted.any(0) & ~counted.all(0)).tolist())
    return ", ".join(scores.classes[number] for number in sorted(found))


def _standard_deviations(model: TwoWay | Folds) -> str:
    variances = model.run_variances.of_loss if isinstance(model, TwoWay) else {}
    return ", ".join(f"{loss} {math.sqrt(variance):.4f}" for loss, variance in variances.items())
