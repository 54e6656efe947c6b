"""What the run folders of finished units hold beside scores: curves, costs, calibration, pictures of disagreement."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from segkit.compare.aggregation import run_scores
from segkit.compare.design import Unit
from segkit.compare.score_table import Scores
from segkit.compare.units import unit_scores
from segkit.experiment.trained_model import load_trained
from segkit.report.comparison_page import Material, disagreement
from segkit.report.overlays import overlay_picture
from segkit.training.checkpoint import load as load_checkpoint
from segkit.training.run_folder import Run

Calibrations = Sequence[tuple[Unit, dict[str, Any]]]
SHOWN = 3  # cases in the picture of disagreement
MOST_LOSSES = 6  # whose predictions are drawn


def gather(logs: dict[Unit, list[dict[str, Any]]], scores: Scores) -> Material:
    """Of the units whose losses have scores. logs: the records of every unit."""
    logs = {unit: lines for unit, lines in logs.items() if unit.loss in scores.losses}
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
    judged = {unit: _validation_cases(unit) for unit in logs}
    rows = [
        {**_keys(unit), "step": line["step"], **line["validation"], "cases": judged[unit]}
        for unit, lines in logs.items()
        for line in lines
        if line["kind"] == "epoch" and "validation" in line
    ]
    return pd.DataFrame(rows) if rows else None


def _validation_cases(unit: Unit) -> int:
    split = Run(unit.folder).folder / "split.json"
    return len(json.loads(split.read_text())["validation"])


def _costs(logs: dict[Unit, list[dict[str, Any]]], scores: Scores) -> pd.DataFrame:
    of_runs = run_scores(scores)
    rows = []
    for unit, lines in logs.items():
        last = load_checkpoint(Run(unit.folder).last)
        memory = max((line["time"]["memory_peak_mb"] for line in lines if line["kind"] == "step"), default=float("nan"))
        score = of_runs[_place(unit, scores)]
        took = {"steps": last["step"], "seconds": last["time"]["training_seconds"], "memory_mb": memory}
        rows.append({**_keys(unit), **took, "score": score})
    return pd.DataFrame(rows)


def _calibration(measured: Calibrations) -> pd.DataFrame | None:
    """Brier score, NLL and expected calibration error of all pixels together, mean over the runs of each loss."""
    rows = []
    for unit, found in measured:
        kind = "toplabel" if "toplabel" in found else "classwise"
        error = found[kind]["all"]["ece"]
        if isinstance(error, dict):
            there = [value for value in error.values() if value is not None]
            error = sum(there) / len(there) if there else None
        region = found["regions"]["all"]
        rows.append({"loss": unit.loss, "brier": region["brier"], "nll": region["nll"], "ece": error})
    table: Any = pd.DataFrame(rows)  # pandas says too little of its types for a checker
    if not rows:
        return None
    grouped = table.groupby("loss", sort=False)
    return grouped.mean().assign(runs=grouped.size()).reset_index()


def pooled_reliability(measured: Calibrations) -> pd.DataFrame | None:
    """Confidence and accuracy of the pixels of each bin, those of all runs of a loss together."""
    rows = [
        (unit.loss, place, pixels, pixels * confidence, pixels * accuracy)
        for unit, found in measured
        for row in found["reliability"]["all"].values()
        for place, (confidence, accuracy, pixels) in enumerate(
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
    """What was measured of the probabilities of each unit that measured it."""
    found = [(unit, unit_scores(unit).get("calibration")) for unit in units]
    return [(unit, one) for unit, one in found if one is not None]


def _overlays(units: Sequence[Unit], scores: Scores) -> tuple[bytes, str] | None:
    """A row for each loss and each of the cases on which they disagree most, by the loss's first run that has it."""
    trained: dict[Unit, Any] = {}
    rows, labels = [], None
    chosen = disagreement(scores)[:SHOWN]
    for one in chosen:
        order = sorted(scores.losses, key=lambda loss: -scores.sign * one["means"][loss])
        few = order if len(order) <= MOST_LOSSES else [*order[: MOST_LOSSES // 2], *order[-(MOST_LOSSES // 2) :]]
        for loss in few:
            unit = next((unit for unit in units if unit.loss == loss and _judges(unit, scores, one["case"])), None)
            if unit is None:
                continue
            if unit not in trained:
                trained[unit] = load_trained(Run(unit.folder).last)
            network = trained[unit]
            labels = network.labels
            data = network.data()
            case = next(case for case in data.source.cases if case.name == one["case"])
            raw = data.source.read(case)
            caption = f"{one['case']}: {loss}, seed {unit.seed}; mean of its runs {one['means'][loss]:.3f}"
            rows.append((caption, raw.image, raw.mask, np.asarray(network.predict(raw))))
    if not rows or labels is None:
        return None
    file = io.BytesIO()
    Image.fromarray(overlay_picture(rows, labels)).save(file, format="PNG", optimize=True)
    rule = (
        f"The {len(chosen)} cases with the largest minus the smallest of the losses' means, over classes and runs; "
        "each by the first run of each loss, the best on the case first; of more than "
        f"{MOST_LOSSES} losses the {MOST_LOSSES // 2} best and the {MOST_LOSSES // 2} worst."
    )
    return file.getvalue(), rule


def _judges(unit: Unit, scores: Scores, case: str) -> bool:
    """Whether the case is among those that judge the unit."""
    return bool((~np.isnan(scores.values[_place(unit, scores), scores.cases.index(case)])).any())


def _place(unit: Unit, scores: Scores) -> int:
    """The number of the unit's run."""
    runs = scores.runs
    found = (runs["loss"] == unit.loss) & (runs["seed"] == unit.seed) & (runs["fold"] == unit.fold)
    return int(np.flatnonzero(found)[0])
