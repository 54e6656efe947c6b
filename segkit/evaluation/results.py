"""The contents of scores.json and the files of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segkit.evaluation.scoring import Scoring
from segkit.labels import Labels
from segkit.metrics.summary import summarise
from segkit.utils.files import replace_text

FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """Where scores come from.

    checkpoint: its file. step, steps: how far it was trained, and how far that training was to go. finished: the length
    or limit that ended the training there, None if it was to go on. selected_on: the part of the split that it was
    chosen by, None if it was not chosen by a score. split_hash: of the split that it was trained by.
    """

    checkpoint: str
    step: int
    steps: int
    finished: str | None
    selected_on: str | None
    split_hash: str


@dataclass(frozen=True)
class Scored:
    """The table of cases, and what is known of all cases together.

    matrix: int64 [C, C] for the C classes of `labels.names`, rows the reference, columns the prediction; None where
    classes overlap. calibration: the
    contents of `calibration` in scores.json, None if it was not asked for.
    """

    cases: pd.DataFrame
    matrix: np.ndarray | None
    calibration: dict[str, Any] | None


def foreground_means(cases: pd.DataFrame, labels: Labels) -> dict[str, float | None]:
    """Mean Dice and IoU over the foreground classes of the per-class means over cases; None where nothing counted."""
    return summarise(cases, labels, intervals=False)["mean"]


def scores_json(
    scored: Scored, labels: Labels, scoring: Scoring, *, split: str, origin: Origin | None
) -> dict[str, Any]:
    """The contents of scores.json. origin: None for predictions that were there already."""
    source = asdict(origin) if origin is not None else {"checkpoint": None, "selected_on": None}
    result = {
        "format": FORMAT,
        "split": split,
        **source,
        "threshold": None if labels.mode == "multiclass" else scoring.threshold,
        "cases": len(set(scored.cases["case"])),
        "ignored_pixels": _ignored(scored.cases, labels),
        **summarise(scored.cases, labels, scoring.rules, metrics=scoring.metrics),
    }
    if scored.calibration is not None:
        result["calibration"] = scored.calibration
    return result


def scores_match(scores: Mapping[str, Any], scoring: Scoring, step: int) -> bool:
    """Whether a scores.json is of a training that was finished at this step, and of this scoring."""
    wanted = scoring.rules.to_dict(), list(scoring.metrics), scoring.calibration
    found = scores.get("rules"), list(scores.get("metrics", [])), "calibration" in scores
    threshold = scores.get("threshold", "unknown")  # which scores of an earlier version do not say
    same = found == wanted and (threshold is None or threshold == scoring.threshold)
    return same and "mean_intervals" in scores and scores.get("finished") is not None and scores["step"] == step


def _ignored(cases: Any, labels: Labels) -> int:
    """Pixels that the masks ignore; of overlapping classes, those of all classes added up."""
    pixels = cases["ignored"].sum()
    return int(pixels if labels.mode == "multilabel" else pixels // labels.channels)


def write_results(folder: Path, scored: Scored, labels: Labels, result: dict[str, Any]) -> None:
    """Write cases.csv, confusion.csv, and then scores.json, whose presence says that the evaluation is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    cases: Any = scored.cases
    reported = cases[~cases["class"].isin(result["rules"]["exclude_classes"])]
    reported.assign(rules=result["rules"]["id"]).to_csv(folder / "cases.csv", index=False)
    if scored.matrix is not None:
        names = pd.Index(labels.names, name="reference \\ prediction")
        pd.DataFrame(scored.matrix, index=names, columns=list(labels.names)).to_csv(folder / "confusion.csv")
    replace_text(folder / "scores.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
