"""Pixel terms: means over pixels of a function of the log-probability of what is there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.statistics import weight_map
from segkit.losses.weights import ClassWeights, resolve_class_weights

Link = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of what each pixel shows, and what its class weight hangs on.

    log_likelihood: [B, E, *S]. Exclusive classes, hard target: of the pixel's class, E = 1. Exclusive classes,
        soft target: of every class, to be weighted by its share, E = classes. Channels that stand alone: of the
        truth about each channel, E = channels.
    index: int64 [B, *S], the pixel's class, 0 where ignored; hard targets of exclusive classes only.
    share: floating [B, E, *S]; soft targets of exclusive classes only.
    target: the target it was made from.
    """

    log_likelihood: Tensor
    index: Tensor | None
    share: Tensor | None
    target: Target

    @property
    def entries(self) -> int:
        """How many entries of the mean a pixel makes: 1 for exclusive classes, else one a channel."""
        exclusive = self.index is not None or self.share is not None
        return 1 if exclusive else self.log_likelihood.shape[1]


@dataclass(frozen=True)
class LikelihoodPass:
    """A pass that a pixel term names in `needs`; terms that name equal passes share one run."""

    labels: Labels
    link: Link

    def __call__(self, logits: Tensor, target: Target) -> Likelihood:
        """Likelihood of logits [B, K, *S], finite under ignored pixels."""
        soft = target.onehot is not None and target.onehot.is_floating_point()
        if self.link == "softmax":
            return softmax_likelihood(logits, target, self.labels, soft)
        if self.labels.mode == "binary":
            return binary_likelihood(logits, target, self.labels, soft)
        onehot = self.labels.onehot(target)
        return Likelihood(sigmoid_log_likelihood(logits, onehot), None, None, target)


def softmax_likelihood(logits: Tensor, target: Target, labels: Labels, soft: bool) -> Likelihood:
    """The likelihood under a softmax over the channels."""
    log_probabilities = logits.log_softmax(1)
    if soft:
        return Likelihood(log_probabilities, None, labels.onehot(target).to(logits.dtype), target)
    index = class_index(target)
    return Likelihood(log_probabilities.gather(1, index.unsqueeze(1)), index, None, target)


def binary_likelihood(logits: Tensor, target: Target, labels: Labels, soft: bool) -> Likelihood:
    """The likelihood of [negative, positive] under a sigmoid of the one channel."""
    if soft:
        share = labels.onehot(target).to(logits.dtype)
        both = torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], 1)
        return Likelihood(both, None, torch.cat([1 - share, share], 1), target)
    index = class_index(target)
    return Likelihood(sigmoid_log_likelihood(logits, index.unsqueeze(1) == 1), index, None, target)


def class_index(target: Target) -> Tensor:
    """The class number of each pixel, int64 [B, *S], 0 where ignored."""
    if target.index is None:
        assert target.onehot is not None
        return target.onehot.to(torch.uint8).argmax(1)  # argmax knows no bool
    return (target.index if target.valid is None else torch.where(target.valid, target.index, 0)).long()


def sigmoid_log_likelihood(logits: Tensor, onehot: Tensor) -> Tensor:
    """log p where `onehot` is set and log(1 - p) elsewhere, [B, K, *S]; for a soft `onehot` their mixture."""
    if onehot.is_floating_point():
        share = onehot.to(logits.dtype)
        return share * F.logsigmoid(logits) + (1 - share) * F.logsigmoid(-logits)
    return F.logsigmoid(torch.where(onehot, logits, -logits))


def entry_weights(likelihood: Likelihood, class_weights: Tensor) -> Tensor:
    """Class weight times share times pixel weight of each entry, [B, E, *S]; 0 where ignored."""
    log_likelihood = likelihood.log_likelihood
    class_weights = class_weights.to(log_likelihood.dtype)
    if likelihood.index is not None:
        weights = class_weights[likelihood.index].unsqueeze(1)
    else:
        weights = class_weights.view(1, -1, *[1] * (log_likelihood.ndim - 2))
    if likelihood.share is not None:
        weights = weights * likelihood.share
    of_pixel = weight_map(likelihood.target, log_likelihood.dtype)
    return (weights if of_pixel is None else weights * of_pixel).expand_as(log_likelihood)


