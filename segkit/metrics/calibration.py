"""How honest probabilities are: mergeable histograms made on the device, and the scores derived from them in float64.

Bins have equal width and are closed on the left, [k / bins, (k + 1) / bins); the last one holds 1 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from segkit.labels import Labels, Target, assert_async
from segkit.metrics.boundary import window_maximum

Kind = Literal["toplabel", "classwise"]
Region = Literal["all", "foreground", "boundary"]

# Confidences are summed as whole multiples of this, so that no order of pixels and no device changes a sum. It is far
# below what float32 resolves near 1, and 2**31 pixels of a case fit.
QUANTUM = 2.0**-32
ROUNDING = 0.01  # how far outside of 0 to 1 a probability may be: averages in half precision are


@dataclass(frozen=True)
class CalibrationCounts:
    """Sums over the pixels of B cases, from which every calibration score is derived.

    pixels: int64 [B, K or 1, bins], pixels whose confidence falls in the bin; one row for the top label, else K.
    confidence: float64, same shape, the sum of these confidences; exact to 2**-33 a pixel, in any order of pixels.
    correct: int64, same shape, those of the pixels where the class is right.
    brier: float64 [B], the sum over pixels and channels of (probability - reference)².
    nll: float64 [B], the sum over pixels of -log(probability of the truth).
    valid: int64 [B], the pixels that count.
    """

    pixels: Tensor
    confidence: Tensor
    correct: Tensor
    brier: Tensor
    nll: Tensor
    valid: Tensor

    def __add__(self, other: CalibrationCounts) -> CalibrationCounts:
        """The counts of the same cases, or of pooled ones, over the pixels of both. Raises ValueError if shapes differ.

        To put cases after each other, see `merge`.
        """
        if self.pixels.shape != other.pixels.shape:
            raise ValueError(
                f"expected counts of the same cases, classes and bins, got {list(self.pixels.shape)} and "
                f"{list(other.pixels.shape)}; different cases are put together by `merge`"
            )
        return _combine([self, other], lambda pair: pair[0] + pair[1])

    def pooled(self) -> CalibrationCounts:
        """The counts of all cases as of one, B = 1."""
        return _combine([self], lambda single: single[0].sum(0, keepdim=True))


def merge(parts: Sequence[CalibrationCounts]) -> CalibrationCounts:
    """The cases of several batches or ranks after each other. Raises ValueError if classes or bins differ."""
    shapes = {tuple(part.pixels.shape[1:]) for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"expected parts with the same classes and bins [K or 1, bins], got {sorted(shapes)}")
    return _combine(parts, torch.cat)


def _combine(parts: Sequence[CalibrationCounts], how: Callable[[list[Tensor]], Tensor]) -> CalibrationCounts:
    names = [field.name for field in fields(CalibrationCounts)]
    return CalibrationCounts(*(how([getattr(part, name) for part in parts]) for name in names))


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
    """Histograms of confidence for each image, and of how often it is right. Nothing is read back to the host.

    probabilities: floating [B, K, *S], after softmax or sigmoid; half precision is computed in float32.
    mask: integer [B, *S] of class numbers, [B, K, *S] of 0 and 1 for overlapping classes, as `labels.target` takes it.
    kind: `toplabel`, the largest probability and whether its class is right (binary: the probability of the decided
        side, positive above 0.5); `classwise`, each class against the rest (binary: the positive class).
    region: `all`; `foreground`, pixels whose reference is a foreground class (multilabel: any class); `boundary`,
        pixels within `band` pixels (Chebyshev) of a pixel of another class, so 2 * band across a straight edge. The
        border of the image and ignored pixels are no change of class.
    Ignored pixels are selected out, and NaN under them does no harm. A pixel ignored for some overlapping classes
    counts for the others. Nothing to count: zeros, and NaN scores.
    The probability of the truth in `nll` is at least the smallest normal number of its type: at most 87.4 a pixel in
    float32. For binary and multilabel it is summed over channels.

    Raises ValueError for shapes that do not fit, an unknown kind or region, bins or band below 1, and for `toplabel`
    of overlapping classes. A counted probability that is NaN or not between 0 and 1 fails an assertion on the device.
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
    # a class at a time: the indices and sums of a histogram take 24 bytes a pixel
    classes = list(zip(probabilities.unbind(1), reference.unbind(1), counted.unbind(1), strict=True))
    events = classes if kind == "classwise" else [_top_label(probabilities, reference, counted, labels)]
    histograms = [_histogram(*event, bins) for event in events]
    pixels, confidence, correct = (torch.stack(part, dim=1) for part in zip(*histograms, strict=True))
    brier = torch.stack([_squared_error(*planes) for planes in classes]).sum(0)
    nll = torch.stack([_surprise(*planes, labels) for planes in classes]).sum(0)
    return CalibrationCounts(pixels, confidence, correct, brier, nll, valid)


