"""Pixel counts of the bands along the boundaries of masks, computed on the device, for the boundary IoU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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

    Raises ValueError if the shapes differ, there is no pixel, the prediction is not decoded, or the width is invalid. A
    valid pixel whose prediction is not a class fails an assertion on the device.
    Source: Cheng, Girshick, Dollár, Berg and Kirillov, Boundary IoU, 2021.
    """
    prediction, mask = (_without_channel(tensor, labels) for tensor in (prediction, mask))
    check_pair(prediction, mask, labels)
    if prediction.numel() == 0:
        raise ValueError(f"expected masks of at least one pixel, got {list(prediction.shape)}")
    spatial = prediction.ndim - (2 if labels.mode == "multilabel" else 1)
    radius = band_radius(width, prediction.shape[-spatial:])
    prediction, target = labels.comparable(prediction), labels.target(mask, spatial=spatial)
    _assert_decoded(prediction, target, labels)
    # one class at a time: pooling needs float32, which takes 4 bytes per pixel and class
    classes = _class_planes(prediction, target, labels)
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


def _class_planes(prediction: Tensor, target: Target, labels: Labels) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Where each class is in a decoded prediction and in the target, and where it is valid: bool [B, *S] each."""
    assert target.valid is not None
    first = 1 if labels.mode == "binary" else 0  # the class number of channel 0
    for channel in range(labels.channels):
        valid = target.valid[:, channel] if target.valid_per_class else target.valid
        predicted = prediction[:, channel] == 1 if labels.mode == "multilabel" else prediction == channel + first
        if target.index is not None:
            reference = target.index == channel + first
        else:
            assert target.onehot is not None
            reference = target.onehot[:, channel]
        yield predicted, reference & valid, valid


def _assert_decoded(prediction: Tensor, target: Target, labels: Labels) -> None:
    """Assert on the device that every valid pixel of a prediction is a class."""
    last = labels.channels - 1 if labels.mode == "multiclass" else 1
    valid = target.valid_channels if labels.mode == "multilabel" else target.valid
    assert valid is not None
    values = f"0 to {last}" if labels.mode == "multiclass" else "0 or 1"
    decoded = (prediction >= 0) & (prediction <= last)
    assert_async((decoded | ~valid).all(), f"a prediction contains a value that is not {values}")


def _without_channel(tensor: Tensor, labels: Labels) -> Tensor:
    """Remove the channel axis of binary mode. As a spatial axis, it would make every pixel a border pixel."""
    return tensor[:, 0] if labels.mode == "binary" and tensor.ndim > 2 and tensor.shape[1] == 1 else tensor
