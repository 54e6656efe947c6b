"""Every loss in a few lines of plain differentiable torch, against which the loss engine is compared.

Read these functions to see what a loss computes. They have no chunks, no shared passes and no hand-written gradients;
the gradient is that of autograd. They use the options of segkit's losses, without `segkit.losses`.

Symbols: p is the predicted probability, g in [0, 1] is the target (1 on the pixels of a class), and w is the weight of
a pixel. B images have K channels and N pixels. All sums run over valid pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.labels import Labels

IGNORED = 255
FLOORS = {torch.float32: -(2.0**64), torch.float64: -(2.0**512)}  # lower log-probabilities count as this


@dataclass(frozen=True)
class Pixels:
    """A batch with flattened spatial axes: logits and targets [B, K, N], validity bool [B, K, N], weights [B, N].

    floor: the lowest log-probability and the largest hinge error, see `floored`. space: the sides of an image.
    """

    logits: Tensor
    g: Tensor
    valid: Tensor
    w: Tensor
    labels: Labels
    floor: float
    space: tuple[int, ...]

    @property
    def p(self) -> Tensor:
        """The probabilities, [B, K, N]: a softmax over exclusive classes, otherwise a sigmoid per channel."""
        return self.probabilities(None)

    def probabilities(self, activation: str | None) -> Tensor:
        """The probabilities, [B, K, N], with the given activation; without one, see `p`."""
        exclusive = self.labels.mode == "multiclass" and activation != "sigmoid"
        return self.logits.softmax(1) if exclusive else self.logits.sigmoid()


def floored(values: Tensor, floor: float) -> Tensor:
    """The values, with `floor` instead of lower ones; the gradient is that of the values themselves."""
    return torch.where(values < floor, floor + (values - values.detach()), values)


def pixels_of(
    logits: Tensor, mask: Tensor, labels: Labels, pixel_weight: Tensor | None = None, floor: float | None = None
) -> Pixels:
    """A batch from class numbers [B, *S], channels of 0, 1 and the ignore value [B, K, *S], or soft targets."""
    space, logits = tuple(logits.shape[2:]), logits.flatten(2)
    if mask.is_floating_point():
        g, valid = mask.to(logits.dtype).flatten(2), torch.ones_like(logits, dtype=torch.bool)
    elif labels.mode == "multilabel":
        g, valid = (mask == 1).to(logits.dtype).flatten(2), (mask != IGNORED).flatten(2)
    else:
        index = mask.flatten(1).unsqueeze(1)
        channel_classes = [1] if labels.mode == "binary" else range(labels.channels)
        g = torch.cat([index == number for number in channel_classes], 1).to(logits.dtype)
        valid = (index != IGNORED).expand_as(g)
    w = torch.ones_like(logits[:, 0]) if pixel_weight is None else pixel_weight.to(logits.dtype).flatten(1)
    return Pixels(logits, g, valid, w, labels, FLOORS[logits.dtype] if floor is None else floor, space)


# --- pixel losses: the mean over entries ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entries:
    """The valid entries: n pixels with K exclusive classes, or n pixels of a channel with 2 outcomes (absent, present).

    log_p, g: log-probability and target of each outcome, [n, outcomes]. weights, factors: of each, [n, outcomes].
    """

    log_p: Tensor
    g: Tensor
    weights: Tensor
    factors: Tensor


def entries(
    pixels: Pixels,
    activation: str | None = None,
    class_weights: Sequence[float] | None = None,
    alpha: float | Sequence[float] | None = None,
    positive_weights: float | Sequence[float] | None = None,
) -> Entries:
    """The valid entries of a batch. The other arguments are options of the pixel losses."""
    labels, channels = pixels.labels, pixels.labels.channels
    weights = torch.tensor(class_weights or [1.0] * len(labels.names), dtype=pixels.logits.dtype)
    if labels.mode == "multiclass" and activation != "sigmoid":
        log_p, g = pixels.logits.log_softmax(1), pixels.g
        if isinstance(alpha, float):
            alpha = [1 - alpha] + [alpha] * (channels - 1)
        factors = torch.tensor(alpha or [1.0] * channels, dtype=g.dtype)
        valid, w = pixels.valid[:, 0], pixels.w
    else:
        log_p = torch.stack([F.logsigmoid(-pixels.logits), F.logsigmoid(pixels.logits)], 1)  # [B, 2, K, N]
        g = torch.stack([1 - pixels.g, pixels.g], 1)
        weights = weights.view(2, 1, 1) if labels.mode == "binary" else weights.view(1, channels, 1)
        present = torch.tensor(alpha if isinstance(alpha, list) else [alpha or 0.0] * channels, dtype=g.dtype)
        factors = torch.ones(2, channels, dtype=g.dtype) if alpha is None else torch.stack([1 - present, present])
        if positive_weights is not None:
            factors[1] = torch.tensor(positive_weights, dtype=g.dtype)
        factors = factors.unsqueeze(-1)
        valid, w = pixels.valid, pixels.w.unsqueeze(1).expand_as(pixels.valid)

    def at_valid(values: Tensor) -> Tensor:
        """Values [B, outcomes, ..., N] at the valid entries, [n, outcomes]."""
        return values.movedim(1, -1)[valid]

    def spread(per_outcome: Tensor) -> Tensor:
        """Numbers for each outcome, and possibly channel, broadcast to the shape of log_p."""
        return (per_outcome.unsqueeze(-1) if per_outcome.ndim == 1 else per_outcome).expand(log_p.shape)

    weights = w[valid].unsqueeze(-1) * at_valid(spread(weights))
    return Entries(floored(at_valid(log_p), pixels.floor), at_valid(g), weights, at_valid(spread(factors)))


def pixel_mean(
    pixels: Pixels,
    f: Callable[[Tensor], Tensor],
    activation: str | None = None,
    class_weights: Sequence[float] | None = None,
    normalize: str = "weights",
    alpha: float | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    positive_weights: float | Sequence[float] | None = None,
) -> Tensor:
    """sum_i w_i alpha_i g_i f(log p_i) / Z over all entries and their outcomes."""
    e = entries(pixels, activation, class_weights, alpha, positive_weights)
    smoothed = (1 - label_smoothing) * e.g + label_smoothing / e.g.shape[1]
    total = (e.weights * e.factors * smoothed * f(e.log_p)).sum()
    exclusive = pixels.labels.mode == "multiclass" and activation != "sigmoid"
    all_entries = pixels.valid[:, :1].numel() if exclusive else pixels.valid.numel()
    divisors = {"weights": (e.weights * e.g).sum(), "valid": len(e.log_p), "numel": all_entries}
    return total / divisors[normalize] if divisors[normalize] > 0 else 0 * total


def cross_entropy(pixels: Pixels, **options) -> Tensor:
    """sum_i w_i (-log p_i) / Z"""
    return pixel_mean(pixels, lambda log_p: -log_p, **options)


def poly_cross_entropy(pixels: Pixels, epsilon: float = 1.0, **options) -> Tensor:
    """sum_i w_i (-log p_i + epsilon (1 - p_i)) / Z"""
    return pixel_mean(pixels, lambda log_p: -log_p - epsilon * log_p.expm1(), **options)


def focal(pixels: Pixels, gamma: float = 2.0, **options) -> Tensor:
    """sum_i w_i alpha_i (1 - p_i)^gamma (-log p_i) / Z"""
    smallest = 0.0 if gamma >= 1 else torch.finfo(pixels.logits.dtype).tiny  # the slope would be infinite at p = 1
    return pixel_mean(pixels, lambda log_p: -((-log_p.expm1()).clamp(min=smallest) ** gamma) * log_p, **options)


def topk_cross_entropy(pixels: Pixels, share: float = 0.1) -> Tensor:
    """The mean of -log p_i over the given share of entries with the largest -log p_i."""
    e = entries(pixels)
    losses = -(e.g * e.log_p).sum(1)
    return losses.topk(math.ceil(share * len(losses))).values.mean() if len(losses) else (0 * pixels.logits).sum()


def ohem_cross_entropy(pixels: Pixels, threshold: float = 0.7, min_share: float = 0.1, min_pixels: int = 0) -> Tensor:
    """The mean of -log p_i over the entries with p_i < threshold, or over a minimum number of the largest -log p_i."""
    e = entries(pixels)
    losses = -(e.g * e.log_p).sum(1)
    minimum = min(max(math.ceil(min_share * len(losses) - 1e-9), min_pixels), len(losses))
    number = max(int((losses > -math.log(threshold)).sum()), minimum)
    return losses.topk(number).values.mean() if number else (0 * pixels.logits).sum()


def margin_label_smoothing(pixels: Pixels, margin: float = 10.0, penalty: float = 0.1) -> Tensor:
    """sum_i w_i (-log p_i + penalty mean_k max(0, max_j z_j - z_k - margin)) / sum_i w_i"""
    if pixels.labels.mode == "multiclass":
        distances, valid = pixels.logits.amax(1, keepdim=True) - pixels.logits, pixels.valid[:, 0]
        weights = pixels.w[valid]
    else:  # the logits of absence and presence are 0 and z
        z = pixels.logits.abs()
        distances, valid = torch.stack([z, torch.zeros_like(z)], 1), pixels.valid
        weights = pixels.w.unsqueeze(1).expand_as(valid)[valid]
    excess = (-floored(-distances, pixels.floor) - margin).clamp(min=0).mean(1)[valid]
    if not weights.sum() > 0:
        return (0 * pixels.logits).sum()
    return cross_entropy(pixels) + penalty * (weights * excess).sum() / weights.sum()


# --- region losses: a function of the sums of each class ------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """The sums of one class over a group of images, scalars. valid: whether it has a valid pixel.

    product: sum w p g. pixels: sum w.
    """

    tp: Tensor
    predicted: Tensor
    reference: Tensor
    product: Tensor
    pixels: Tensor
    valid: bool


def class_sums(pixels: Pixels, per: str, power: int = 1, activation: str | None = None) -> list[list[Sums]]:
    """predicted = sum w p^q, reference = sum w g^q and tp = sum w (p^q + g^q - |p - g|^q) / 2 of each class in each
    group, where q is the power."""
    groups = [slice(None)] if per == "batch" else [slice(b, b + 1) for b in range(len(pixels.logits))]
    result = []
    probabilities = pixels.probabilities(activation)
    for images in groups:
        row = []
        for k in range(pixels.labels.channels):
            valid = pixels.valid[images, k]
            p, g, w = probabilities[images, k][valid], pixels.g[images, k][valid], pixels.w[images][valid]
            overlap = (p**power + g**power - (p - g).abs() ** power) / 2
            sums = [(w * values).sum() for values in (overlap, p**power, g**power, p * g)]
            row.append(Sums(*sums, w.sum(), bool(valid.any())))
        result.append(row)
    return result


def region_mean(
    pixels: Pixels,
    loss: Callable[[Sums], Tensor],
    per: str = "batch",
    power: int = 1,
    empty: str = "present",
    background: bool = True,
    class_weights: Sequence[float] | None = None,
    average: str = "macro",
    activation: str | None = None,
    partial: bool = False,
) -> Tensor:
    """The weighted mean of `loss` over the counted classes of a group, then the mean over groups that have any.

    average: with `micro`, the weighted sums over the classes are those of one class.
    partial: treat a class that covers all pixels like one that is absent.
    """
    weights = list(class_weights or [1.0] * pixels.labels.channels)
    weights[0] = weights[0] if background else 0.0
    rows, means = class_sums(pixels, per, power, activation), []
    if average == "micro":
        rows, weights = [[sum_over_classes(row, weights)] for row in rows], [1.0]
    for row in rows:
        present = [sums.reference > 0 and not (partial and sums.reference == sums.pixels) for sums in row]
        has_pixels = present if empty == "present" else [sums.valid for sums in row]
        counted = [k for k, counts in enumerate(has_pixels) if weights[k] and counts]
        zero = (0 * pixels.logits).sum()
        losses = [zero if empty == "zero" and not present[k] else loss(row[k]) for k in counted]
        if counted:
            weighted = [weights[k] * value for k, value in zip(counted, losses, strict=True)]
            means.append(torch.stack(weighted).sum() / sum(weights[k] for k in counted))
    return mean_or_zero(means, pixels)


def sum_over_classes(row: list[Sums], weights: Sequence[float]) -> Sums:
    """The weighted sums over the classes of a group, as if they were one class."""
    pairs = [(weight, sums) for weight, sums in zip(weights, row, strict=True) if weight]
    totals = (
        torch.stack([weight * getattr(sums, name) for weight, sums in pairs]).sum()
        for name in ("tp", "predicted", "reference", "product", "pixels")
    )
    return Sums(*totals, any(sums.valid for _weight, sums in pairs))


def mean_or_zero(values: list[Tensor], pixels: Pixels) -> Tensor:
    """The mean over groups; 0 with gradient 0 if no group has counted classes."""
    return torch.stack(values).mean() if values else (0 * pixels.logits).sum()


def pair(eps: float | list[float]) -> tuple[float, float]:
    return (eps[0], eps[1]) if isinstance(eps, list) else (eps, eps)


def dice(pixels: Pixels, eps: float | list[float] = 1e-5, **options) -> Tensor:
    """1 - (2 tp + eps_n) / (predicted + reference + eps_d)"""
    eps_n, eps_d = pair(eps)
    return region_mean(pixels, lambda s: 1 - (2 * s.tp + eps_n) / (s.predicted + s.reference + eps_d), **options)


def jaccard(pixels: Pixels, eps: float | list[float] = 1e-5, **options) -> Tensor:
    """1 - (tp + eps_n) / (predicted + reference - tp + eps_d)"""
    eps_n, eps_d = pair(eps)
    return region_mean(pixels, lambda s: 1 - (s.tp + eps_n) / (s.predicted + s.reference - s.tp + eps_d), **options)


def tversky_loss(s: Sums, alpha: float, beta: float, eps: float | list[float]) -> Tensor:
    """1 - (tp + eps_n) / (tp + alpha (predicted - tp) + beta (reference - tp) + eps_d)"""
    eps_n, eps_d = pair(eps)
    return 1 - (s.tp + eps_n) / (s.tp + alpha * (s.predicted - s.tp) + beta * (s.reference - s.tp) + eps_d)


def tversky(
    pixels: Pixels, alpha: float = 0.3, beta: float = 0.7, eps: float | list[float] = 1e-5, **options
) -> Tensor:
    """The mean of the Tversky loss over classes."""
    return region_mean(pixels, lambda s: tversky_loss(s, alpha, beta, eps), **options)


def power(loss: Tensor, gamma: float, smallest: float = 1e-6) -> Tensor:
    """loss^gamma; for gamma below 1 a straight line below `smallest`, so that its slope stays finite."""
    if gamma >= 1:
        return loss**gamma
    return torch.where(loss > smallest, loss.clamp(min=smallest) ** gamma, loss * smallest ** (gamma - 1))


def focal_tversky(
    pixels: Pixels,
    gamma: float = 0.75,
    of: str = "classes",
    alpha: float = 0.3,
    beta: float = 0.7,
    eps: float | list[float] = 1e-5,
    **options,
) -> Tensor:
    """The mean of (Tversky loss)^gamma over classes, or (mean of the Tversky loss)^gamma with `of: mean`."""
    if of == "mean":
        return power(tversky(pixels, alpha, beta, eps, **options), gamma)
    return region_mean(pixels, lambda s: power(tversky_loss(s, alpha, beta, eps), gamma), **options)


def generalized_dice(
    pixels: Pixels,
    per: str = "batch",
    weight_by: str = "square",
    absent: str = "zero",
    relative: bool = True,
    eps: float | list[float] = 1e-5,
    background: bool = True,
    power: int = 1,
    activation: str | None = None,
) -> Tensor:
    """1 - (2 sum_c v_c tp_c + eps_n) / (sum_c v_c (predicted_c + reference_c) + eps_d), v_c = reference_c^-exponent"""
    eps_n, eps_d = pair(eps)
    exponent = {"square": 2, "simple": 1, "uniform": 0}[weight_by]
    losses = []
    for row in class_sums(pixels, per, power, activation):
        row = row if background else row[1:]
        present = [s.reference**-exponent for s in row if s.reference > 0]
        if not present:
            continue
        largest = max(present)
        v = [s.reference**-exponent if s.reference > 0 else largest * (absent == "max") for s in row]
        v = [weight / largest for weight in v] if relative else v
        overlap = sum(weight * s.tp for weight, s in zip(v, row, strict=True))
        size = sum(weight * (s.predicted + s.reference) for weight, s in zip(v, row, strict=True))
        losses.append(1 - (2 * overlap + eps_n) / (size + eps_d))
    return mean_or_zero(losses, pixels)


def log_cosh_dice(pixels: Pixels, eps: float | list[float] = 1e-5, **options) -> Tensor:
    """log cosh of the Dice loss"""
    eps_n, eps_d = pair(eps)

    def loss(s: Sums) -> Tensor:
        return (1 - (2 * s.tp + eps_n) / (s.predicted + s.reference + eps_d)).cosh().log()

    return region_mean(pixels, loss, **options)


def jaccard_metric(pixels: Pixels, variant: int = 1, eps: float | list[float] = 1e-5, **options) -> Tensor:
    """1 - (I + eps_n) / (I + sum |p - g| + eps_d), I = sum min(p, g) or sum p g"""
    eps_n, eps_d = pair(eps)

    def loss(s: Sums) -> Tensor:
        overlap, difference = s.tp if variant == 1 else s.product, s.predicted + s.reference - 2 * s.tp
        return 1 - (overlap + eps_n) / (overlap + difference + eps_d)

    return region_mean(pixels, loss, **options)


def dice_semimetric(pixels: Pixels, variant: int = 1, eps: float | list[float] = 1e-5, **options) -> Tensor:
    """1 - (2 I + eps_n) / (2 I + sum |p - g| + eps_d), I = sum min(p, g) or sum p g"""
    eps_n, eps_d = pair(eps)

    def loss(s: Sums) -> Tensor:
        overlap, difference = s.tp if variant == 1 else s.product, s.predicted + s.reference - 2 * s.tp
        return 1 - (2 * overlap + eps_n) / (2 * overlap + difference + eps_d)

    return region_mean(pixels, loss, **options)


def mcc(pixels: Pixels, eps: float = 0.01, **options) -> Tensor:
    """1 - (tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn)), eps added to each of the four"""

    def loss(s: Sums) -> Tensor:
        tp, fp, fn = s.tp + eps, s.predicted - s.tp + eps, s.reference - s.tp + eps
        tn = s.pixels - s.predicted - s.reference + s.tp + eps
        return 1 - (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()

    return region_mean(pixels, loss, partial=True, **options)


# --- losses with a region part and a pixel part ---------------------------------------------------------------------


def power_of_log(log_p: Tensor, gamma: float) -> Tensor:
    """(-log p)^gamma; a straight line where -log p is below 1e-4 (gamma below 1), the tangent where it is above 10."""
    tangent = 10**gamma + gamma * 10 ** (gamma - 1) * (-log_p - 10)
    return torch.where(-log_p > 10, tangent, power((-log_p).clamp(max=10), gamma, 1e-4))


def exponential_log(
    pixels: Pixels,
    gamma: float = 0.3,
    dice_weight: float = 0.8,
    cross_entropy_weight: float = 0.2,
    eps: float | list[float] = 1e-5,
    class_weights: Sequence[float] | None = None,
    normalize: str = "weights",
    **options,
) -> Tensor:
    """dice_weight mean_c (-log D_c)^gamma + cross_entropy_weight sum_i w_i (-log p_i)^gamma / Z, D_c the overlap"""
    eps_n, eps_d = pair(eps)

    def loss(s: Sums) -> Tensor:
        return power(-((2 * s.tp + eps_n) / (s.predicted + s.reference + eps_d)).log(), gamma, 1e-4)

    weighing = {"class_weights": class_weights, "normalize": normalize}
    cross_entropy_part = pixel_mean(pixels, lambda log_p: power_of_log(log_p, gamma), **weighing)
    return dice_weight * region_mean(pixels, loss, **options) + cross_entropy_weight * cross_entropy_part


def unified_focal(
    pixels: Pixels,
    variant: str = "asymmetric",
    delta: float = 0.6,
    gamma: float = 0.5,
    balance: float = 0.5,
    eps: float | list[float] = 1e-5,
    **options,
) -> Tensor:
    """balance mean_c (1 - T_c)^(1 - gamma) - (1 - balance) sum_i d_i (1 - p_i)^gamma log p_i / N

    A batch with independent channels is taken as one of twice as many classes: absence and presence of each.
    """
    exclusive = pixels.labels.mode == "multiclass"
    channels = pixels.labels.channels
    g = pixels.g if exclusive else torch.cat([1 - pixels.g, pixels.g], 1)
    p = pixels.p if exclusive else torch.cat([(-pixels.logits).sigmoid(), pixels.p], 1)
    valid = pixels.valid if exclusive else pixels.valid.repeat(1, 2, 1)
    is_background = [k == 0 for k in range(channels)] if exclusive else [True] * channels + [False] * channels
    linear = [variant == "asymmetric" and background for background in is_background]
    tversky_part = outcome_mean(
        pixels, p, g, valid, lambda s, k: unified_tversky(s, delta, 0.0 if linear[k] else gamma, eps), **options
    )
    e = entries(pixels)
    outcomes = e.g.shape[1]  # the background first
    background = torch.arange(outcomes) == 0
    focused = background | (variant == "symmetric")
    distance = (-e.log_p.expm1()).clamp(min=torch.finfo(p.dtype).tiny) ** gamma
    weights = torch.full((outcomes,), delta, dtype=p.dtype).masked_fill(background, 1 - delta)
    focal_part = -e.log_p * torch.where(focused, distance, 1) * weights
    total, divisor = (e.weights * e.g * focal_part).sum(), (e.weights * e.g).sum()
    return balance * tversky_part + (1 - balance) * (total / divisor if divisor > 0 else 0 * total)


def unified_tversky(s: Sums, delta: float, gamma: float, eps: float | list[float]) -> Tensor:
    return power(tversky_loss(s, 1 - delta, delta, eps), 1 - gamma, 1e-4)


def outcome_mean(
    pixels: Pixels,
    p: Tensor,
    g: Tensor,
    valid: Tensor,
    loss: Callable[[Sums, int], Tensor],
    per: str = "batch",
    empty: str = "present",
) -> Tensor:
    """The mean of loss(sums, k) over the counted outcomes k of a group, then over groups. p, g, valid: [B, K', N]."""
    means = []
    for images in [slice(None)] if per == "batch" else [slice(b, b + 1) for b in range(len(p))]:
        losses = []
        for k in range(p.shape[1]):
            seen = valid[images, k]
            w, q, h = pixels.w[images][seen], p[images, k][seen], g[images, k][seen]
            sums = [(w * values).sum() for values in (q * h, q, h, q * h)]
            s = Sums(*sums, w.sum(), bool(seen.any()))
            if s.reference > 0 if empty == "present" else s.valid:
                losses.append(0 * s.predicted if empty == "zero" and s.reference == 0 else loss(s, k))
        if losses:
            means.append(torch.stack(losses).mean())
    return mean_or_zero(means, pixels)


# --- Lovász losses --------------------------------------------------------------------------------------------------


def lovasz_extension(errors: Tensor, g: Tensor) -> Tensor:
    """sum_i m_i (J_i - J_{i-1}), where m_i are the errors in decreasing order.

    J_i is the Jaccard loss with the first i pixels wrong: 1 - (G - F_i) / (G + B_i). G is the number of foreground
    pixels; F_i and B_i are the numbers of foreground and background pixels among the first i.
    """
    order = errors.argsort(descending=True, stable=True)
    g = g[order]
    jaccard_losses = 1 - (g.sum() - g.cumsum(0)) / (g.sum() + (1 - g).cumsum(0))
    return (errors[order] * jaccard_losses.diff(prepend=g.new_zeros(1))).sum()


def lovasz_mean(pixels: Pixels, errors: Tensor, per: str, classes: str | list[str | int]) -> Tensor:
    """The mean of the Lovász extension over the counted classes of a group, then over the groups that have any."""
    names = list(pixels.labels.channel_names)
    channels = range(len(names))
    if isinstance(classes, list):
        channels = [names.index(c) if isinstance(c, str) else c for c in classes]
    means = []
    for images in [slice(None)] if per == "batch" else [slice(b, b + 1) for b in range(len(pixels.logits))]:
        losses = []
        for k in channels:
            valid = pixels.valid[images, k]
            g = pixels.g[images, k][valid]
            if g.any() if classes == "present" else valid.any():
                losses.append(lovasz_extension(errors[images, k][valid], g))
        if losses:
            means.append(torch.stack(losses).mean())
    return mean_or_zero(means, pixels)


def lovasz_softmax(pixels: Pixels, per: str = "batch", classes: str | list[str | int] = "present") -> Tensor:
    """The Lovász extension at the errors |g - p|."""
    return lovasz_mean(pixels, (pixels.g - pixels.p).abs(), per, classes)


def lovasz_hinge(pixels: Pixels, per: str = "batch", classes: str | list[str | int] = "present") -> Tensor:
    """The Lovász extension at the errors max(0, 1 - z) on the pixels of a class and max(0, 1 + z) on all others."""
    margins = floored((2 * pixels.g - 1) * pixels.logits - 1, pixels.floor)
    return lovasz_mean(pixels, (-margins).clamp(min=0), per, classes)


REFERENCES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "poly_cross_entropy": poly_cross_entropy,
    "topk_cross_entropy": topk_cross_entropy,
    "ohem_cross_entropy": ohem_cross_entropy,
    "margin_label_smoothing": margin_label_smoothing,
    "focal": focal,
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "generalized_dice": generalized_dice,
    "log_cosh_dice": log_cosh_dice,
    "dice_semimetric": dice_semimetric,
    "jaccard_metric": jaccard_metric,
    "mcc": mcc,
    "unified_focal": unified_focal,
    "exponential_log": exponential_log,
    "lovasz_softmax": lovasz_softmax,
    "lovasz_hinge": lovasz_hinge,
}


def reference(
    options: dict,
    logits: Tensor,
    mask: Tensor,
    labels: Labels,
    pixel_weight: Tensor | None = None,
    floor: float | None = None,
) -> Tensor:
    """The loss that `options` describe, a differentiable scalar. `mode: exact` of the Lovász losses is the only one.

    floor: that of another dtype than the one of the logits.
    """
    options = {key: value for key, value in options.items() if key != "mode"}
    name = options.pop("name")
    formula = REFERENCES[name] if name in REFERENCES else spatial_references().get(name)
    assert formula is not None, name
    return formula(pixels_of(logits, mask, labels, pixel_weight, floor), **options)


def spatial_references() -> dict[str, Callable[..., Tensor]]:
    """The references of the losses that depend on where pixels lie."""
    from support.spatial_references import SPATIAL_REFERENCES

    return SPATIAL_REFERENCES
