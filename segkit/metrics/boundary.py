"""Pixel counts of the bands along the outlines of masks, made on the device: the boundary IoU comes from these."""

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
    """Count pixels of the inner boundary bands, int64 [B, K, 3]: in both bands, in the predicted, in the reference one.

    A band is a mask minus its erosion by a square or cube of 2d + 1 pixels; `iou(boundary_counts(...))` is the
    boundary IoU. Nothing is read back to the host.

    prediction, mask: as for `count`: [B, *S] of class numbers, or [B, K, *S] of 0 and 1 for overlapping classes. In
        binary mode an axis of size 1 after the batch is the channel.
    width: ("ratio", r) for d = max(1, round(r * diagonal)), the diagonal of the image or volume in pixels, or
        ("pixels", d) with a whole d of at least 1. Voxels of volumes count as cubes.
    The border of the image is a boundary. Ignored pixels are in none of the three counts, whatever is predicted there,
    and make no boundary either, as it is not known where the class ends. A class that is in neither counts 0, 0, 0.

    Raises ValueError if the shapes differ, a prediction is not decoded or the width is none of these. A valid pixel
    whose prediction is no class fails an assertion on the device.
    Source: Cheng, Girshick, Dollár, Berg and Kirillov, Boundary IoU, 2021.
    """
    prediction, mask = (_without_channel(given, labels) for given in (prediction, mask))
    check_pair(prediction, mask, labels)
    spatial = prediction.ndim - (2 if labels.mode == "multilabel" else 1)
    radius = band_radius(width, prediction.shape[-spatial:])
    target = labels.target(mask, spatial=spatial)
    reference, predicted = labels.onehot(target), _planes(prediction, labels)
    assert target.valid_channels is not None
    valid = target.valid_channels.expand_as(reference)
    _assert_decoded(prediction, predicted, valid, labels)
    # a class at a time: pooling needs floating point, which for all classes at once is four bytes a pixel and class
    classes = zip(predicted.unbind(1), reference.unbind(1), valid.unbind(1), strict=True)
    return torch.stack([_band_counts(*planes, radius) for planes in classes], dim=1)


def band_radius(width: Width, sides: Sequence[int]) -> int:
    """The width d of a band in pixels, at least 1, for an image of these sides. Raises ValueError, see above."""
    kind, value = width
    if kind == "ratio" and value > 0:
        return max(1, round(value * math.hypot(*sides)))
    if kind == "pixels" and value >= 1 and value == int(value):
        return int(value)
    raise ValueError(f"expected width ('ratio', above 0) or ('pixels', a whole number from 1), got {width!r}")


def window_maximum(values: Tensor, radius: int) -> Tensor:
    """The largest of floating [B, C, *S] within `radius` pixels along every axis (Chebyshev): [B, C, *S].

    There is nothing outside of the image. Takes time in proportion to the radius, as a square is pooled an axis after
    the other.
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
    """The valid pixels of bool [B, *S] within `radius` of a valid pixel outside of it, or of the border."""
    outside = (valid & ~plane).to(torch.float32).unsqueeze(1)
    framed = F.pad(outside, (1, 1) * (plane.ndim - 1), value=1.0)
    inside_frame = (slice(None), slice(None), *[slice(1, -1)] * (plane.ndim - 1))
    near = window_maximum(framed, radius)[inside_frame].squeeze(1)
    return plane & valid & (near > 0)


def _planes(prediction: Tensor, labels: Labels) -> Tensor:
    """A decoded prediction as bool [B, K, *S]."""
    if labels.mode == "multilabel":
        return prediction == 1
    return labels.onehot(Target(index=prediction.to(torch.int32)))


def _assert_decoded(prediction: Tensor, predicted: Tensor, valid: Tensor, labels: Labels) -> None:
    exclusive = labels.mode == "multiclass"
    known = predicted.any(1) if exclusive else (prediction.reshape(predicted.shape) == 0) | predicted
    counts = valid[:, 0] if exclusive else valid
    values = f"0 to {labels.channels - 1}" if exclusive else "0 or 1"
    assert_async((known | ~counts).all(), f"a prediction holds a value that is not {values}")


def _without_channel(given: Tensor, labels: Labels) -> Tensor:
    """Without the channel axis of binary mode: taken for a spatial axis, it would make every pixel a border."""
    return given[:, 0] if labels.mode == "binary" and given.ndim > 2 and given.shape[1] == 1 else given
