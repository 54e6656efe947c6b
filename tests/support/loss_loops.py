"""Every loss as a loop over pixels in float64, written from the definitions; the plain references must agree with them.

The loops share no idea of computation with the references or with the code under test: no tensor operation over pixels.
"""

from __future__ import annotations

import math
from functools import partial

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
    label_smoothing=0.0, positive_weights=None,
):  # fmt: skip
    exclusive = labels.mode == "multiclass" and activation != "sigmoid"
    class_weights = class_weights or [1.0] * len(labels.names)
    factors = alpha_factors(alpha, labels, exclusive)
    if positive_weights is not None:
        listed = positive_weights if isinstance(positive_weights, list) else [positive_weights] * labels.channels
        factors = [[1.0, one] for one in listed]
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


def entry_losses(z, g, valid, labels, weight):
    """The cross-entropy of every valid entry."""
    return [
        -sum(s * math.log(q) for s, q in zip(shares, p, strict=True) if s)
        for p, shares, _w, _f in entries(z, g, valid, labels, weight, None, [1.0] * 3, [[1.0, 1.0]] * 3)
    ]


def loop_topk(z, g, valid, labels, weight, share=0.1):
    losses = sorted(entry_losses(z, g, valid, labels, weight))
    number = math.ceil(share * len(losses))
    return sum(losses[-number:]) / number


def loop_ohem(z, g, valid, labels, weight, threshold=0.7, min_share=0.1, min_pixels=0):
    losses = sorted(entry_losses(z, g, valid, labels, weight), reverse=True)
    minimum = max(math.ceil(min_share * len(losses) - 1e-9), min_pixels)
    kept = [loss for rank, loss in enumerate(losses) if math.exp(-loss) < threshold or rank < minimum]
    return sum(kept) / len(kept) if kept else 0.0


def loop_margin(z, g, valid, labels, weight, margin=10.0, penalty=0.1):
    excess = total = 0.0
    for b in range(z.shape[0]):
        for i in range(z.shape[2]):
            for k in [0] if labels.mode == "multiclass" else range(z.shape[1]):
                if valid[b, k, i]:
                    logits = z[b, :, i] if labels.mode == "multiclass" else np.array([0.0, z[b, k, i]])
                    over = [max(0.0, max(logits) - one - margin) for one in logits]
                    excess += weight[b, i] * sum(over) / len(over)
                    total += weight[b, i]
    return loop_pixel(z, g, valid, labels, weight, lambda p: -math.log(p)) + penalty * excess / total


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


def loop_overlaps(z, g, valid, labels, weight, images):
    """(sum min(p, g), sum p g, sum |p - g|, sum p, sum g, sum of weights) of each channel over some images."""
    p = softmax(z) if labels.mode == "multiclass" else 1 / (1 + np.exp(-z))
    rows = []
    for k in range(z.shape[1]):
        pixels = [(b, i) for b in images for i in range(z.shape[2]) if valid[b, k, i]]
        triples = [(weight[b, i], p[b, k, i], g[b, k, i]) for b, i in pixels]
        rows.append((
            sum(w * min(x, y) for w, x, y in triples), sum(w * x * y for w, x, y in triples),
            sum(w * abs(x - y) for w, x, y in triples), sum(w * x for w, x, _ in triples),
            sum(w * y for w, _, y in triples), sum(w for w, _, _ in triples),
        ))  # fmt: skip
    return rows


def loop_soft_labels(
    z, g, valid, labels, weight, factor, variant=1, per="batch", eps=1e-5, empty="present", background=True,
    class_weights=None,
):  # fmt: skip
    """factor: 2 for Dice, 1 for Jaccard."""
    class_weights = list(class_weights or [1.0] * z.shape[1])
    class_weights[0] *= background
    losses, counted = [], []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        row = []
        rows = loop_overlaps(z, g, valid, labels, weight, images)
        for least, product, difference, _p, reference, _n in rows:
            overlap = factor * (least if variant == 1 else product)
            loss = 1 - (overlap + pair(eps)[0]) / (overlap + difference + pair(eps)[1])
            row.append(0.0 if empty == "zero" and reference == 0 else loss)
        losses.append(row)
        counted.append([row[4] > 0 or empty != "present" for row in rows])
    return loop_mean(losses, counted, class_weights)


