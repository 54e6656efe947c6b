"""The Lovász losses: the choice of classes and the mean over them; `lovasz_kernels` computes the loss of a class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import Batch, ScratchBuffers, activation_of
from segkit.losses.lovasz_kernels import (
    Bins,
    Counting,
    Errors,
    EvenBins,
    HingeErrors,
    Method,
    OctaveBins,
    ProbabilityErrors,
    Sorting,
    lovasz_losses,
)
from segkit.losses.region import divided, mean_over_counted
from segkit.utils.text import shown

MOST_BINS = 2**24
Per = Literal["batch", "image"]
Classes = Literal["present", "all"] | list[str | int]


class ChosenMean(nn.Module):
    """The mean over chosen classes. The Lovász losses have the same options.

    per: `batch` pools the pixels of the batch; `image` averages over the counted classes of each image, then over the
        images with counted classes.
    classes: `present` counts the classes in the reference of the batch or image, `all` counts every class, and a list
        of class names or numbers counts these classes. An absent class that is counted has its largest error as loss.
    """

    def __init__(self, labels: Labels, reduce: Reduce, per: Per, classes: Classes) -> None:
        super().__init__()
        self.labels, self.reduce, self.per = labels, reduce, per
        self.present_only = isinstance(classes, str) and classes == "present"
        self.chosen: Tensor
        chosen = torch.zeros(labels.channels, dtype=torch.bool)
        chosen[_channels_of(classes, labels)] = True
        self.register_buffer("chosen", chosen, persistent=False)

    def forward(self, logits: Tensor, target: Target, method: Method, name: str) -> Tensor:
        """The mean of the losses, a scalar; 0 with gradient 0 if no class is counted."""
        _refuse_unsupported(target, name)
        batch = Batch(logits, target, self.labels, method.errors.activation)
        groups = 1 if self.per == "batch" else logits.shape[0]
        weights = self._counted(batch, method)
        total, number = mean_over_counted(lovasz_losses(batch, method, groups), weights)
        if self.per == "image":
            total, number = self.reduce(total, number)
        return divided(total, number)

    @torch.no_grad()
    def _counted(self, batch: Batch, method: Method) -> Tensor:
        """1 for each group and class that is counted, otherwise 0, [G, K]."""
        has_pixels = torch.zeros(batch.logits.shape[:2], dtype=torch.bool, device=batch.logits.device)
        buffers = ScratchBuffers()
        for chunk_slice in batch.chunk_slices():
            mask = batch.mask_chunk(chunk_slice, buffers)
            eligible = mask.share > 0 if self.present_only else torch.ones_like(mask.share, dtype=torch.bool)
            in_chunk = eligible.any(-1) if mask.valid is None else (eligible & mask.valid).any(-1)
            if torch.compiler.is_compiling():
                has_pixels = in_chunk  # the only chunk
            else:
                has_pixels[chunk_slice.images] |= in_chunk
        counted = (has_pixels & self.chosen).to(batch.work_type)
        if self.per == "image":
            return counted
        # with several processes, a class is present if one of them contains it
        return (method.reduce(counted.sum(0, keepdim=True))[0] > 0).to(batch.work_type)


class LovaszSoftmax(nn.Module):
    """The convex closure of the Jaccard loss at the errors |onehot - probability| (Berman et al. 2018).

    The probabilities are a softmax in multiclass mode, otherwise a sigmoid per channel.

    mode: `histogram` counts errors in `bins` bins of equal width instead of sorting them. The error of the loss is at
        most 1 / (2 bins), and with several processes the loss is that of the whole batch. `exact` sorts the errors;
        with several processes the loss is that of each process alone.
    per, classes: see `ChosenMean`.

    Ignored pixels do not contribute; if all pixels are ignored, the loss is 0. Values lie in [0, 1]. Raises ValueError
    for soft targets and pixel weights, for which the loss is not defined, and at build for fewer than 16 bins.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        reduce: Reduce = single_process,
        per: Per = "batch",
        classes: Classes = "present",
        mode: Literal["histogram", "exact"] = "histogram",
        bins: int = 65536,
    ) -> None:
        super().__init__()
        errors = ProbabilityErrors(activation_of(labels))
        self.method = _method(errors, mode, EvenBins(_checked_bins(bins)), reduce if per == "batch" else single_process)
        self.mean = ChosenMean(labels, reduce, per, classes)

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """The loss of logits [B, K, *S], a scalar."""
        return self.mean(logits, target, self.method, "lovasz_softmax")


