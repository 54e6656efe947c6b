"""Calibration of predicted probabilities: mergeable histograms, computed on the device, and scores in float64.

Bins have equal width and are closed on the left, [k / bins, (k + 1) / bins); the last one includes 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from segkit.labels import Labels, Target, assert_async
from segkit.metrics.boundary import maximum_filter

Kind = Literal["toplabel", "classwise"]
Region = Literal["all", "foreground", "boundary"]

# Confidences are summed as integer multiples of this quantum, so that sums depend neither on the order of pixels nor on
# the device. It is far below the resolution of float32 near 1, and sums over 2**32 pixels do not overflow.
QUANTUM = 2.0**-30
ROUNDING = 0.01  # tolerated excess over the range 0 to 1, which averages in half precision can have


@dataclass(frozen=True)
class CalibrationCounts:
    """Sums over the pixels of B cases, from which all calibration scores are derived.

    pixels: number of pixels whose confidence is in each bin, int64 [B, K or 1, bins]; one row for the top label,
        otherwise one per class.
    confidence: sum of these confidences, float64 of the same shape; exact to 2**-31 per pixel, in any order of pixels.
    correct: number of these pixels whose class is correct, int64 of the same shape.
    brier: sum over pixels and channels of (probability - reference)², float64 [B].
    nll: sum over pixels of -log(probability of the reference class), float64 [B].
    valid: number of counted pixels, int64 [B].
    """

    pixels: Tensor
    confidence: Tensor
    correct: Tensor
    brier: Tensor
    nll: Tensor
    valid: Tensor

    def __add__(self, other: CalibrationCounts) -> CalibrationCounts:
        """Sum the counts of the same cases, or of pooled cases, over the pixels of both.

        To concatenate different cases, use `merge`. Raises ValueError if the shapes differ.
        """
        if self.pixels.shape != other.pixels.shape:
            raise ValueError(
                f"expected counts of the same cases, classes and bins, got {list(self.pixels.shape)} and "
                f"{list(other.pixels.shape)}; use `merge` for different cases"
            )
        return _combine([self, other], lambda pair: pair[0] + pair[1])

    def pooled(self) -> CalibrationCounts:
        """The counts summed over all cases, B = 1."""
        return _combine([self], lambda single: single[0].sum(0, keepdim=True))


def merge(parts: Sequence[CalibrationCounts]) -> CalibrationCounts:
    """Concatenate the cases of several batches or ranks. Raises ValueError if classes or bins differ."""
    shapes = {tuple(part.pixels.shape[1:]) for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"expected parts with the same classes and bins [K or 1, bins], got {sorted(shapes)}")
    return _combine(parts, torch.cat)


def _combine(parts: Sequence[CalibrationCounts], function: Callable[[list[Tensor]], Tensor]) -> CalibrationCounts:
    names = [field.name for field in fields(CalibrationCounts)]
    return CalibrationCounts(*(function([getattr(part, name) for part in parts]) for name in names))


def calibration_counts(
    probabilities: Tensor,
    mask: Tensor,
    labels: Labels,
    *,
    bins: int = 15,
    kind: Kind = "toplabel",
    region: Region = "all",
    band: int = 2,
) -> CalibrationCounts:
    """Compute the histograms of confidence and accuracy of each image.

    probabilities: floating point [B, K, *S], after softmax or sigmoid; half precision is converted to float32.
    mask: integer [B, *S] of class numbers, or [B, K, *S] of 0 and 1 for overlapping classes, as for `labels.target`.
    bins: number of bins.
    kind: `toplabel`: the confidence is the largest probability, and it is correct if its class is. In binary mode it is
        the probability of the decision, which is positive above 0.5. `classwise`: each class against all others; in
        binary mode the positive class.
    region: `all`: all valid pixels. `foreground`: pixels whose reference is a foreground class (multilabel: any class).
        `boundary`: pixels within `band` pixels (Chebyshev) of a pixel of another class, so that the region is
        2 * band pixels wide along a straight edge. The border of the image and ignored pixels are not an edge.
    band: see `region`.

    Ignored pixels are excluded, even if their probabilities are NaN. A pixel that is ignored for some overlapping
    classes is counted for the others. If there is no pixel to count, all sums are 0 and the scores NaN. The function
    does not synchronise with the device.

    In `nll`, probabilities are clamped to the smallest normal number of their type, which limits a pixel to 87.4 in
    float32. For binary and multilabel, `nll` is summed over the channels.

    Raises ValueError for unexpected shapes, an unknown kind or region, fewer than 1 bin or a band below 1, and for
    `toplabel` with overlapping classes. A counted probability that is NaN or outside of 0 to 1 fails an assertion on
    the device.
    Sources: Guo et al., 2017 (top label); Kull et al., 2019 (class-wise); Brier, 1950.
    """
    _check_choices(labels, bins, kind, region, band)
    _check_tensors(probabilities, mask, labels)
    probabilities = probabilities.detach().to(torch.promote_types(probabilities.dtype, torch.float32))
    target = labels.target(mask, spatial=probabilities.ndim - 2)
    reference = labels.onehot(target)
    counted = _counted(target, reference, labels, region, band)
    valid = counted.any(1).flatten(1).sum(1)
    counted = counted.expand_as(reference)
    _assert_probabilities(probabilities, counted)
    # one class at a time: the indices and sums of a histogram take 24 bytes per pixel
    classes = list(zip(probabilities.unbind(1), reference.unbind(1), counted.unbind(1), strict=True))
    events = classes if kind == "classwise" else [_top_label(probabilities, reference, counted, labels)]
    histograms = [_histogram(*event, bins) for event in events]
    pixels, confidence, correct = (torch.stack(part, dim=1) for part in zip(*histograms, strict=True))
    brier = torch.stack([_squared_error(*planes) for planes in classes]).sum(0)
    nll = torch.stack([_negative_log_likelihood(*planes, labels) for planes in classes]).sum(0)
    return CalibrationCounts(pixels, confidence, correct, brier, nll, valid)


def _check_choices(labels: Labels, bins: int, kind: Kind, region: Region, band: int) -> None:
    if kind not in get_args(Kind) or region not in get_args(Region):
        raise ValueError(
            f"expected kind to be one of {', '.join(get_args(Kind))} and region one of {', '.join(get_args(Region))}, "
            f"got {kind!r} and {region!r}"
        )
    if kind == "toplabel" and labels.mode == "multilabel":
        raise ValueError("overlapping classes have no top label; use kind='classwise'")
    if bins < 1 or band < 1:
        raise ValueError(f"expected at least 1 bin and a band of at least 1 pixel, got {bins} and {band}")


def _check_tensors(probabilities: Tensor, mask: Tensor, labels: Labels) -> None:
    shape = list(probabilities.shape)
    if not probabilities.is_floating_point() or len(shape) < 3 or shape[1] != labels.channels:
        raise ValueError(
            f"expected floating probabilities [B, {labels.channels}, *S], got {shape} of {probabilities.dtype}"
        )
    if mask.is_floating_point() or list(mask.shape) not in (shape, [shape[0], *shape[2:]]):
        raise ValueError(
            f"expected an integer mask {[shape[0], *shape[2:]]} or {shape} for probabilities {shape}, "
            f"got {list(mask.shape)} of {mask.dtype}"
        )


def _assert_probabilities(probabilities: Tensor, counted: Tensor) -> None:
    in_range = (probabilities >= -ROUNDING) & (probabilities <= 1 + ROUNDING)
    assert_async((in_range | ~counted).all(), "a probability of a valid pixel is not between 0 and 1: are they logits?")


def _counted(target: Target, reference: Tensor, labels: Labels, region: Region, band: int) -> Tensor:
    """The pixels that are counted, bool [B, 1 or K, *S]."""
    valid = target.valid_channels
    assert valid is not None
    if region == "foreground":
        return valid & _foreground(reference, labels)
    return valid & _near_edge(target, reference, valid, band) if region == "boundary" else valid


def _foreground(reference: Tensor, labels: Labels) -> Tensor:
    """Pixels of a foreground class, bool [B, 1, *S]."""
    foreground = reference.any(1, keepdim=True)
    background = labels.background_channel
    return foreground if background is None else foreground & ~reference[:, background, None]


def _near_edge(target: Target, reference: Tensor, valid: Tensor, band: int) -> Tensor:
    """Pixels with more than one class among the valid pixels within `band` pixels, bool [B, 1, *S]."""
    # for exclusive classes, one pair of filters on the class numbers is enough for any number of classes
    numbers = (reference if target.index is None else target.index.unsqueeze(1)).to(torch.float32)
    highest = maximum_filter(torch.where(valid, numbers, -torch.inf), band)
    lowest = -maximum_filter(torch.where(valid, -numbers, -torch.inf), band)
    return (highest > lowest).any(1, keepdim=True)


def _top_label(
    probabilities: Tensor, reference: Tensor, counted: Tensor, labels: Labels
) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence of the decision at each pixel, whether it is correct, and whether it is counted: [B, *S] each."""
    if labels.mode == "binary":
        positive = probabilities > 0.5
        confidence, correct = torch.where(positive, probabilities, 1 - probabilities), positive == reference
    else:
        confidence, top = probabilities.max(1, keepdim=True)
        correct = reference.gather(1, top)
    return confidence[:, 0], correct[:, 0], counted[:, 0]


