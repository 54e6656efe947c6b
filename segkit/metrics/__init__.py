"""Pixel counts on the device, scores derived from them in float64, distances, topology, components, and rules."""

from segkit.metrics.boundary import boundary_counts
from segkit.metrics.calibration import calibration_counts, ece
from segkit.metrics.components import component_scores
from segkit.metrics.counts import count, pixel_counts
from segkit.metrics.overlap import (
    accuracy,
    dice,
    generalized_dice,
    iou,
    mcc,
    precision,
    recall,
    specificity,
    volume_difference,
)
from segkit.metrics.surface import surface_scores
from segkit.metrics.topology import betti_numbers, cldice

__all__ = [
    "accuracy",
    "betti_numbers",
    "boundary_counts",
    "calibration_counts",
    "cldice",
    "component_scores",
    "count",
    "dice",
    "ece",
    "generalized_dice",
    "iou",
    "mcc",
    "pixel_counts",
    "precision",
    "recall",
    "specificity",
    "surface_scores",
    "volume_difference",
]
