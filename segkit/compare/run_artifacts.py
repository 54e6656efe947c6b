"""Contents of the run folders for the report: training curves, costs, calibration, and overlays of disagreement."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from segkit.compare.aggregation import run_scores
from segkit.compare.design import Unit
from segkit.compare.disagreement import disagreement
from segkit.compare.score_table import Scores
from segkit.compare.unit_results import unit_scores
from segkit.experiment.trained_ensemble import TrainedEnsemble, together
from segkit.experiment.trained_model import load_trained
from segkit.report.comparison_page import Material
from segkit.report.overlays import overlay_picture
from segkit.training.checkpoint import load as load_checkpoint
from segkit.training.run_folder import Run

Calibrations = Sequence[tuple[Unit, dict[str, Any]]]
OVERLAY_CASES = 3
OVERLAY_LOSSES = 6


def gather(logs: dict[Unit, list[dict[str, Any]]], scores: Scores) -> Material:
    """Collect the contents of the report beyond the analysis, from the units whose losses have scores.

    Args:
        logs: The log records of each unit.
        scores: The scores shown in the report.
    """
    logs = {unit: records for unit, records in logs.items() if unit.loss in scores.losses}
    measured = calibrations(list(logs))
    return Material(
        curves=_curves(logs),
        units=_costs(logs, scores),
        calibration=_calibration(measured),
        reliability=pooled_reliability(measured),
        overlays=_overlays(list(logs), scores),
    )


def _keys(unit: Unit) -> dict[str, Any]:
    return {"loss": unit.loss, "seed": unit.seed, "fold": unit.fold}


def _curves(logs: dict[Unit, list[dict[str, Any]]]) -> pd.DataFrame | None:
    """Validation scores of each unit after each epoch with a validation; None if there are none."""
    rows = [
        {**_keys(unit), "step": record["step"], **record["validation"], "cases": len(unit.split.validation)}
        for unit, records in logs.items()
        for record in records
        if record["kind"] == "epoch" and "validation" in record
    ]
    return pd.DataFrame(rows) if rows else None


def _costs(logs: dict[Unit, list[dict[str, Any]]], scores: Scores) -> pd.DataFrame:
    """Steps, training time, peak memory and score of each unit."""
    score_of_run = run_scores(scores)
    rows = []
    for unit, records in logs.items():
        last = load_checkpoint(Run(unit.folder).last)
        peaks = [record["time"]["memory_peak_mb"] for record in records if record["kind"] == "step"]
        memory = max(peaks, default=float("nan"))
        score = score_of_run[_run_index(unit, scores)]
        cost = {"steps": last["step"], "seconds": last["time"]["training_seconds"], "memory_mb": memory}
        rows.append({**_keys(unit), **cost, "score": score})
    return pd.DataFrame(rows)


def _calibration(measured: Calibrations) -> pd.DataFrame | None:
    """Brier score, NLL and expected calibration error over all pixels, mean over the runs of each loss."""
    rows = []
    for unit, calibration in measured:
        kind = "toplabel" if "toplabel" in calibration else "classwise"
        error = calibration[kind]["all"]["ece"]
        if isinstance(error, dict):
            class_errors = [value for value in error.values() if value is not None]
            error = sum(class_errors) / len(class_errors) if class_errors else None
        region = calibration["regions"]["all"]
        rows.append({"loss": unit.loss, "brier": region["brier"], "nll": region["nll"], "ece": error})
    table: Any = pd.DataFrame(rows)  # the types of pandas are too vague for a type checker
    if not rows:
        return None
    grouped = table.groupby("loss", sort=False)
    return grouped.mean().assign(runs=grouped.size()).reset_index()


def pooled_reliability(measured: Calibrations) -> pd.DataFrame | None:
    """Confidence and accuracy in each bin, over the pixels of all runs of a loss; None if nothing was measured."""
    rows = [
        (unit.loss, number, pixels, pixels * confidence, pixels * accuracy)
        for unit, calibration in measured
        for row in calibration["reliability"]["all"].values()
        for number, (confidence, accuracy, pixels) in enumerate(
            zip(row["confidence"], row["accuracy"], row["pixels"], strict=True)
        )
        if pixels
    ]
    if not rows:
        return None
    table: Any = pd.DataFrame(rows, columns=["loss", "bin", "pixels", "confidence", "accuracy"])
    summed = table.groupby(["loss", "bin"], sort=False).sum().reset_index().sort_values("bin", kind="stable")
    return summed.assign(
        confidence=summed["confidence"] / summed["pixels"], accuracy=summed["accuracy"] / summed["pixels"]
    )


def calibrations(units: Sequence[Unit]) -> Calibrations:
    """The calibration results of each unit that has them."""
    results = [(unit, unit_scores(unit).get("calibration")) for unit in units]
    return [(unit, calibration) for unit, calibration in results if calibration is not None]


def _overlays(units: Sequence[Unit], scores: Scores) -> tuple[bytes, str] | None:
    """Overlays of the cases on which losses disagree most, one row per case and loss, and a description of the choice.

    Each loss is represented by its first run that was evaluated on the case.
    """
    models: dict[Unit, TrainedEnsemble] = {}
    rows, labels = [], None
    chosen = disagreement(scores)[:OVERLAY_CASES]
    for entry in chosen:
        for loss in _shown_losses(entry["means"], scores):
            unit = next((unit for unit in units if unit.loss == loss and _evaluates(unit, scores, entry["case"])), None)
            if unit is None:
                continue
            if unit not in models:
                models[unit] = together([load_trained(Run(unit.folder).last)])
            model = models[unit]
            labels = model.labels
            data = model.members[0].data()
            case = next(case for case in data.source.cases if case.name == entry["case"])
            raw = data.source.read(case)
            caption = f"{entry['case']}: {loss}, seed {unit.seed}; mean over its runs {entry['means'][loss]:.3f}"
            rows.append((caption, raw.image, raw.mask, model.predict(raw).mask[0].cpu().numpy()))
    if not rows or labels is None:
        return None
    file = io.BytesIO()
    Image.fromarray(overlay_picture(rows, labels)).save(file, format="PNG", optimize=True)
    description = (
        f"The {len(chosen)} cases with the largest difference between the highest and the lowest mean of a loss over "
        "classes and runs. Each loss is shown by its first run, the best on the case first."
    )
    if len(scores.losses) > OVERLAY_LOSSES:
        half = OVERLAY_LOSSES // 2
        description += f" Only the {half} best and the {half} worst losses are shown."
    return file.getvalue(), description


def _shown_losses(means: dict[str, float], scores: Scores) -> list[str]:
    """The losses from best to worst on a case; of many losses, only the best and the worst."""
    order = sorted(scores.losses, key=lambda loss: -scores.sign * means[loss])
    half = OVERLAY_LOSSES // 2
    return order if len(order) <= OVERLAY_LOSSES else [*order[:half], *order[-half:]]


def _evaluates(unit: Unit, scores: Scores, case: str) -> bool:
    """Whether a unit is evaluated on a case."""
    return bool((~np.isnan(scores.filled[_run_index(unit, scores), scores.cases.index(case)])).any())


def _run_index(unit: Unit, scores: Scores) -> int:
    """The index of the run of a unit."""
    runs = scores.runs
    matches = (runs["loss"] == unit.loss) & (runs["seed"] == unit.seed) & (runs["fold"] == unit.fold)
    return int(np.flatnonzero(matches)[0])
