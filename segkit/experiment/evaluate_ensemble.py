"""Which cases several checkpoints predict together, so that none is evaluated on a case of its own training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segkit.data.cases import Case, RawCase
from segkit.data.datasets import EvaluationSet, case_and_file
from segkit.evaluation.results import Origin
from segkit.experiment.evaluate_run import chosen_part
from segkit.experiment.trained_ensemble import TrainedEnsemble, origin_of, together
from segkit.experiment.trained_model import TrainedModel
from segkit.inference.ensemble import FoldPredictors
from segkit.inference.predictor import ImagePredictor
from segkit.utils.errors import RunError
from segkit.utils.text import listed


@dataclass(frozen=True)
class JointEvaluation:
    """A predictor with the cases on which it is evaluated.

    part: the part of the split, or a name for other data.
    """

    predictor: ImagePredictor
    cases: EvaluationSet
    part: str
    origin: Origin


def joint_evaluation(
    members: Sequence[TrainedModel], split: str | None, data: Path | None, *, tta: bool = False
) -> JointEvaluation:
    """The evaluation of models that predict together.

    Models whose part holds the same cases are averaged. Those of a cross-validation, whose parts have no case in
    common, each predict their own part, averaged with the other seeds of their fold: every case is then predicted by
    models that were not trained on it. With `data`, all cases of another folder are predicted by the average of all.

    Raises RunError for parts that share some of their cases.
    """
    if data is not None:
        ensemble = together(members, tta=tta)
        cases = members[0].other_data(data).evaluation_set("test")
        return JointEvaluation(ensemble.predictor, _prepared_by(ensemble, cases), f"all of {data}", ensemble.origin)
    parts = [chosen_part(member, split) for member in members]
    names = [frozenset(getattr(member.split, part)) for member, part in zip(members, parts, strict=True)]
    folds = list(dict.fromkeys(names))
    _check_disjoint(folds)
    ensembles = [
        together([member for member, cases in zip(members, names, strict=True) if cases == fold], tta=tta)
        for fold in folds
    ]
    if len(ensembles) == 1:
        cases = members[0].data().evaluation_set(parts[0])
        ensemble = ensembles[0]
        return JointEvaluation(ensemble.predictor, _prepared_by(ensemble, cases), parts[0], ensemble.origin)
    return JointEvaluation(
        FoldPredictors(tuple(ensemble.predictor for ensemble in ensembles)),
        _of_folds(ensembles, folds),
        f"out of fold, {len(folds)} folds",
        _origin_of_folds(ensembles),
    )


def _check_disjoint(folds: Sequence[frozenset[str]]) -> None:
    seen: set[str] = set()
    for fold in folds:
        if shared := sorted(seen & fold):
            raise RunError(
                "expected checkpoints that are evaluated on the same cases, or on those of different folds; some of "
                f"these share a part of their cases ({listed(shared)}): choose checkpoints of one cross-validation, or "
                "other data with --data"
            )
        seen |= fold


def _prepared_by(ensemble: TrainedEnsemble, cases: EvaluationSet) -> EvaluationSet:
    """The cases, with the images that the ensemble needs."""
    return EvaluationSet(cases.cases, cases.source, partial(_images, [ensemble], {}), keep=False)


def _of_folds(ensembles: Sequence[TrainedEnsemble], folds: Sequence[frozenset[str]]) -> EvaluationSet:
    """The cases of all folds, in the order of the source, with the images that the ensemble of each fold needs."""
    fold_of = {name: number for number, fold in enumerate(folds) for name in fold}
    source = ensembles[0].members[0].data().source
    cases = [case for case in source.cases if case.name in fold_of]
    if len(cases) < len(fold_of):
        absent = sorted(fold_of.keys() - {case.name for case in cases})
        raise RunError(f"the data of the first checkpoint lack cases of the others: {listed(absent)}")
    return EvaluationSet(cases, source, partial(_images, ensembles, fold_of), keep=False)


def _images(ensembles: Sequence[TrainedEnsemble], fold_of: dict[str, int], case: Case, raw: RawCase) -> Any:
    """What the predictor needs for a case; for several ensembles, together with the number of the fold."""
    fold = fold_of.get(case.name, 0)
    images = ensembles[fold].images(raw, case_and_file(case))
    return (fold, images) if fold_of else images


def _origin_of_folds(ensembles: Sequence[TrainedEnsemble]) -> Origin:
    members = [member.origin for ensemble in ensembles for member in ensemble.members]
    name = f"{len(members)} checkpoints of {len(ensembles)} folds"
    return origin_of(name, members, ensembles[0].origin.orientations)
