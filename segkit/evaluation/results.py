"""The results of an evaluation: the table of cases, the contents of scores.json, and the files that are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segkit.evaluation.scoring import ALWAYS_COMPUTED, Scoring
from segkit.labels import Labels
from segkit.metrics.size_strata import scores_by_size
from segkit.metrics.summary import summarise
from segkit.utils.csv_tables import write_table
from segkit.utils.files import replace_text

FORMAT = 1
ADDED = ("members", "orientations", "decisions")  # fields of an origin that a plain evaluation does not need


@dataclass(frozen=True)
class Origin:
    """The checkpoint that was evaluated.

    checkpoint: its file; for several that predict together, how many they are.
    step, steps: training steps done, and steps planned; None if several checkpoints differ in them.
    finished: the duration or limit that ended the training at this step; None if the training was to continue.
    selected_on: the part of the split on which the checkpoint was selected; None if it was not selected by a score.
    split_hash, data_hash: hashes of the split and of the files used in training; None if several checkpoints differ in
        them.
    members: the origins of the checkpoints that predict together; empty for a single one.
    orientations: in which images were predicted and averaged; empty without test-time augmentation.
    decisions: that were chosen on validation cases and applied: their `file`, the `metric`, the part that they were
        `chosen_on`, and the decisions `in_words`; None if none were applied.
    """

    checkpoint: str
    step: int | None
    steps: int | None
    finished: str | None
    selected_on: str | None
    split_hash: str | None
    data_hash: str | None = None
    members: tuple[Origin, ...] = ()
    orientations: tuple[str, ...] = ()
    decisions: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields for scores.json."""
        content = asdict(self) | {"members": [member.to_json() for member in self.members]}
        return {name: value for name, value in content.items() if name not in ADDED or value}


@dataclass(frozen=True)
class CaseScores:
    """The scores of all cases.

    cases: table with one row per case and class.
    matrix: confusion matrix, int64 [C, C] for the C classes of `labels.names`; rows are the reference, columns the
        prediction. None for overlapping classes.
    calibration: contents of `calibration` in scores.json; None if it was not computed.
    threshold: probability above which a class was predicted, for binary and multilabel, one for all or one per class;
        or the value from which pixels of masks belong to the second class; None if no threshold was used.
    """

    cases: pd.DataFrame
    matrix: np.ndarray | None
    calibration: dict[str, Any] | None
    threshold: float | tuple[float, ...] | None = None


def foreground_means(
    cases: pd.DataFrame, labels: Labels, metrics: Sequence[str] = ALWAYS_COMPUTED
) -> dict[str, float | None]:
    """Means of some metrics by the default rules: over cases for each class, then over the foreground classes.

    A metric of a case as a whole is averaged over cases. None if no case is counted.
    """
    summary = summarise(cases, labels, metrics=metrics, intervals=False)
    return summary["mean"] | {metric: score["mean"] for metric, score in summary.get("of_cases", {}).items()}


def scores_json(
    scores: CaseScores, labels: Labels, scoring: Scoring, *, split: str, origin: Origin | None
) -> dict[str, Any]:
    """The contents of scores.json. origin: None for masks that were not predicted by a checkpoint of segkit."""
    source = origin.to_json() if origin is not None else {"checkpoint": None, "selected_on": None}
    result = {
        "format": FORMAT,
        "split": split,
        **source,
        "threshold": _threshold(scores, labels),
        "cases": len(set(scores.cases["case"])),
        "ignored_pixels": _ignored_pixels(scores.cases, labels),
        **summarise(scores.cases, labels, scoring.rules, metrics=scoring.metrics),
    }
    if scoring.size_strata is not None and len(scores.cases):
        result["by_size"] = scores_by_size(
            scores.cases, labels, scoring.size_strata, scoring.rules, metrics=scoring.metrics
        )
    if scores.calibration is not None:
        result["calibration"] = scores.calibration
    return result


def _threshold(scores: CaseScores, labels: Labels) -> float | dict[str, float] | None:
    """The threshold of all classes, or that of each by name."""
    threshold = scores.threshold
    return dict(zip(labels.channel_names, threshold, strict=True)) if isinstance(threshold, tuple) else threshold


def scores_match(scores: Mapping[str, Any], scoring: Scoring, step: int, threshold: float) -> bool:
    """Whether a scores.json belongs to a training that finished at this step, and to this scoring and threshold."""
    metrics = scores.get("metrics")
    names = list(metrics) if isinstance(metrics, dict) else []
    recorded = scores.get("threshold", "unknown")  # files of earlier versions do not record it
    strata = None if scoring.size_strata is None else scoring.size_strata.number or list(scoring.size_strata.bounds)
    same = (
        scores.get("rules") == scoring.rules.to_dict(scoring.metrics)
        and names == list(scoring.metrics)
        and ("calibration" in scores) == scoring.calibration
        and scores.get("by_size", {}).get("strata") == strata
        and (recorded is None or recorded == threshold)
    )
    return same and "mean_intervals" in scores and scores.get("finished") is not None and scores.get("step") == step


def _ignored_pixels(cases: Any, labels: Labels) -> int:
    """The number of ignored pixels; for overlapping classes, summed over the classes."""
    pixels = cases["ignored"].sum()
    return int(pixels if labels.mode == "multilabel" else pixels // labels.channels)


def write_results(folder: Path, scores: CaseScores, labels: Labels, result: dict[str, Any]) -> None:
    """Write cases.csv, confusion.csv and scores.json. The last one is written last and marks a complete evaluation.

    result: contents of scores.json, from `scores_json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases: Any = scores.cases
    reported = cases[~cases["class"].isin(result["rules"]["exclude_classes"])]
    write_table(folder / "cases.csv", reported.assign(rules=result["rules"]["id"]))
    if scores.matrix is not None:
        names = pd.Index(labels.names, name="reference \\ prediction")
        matrix = pd.DataFrame(scores.matrix, index=names, columns=list(labels.names))
        write_table(folder / "confusion.csv", matrix, index=True)
    replace_text(folder / "scores.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
