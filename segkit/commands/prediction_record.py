"""The record of a folder of predictions: which checkpoints made them, and how."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from segkit._version import VERSION
from segkit.data.formats import is_image
from segkit.experiment.decision_file import AppliedDecisions
from segkit.experiment.trained_ensemble import TrainedEnsemble
from segkit.training.init_file import digest
from segkit.utils.errors import RunError
from segkit.utils.files import read_json, replace_text

RECORD = "prediction.json"
FORMAT = 1
COMPARED = ("checkpoints", "orientations", "threshold", "decisions")  # smaller windows are what large images may need


def record_of(ensemble: TrainedEnsemble, applied: AppliedDecisions | None) -> dict[str, Any]:
    """What a folder of predictions was made with: all that changes a mask."""
    evaluation = ensemble.config.evaluation
    return {
        "checkpoints": [
            {"file": member.origin.checkpoint, "sha256": digest(Path(member.origin.checkpoint))}
            for member in ensemble.members
        ],
        "orientations": [str(orientation) for orientation in ensemble.orientations],
        "window": None if evaluation.window is None else list(evaluation.window),
        "overlap": evaluation.overlap,
        "decisions": None if applied is None else applied.to_json(),
        "threshold": None if ensemble.labels.mode == "multiclass" else _thresholds(ensemble),
    }


def _thresholds(ensemble: TrainedEnsemble) -> float | list[float]:
    threshold = ensemble.predictor.threshold
    return list(threshold) if isinstance(threshold, tuple) else threshold


def check_record(folder: Path, record: dict[str, Any], *, keeps_masks: bool, replaced: Collection[Path]) -> None:
    """Raise RunError if the folder keeps masks that were made in another way, or masks of unknown origin.

    keeps_masks: whether some images have their masks already, and keep them.
    replaced: files that are predicted again.
    """
    known = read_json(folder / RECORD, dict, None)
    advice = "choose another --output, or predict all images again with --overwrite"
    if known is None:
        if keeps_masks:
            raise RunError(f"{folder} has masks of unknown origin, since it has no {RECORD}: {advice}")
        return
    differences = [key for key in COMPARED if _without_files(known.get(key)) != _without_files(record[key])]
    others = [path.name for path in folder.iterdir() if is_image(path) and path not in replaced]
    if differences and others:
        raise RunError(
            f"{folder} has masks that were predicted in another way ({', '.join(differences)} differ, see {RECORD}), "
            f"such as {others[0]}: {advice}"
        )


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a folder of predictions."""
    content = {"format": FORMAT, "segkit": VERSION, **record}
    replace_text(folder / RECORD, json.dumps(content, indent=2) + "\n")


def _without_files(value: Any) -> Any:
    """Checkpoints and decisions are the same wherever their files lie."""
    if isinstance(value, dict):
        return value.get("in_words")
    if isinstance(value, list):
        return [item.get("sha256") if isinstance(item, dict) else item for item in value]
    return value
