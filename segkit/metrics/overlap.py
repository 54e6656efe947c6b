"""Overlap scores from counts, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def dice(counts: Tensor) -> Tensor:
    """2 tp / (predicted + reference) of counts [..., 3] -> float64 [...], for each image and class.

    NaN where the class is in neither (all ignored included), 0 where it is missed or spurious.
    """
    tp, predicted, reference = _parts(counts)
    return 2 * tp / (predicted + reference)


def iou(counts: Tensor) -> Tensor:
    """tp / (predicted + reference - tp) of counts [..., 3] -> float64 [...], for each image and class.

    NaN where the class is in neither (all ignored included), 0 where it is missed or spurious.
    """
    tp, predicted, reference = _parts(counts)
    return tp / (predicted + reference - tp)


def precision(counts: Tensor) -> Tensor:
    """tp / predicted of counts [..., 3] -> float64 [...]: the share of the prediction that is right.

    NaN where nothing is predicted, 0 where the class is spurious.
    """
    tp, predicted, _ = _parts(counts)
    return tp / predicted


def recall(counts: Tensor) -> Tensor:
    """tp / reference of counts [..., 3] -> float64 [...]: the share of the class that is found (sensitivity).

    NaN where the reference has no such class, 0 where the class is missed.
    """
    tp, _, reference = _parts(counts)
    return tp / reference


def specificity(counts: Tensor, pixels: Tensor) -> Tensor:
    """The share of the pixels without the class that are not predicted as it -> float64 [...].

    counts: [..., 3]. pixels: [...], the valid pixels. NaN where the class is everywhere, or all is ignored.
    """
    tp, predicted, reference = _parts(counts)
    negative = pixels.to(torch.float64) - reference
    return (negative - (predicted - tp)) / negative


def volume_difference(counts: Tensor) -> Tensor:
    """(predicted - reference) / reference of counts [..., 3] -> float64 [...]: above 0 where too much is predicted.

    -1 where the class is missed; NaN where the reference has no such class, for which the share means nothing.
    """
    _, predicted, reference = _parts(counts)
    return (predicted - reference) / torch.where(reference > 0, reference, torch.nan)


def generalized_dice(counts: Tensor) -> Tensor:
    """2 sum w tp / sum w (predicted + reference) over the classes of counts [..., K, 3] -> float64 [...].

    w = 1 / reference^2 (Crum et al. 2006), so that small classes count as much as large ones; a class without reference
    pixels has the largest w of its own image. NaN where no class is in prediction or reference.
    """
    tp, predicted, reference = _parts(counts)
    weight = 1 / reference.square()
    present = torch.where(reference > 0, weight, 0)
    largest = present.amax(-1, keepdim=True)
    weight = torch.where(reference > 0, weight, torch.where(largest > 0, largest, 1))
    return 2 * (weight * tp).sum(-1) / (weight * (predicted + reference)).sum(-1)


def _parts(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tp, predicted, reference = counts.to(torch.float64).unbind(-1)
    return tp, predicted, reference
