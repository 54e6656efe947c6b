"""The calibration part of an evaluation: which histograms are computed, and what scores.json reports of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from segkit.labels import Labels
from segkit.metrics.calibration import (
    CalibrationCounts,
    Kind,
    Region,
    brier,
    calibration_counts,
    ece,
    equal_weight_ece,
    mce,
    nll,
    reliability,
)

BINS, BAND = 15, 2
REGIONS: tuple[Region, ...] = ("all", "foreground", "boundary")


def calibration_kinds(labels: Labels) -> tuple[Kind, ...]:
    """The kinds of calibration that are defined for the labels; overlapping classes have no top label."""
    return ("classwise",) if labels.mode == "multilabel" else ("toplabel", "classwise")


def pooled_calibration_counts(probabilities: Tensor, mask: Tensor, labels: Labels) -> dict[str, CalibrationCounts]:
    """The calibration counts of a batch, pooled over its cases, by kind and region, such as `toplabel/all`."""
    return {
        f"{kind}/{region}": calibration_counts(
            probabilities, mask, labels, bins=BINS, kind=kind, region=region, band=BAND
        ).pooled()
        for kind in calibration_kinds(labels)
        for region in REGIONS
    }


def calibration_scores(counts: Mapping[str, CalibrationCounts], labels: Labels) -> dict[str, Any]:
    """Calibration scores pooled over all pixels, as they are stored in scores.json.

    ECE, MCE and equal-weight ECE are given by kind and region; Brier score and negative log-likelihood by region. A
    score is None if its region contains no pixels. `reliability` holds the bins of the reliability diagram of the top
    label, or of each class if classes overlap.
    """
    result: dict[str, Any] = {
        "rules": {"bins": BINS, "width": "equal, closed on the left", "band_pixels": BAND, "pooled": "over all pixels"}
    }
    for name, region_counts in counts.items():
        kind, region = name.split("/")
        rows = ["top label"] if kind == "toplabel" else list(labels.channel_names)
        for metric, formula in (("ece", ece), ("mce", mce), ("equal_weight_ece", equal_weight_ece)):
            values = dict(zip(rows, (_plain(value) for value in formula(region_counts)[0].tolist()), strict=True))
            result.setdefault(kind, {}).setdefault(region, {})[metric] = (
                values if kind == "classwise" else values[rows[0]]
            )
        regions = result.setdefault("regions", {})
        regions[region] = {
            "brier": _plain(brier(region_counts).item()),
            "nll": _plain(nll(region_counts).item()),
            "pixels": int(region_counts.valid.item()),
        }
    return result | {"reliability": _reliability(counts, labels)}


def _reliability(counts: Mapping[str, CalibrationCounts], labels: Labels) -> dict[str, Any]:
    kind = calibration_kinds(labels)[0]
    rows = ["top label"] if kind == "toplabel" else list(labels.channel_names)
    result = {}
    for region in REGIONS:
        bars = reliability(counts[f"{kind}/{region}"])
        result[region] = {
            row: {
                "confidence": [_plain(value) for value in bars.confidence[0, channel].tolist()],
                "accuracy": [_plain(value) for value in bars.accuracy[0, channel].tolist()],
                "pixels": bars.pixels[0, channel].tolist(),
            }
            for channel, row in enumerate(rows)
        }
    return result


def _plain(value: float) -> float | None:
    """A number that JSON can represent: NaN and infinity become None."""
    return float(value) if math.isfinite(value) else None
