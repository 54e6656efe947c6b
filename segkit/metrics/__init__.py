"""Counts on the device, the scores derived from them in float64, surfaces, calibration, and the rules for means."""

from segkit.metrics.boundary import boundary_counts
from segkit.metrics.calibration import calibration_counts, ece
from segkit.metrics.counts import count, tally
from segkit.metrics.overlap import dice, generalized_dice, iou, precision, recall, specificity, volume_difference
from segkit.metrics.surface import surface_scores

__all__ = [
    "boundary_counts",
    "calibration_counts",
    "count",
    "dice",
    "ece",
    "generalized_dice",
    "iou",
    "precision",
    "recall",
    "specificity",
    "surface_scores",
    "tally",
    "volume_difference",
]
