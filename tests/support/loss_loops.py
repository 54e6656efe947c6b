"""Every loss as a loop over pixels in float64, written from the definitions; the plain references must agree with them.

The loops share no idea of computation with the references or with the code under test: no tensor operation over pixels.
"""

from __future__ import annotations

import math

import numpy as np

from support.loss_oracle import IGNORE_INDEX


def softmax(z):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def shares_and_valid(mask, labels):
    """Targets and validity, [B, K, N], from class numbers, channels of 0, 1 and the ignore value, or soft targets."""
    if mask.is_floating_point():
        shares = mask.double().numpy().reshape(2, labels.channels, -1)
        return shares, np.ones(shares.shape, bool)
    mask = mask.numpy().reshape(2, -1, math.prod(mask.shape[-(mask.ndim - 2) :]) if labels.mode == "multilabel" else 1)
    if labels.mode != "multilabel":
        mask = mask.reshape(2, 1, -1)
        first = 1 if labels.mode == "binary" else 0
        classes = np.arange(first, first + labels.channels).reshape(1, -1, 1)
        return (mask == classes).astype(float), np.repeat(mask != IGNORE_INDEX, labels.channels, axis=1)
    return (mask == 1).astype(float), mask != IGNORE_INDEX


def entries(z, g, valid, labels, weight, activation, class_weights, factors):
    """Yield the probabilities, targets, weights and factors of the classes at every valid entry.

    Exclusive classes have one entry per pixel; otherwise each pixel and channel is an entry, of absence and presence.
    """
    exclusive = labels.mode == "multiclass" and activation != "sigmoid"
    p = softmax(z) if exclusive else 1 / (1 + np.exp(-z))
    for b in range(z.shape[0]):
        for i in range(z.shape[2]):
            for k in [0] if exclusive else range(z.shape[1]):
                if not valid[b, k, i]:
                    continue
                if exclusive:
                    yield p[b, :, i], g[b, :, i], weight[b, i] * np.array(class_weights), np.array(factors)
                else:
                    sides = class_weights if labels.mode == "binary" else [class_weights[k]] * 2
                    both = np.array([1 - p[b, k, i], p[b, k, i]]), np.array([1 - g[b, k, i], g[b, k, i]])
                    yield *both, weight[b, i] * np.array(sides), np.array(factors[k])


def loop_pixel(
    z, g, valid, labels, weight, function, activation=None, class_weights=None, normalize="weights", alpha=None,
    label_smoothing=0.0,
):  # fmt: skip
    exclusive = labels.mode == "multiclass" and activation != "sigmoid"
    class_weights = class_weights or [1.0] * len(labels.names)
    factors = alpha_factors(alpha, labels, exclusive)
    total, counts = (
        0.0,
        {"weights": 0.0, "valid": 0, "numel": z.shape[0] * z.shape[2] * (1 if exclusive else z.shape[1])},
    )
    for p, shares, w, factor in entries(z, g, valid, labels, weight, activation, class_weights, factors):
        smoothed = (1 - label_smoothing) * shares + label_smoothing / len(shares)
        total += sum(s * v * f * function(q) for s, v, f, q in zip(smoothed, w, factor, p, strict=True) if s)
        counts["weights"] += (shares * w).sum()
        counts["valid"] += 1
    return total / counts[normalize]


def alpha_factors(alpha, labels, exclusive):
    """One factor per class, or [absence, presence] per channel."""
    channels = labels.channels
    if alpha is None:
        return [1.0] * channels if exclusive else [[1.0, 1.0]] * channels
    if exclusive:
        return alpha if isinstance(alpha, list) else [1 - alpha] + [alpha] * (channels - 1)
    return [[1 - one, one] for one in (alpha if isinstance(alpha, list) else [alpha] * channels)]


def loop_topk(z, g, valid, labels, weight, share=0.1):
    losses = sorted(
        -sum(s * math.log(q) for s, q in zip(shares, p, strict=True) if s)
        for p, shares, _w, _f in entries(z, g, valid, labels, weight, None, [1.0] * 3, [[1.0, 1.0]] * 3)
    )
    number = math.ceil(share * len(losses))
    return sum(losses[-number:]) / number


def loop_mean(losses, counted, class_weights):
    """losses, counted: [groups][classes]; the mean over the counted classes, then over the groups with any."""
    groups = []
    for row, keep in zip(losses, counted, strict=True):
        weights = [w * k for w, k in zip(class_weights, keep, strict=True)]
        if sum(weights) > 0:
            groups.append(sum(x * w for x, w in zip(row, weights, strict=True) if w) / sum(weights))
    return sum(groups) / len(groups) if groups else 0.0


def loop_sums(z, g, valid, labels, weight, images, power=1, activation=None):
    """(tp, predicted, reference) of each channel over some images."""
    p = softmax(z) if labels.mode == "multiclass" and activation != "sigmoid" else 1 / (1 + np.exp(-z))
    rows = []
    for k in range(z.shape[1]):
        tp = predicted = reference = 0.0
        for b in images:
            for i in range(z.shape[2]):
                if valid[b, k, i]:
                    difference = abs(p[b, k, i] - g[b, k, i])
                    overlap = p[b, k, i] ** power + g[b, k, i] ** power - difference**power
                    tp += weight[b, i] * overlap / 2
                    predicted += weight[b, i] * p[b, k, i] ** power
                    reference += weight[b, i] * g[b, k, i] ** power
        rows.append((tp, predicted, reference))
    return rows


def pair(eps):
    return eps if isinstance(eps, list) else (eps, eps)


def dice_loss(tp, predicted, reference, eps):
    return 1 - (2 * tp + eps[0]) / (predicted + reference + eps[1])