def _check_choices(labels: Labels, bins: int, kind: Kind, region: Region, band: int) -> None:
    if kind not in get_args(Kind) or region not in get_args(Region):
        raise ValueError(
            f"expected a kind of {', '.join(get_args(Kind))} and a region of {', '.join(get_args(Region))}, "
            f"got {kind!r} and {region!r}"
        )
    if kind == "toplabel" and labels.mode == "multilabel":
        raise ValueError("overlapping classes have no top label; take kind='classwise'")
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
    known = (probabilities >= -ROUNDING) & (probabilities <= 1 + ROUNDING)
    assert_async((known | ~counted).all(), "a probability that counts is not between 0 and 1: are they logits?")


def _counted(target: Target, reference: Tensor, labels: Labels, region: Region, band: int) -> Tensor:
    """The pixels to count, bool [B, 1 or K, *S]."""
    valid = target.valid_channels
    assert valid is not None
    if region == "foreground":
        return valid & _foreground(reference, labels)
    return valid & _near_change(target, reference, valid, band) if region == "boundary" else valid


def _foreground(reference: Tensor, labels: Labels) -> Tensor:
    """Pixels of any class but the background, bool [B, 1, *S]."""
    foreground = reference.any(1, keepdim=True)
    background = labels.background_channel
    return foreground if background is None else foreground & ~reference[:, background, None]


def _near_change(target: Target, reference: Tensor, valid: Tensor, band: int) -> Tensor:
    """Pixels with more than one class among the valid pixels within `band`, bool [B, 1, *S]."""
    # class numbers need one pair of pools where they are exclusive, whatever the number of classes
    numbers = (reference if target.index is None else target.index.unsqueeze(1)).to(torch.float32)
    highest = window_maximum(torch.where(valid, numbers, -torch.inf), band)
    lowest = -window_maximum(torch.where(valid, -numbers, -torch.inf), band)
    return (highest > lowest).any(1, keepdim=True)


def _top_label(
    probabilities: Tensor, reference: Tensor, counted: Tensor, labels: Labels
) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, whether it is right, and whether it counts, of the decision at each pixel: three [B, *S]."""
    if labels.mode == "binary":
        positive = probabilities > 0.5
        confidence, correct = torch.where(positive, probabilities, 1 - probabilities), positive == reference
    else:
        confidence, top = probabilities.max(1, keepdim=True)
        correct = reference.gather(1, top)
    return confidence[:, 0], correct[:, 0], counted[:, 0]


def _histogram(confidence: Tensor, correct: Tensor, counted: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, sums of confidence and correct pixels of each bin, [B, bins], from [B, *S]."""
    confidence = torch.where(counted, confidence, 0).contiguous()
    # rounded to the type of the probabilities, so that 0.2 is in the bin that begins with 0.2
    inner = torch.arange(1, bins, dtype=torch.float64, device=confidence.device).div(bins).to(confidence.dtype)
    place = torch.where(counted, torch.bucketize(confidence, inner, right=True), bins).flatten(1)
    units = confidence.to(torch.float64).div(QUANTUM).round().to(torch.int64)
    sums = _sums_by_bin(place, units, bins).to(torch.float64) * QUANTUM
    return _sums_by_bin(place, place.new_ones(()), bins), sums, _sums_by_bin(place, correct.to(torch.int64), bins)


