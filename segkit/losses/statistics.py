"""The pass over the logits that the region terms share: sums of probabilities for each image and class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segkit.labels import Labels, Target


@dataclass(frozen=True)
class Statistics:
    """What region terms are made of, each floating [B, K]; with `per: batch` pooled to [1, K].

    tp: the probability on the pixels of the class, for soft targets the sum of min(probability, share).
    predicted: the sum of the probabilities, or of their squares with `power` 2.
    reference: the pixels of the class, for soft targets the sum of share^power; 0 for a class that is absent.
    pixels: the valid pixels; 0 where everything is ignored.

    Only valid pixels are in the sums, each times its pixel weight.
    """

    tp: Tensor
    predicted: Tensor
    reference: Tensor
    pixels: Tensor

    def pooled(self) -> Statistics:
        """The sums over the batch, [1, K]."""
        fields = (self.tp, self.predicted, self.reference, self.pixels)
        return Statistics(*(field.sum(0, keepdim=True) for field in fields))


@dataclass(frozen=True)
class RegionPass:
    """A pass that a region term names in `needs`; terms that name equal passes share one run."""

    labels: Labels
    power: Literal[1, 2] = 1

    def __call__(self, logits: Tensor, target: Target) -> Statistics:
        """Statistics of logits [B, K, *S], finite under ignored pixels."""
        return region_statistics(probabilities(logits, self.labels), target, self.labels, self.power)


def probabilities(logits: Tensor, labels: Labels) -> Tensor:
    """Softmax over exclusive classes, else a sigmoid for each channel, [B, K, *S]."""
    return logits.softmax(1) if labels.mode == "multiclass" else logits.sigmoid()


def weight_map(target: Target, dtype: torch.dtype) -> Tensor | None:
    """What each pixel counts for, [B, 1 or K, *S]: its pixel weight, 0 where ignored; None if all count for 1.

    Weights under ignored pixels are selected out, not multiplied, so that NaN there does no harm.
    """
    valid = target.valid_channels
    if target.pixel_weight is None:
        return None if valid is None else valid.to(dtype)
    weight = target.pixel_weight.to(dtype).unsqueeze(1)
    return weight if valid is None else torch.where(valid, weight, 0)


def region_statistics(probabilities: Tensor, target: Target, labels: Labels, power: Literal[1, 2]) -> Statistics:
    """Sum probabilities [B, K, *S] into Statistics. Every operation is deterministic."""
    onehot = labels.onehot(target)
    if onehot.is_floating_point():
        onehot = onehot.to(probabilities.dtype)
        # A product would be least at p = 1 whatever the share. sum(min(p, g)) is the (sum p + sum g - sum |p - g|) / 2
        # of Wang et al. 2023 without its cancellation.
        overlap, share = torch.minimum(probabilities, onehot), onehot**power
    else:
        overlap, share = torch.where(onehot, probabilities, 0), onehot
    weight = weight_map(target, probabilities.dtype)
    tp = _weighted_sum(overlap, weight)
    everywhere = math.prod(probabilities.shape[2:])
    return Statistics(
        tp=tp,
        predicted=_weighted_sum(probabilities**power if power == 2 else probabilities, weight),
        reference=_weighted_sum(share, weight).to(probabilities.dtype),
        pixels=torch.full_like(tp, everywhere) if weight is None else weight.flatten(2).sum(2).expand_as(tp),
    )


def _weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    """Sum [B, K, *S] over space, [B, K]."""
    if weight is not None:
        values = torch.where(values, weight, 0) if values.dtype == torch.bool else values * weight
    return values.flatten(2).sum(2)
