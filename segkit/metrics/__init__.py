"""Counts on the device, and the scores derived from them in float64."""

from segkit.metrics.counts import count
from segkit.metrics.overlap import dice, iou

__all__ = ["count", "dice", "iou"]
