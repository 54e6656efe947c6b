"""Pixel counts for each image and class, made on the device. Every overlap score is derived from these."""

from __future__ import annotations

import torch
from torch import Tensor

from segkit.labels import Labels


def count(prediction: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Count pixels, int64 [B, K, 3]: true positives, predicted, reference. Nothing is read back to the host.

    multiclass: prediction and mask [B, *S] of class numbers. binary: both [B, *S] or [B, 1, *S] of 0 and 1, K = 1.
    multilabel: prediction [B, K, *S] of 0 and 1; mask the same, or [B, *S] of numbers where the labels have regions.
    Ignored pixels are in none of the three counts, whatever is predicted there; a class that is in neither prediction
    nor mask counts 0, 0, 0.

    Raises ValueError if the shapes differ or a prediction is not decoded. A valid pixel whose prediction is no class
    fails an assertion on the device.
    """
    prediction, mask = _without_channel(prediction, mask, labels)
    _check(prediction, mask, labels)
    if labels.mode == "multiclass":
        return _exclusive_counts(prediction, mask, labels)
    return _overlapping_counts(prediction, mask, labels)


def _without_channel(prediction: Tensor, mask: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """In binary mode, drop the channel axis that only one of the two has; where both have it, it does no harm."""
    if labels.mode == "binary" and prediction.ndim == mask.ndim + 1 and prediction.shape[1] == 1:
        return prediction[:, 0], mask
    if labels.mode == "binary" and mask.ndim == prediction.ndim + 1 and mask.shape[1] == 1:
        return prediction, mask[:, 0]
    return prediction, mask


def _check(prediction: Tensor, mask: Tensor, labels: Labels) -> None:
    if prediction.is_floating_point() or mask.is_floating_point():
        raise ValueError(
            f"expected whole numbers, got a prediction of {prediction.dtype} and a mask of {mask.dtype}; "
            "decode logits first, with labels.decode(logits)"
        )
    shape = list(prediction.shape)
    if labels.mode == "multilabel" and (prediction.ndim < 3 or shape[1] != labels.channels):
        raise ValueError(f"expected a prediction [B, {labels.channels}, *S] of 0 and 1, got {shape}")
    fitting = [shape, [shape[0], *shape[2:]]] if labels.regions is not None else [shape]
    if list(mask.shape) not in fitting:
        expected = " or ".join(str(fit) for fit in fitting)
        raise ValueError(f"expected a mask {expected} for a prediction {shape}, got {list(mask.shape)}")


def _exclusive_counts(prediction: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """One histogram of (reference, predicted) pairs, with a last bin for ignored pixels; counts are its margins."""
    target = labels.target(mask, spatial=mask.ndim - 1)
    assert target.index is not None
    assert target.valid is not None
    batch, classes = mask.shape[0], labels.channels
    _assert_known((prediction >= 0) & (prediction < classes) | ~target.valid, f"0 to {classes - 1}")
    pair = (target.index.to(torch.int64) * classes).add_(prediction)
    pair = torch.where(target.valid, pair, classes * classes).flatten(1)
    bins = torch.zeros(batch, classes * classes + 1, dtype=torch.int64, device=mask.device)
    bins.scatter_add_(1, pair, pair.new_ones(()).expand_as(pair))
    matrix = bins[:, :-1].view(batch, classes, classes)
    return torch.stack([matrix.diagonal(dim1=1, dim2=2), matrix.sum(1), matrix.sum(2)], dim=-1)


def _overlapping_counts(prediction: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Sums of ands, a channel at a time by broadcasting."""
    spatial = prediction.ndim - (2 if labels.mode == "multilabel" else 1)
    target = labels.target(mask, spatial=spatial)
    reference, valid = labels.onehot(target), target.valid_channels
    predicted = prediction.reshape(reference.shape)
    known = (predicted == 0) | (predicted == 1)
    _assert_known(known if valid is None else known | ~valid, "0 or 1")
    predicted = predicted == 1 if valid is None else (predicted == 1) & valid
    return torch.stack([_pixels(plane) for plane in (predicted & reference, predicted, reference)], dim=-1)


def _pixels(planes: Tensor) -> Tensor:
    """The number of true pixels of [B, K, *S], int64 [B, K]."""
    return planes.flatten(2).sum(2)


def _assert_known(known: Tensor, values: str) -> None:
    assert_async = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]
    assert_async(known.all(), f"a prediction holds a value that is not {values}")
