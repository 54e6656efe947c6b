"""Overlap scores from pixel counts, in float64.

The counts [..., 3] are true positives (tp), predicted pixels and reference pixels, as returned by `count`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dice(counts: Tensor) -> Tensor:
    """Dice coefficient, 2 tp / (predicted + reference): counts [..., 3] -> float64 [...], 0 to 1.

    NaN if the class is absent from both prediction and reference, also because all pixels are ignored; 0 if it is
    missed or spurious.
    """
    tp, predicted, reference = _unpack(counts)
    return 2 * tp / (predicted + reference)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union, tp / (predicted + reference - tp): counts [..., 3] -> float64 [...], 0 to 1.

    NaN if the class is absent from both prediction and reference, also because all pixels are ignored; 0 if it is
    missed or spurious.
    """
    tp, predicted, reference = _unpack(counts)
    return tp / (predicted + reference - tp)


def precision(counts: Tensor) -> Tensor:
    """Precision, tp / predicted: counts [..., 3] -> float64 [...], the fraction of predicted pixels that are correct.

    NaN if no pixel is predicted as the class, 0 if the class is spurious.
    """
    tp, predicted, _ = _unpack(counts)
    return tp / predicted


def recall(counts: Tensor) -> Tensor:
    """Recall or sensitivity, tp / reference: counts [..., 3] -> float64 [...], the fraction of the class detected.

    NaN if the class is absent from the reference, 0 if it is missed.
    """
    tp, _, reference = _unpack(counts)
    return tp / reference


def specificity(counts: Tensor, pixels: Tensor) -> Tensor:
    """Specificity: the fraction of pixels without the class that are not predicted as the class, float64 [...].

    counts: [..., 3]. pixels: number of valid pixels, [...]. NaN if every valid pixel has the class, or none is valid.
    """
    tp, predicted, reference = _unpack(counts)
    negative = pixels.to(torch.float64) - reference
    return (negative - (predicted - tp)) / negative


def accuracy(counts: Tensor, pixels: Tensor) -> Tensor:
    """Accuracy: the fraction of valid pixels that are rightly said to have the class or not, float64 [...], 0 to 1.

    counts: [..., 3]. pixels: number of valid pixels, [...]. 1 if the class is absent from both prediction and
    reference; NaN if no pixel is valid.
    """
    tp, predicted, reference = _unpack(counts)
    pixels = pixels.to(torch.float64)
    return (pixels - predicted - reference + 2 * tp) / pixels


def mcc(counts: Tensor, pixels: Tensor) -> Tensor:
    """Matthews correlation coefficient of one class against all others, -1 to 1, float64 [...] (Matthews, 1975).

    (tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn)). Both products are at most the root, so that no
    digits are lost however large the counts are.

    counts: [..., 3]. pixels: number of valid pixels, [...]. A mask with no or only pixels of the class has no
    correlation with any other: 0 if one of prediction and reference is such a mask, as in scikit-learn, and NaN if
    both are and they are equal.
    """
    tp, predicted, reference = _unpack(counts)
    pixels = pixels.to(torch.float64)
    scale = (predicted * reference).sqrt() * ((pixels - predicted) * (pixels - reference)).sqrt()
    fp, fn = predicted - tp, reference - tp
    tn = pixels - predicted - fn
    undefined = torch.where(predicted == reference, torch.nan, 0.0)
    return torch.where(scale > 0, (tp * tn - fp * fn) / scale, undefined)


def volume_difference(counts: Tensor) -> Tensor:
    """Relative volume difference, (predicted - reference) / reference: counts [..., 3] -> float64 [...].

    It is positive if too much is predicted, and -1 if the class is missed. NaN if the class is absent from the
    reference.
    """
    _, predicted, reference = _unpack(counts)
    return (predicted - reference) / torch.where(reference > 0, reference, torch.nan)


def generalized_dice(counts: Tensor) -> Tensor:
    """Generalised Dice, 2 sum w tp / sum w (predicted + reference) over the classes of counts [..., K, 3] -> [...].

    The weight of a class is w = 1 / reference^2, so that small classes contribute as much as large ones. A class
    without reference pixels gets the largest weight of its image. float64; NaN if all classes are absent from both
    prediction and reference. Source: Crum et al., 2006.
    """
    tp, predicted, reference = _unpack(counts)
    weight = 1 / reference.square()
    present = torch.where(reference > 0, weight, 0)
    largest = present.amax(-1, keepdim=True)
    weight = torch.where(reference > 0, weight, torch.where(largest > 0, largest, 1))
    return 2 * (weight * tp).sum(-1) / (weight * (predicted + reference)).sum(-1)


def _unpack(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tp, predicted, reference = counts.to(torch.float64).unbind(-1)
    return tp, predicted, reference
