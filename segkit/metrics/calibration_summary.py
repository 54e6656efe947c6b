"""Which histograms an evaluation keeps to judge probabilities, and what scores.json says of them."""

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


def kinds_of(labels: Labels) -> tuple[Kind, ...]:
    """Overlapping classes have no top label."""
    return ("classwise",) if labels.mode == "multilabel" else ("toplabel", "classwise")


def calibration_of(probabilities: Tensor, mask: Tensor, labels: Labels) -> dict[str, CalibrationCounts]:
    """The histograms of a batch, all its cases together, by kind and region such as `toplabel/all`."""
    return {
        f"{kind}/{region}": calibration_counts(
            probabilities, mask, labels, bins=BINS, kind=kind, region=region, band=BAND
        ).pooled()
        for kind in kinds_of(labels)
        for region in REGIONS
    }


def calibration_scores(counts: Mapping[str, CalibrationCounts], labels: Labels) -> dict[str, Any]:
    """Pooled over all pixels: ECE, MCE and equal-weight ECE by kind and region, Brier score and NLL by region.

    None where a region has no pixel. The reliability of the top label (of each class where there is none), bin by bin,
    is what a diagram is drawn from.
    """
    result: dict[str, Any] = {
        "rules": {"bins": BINS, "width": "equal, closed on the left", "band_pixels": BAND, "pooled": "over all pixels"}
    }
    for name, found in counts.items():
        kind, region = name.split("/")
        rows = ["top label"] if kind == "toplabel" else list(labels.channel_names)
        for metric, formula in (("ece", ece), ("mce", mce), ("equal_weight_ece", equal_weight_ece)):
            values = dict(zip(rows, (_plain(value) for value in formula(found)[0].tolist()), strict=True))
            result.setdefault(kind, {}).setdefault(region, {})[metric] = (
                values if kind == "classwise" else values[rows[0]]
            )
        regions = result.setdefault("regions", {})
        regions[region] = {
            "brier": _plain(brier(found).item()),
            "nll": _plain(nll(found).item()),
            "pixels": int(found.valid.item()),
        }
    return result | {"reliability": _reliability(counts, labels)}


def _reliability(counts: Mapping[str, CalibrationCounts], labels: Labels) -> dict[str, Any]:
    kind = kinds_of(labels)[0]
    rows = ["top label"] if kind == "toplabel" else list(labels.channel_names)
    result = {}
    for region in REGIONS:
        found = reliability(counts[f"{kind}/{region}"])
        result[region] = {
            row: {
                "confidence": [_plain(value) for value in found.confidence[0, place].tolist()],
                "accuracy": [_plain(value) for value in found.accuracy[0, place].tolist()],
                "pixels": found.pixels[0, place].tolist(),
            }
            for place, row in enumerate(rows)
        }
    return result


def _plain(value: float) -> float | None:
    """A number as JSON takes it: NaN is None."""
    return float(value) if math.isfinite(value) else None
