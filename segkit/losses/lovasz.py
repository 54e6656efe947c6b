"""The Lovász extension of the Jaccard loss, by sorting."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.region import mean_over_counted
from segkit.losses.statistics import probabilities

IGNORED = -1.0  # an error below every real one: ignored pixels sort behind all others and take part in no count


def jaccard_increments(foreground: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """What the Jaccard loss grows by as the pixels of a group join the errors one by one, [G, N] of `dtype`.

    foreground, valid: bool [G, N] in the order of falling errors, ignored pixels last.

    After i pixels, F_i of them foreground and B_i background, of G foreground ones in all, the loss is
    1 - I / U with I = G - F_i and U = G + B_i. The difference of two of these has a closed form in whole numbers;
    subtracting the losses themselves in float32 costs several digits of the gradient.
    """
    size = foreground.sum(1, keepdim=True)
    hits = foreground.cumsum(1)
    rank = torch.arange(1, foreground.shape[1] + 1, device=foreground.device)
    intersection, union = size - hits, size + rank - hits
    # without foreground the first pixel takes the loss from 0 to 1, and there U (U - 1) is 0
    first = (size == 0) & (rank == 1)
    numerator = torch.where(foreground | first, 1, intersection)
    denominator = torch.where(foreground, union, union * (union - 1)).clamp(min=1)
    return torch.where(valid, numerator.to(dtype) / denominator.to(dtype), 0)


def lovasz_losses(errors: Tensor, foreground: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss of one class, [G].

    errors: [G, N], |onehot - probability| of each pixel of a group, or IGNORED.
    foreground: bool [G, N], the valid pixels of the class.
    """
    falling, order = errors.detach().sort(1, descending=True)
    increments = jaccard_increments(foreground.gather(1, order), falling >= 0, errors.dtype)
    # Back in the order of the pixels the loss is a plain weighted sum, and its gradient needs no sorting. `order`
    # is a permutation, so the scatter writes every place once.
    increments = torch.zeros_like(increments).scatter(1, order, increments)
    return (errors * increments).sum(1)


class LovaszSoftmax(nn.Module):
    """The convex closure of the Jaccard loss at the errors |onehot - probability| (Berman et al. 2018).

    A softmax in multiclass, else a sigmoid a channel.

    per: `batch` sorts the pixels of the batch together; `image` averages over the counted classes of each image,
        then over the images that have any.
    classes: `present` counts those in the reference of the group, `all` every class, and a list of class names
        or numbers these; an absent class that is counted has its largest probability as loss.

    Ignored pixels take part in no count; all ignored gives 0. In [0, 1]. Raises ValueError for soft targets and
    pixel weights, for which it is not defined.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        per: Literal["batch", "image"] = "batch",
        classes: Literal["present", "all"] | list[str | int] = "present",
    ) -> None:
        super().__init__()
        self.labels, self.per = labels, per
        self.present_only = isinstance(classes, str) and classes == "present"
        self.channels = _channels_of(classes, labels)

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        """The loss of logits [B, K, *S], finite under ignored pixels; a scalar."""
        _refuse_unsupported(target)
        predicted = probabilities(logits, self.labels)
        # one class at a time, so that the memory of a sort is that of one channel
        pairs = [self._of_channel(predicted, target, channel) for channel in self.channels]
        losses, counted = (torch.stack(column, 1) for column in zip(*pairs, strict=True))
        return mean_over_counted(losses, counted.to(losses.dtype))

    def _of_channel(self, predicted: Tensor, target: Target, channel: int) -> tuple[Tensor, Tensor]:
        """The loss of one class and whether it counts, each [G], G = 1 or B."""
        foreground = _foreground(target, channel, self.labels)
        errors = torch.where(foreground, 1 - predicted[:, channel], predicted[:, channel])
        valid = target.valid_channels
        if valid is not None:
            valid = valid[:, channel if valid.shape[1] > 1 else 0]
            errors, foreground = torch.where(valid, errors, IGNORED), foreground & valid
        groups = 1 if self.per == "batch" else errors.shape[0]
        errors, foreground = errors.reshape(groups, -1), foreground.reshape(groups, -1)
        counted = foreground.any(1) if self.present_only else (errors.detach() >= 0).any(1)
        return lovasz_losses(errors, foreground), counted


def _foreground(target: Target, channel: int, labels: Labels) -> Tensor:
    """The pixels of the class that a channel stands for, bool [B, *S]; anything under ignored pixels."""
    if target.index is not None:
        return target.index == (1 if labels.mode == "binary" else channel)
    assert target.onehot is not None
    return target.onehot[:, channel]


def _refuse_unsupported(target: Target) -> None:
    if target.onehot is not None and target.onehot.is_floating_point():
        raise ValueError("lovasz_softmax is defined for hard targets, got a floating one; use jaccard or dice there")
    if target.pixel_weight is not None:
        raise ValueError("lovasz_softmax counts pixels, so it knows no pixel_weight; use jaccard or dice with one")


def _channels_of(classes: Literal["present", "all"] | list[str | int], labels: Labels) -> list[int]:
    if isinstance(classes, str):
        return list(range(labels.channels))
    names = labels.channel_names
    first = 1 if labels.mode == "binary" else 0  # the number of the class that channel 0 stands for
    known = {**{name: c for c, name in enumerate(names)}, **{c + first: c for c in range(len(names))}}
    unknown = [name for name in classes if name not in known]
    channels = [known[name] for name in classes if name in known]
    if unknown or not channels or len(set(channels)) != len(channels):
        raise ValueError(
            f"expected classes as present, all, or a list of different classes among {', '.join(names)} "
            f"(or {first} to {first + len(names) - 1}), got {classes}"
        )
    return channels
