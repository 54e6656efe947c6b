"""Pixel counts for each image and class, made on the device. Every overlap score is derived from these."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.labels import Labels, unequal

# Of an image: where a pixel takes some 15 bytes while it is counted, these stay in the cache of a CPU.
PIXELS_AT_ONCE = {"cpu": 2**18}
PIXELS_AT_ONCE_ELSEWHERE = 2**24


@dataclass(frozen=True)
class Tally:
    """What a batch of predictions and masks holds, int64, on their device.

    counts: [B, K, 3], true positives, predicted and reference pixels. pixels: [B, K], those that count for a class.
    ignored: [B, K], those that the mask ignores. unknown: [B, 2], those whose prediction, and whose mask, holds a value
    that is no class; they are in none of the other numbers. matrix: [B, C, C] for the C classes of `labels.names`, rows
    the reference, columns the prediction; None where classes overlap.
    """

    counts: Tensor
    pixels: Tensor
    ignored: Tensor
    unknown: Tensor
    matrix: Tensor | None

    def __add__(self, other: Tally) -> Tally:
        """The numbers of two parts of the same images together."""
        matrix = None if self.matrix is None or other.matrix is None else self.matrix + other.matrix
        return Tally(
            self.counts + other.counts,
            self.pixels + other.pixels,
            self.ignored + other.ignored,
            self.unknown + other.unknown,
            matrix,
        )


def count(prediction: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Count pixels, int64 [B, K, 3]: true positives, predicted, reference. Nothing is read back to the host.

    multiclass: prediction and mask [B, *S] of class numbers. binary: both [B, *S] or [B, 1, *S] of 0 and 1, K = 1.
    multilabel: prediction [B, K, *S] of 0 and 1; mask the same, or [B, *S] of numbers where the labels have regions.
    Ignored pixels are in none of the three counts, whatever is predicted there; a class that is in neither prediction
    nor mask counts 0, 0, 0.

    Raises ValueError if the shapes differ or a prediction is not decoded. A valid pixel whose prediction or mask is no
    class fails an assertion on the device.
    """
    found = tally(prediction, mask, labels)
    values = f"0 to {labels.channels - 1}" if labels.mode == "multiclass" else "0 or 1"
    _assert_none(found.unknown[:, 0], f"a prediction holds a value that is not {values}")
    _assert_none(
        found.unknown[:, 1], f"a mask holds a value that is neither {labels.values_in_words} nor {labels.padding_value}"
    )
    return found.counts


def tally(prediction: Tensor, mask: Tensor, labels: Labels) -> Tally:
    """Everything that is counted, for prediction and mask as in `count`; values that are no class are counted too.

    Whole numbers are added up, so the order of pixels, images or pieces of a volume makes no difference.
    """
    prediction, mask = _without_channel(prediction, mask, labels)
    check_pair(prediction, mask, labels)
    prediction, mask = labels.comparable(prediction), labels.comparable(mask)
    prediction, mask = _flat(prediction, prediction, labels), _flat(mask, prediction, labels)
    of_piece = _exclusive if labels.mode == "multiclass" else _overlapping
    at_once = PIXELS_AT_ONCE.get(mask.device.type, PIXELS_AT_ONCE_ELSEWHERE)
    pieces = zip(prediction.split(at_once, -1), mask.split(at_once, -1), strict=True)
    first, *rest = [of_piece(predicted, reference, labels) for predicted, reference in pieces]
    return sum(rest, first)


