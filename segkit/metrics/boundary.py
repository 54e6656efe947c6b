"""Pixel counts of the bands along the boundaries of masks, computed on the device, for the boundary IoU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.labels import Labels, Target, assert_async
from segkit.metrics.counts import check_pair

Width = tuple[Literal["ratio"], float] | tuple[Literal["pixels"], int]


def boundary_counts(prediction: Tensor, mask: Tensor, labels: Labels, width: Width = ("ratio", 0.02)) -> Tensor:
    """Count the pixels of inner boundary bands, int64 [B, K, 3]: intersection, predicted band and reference band.

    The band of a mask is the mask minus its erosion with a square or cube of 2d + 1 pixels. The boundary IoU is
    `iou(boundary_counts(...))`. The function does not synchronise with the device.

    prediction, mask: as for `count`: [B, *S] of class numbers, or [B, K, *S] of 0 and 1 for overlapping classes. In
        binary mode, an axis of size 1 after the batch is the channel.
    width: ("ratio", r) for d = max(1, round(r * diagonal)), where the diagonal of the image or volume is in pixels; or
        ("pixels", d) with an integer d of at least 1. Voxels are treated as cubes.

    The border of the image is a boundary. Ignored pixels are in none of the three counts, regardless of the prediction,
    and do not form a boundary, since it is unknown where the class ends. A class that is absent from both prediction
    and mask has the counts 0, 0, 0.

    Raises ValueError if the shapes differ, the prediction is not decoded, or the width is invalid. A valid pixel whose
    prediction is not a class fails an assertion on the device.
    Source: Cheng, Girshick, Dollár, Berg and Kirillov, Boundary IoU, 2021.
    """
    prediction, mask = (_without_channel(tensor, labels) for tensor in (prediction, mask))
    check_pair(prediction, mask, labels)
    spatial = prediction.ndim - (2 if labels.mode == "multilabel" else 1)
    radius = band_radius(width, prediction.shape[-spatial:])
    target = labels.target(mask, spatial=spatial)
    reference, predicted = labels.onehot(target), _class_planes(prediction, labels)
    assert target.valid_channels is not None
    valid = target.valid_channels.expand_as(reference)
    _assert_decoded(prediction, predicted, valid, labels)
    # one class at a time: pooling needs float32, which takes 4 bytes per pixel and class
    classes = zip(predicted.unbind(1), reference.unbind(1), valid.unbind(1), strict=True)
    return torch.stack([_band_counts(*planes, radius) for planes in classes], dim=1)


def band_radius(width: Width, sides: Sequence[int]) -> int:
    """The width d of a band in pixels, at least 1, for an image with these side lengths.

    Raises ValueError for an invalid width.
    """
    kind, value = width
    if kind == "ratio" and value > 0:
        return max(1, round(value * math.hypot(*sides)))
    if kind == "pixels" and value >= 1 and value == int(value):
        return int(value)
    raise ValueError(f"expected width ('ratio', above 0) or ('pixels', an integer of at least 1), got {width!r}")


def maximum_filter(values: Tensor, radius: int) -> Tensor:
    """Maximum of floating-point values [B, C, *S] within `radius` pixels along every axis (Chebyshev): [B, C, *S].

    Windows are cropped at the border of the image. Axes are pooled one after the other, so the time is proportional to
    the radius.
    """
    for axis in range(2, values.ndim):
        lines = values.movedim(axis, -1)
        pooled = F.max_pool1d(lines.flatten(0, -2), 2 * radius + 1, stride=1, padding=radius)
        values = pooled.view(lines.shape).movedim(-1, axis)
    return values


def _band_counts(predicted: Tensor, reference: Tensor, valid: Tensor, radius: int) -> Tensor:
    """The counts of one class, [B, 3], from bool [B, *S]."""
    bands = [_inner_band(plane, valid, radius) for plane in (predicted, reference)]
    return torch.stack([plane.flatten(1).sum(1) for plane in (bands[0] & bands[1], *bands)], dim=-1)


def _inner_band(plane: Tensor, valid: Tensor, radius: int) -> Tensor:
    """The valid pixels of a mask, bool [B, *S], within `radius` of a valid pixel outside of it or of the border."""
    outside = (valid & ~plane).to(torch.float32).unsqueeze(1)
    framed = F.pad(outside, (1, 1) * (plane.ndim - 1), value=1.0)
    inside_frame = (slice(None), slice(None), *[slice(1, -1)] * (plane.ndim - 1))
    near = maximum_filter(framed, radius)[inside_frame].squeeze(1)
    return plane & valid & (near > 0)


def _class_planes(prediction: Tensor, labels: Labels) -> Tensor:
    """A decoded prediction as one bool plane per class, [B, K, *S]."""
    if labels.mode == "multilabel":
        return prediction == 1
    return labels.onehot(Target(index=prediction.to(torch.int32)))


def _assert_decoded(prediction: Tensor, predicted: Tensor, valid: Tensor, labels: Labels) -> None:
    exclusive = labels.mode == "multiclass"
    decoded = predicted.any(1) if exclusive else (prediction.reshape(predicted.shape) == 0) | predicted
    counted = valid[:, 0] if exclusive else valid
    values = f"0 to {labels.channels - 1}" if exclusive else "0 or 1"
    assert_async((decoded | ~counted).all(), f"a prediction contains a value that is not {values}")


def _without_channel(tensor: Tensor, labels: Labels) -> Tensor:
    """Remove the channel axis of binary mode. As a spatial axis, it would make every pixel a border pixel."""
    return tensor[:, 0] if labels.mode == "binary" and tensor.ndim > 2 and tensor.shape[1] == 1 else tensor