def _histogram(confidence: Tensor, correct: Tensor, counted: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """The number of pixels, the sum of confidences and the number of correct pixels of each bin, [B, bins]."""
    confidence = torch.where(counted, confidence, 0).contiguous()
    # edges are rounded to the type of the probabilities, so that 0.2 is in the bin that starts at 0.2
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device).div(bins).to(confidence.dtype)
    indices = torch.where(counted, torch.bucketize(confidence, edges, right=True), bins).flatten(1)
    quanta = confidence.to(torch.float64).div(QUANTUM).round().to(torch.int64)
    sums = _sums_by_bin(indices, quanta, bins).to(torch.float64) * QUANTUM
    pixels = _sums_by_bin(indices, indices.new_ones(()), bins)
    return pixels, sums, _sums_by_bin(indices, correct.to(torch.int64), bins)


def _sums_by_bin(indices: Tensor, values: Tensor, bins: int) -> Tensor:
    """Integer sums [B, bins] of values [B, *S] or [] by bin index [B, N].

    Pixels that are not counted are in an additional last bin, which is dropped. Sums of integers do not depend on the
    order of atomic additions.
    """
    values = values.flatten(1) if values.ndim else values.expand_as(indices)
    sums = torch.zeros(indices.shape[0], bins + 1, dtype=torch.int64, device=indices.device)
    return sums.scatter_add_(1, indices, values)[:, :bins]