def _without_channel(prediction: Tensor, mask: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """In binary mode, drop the channel axis that only one of the two has; where both have it, it does no harm."""
    if labels.mode == "binary" and prediction.ndim == mask.ndim + 1 and prediction.shape[1] == 1:
        return prediction[:, 0], mask
    if labels.mode == "binary" and mask.ndim == prediction.ndim + 1 and mask.shape[1] == 1:
        return prediction, mask[:, 0]
    return prediction, mask


def check_pair(prediction: Tensor, mask: Tensor, labels: Labels) -> None:
    """Raise ValueError for a prediction that is not decoded, and for shapes that do not fit each other."""
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


def _flat(given: Tensor, prediction: Tensor, labels: Labels) -> Tensor:
    """[B, N] for class numbers, [B, K, N] for planes of overlapping classes."""
    planes = labels.mode == "multilabel" and given.ndim == prediction.ndim
    return given.flatten(2 if planes else 1)


def _exclusive(prediction: Tensor, mask: Tensor, labels: Labels) -> Tally:
    """One histogram of (reference, prediction) pairs an image, of [B, N], in which all that is no class is one more."""
    end = labels.channels
    bins = torch.zeros(len(mask), (end + 1) ** 2, dtype=torch.int64, device=mask.device)
    ones = bins.new_ones(mask.shape[1])  # in memory: adding one number seen many times takes twice as long
    for of_image, predicted, reference in zip(bins, prediction, mask, strict=True):
        place = _pairs(_with_rest(predicted, end), _with_rest(reference, end), end)
        of_image.scatter_add_(0, place, ones)
    pairs = bins.unflatten(1, (end + 1, end + 1))
    matrix = pairs[:, :end, :end]
    ignored = mask.shape[1] - unequal(mask, labels.padding_value).view(torch.uint8).sum(1, dtype=torch.int64)
    return Tally(
        counts=torch.stack([matrix.diagonal(dim1=1, dim2=2), matrix.sum(1), matrix.sum(2)], dim=-1),
        pixels=matrix.sum((1, 2)).unsqueeze(1).expand(-1, end),
        ignored=ignored.unsqueeze(1).expand(-1, end),
        unknown=torch.stack([pairs[:, :end, end].sum(1), pairs[:, end].sum(1) - ignored], 1),
        matrix=matrix,
    )


def _with_rest(values: Tensor, end: int) -> Tensor:
    """Values with `end` for all that is not below it. For bytes a clamp does it, in a tenth of the time of `where`."""
    if values.dtype == torch.uint8:
        return values.clamp(max=end) if end < torch.iinfo(torch.uint8).max else values
    if end > torch.iinfo(values.dtype).max:
        values = values.int()
    return torch.where((values >= 0) & (values < end), values, end)


def _pairs(prediction: Tensor, reference: Tensor, end: int) -> Tensor:
    """The bin of each pair, int64; made in the smallest type that holds the bins."""
    small = torch.int16 if (end + 1) ** 2 <= torch.iinfo(torch.int16).max else torch.int32
    return reference.to(small).mul_(end + 1).add_(prediction.to(small)).to(torch.int64)


def _overlapping(prediction: Tensor, mask: Tensor, labels: Labels) -> Tally:
    """Sums of ands, of predictions [B, K, N], or [B, N] in binary mode, and masks of either shape."""
    prediction = prediction if prediction.ndim == 3 else prediction.unsqueeze(1)
    ignored, known, reference = _planes(mask, labels)
    counted = known & ~ignored
    decided = (prediction == 0) | (prediction == 1)
    valid = (counted & decided).expand_as(prediction)
    predicted, reference = (prediction == 1) & valid, reference & valid
    counts = torch.stack([_pixels(plane) for plane in (predicted & reference, predicted, reference)], dim=-1)
    return Tally(
        counts=counts,
        pixels=_pixels(valid),
        ignored=_pixels(ignored.expand_as(prediction)),
        unknown=torch.stack([_pixels(counted & ~decided).sum(1), _pixels(~known).sum(1)], 1),
        matrix=_two_by_two(counts[:, 0], _pixels(valid)[:, 0]) if labels.mode == "binary" else None,
    )


def _two_by_two(counts: Tensor, pixels: Tensor) -> Tensor:
    """The confusion matrix [B, 2, 2] of negative and positive, from counts [B, 3] of the positive and pixels [B]."""
    tp, predicted, reference = counts.unbind(-1)
    fp, fn = predicted - tp, reference - tp
    return torch.stack([pixels - tp - fp - fn, fp, fn, tp], -1).unflatten(-1, (2, 2))


def _planes(mask: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Where a mask is ignored, holds a value with a meaning, and shows each class: bool, [B, 1 or K, N]."""
    mask = mask if mask.ndim == 3 else mask.unsqueeze(1)
    ignored = mask == labels.padding_value
    known = torch.stack([mask == value for value in labels.values]).any(0) | ignored
    if labels.regions is None:
        return ignored, known, mask == 1
    unions = [torch.stack([mask == value for value in union]).any(0) for union in labels.regions.values()]
    return ignored, known, torch.cat(unions, 1)


def _pixels(planes: Tensor) -> Tensor:
    """The number of true pixels of [B, K, N], int64 [B, K]."""
    return planes.sum(2)


def _assert_none(unknown: Tensor, message: str) -> None:
    assert_async = torch._assert_async  # pyright: ignore[reportPrivateImportUsage]
    assert_async((unknown == 0).all(), message)