def jaccard_loss(tp, predicted, reference, eps):
    return 1 - (tp + eps[0]) / (predicted + reference - tp + eps[1])


def tversky_loss(tp, predicted, reference, eps, alpha=0.3, beta=0.7, gamma=1.0):
    return (1 - (tp + eps[0]) / (tp + alpha * (predicted - tp) + beta * (reference - tp) + eps[1])) ** gamma


def loop_region(
    z, g, valid, labels, weight, loss, per="batch", power=1, eps=1e-5, empty="present", background=True,
    class_weights=None, average="macro", activation=None, **options,
):  # fmt: skip
    class_weights = list(class_weights or [1.0] * z.shape[1])
    if not background:
        class_weights[0] = 0.0
    losses, counted = [], []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        rows = loop_sums(z, g, valid, labels, weight, images, power, activation)
        if average == "micro":
            sums = [sum(w * row[n] for w, row in zip(class_weights, rows, strict=True)) for n in range(3)]
            rows = [sums if w else [0.0, 0.0, 0.0] for w in class_weights]  # the mean of equal numbers is the number
        losses.append([0.0 if empty == "zero" and row[2] == 0 else loss(*row, pair(eps), **options) for row in rows])
        counted.append([row[2] > 0 or empty != "present" for row in rows])
    return loop_mean(losses, counted, class_weights)


def loop_focal_tversky(z, g, valid, labels, weight, gamma=0.75, of="classes", **options):
    if of == "mean":
        return loop_region(z, g, valid, labels, weight, tversky_loss, **options) ** gamma
    return loop_region(z, g, valid, labels, weight, tversky_loss, gamma=gamma, **options)


def loop_generalized(
    z, g, valid, labels, weight, per="batch", weight_by="square", absent="zero", relative=True, eps=1e-5,
    background=True, power=1, activation=None,
):  # fmt: skip
    eps_n, eps_d = pair(eps)
    exponent = {"square": 2, "simple": 1, "uniform": 0}[weight_by]
    losses = []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        rows = loop_sums(z, g, valid, labels, weight, images, power, activation)[0 if background else 1 :]
        largest = max((row[2] ** -exponent for row in rows if row[2] > 0), default=0.0)
        if largest == 0:
            continue
        weights = [row[2] ** -exponent if row[2] > 0 else largest * (absent == "max") for row in rows]
        weights = [one / largest for one in weights] if relative else weights
        overlap = sum(w * row[0] for w, row in zip(weights, rows, strict=True))
        size = sum(w * (row[1] + row[2]) for w, row in zip(weights, rows, strict=True))
        losses.append(1 - (2 * overlap + eps_n) / (size + eps_d))
    return sum(losses) / len(losses) if losses else 0.0


def loop_lovasz(z, g, valid, labels, _weight, hinge=False, per="batch", classes="present", mode="exact"):
    """sum_i (m_i - m_{i+1}) * J(the i largest errors), with J as a loss over sets of wrong pixels."""
    assert mode == "exact"
    p = softmax(z) if labels.mode == "multiclass" else 1 / (1 + np.exp(-z))
    wrong = np.maximum(0, np.where(g == 1, 1 - z, 1 + z)) if hinge else np.abs(g - p)
    names = list(labels.channel_names)
    channels = range(z.shape[1])
    if isinstance(classes, list):
        channels = [names.index(c) if isinstance(c, str) else c for c in classes]
    losses, counted = [], []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        row, keep = [], []
        for k in channels:
            pixels = [(b, i) for b in images for i in range(z.shape[2]) if valid[b, k, i]]
            pixels.sort(key=lambda at: -wrong[at[0], k, at[1]])
            truth = {at for at in pixels if g[at[0], k, at[1]]}
            errors = [wrong[b, k, i] for b, i in pixels] + [0.0]
            row.append(sum(
                (errors[n - 1] - errors[n]) * n / len(truth.union(pixels[:n])) for n in range(1, len(pixels) + 1)
            ))  # fmt: skip
            keep.append(bool(truth) if classes == "present" else bool(pixels))
        losses.append(row)
        counted.append(keep)
    return loop_mean(losses, counted, [1.0] * len(list(channels)))


REGIONS = {"dice": dice_loss, "jaccard": jaccard_loss, "tversky": tversky_loss}


def loop(options, logits, mask, labels, pixel_weight=None):
    """The loss that `options` describe, as a float."""
    options = dict(options)
    name = options.pop("name")
    g, valid = shares_and_valid(mask, labels)
    z = logits.numpy().reshape(2, labels.channels, -1)
    weight = np.ones((2, z.shape[2])) if pixel_weight is None else pixel_weight.numpy().reshape(2, -1)
    given = (z, g, valid, labels, weight)
    if name == "cross_entropy":
        return loop_pixel(*given, lambda p: -math.log(p), **options)
    if name == "poly_cross_entropy":
        epsilon = options.pop("epsilon", 1.0)
        return loop_pixel(*given, lambda p: -math.log(p) + epsilon * (1 - p), **options)
    if name == "focal":
        gamma = options.pop("gamma", 2.0)
        return loop_pixel(*given, lambda p: -((1 - p) ** gamma) * math.log(p), **options)
    if name in REGIONS:
        return loop_region(*given, REGIONS[name], **options)
    if name.startswith("lovasz"):
        return loop_lovasz(*given, name == "lovasz_hinge", **options)
    others = {
        "topk_cross_entropy": loop_topk,
        "focal_tversky": loop_focal_tversky,
        "generalized_dice": loop_generalized,
    }
    return others[name](*given, **options)
