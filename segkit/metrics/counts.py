"""Pixel counts of each image and class, computed on the device. All overlap scores are derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor

from segkit.labels import Labels, as_tensor, assert_async, is_any, unequal

# Pixels of an image that are counted in one pass. Counting takes about 15 bytes per pixel, which fit into a CPU cache.
CHUNK_SIZE = {"cpu": 2**18}
DEFAULT_CHUNK_SIZE = 2**24


@dataclass(frozen=True)
class PixelCounts:
    """Pixel counts of a batch of predictions and masks, int64, on their device.

    counts: [B, K, 3], true positives, predicted pixels and reference pixels.
    valid: [B, K], pixels that are counted for a class.
    ignored: [B, K], pixels that the mask ignores.
    invalid: [B, 2], pixels whose value in the prediction, and in the mask, is not a class. They are in no other count.
    matrix: confusion matrix, [B, C, C] for the C classes of `labels.names`; rows are the reference, columns the
        prediction. None for overlapping classes.
    """

    counts: Tensor
    valid: Tensor
    ignored: Tensor
    invalid: Tensor
    matrix: Tensor | None

    def __add__(self, other: PixelCounts) -> PixelCounts:
        """The sum of the counts of two parts of the same images."""
        matrix = None if self.matrix is None or other.matrix is None else self.matrix + other.matrix
        return PixelCounts(
            self.counts + other.counts,
            self.valid + other.valid,
            self.ignored + other.ignored,
            self.invalid + other.invalid,
            matrix,
        )


def count(prediction: Tensor | np.ndarray, mask: Tensor | np.ndarray, labels: Labels) -> Tensor:
    """Count true positive, predicted and reference pixels of each image and class: int64 [B, K, 3].

    multiclass: prediction and mask are [B, *S] with class numbers.
    binary: both are [B, *S] or [B, 1, *S] with 0 and 1, and K is 1.
    multilabel: the prediction is [B, K, *S] with 0 and 1. The mask is the same, or [B, *S] with mask values if the
        labels have regions.

    Ignored pixels are in none of the three counts, regardless of the prediction. A class that is absent from both
    prediction and mask has the counts 0, 0, 0. The function does not synchronise with the device.

    Raises ValueError if the shapes differ or the prediction is not decoded. A valid pixel whose value in prediction or
    mask is not a class fails an assertion on the device.
    """
    pixels = pixel_counts(as_tensor(prediction), as_tensor(mask), labels)
    values = f"0 to {labels.channels - 1}" if labels.mode == "multiclass" else "0 or 1"
    _assert_none(pixels.invalid[:, 0], f"a prediction contains a value that is not {values}")
    _assert_none(
        pixels.invalid[:, 1], f"a mask contains a value that is neither {labels.values_text} nor {labels.padding_value}"
    )
    return pixels.counts


def pixel_counts(prediction: Tensor, mask: Tensor, labels: Labels) -> PixelCounts:
    """Count pixels like `count`, and in addition valid, ignored and invalid pixels and the confusion matrix.

    Values that are not a class are counted as invalid instead of failing. All sums are sums of integers, so the result
    does not depend on the order of pixels.
    """
    prediction, mask = _without_channel(prediction, mask, labels)
    check_pair(prediction, mask, labels)
    prediction, mask = labels.comparable(prediction), labels.comparable(mask)
    prediction, mask = _flatten(prediction, prediction, labels), _flatten(mask, prediction, labels)
    count_chunk = _count_exclusive if labels.mode == "multiclass" else _count_overlapping
    chunk_size = CHUNK_SIZE.get(mask.device.type, DEFAULT_CHUNK_SIZE)
    if labels.mode == "multiclass":  # the matrix of many classes should not cost more than the pixels of a chunk
        chunk_size = max(chunk_size, labels.channels**2)
    chunks = zip(prediction.split(chunk_size, -1), mask.split(chunk_size, -1), strict=True)
    return reduce(add, (count_chunk(predicted, reference, labels) for predicted, reference in chunks))


def _without_channel(prediction: Tensor, mask: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """In binary mode, remove the channel axis if only prediction or mask has it."""
    if labels.mode == "binary" and prediction.ndim == mask.ndim + 1 and prediction.shape[1] == 1:
        return prediction[:, 0], mask
    if labels.mode == "binary" and mask.ndim == prediction.ndim + 1 and mask.shape[1] == 1:
        return prediction, mask[:, 0]
    return prediction, mask


def check_pair(prediction: Tensor, mask: Tensor, labels: Labels) -> None:
    """Raise ValueError if a prediction is not decoded or the shapes of prediction and mask do not match."""
    if prediction.is_floating_point() or mask.is_floating_point():
        raise ValueError(
            f"expected integers, got a prediction of {prediction.dtype} and a mask of {mask.dtype}; "
            "decode logits with labels.decode(logits) first"
        )
    shape = list(prediction.shape)
    if labels.mode == "multilabel" and (prediction.ndim < 3 or shape[1] != labels.channels):
        raise ValueError(f"expected a prediction [B, {labels.channels}, *S] of 0 and 1, got {shape}")
    if prediction.ndim < 2:
        raise ValueError(f"expected a prediction [B, *S] of class numbers, got {shape}")
    mask_shapes = [shape, [shape[0], *shape[2:]]] if labels.regions is not None else [shape]
    if list(mask.shape) not in mask_shapes:
        expected = " or ".join(map(str, mask_shapes))
        raise ValueError(f"expected a mask {expected} for a prediction {shape}, got {list(mask.shape)}")


def _flatten(tensor: Tensor, prediction: Tensor, labels: Labels) -> Tensor:
    """Flatten the spatial axes: [B, N] for class numbers, [B, K, N] for overlapping classes."""
    has_channels = labels.mode == "multilabel" and tensor.ndim == prediction.ndim
    return tensor.flatten(2 if has_channels else 1)


def _count_exclusive(prediction: Tensor, mask: Tensor, labels: Labels) -> PixelCounts:
    """Count [B, N] of exclusive classes, from one histogram of (reference, prediction) pairs per image.

    The histogram has an additional bin for all values that are not a class.
    """
    classes = labels.channels
    histograms = torch.zeros(len(mask), (classes + 1) ** 2, dtype=torch.int64, device=mask.device)
    ones = histograms.new_ones(mask.shape[1])  # a materialised tensor: adding an expanded scalar takes twice as long
    for histogram, predicted, reference in zip(histograms, prediction, mask, strict=True):
        bins = _pair_bins(_merge_invalid(predicted, classes), _merge_invalid(reference, classes), classes)
        histogram.scatter_add_(0, bins, ones)
    pairs = histograms.unflatten(1, (classes + 1, classes + 1))
    matrix = pairs[:, :classes, :classes]
    ignored = mask.shape[1] - unequal(mask, labels.padding_value).view(torch.uint8).sum(1, dtype=torch.int64)
    return PixelCounts(
        counts=torch.stack([matrix.diagonal(dim1=1, dim2=2), matrix.sum(1), matrix.sum(2)], dim=-1),
        valid=matrix.sum((1, 2)).unsqueeze(1).expand(-1, classes),
        ignored=ignored.unsqueeze(1).expand(-1, classes),
        invalid=torch.stack([pairs[:, :classes, classes].sum(1), pairs[:, classes].sum(1) - ignored], 1),
        matrix=matrix,
    )


def _merge_invalid(values: Tensor, classes: int) -> Tensor:
    """Replace every value that is not below `classes` by `classes`.

    For uint8 a clamp does this, ten times faster than `where`.
    """
    if values.dtype == torch.uint8:
        return values.clamp(max=classes) if classes < torch.iinfo(torch.uint8).max else values
    if classes > torch.iinfo(values.dtype).max:
        values = values.int()
    return torch.where((values >= 0) & (values < classes), values, classes)


def _pair_bins(prediction: Tensor, reference: Tensor, classes: int) -> Tensor:
    """The histogram bin of each (reference, prediction) pair, int64; computed in the smallest sufficient type."""
    types = (torch.int16, torch.int32, torch.int64)
    small = next(dtype for dtype in types if (classes + 1) ** 2 <= torch.iinfo(dtype).max)
    return reference.to(small).mul_(classes + 1).add_(prediction.to(small)).to(torch.int64)


def _count_overlapping(prediction: Tensor, mask: Tensor, labels: Labels) -> PixelCounts:
    """Count predictions [B, K, N], or [B, N] in binary mode, and masks of either shape, for each channel alone."""
    prediction = prediction if prediction.ndim == 3 else prediction.unsqueeze(1)
    ignored, known, reference = _class_planes(mask, labels)
    annotated = known & ~ignored
    decoded = (prediction == 0) | (prediction == 1)
    valid = (annotated & decoded).expand_as(prediction)
    predicted, reference = (prediction == 1) & valid, reference & valid
    counts = torch.stack([_pixels(plane) for plane in (predicted & reference, predicted, reference)], dim=-1)
    return PixelCounts(
        counts=counts,
        valid=_pixels(valid),
        ignored=_pixels(ignored.expand_as(prediction)),
        invalid=torch.stack([_pixels(annotated & ~decoded).sum(1), _pixels(~known).sum(1)], 1),
        matrix=_two_by_two(counts[:, 0], _pixels(valid)[:, 0]) if labels.mode == "binary" else None,
    )


def _two_by_two(counts: Tensor, pixels: Tensor) -> Tensor:
    """The binary confusion matrix [B, 2, 2] from counts [B, 3] of the positive class and valid pixels [B]."""
    tp, predicted, reference = counts.unbind(-1)
    fp, fn = predicted - tp, reference - tp
    return torch.stack([pixels - tp - fp - fn, fp, fn, tp], -1).unflatten(-1, (2, 2))


def _class_planes(mask: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Where a mask is ignored, where its value is allowed, and where each class is: bool, [B, 1 or K, N]."""
    mask = mask if mask.ndim == 3 else mask.unsqueeze(1)
    ignored = mask == labels.padding_value
    known = is_any(mask, labels.values) | ignored
    if labels.regions is None:
        return ignored, known, mask == 1
    return ignored, known, torch.cat([is_any(mask, union) for union in labels.regions.values()], 1)


def _pixels(planes: Tensor) -> Tensor:
    """The number of true pixels of [B, K, N], int64 [B, K]."""
    return planes.sum(2)


def _assert_none(invalid: Tensor, message: str) -> None:
    assert_async((invalid == 0).all(), message)
