"""Pixel counts on the device, scores derived from them in float64, surface distances, calibration, and rules."""

from segkit.metrics.boundary import boundary_counts
from segkit.metrics.calibration import calibration_counts, ece
from segkit.metrics.counts import count, pixel_counts
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
    "pixel_counts",
    "precision",
    "recall",
    "specificity",
    "surface_scores",
    "volume_difference",
]