def loop_mcc(
    z, g, valid, labels, weight, per="batch", eps=0.01, empty="present", background=True, class_weights=None
):  # fmt: skip
    """The correlation coefficient of probability and target over the pixels, with eps in the four counts."""
    class_weights = list(class_weights or [1.0] * z.shape[1])
    class_weights[0] *= background
    losses, counted = [], []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        rows = loop_overlaps(z, g, valid, labels, weight, images)
        row, keep = [], []
        for tp, _product, _difference, predicted, reference, pixels in rows:
            fp, fn = predicted - tp + eps, reference - tp + eps
            tn, tp = pixels - predicted - reference + tp + eps, tp + eps
            product = math.sqrt(tp + fp) * math.sqrt(tp + fn) * math.sqrt(tn + fp) * math.sqrt(tn + fn)
            is_partial = 0 < reference < pixels
            row.append(0.0 if empty == "zero" and not is_partial else 1 - (tp * tn - fp * fn) / product)
            keep.append(is_partial or empty != "present")
        losses.append(row)
        counted.append(keep)
    return loop_mean(losses, counted, class_weights)


def line_or_power(x, gamma, smallest=1e-4):
    return x * smallest ** (gamma - 1) if gamma < 1 and x < smallest else x**gamma


def loop_exponential(
    z, g, valid, labels, weight, gamma=0.3, dice_weight=0.8, cross_entropy_weight=0.2, class_weights=None,
    normalize="weights", **options,
):  # fmt: skip
    given = (z, g, valid, labels, weight)
    dice_part = loop_region(*given, lambda *sums: line_or_power(-math.log(1 - dice_loss(*sums)), gamma), **options)
    weighing = {"class_weights": class_weights, "normalize": normalize}
    pixel_part = loop_pixel(*given, lambda p: line_or_power(-math.log(p), gamma), **weighing)
    return dice_weight * dice_part + cross_entropy_weight * pixel_part


def loop_unified(
    z, g, valid, labels, weight, variant="asymmetric", delta=0.6, gamma=0.5, balance=0.5, per="batch", eps=1e-5,
    empty="present",
):  # fmt: skip
    exclusive = labels.mode == "multiclass"
    losses, counted = [], []
    for images in [range(2)] if per == "batch" else [[0], [1]]:
        row, keep = [], []
        for k, (tp, _pg, _d, predicted, reference, pixels) in enumerate(
            loop_overlaps(z, g, valid, labels, weight, images)
        ):
            sides = [(tp, predicted, reference, exclusive and k == 0)]
            if not exclusive:
                sides.append((pixels - predicted - reference + tp, pixels - predicted, pixels - reference, True))
            for hit, positive, present, is_background in sides:
                false = (1 - delta) * (positive - hit) + delta * (present - hit)
                loss = 1 - (hit + pair(eps)[0]) / (hit + false + pair(eps)[1])
                linear = variant == "asymmetric" and is_background
                loss = loss if linear else line_or_power(loss, 1 - gamma)
                row.append(0.0 if empty == "zero" and present < 1e-12 else loss)
                keep.append(present > 1e-12 or empty != "present")
        losses.append(row)
        counted.append(keep)
    total = count = 0.0
    ones = [1.0] * len(labels.names)
    factors = [1.0] * labels.channels if exclusive else [[1.0, 1.0]] * labels.channels
    for p, shares, w, _factor in entries(z, g, valid, labels, weight, None, ones, factors):
        true = int(np.argmax(shares))
        focus = (1 - p[true]) ** gamma if variant == "symmetric" or true == 0 else 1.0
        total -= w[true] * (1 - delta if true == 0 else delta) * focus * math.log(p[true])
        count += w[true]
    tversky_part = loop_mean(losses, counted, [1.0] * len(losses[0]))
    return balance * tversky_part + (1 - balance) * total / count


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


def log_cosh_dice_loss(tp, predicted, reference, eps):
    return math.log(math.cosh(dice_loss(tp, predicted, reference, eps)))


REGIONS = {
    "dice": dice_loss,
    "jaccard": jaccard_loss,
    "tversky": tversky_loss,
    "log_cosh_dice": log_cosh_dice_loss,
}


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
        "ohem_cross_entropy": loop_ohem,
        "margin_label_smoothing": loop_margin,
        "dice_semimetric": partial(loop_soft_labels, factor=2),
        "jaccard_metric": partial(loop_soft_labels, factor=1),
        "mcc": loop_mcc,
        "exponential_log": loop_exponential,
        "unified_focal": loop_unified,
        "focal_tversky": loop_focal_tversky,
        "generalized_dice": loop_generalized,
    }
    return others[name](*given, **options)