class LovaszHinge(nn.Module):
    """The convex closure of the Jaccard loss at the errors max(0, 1 - z) on the pixels of a class, max(0, 1 + z) on all
    others, z being the logit of the class (Yu & Blaschko 2015).

    mode: `histogram` counts errors in `bins` bins, equally many for each doubling of the error from 2^-8 to 2^8. The
        error of the loss is at most 8 / bins of its value plus 2^-8, as long as no logit is beyond 255 on the wrong
        side (errors above 256 count as 256), and with several processes the loss is that of the whole batch. `exact`
        sorts the errors; with several processes the loss is that of each process alone.
    per, classes: see `ChosenMean`.

    Ignored pixels do not contribute; if all pixels are ignored, the loss is 0. Values lie in [0, inf); with `exact`, an
    error above 2^64 (2^512 in float64) counts as that. Raises ValueError for soft targets and pixel weights, and at
    build for fewer than 16 bins and in multiclass mode, where only differences of logits have a meaning.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        reduce: Reduce = single_process,
        per: Per = "batch",
        classes: Classes = "present",
        mode: Literal["histogram", "exact"] = "histogram",
        bins: int = 65536,
    ) -> None:
        super().__init__()
        if labels.mode == "multiclass":
            raise ValueError(
                "a hinge compares each logit with 0, but for mutually exclusive classes only differences of logits "
                "have a meaning; use lovasz_softmax"
            )
        self.method = _method(
            HingeErrors(), mode, OctaveBins(_checked_bins(bins)), reduce if per == "batch" else single_process
        )
        self.mean = ChosenMean(labels, reduce, per, classes)

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """The loss of logits [B, K, *S], a scalar."""
        return self.mean(logits, target, self.method, "lovasz_hinge")


def _method(errors: Errors, mode: str, bins: Bins, reduce: Reduce) -> Method:
    return Sorting(errors) if mode == "exact" else Counting(errors, bins, reduce)


def _checked_bins(bins: int) -> int:
    if not 16 <= bins <= MOST_BINS:
        raise ValueError(f"expected bins of 16 or more, at most {MOST_BINS}, got {bins}")
    return bins


def _refuse_unsupported(target: Target, name: str) -> None:
    if target.onehot is not None and target.onehot.is_floating_point():
        raise ValueError(f"{name} is defined for hard targets, got a floating one; use jaccard or dice instead")
    if target.pixel_weight is not None:
        raise ValueError(f"{name} counts pixels, so it does not support pixel_weight; use jaccard or dice instead")


def _channels_of(classes: Classes, labels: Labels) -> list[int]:
    if isinstance(classes, str):
        return list(range(labels.channels))
    names = labels.channel_names
    first = 1 if labels.mode == "binary" else 0  # the class number of channel 0
    channel_of = {**{name: c for c, name in enumerate(names)}, **{c + first: c for c in range(len(names))}}
    unknown = [name for name in classes if name not in channel_of]
    channels = [channel_of[name] for name in classes if name in channel_of]
    if unknown or not channels or len(set(channels)) != len(channels):
        raise ValueError(
            f"expected classes as present, all, or a list of distinct classes among {', '.join(names)} "
            f"(or {first} to {first + len(names) - 1}), got {shown(classes)}"
        )
    return channels