def normalised(
    losses: Tensor, weights: Tensor, likelihood: Likelihood, normalize: Literal["weights", "valid", "numel"]
) -> Tensor:
    """sum(weights * losses), over the sum of the weights, the valid entries or all entries; 0 over nothing."""
    total = (weights * losses).sum()
    valid = likelihood.target.valid_channels
    if normalize == "weights":
        count = weights.sum()
    elif normalize == "valid" and valid is not None:
        count = valid.sum() * (likelihood.entries // valid.shape[1])
    else:
        return total / (losses.numel() // losses.shape[1] * likelihood.entries)
    return total / torch.where(count > 0, count, 1)


def focal_factor(log_likelihood: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma from log p, accurate near p = 1."""
    # Below gamma 1 the slope is infinite at p = 1, and infinity times log p = 0 would be NaN. At the smallest
    # normal number the slope is still finite, and a pixel there has no gradient to give anyway.
    smallest = torch.finfo(log_likelihood.dtype).tiny
    return (-torch.expm1(log_likelihood)).clamp(min=smallest) ** gamma


class CrossEntropy(nn.Module):
    """-sum_i w_i log p_i(class of i) / Z; softmax for exclusive classes, else binary cross-entropy a channel.

    class_weights: w, one a class; binary [negative, positive]; multilabel one a channel; or a method of
        `segkit.losses.weights`.
    normalize: Z is the sum of w over the valid pixels (`weights`), their number (`valid`) or the number of all
        pixels (`numel`). Where classes overlap, an entry is a pixel of a channel. Pixel weights multiply w, so
        they are in Z with `weights` only.

    Targets may be soft. Ignored pixels count for nothing, apart from `numel`; all ignored gives 0. In [0, inf).
    Raises ValueError at build for class weights that do not fit the classes.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        census: Any = None,
        class_weights: ClassWeights = None,
        normalize: Literal["weights", "valid", "numel"] = "weights",
    ) -> None:
        super().__init__()
        self.class_weights: Tensor
        self.register_buffer("class_weights", resolve_class_weights(class_weights, labels, census), persistent=False)
        self.normalize: Literal["weights", "valid", "numel"] = normalize
        self.needs = LikelihoodPass(labels, "softmax" if labels.mode == "multiclass" else "sigmoid")

    def score(self, likelihood: Likelihood) -> Tensor:
        """The loss, a scalar."""
        weights = entry_weights(likelihood, self.class_weights)
        return normalised(-likelihood.log_likelihood, weights, likelihood, self.normalize)


class Focal(nn.Module):
    """-sum_i w_i (1 - p_i)^gamma log p_i / sum_i w_i, p_i being the probability of the truth (Lin et al. 2017).

    gamma: 0 or more; 0 is the cross-entropy.
    link: `softmax`, the default in multiclass, or `sigmoid`, the default elsewhere. In multiclass `sigmoid` sets
        each class against the rest, a mean over valid pixels times classes, with one class weight a channel.
    class_weights: as for the cross-entropy.

    Ignored pixels count for nothing; all ignored gives 0. In [0, inf). Raises ValueError for soft targets, and at
    build for `softmax` outside multiclass.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        census: Any = None,
        gamma: float = 2.0,
        link: Link | None = None,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"expected gamma of 0 or more, got {gamma}")
        self.class_weights: Tensor
        self.register_buffer("class_weights", resolve_class_weights(class_weights, labels, census), persistent=False)
        self.gamma = gamma
        self.needs = LikelihoodPass(labels, _focal_link(link, labels))

    def score(self, likelihood: Likelihood) -> Tensor:
        """The loss, a scalar."""
        onehot = likelihood.target.onehot
        if onehot is not None and onehot.is_floating_point():
            raise ValueError("focal is defined for hard targets, got a floating one; use cross_entropy or dice there")
        losses = -likelihood.log_likelihood * focal_factor(likelihood.log_likelihood, self.gamma)
        return normalised(losses, entry_weights(likelihood, self.class_weights), likelihood, "weights")


def _focal_link(link: Link | None, labels: Labels) -> Link:
    if labels.mode == "multiclass":
        return link or "softmax"
    if link == "softmax" and labels.mode == "binary":
        raise ValueError("link softmax needs two channels; over two classes it is the sigmoid: leave `link` out")
    if link == "softmax":
        raise ValueError("link softmax makes classes exclude each other, and these may overlap; use link sigmoid")
    return "sigmoid"
