"""Helpers for custom losses, which handle ignored pixels without reading anything back from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from segkit.labels import Target


def valid_logits(logits: Tensor, target: Target) -> Tensor:
    """The logits [B, K, *S] in at least float32, 0 where pixels are ignored.

    Ignored pixels then influence neither the value nor the gradient of a loss, even if their logits are NaN or inf.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = target.valid_channels
    return logits if valid is None else torch.where(valid, logits, 0)


def masked_mean(values: Tensor, target: Target) -> Tensor:
    """The mean of a loss per pixel over the valid pixels, weighted by `target.pixel_weight`; 0 if there are none.

    values: floating [B, *S], or [B, K, *S] for a loss per pixel and class.
    """
    has_channels = values.ndim == len(target.extent) + 1
    valid = torch.ones((), dtype=torch.bool, device=values.device) if target.valid is None else target.valid
    weight = _aligned(valid.to(values.dtype), target.valid_per_class, has_channels)
    if target.pixel_weight is not None:
        pixel_weight = _aligned(target.pixel_weight.to(values.dtype), target.weight_per_class, has_channels)
        weight = torch.where(weight > 0, pixel_weight, 0)
    total = weight.expand_as(values).sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)


def _aligned(weight: Tensor, per_class: bool, has_channels: bool) -> Tensor:
    """A weight that broadcasts against values with or without a channel axis."""
    if weight.ndim == 0 or per_class == has_channels:
        return weight
    if per_class:
        raise ValueError("pixels that are valid for some classes only need a loss per pixel and class, [B, K, *S]")
    return weight.unsqueeze(1)