def _squared_error(probability: Tensor, reference: Tensor, counted: Tensor) -> Tensor:
    """The contribution of one channel to the Brier score, summed over pixels: float64 [B]."""
    return _total((probability - reference.to(probability.dtype)).square(), counted)


def _negative_log_likelihood(probability: Tensor, reference: Tensor, counted: Tensor, labels: Labels) -> Tensor:
    """The contribution of one channel to the negative log-likelihood, summed over pixels: float64 [B]."""
    complement = torch.ones_like(probability) if labels.mode == "multiclass" else 1 - probability
    likelihood = torch.where(reference, probability, complement)
    return _total(-likelihood.clamp(torch.finfo(likelihood.dtype).tiny, 1).log(), counted)


def _total(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).flatten(1).sum(1, dtype=torch.float64)


class Reliability(NamedTuple):
    """The bars of a reliability diagram, [B, K or 1, bins] each; accuracy and confidence of empty bins are NaN."""

    accuracy: Tensor
    confidence: Tensor
    pixels: Tensor


def reliability(counts: CalibrationCounts) -> Reliability:
    """Accuracy (correct / pixels), mean confidence and number of pixels of each bin, for a reliability diagram.

    float64, float64 and int64 [B, K or 1, bins]. Empty bins have NaN and 0 pixels. Source: DeGroot and Fienberg, 1983.
    """
    return Reliability(counts.correct / counts.pixels.double(), counts.confidence / counts.pixels, counts.pixels)


def _gaps(counts: CalibrationCounts) -> Tensor:
    """|accuracy - mean confidence| of each bin; NaN for empty bins."""
    bars = reliability(counts)
    return (bars.accuracy - bars.confidence).abs()


def ece(counts: CalibrationCounts) -> Tensor:
    """Expected calibration error: the mean over pixels of |accuracy - mean confidence| of their bin.

    float64 [B, K or 1], 0 to 1; NaN if no pixel is counted. Source: Naeini, Cooper and Hauskrecht, 2015.
    """
    return (counts.correct - counts.confidence).abs().sum(-1) / counts.pixels.sum(-1)


def mce(counts: CalibrationCounts) -> Tensor:
    """Maximum calibration error: the largest |accuracy - mean confidence| of the non-empty bins.

    float64 [B, K or 1], 0 to 1; NaN if no pixel is counted. Source: Naeini, Cooper and Hauskrecht, 2015.
    """
    largest = _gaps(counts).nan_to_num(nan=-1).amax(-1)
    return torch.where(largest < 0, torch.nan, largest)


def equal_weight_ece(counts: CalibrationCounts) -> Tensor:
    """The mean of |accuracy - mean confidence| over the non-empty bins, with equal weight per bin.

    float64 [B, K or 1], 0 to 1; NaN if no pixel is counted. MONAI calls it average calibration error (ACE), a name that
    others use for bins of equal mass. Source: Neumann, Zisserman and Vedaldi, 2018.
    """
    return _gaps(counts).nanmean(-1)


def brier(counts: CalibrationCounts) -> Tensor:
    """Brier score: the mean over pixels of the sum over channels of (probability - reference)².

    float64 [B]; 0 to 2 for multiclass, 0 to 1 for binary (half the value of the same model with two classes), 0 to K
    for multilabel; NaN if no pixel is counted. Source: Brier, 1950.
    """
    return counts.brier / counts.valid


def nll(counts: CalibrationCounts) -> Tensor:
    """Negative log-likelihood: the mean over pixels of -log(probability of the reference class), in nats.

    float64 [B]; at least 0 and at most 87.4 per channel for float32 probabilities; NaN if no pixel is counted.
    """
    return counts.nll / counts.valid
