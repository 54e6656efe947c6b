"""Dice and IoU from counts, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def dice(counts: Tensor) -> Tensor:
    """2 tp / (predicted + reference) of counts [..., 3] -> float64 [...], for each image and class.

    NaN where the class is in neither (all ignored included), 0 where it is missed or spurious.
    """
    tp, predicted, reference = counts.to(torch.float64).unbind(-1)
    return 2 * tp / (predicted + reference)


def iou(counts: Tensor) -> Tensor:
    """tp / (predicted + reference - tp) of counts [..., 3] -> float64 [...], for each image and class.

    NaN where the class is in neither (all ignored included), 0 where it is missed or spurious.
    """
    tp, predicted, reference = counts.to(torch.float64).unbind(-1)
    return tp / (predicted + reference - tp)