def _sums_by_bin(place: Tensor, values: Tensor, bins: int) -> Tensor:
    """Integer sums [B, bins] of values [B, *S] or [] by bin [B, N]; uncounted pixels go to a last bin that is left out.

    Sums of integers do not depend on the order of atomic additions.
    """
    values = values.flatten(1) if values.ndim else values.expand_as(place)
    sums = torch.zeros(place.shape[0], bins + 1, dtype=torch.int64, device=place.device)
    return sums.scatter_add_(1, place, values)[:, :bins]


def _squared_error(probability: Tensor, reference: Tensor, counted: Tensor) -> Tensor:
    """The part of one channel in the Brier score, summed over pixels: float64 [B]."""
    return _total((probability - reference.to(probability.dtype)).square(), counted)


def _surprise(probability: Tensor, reference: Tensor, counted: Tensor, labels: Labels) -> Tensor:
    """The part of one channel in the negative log-likelihood, summed over pixels: float64 [B]."""
    otherwise = torch.ones_like(probability) if labels.mode == "multiclass" else 1 - probability
    truth = torch.where(reference, probability, otherwise)
    return _total(-truth.clamp(torch.finfo(truth.dtype).tiny, 1).log(), counted)


def _total(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).flatten(1).sum(1, dtype=torch.float64)


class Reliability(NamedTuple):
    """The bars of a reliability diagram; NaN in accuracy and confidence where a bin is empty. All [B, K or 1, bins]."""

    accuracy: Tensor
    confidence: Tensor
    pixels: Tensor


def reliability(counts: CalibrationCounts) -> Reliability:
    """Accuracy correct / pixels, mean confidence, and pixels of each bin, for a diagram (DeGroot and Fienberg, 1983).

    float64 and int64 [B, K or 1, bins]; empty bins are NaN with 0 pixels.
    """
    return Reliability(counts.correct / counts.pixels.double(), counts.confidence / counts.pixels, counts.pixels)


def _gaps(counts: CalibrationCounts) -> Tensor:
    """|accuracy - mean confidence| of each bin, NaN where it is empty."""
    bars = reliability(counts)
    return (bars.accuracy - bars.confidence).abs()


def ece(counts: CalibrationCounts) -> Tensor:
    """Expected calibration error: the mean over pixels of |accuracy - mean confidence| of their bin.

    float64 [B, K or 1], 0 to 1; NaN where no pixel counts. Source: Naeini, Cooper and Hauskrecht, 2015.
    """
    return (counts.correct - counts.confidence).abs().sum(-1) / counts.pixels.sum(-1)


def mce(counts: CalibrationCounts) -> Tensor:
    """Maximum calibration error: the largest |accuracy - mean confidence| of a bin that has pixels.

    float64 [B, K or 1], 0 to 1; NaN where no pixel counts. Source: Naeini, Cooper and Hauskrecht, 2015.
    """
    largest = _gaps(counts).nan_to_num(nan=-1).amax(-1)
    return torch.where(largest < 0, torch.nan, largest)


def equal_weight_ece(counts: CalibrationCounts) -> Tensor:
    """The mean of |accuracy - mean confidence| over the bins that have pixels, each bin counting the same.

    float64 [B, K or 1], 0 to 1; NaN where no pixel counts. MONAI calls it average calibration error, ACE; others mean
    bins of equal mass by that. Source: Neumann, Zisserman and Vedaldi, 2018.
    """
    return _gaps(counts).nanmean(-1)


def brier(counts: CalibrationCounts) -> Tensor:
    """Brier score: the mean over pixels of the sum over channels of (probability - reference)².

    float64 [B], 0 to 2 for multiclass, 0 to 1 for binary (half of what the same model has as two classes), 0 to K for
    multilabel; NaN where no pixel counts. Source: Brier, 1950.
    """
    return counts.brier / counts.valid


def nll(counts: CalibrationCounts) -> Tensor:
    """Negative log-likelihood: the mean over pixels of -log(probability of the truth), in nats.

    float64 [B], from 0, at most 87.4 a channel for float32 probabilities; NaN where no pixel counts.
    """
    return counts.nll / counts.valid
