"""Errors at build and call: which inputs are refused, and that the message names option, value and remedy."""

from __future__ import annotations

import math

import pytest
import torch

from segkit.losses import build_loss
from segkit.losses.class_weights import class_weights

from support.loss_oracle import labels_of


@pytest.mark.parametrize(
    ("spec", "mode", "message"),
    [
        ("dise", "multiclass", r"among cross_entropy.*dice_ce.*got 'dise'; did you mean dice\?"),
        ("weighted_crossentropy", "multiclass", "did you mean weighted_cross_entropy"),
        ({"name": "dize"}, "multiclass", "got 'dize'; did you mean dice"),
        ({"weight": 1.0}, "multiclass", "expected a loss name among .* got None"),
        ({"name": "dice_ce", "weight": 2}, "multiclass", "dice_ce is a recipe"),
        ([], "multiclass", r"a list of these, got \[\]"),
        (3, "multiclass", "expected a loss as a name, a mapping .* got 3"),
        ({"name": "dice", "pre": "image"}, "multiclass", "loss dice, mode multiclass: .* got 'pre'; did you mean per"),
        ({"name": "dice", "labels": None}, "multiclass", "expected options among per, power.* got 'labels'"),
        ({"name": "dice", "per": "imge"}, "binary", "mode binary: expected per as 'batch' or 'image', got 'imge'; did"),
        ({"name": "dice", "power": 3}, "multiclass", "expected power as 1 or 2, got 3"),
        ({"name": "dice", "power": True}, "multiclass", "expected power as 1 or 2, got True"),
        ({"name": "dice", "power": 1.0}, "multiclass", "expected power as 1 or 2, got 1.0"),
        ({"name": "dice", "background": "yes"}, "multiclass", "expected background as true or false, got 'yes'"),
        ({"name": "dice", "eps": "small"}, "multiclass", "expected eps as a number or a list.*, got 'small'"),
        ({"name": "dice", "eps": -1.0}, "multiclass", "loss dice, mode multiclass: expected eps .* got -1.0"),
        ({"name": "dice", "eps": [1.0, 1.0, 1.0]}, "multiclass", r"\[numerator, denominator\], got \[1.0, 1.0, 1.0\]"),
        ({"name": "jaccard", "empty": "keep", "eps": 0}, "multiclass", "jaccard.* empty: keep .*eps"),
        ({"name": "dice", "background": False}, "binary", "mode binary: background: false .* are a"),
        ({"name": "dice", "background": False}, "multilabel", "channels are background, a, b"),
        ({"name": "dice", "background": False, "class_weights": [1, 0, 0]}, "multiclass", "class_weights of all other"),
        ({"name": "dice", "class_weights": [1.0, 2.0]}, "binary", "only 'a' has a channel"),
        ({"name": "dice", "weight": -1}, "multiclass", "loss dice: expected weight as a number of 0 or more.* got -1"),
        ({"name": "dice", "weight": "1"}, "multiclass", "got '1'"),
        ({"name": "dice", "weight": math.nan}, "multiclass", "got nan"),
        ({"name": "cross_entropy", "normalize": "mean"}, "multiclass", "'weights' or 'valid' or 'numel', got 'mean'"),
        ({"name": "cross_entropy", "class_weights": [1.0, 2.0]}, "multiclass", "3 class_weights, .*a, b, got 2"),
        ({"name": "cross_entropy", "class_weights": [1.0]}, "binary", "2 class_weights, .*background, a, got 1"),
        ({"name": "cross_entropy", "class_weights": [1.0, -1.0]}, "binary", "of 0 or more"),
        ({"name": "cross_entropy", "class_weights": [0.0, 0.0]}, "binary", "not all 0"),
        ({"name": "cross_entropy", "class_weights": "median"}, "binary", "did you mean median_frequency"),
        ({"name": "cross_entropy", "class_weights": "inverse"}, "multiclass", "class_counts=.*or give the weights"),
        ("weighted_cross_entropy", "multiclass", "cross_entropy, mode multiclass: class_weights 'median_freq"),
        ({"name": "dice", "weight": {"name": ["linear"]}}, "multiclass", r"among constant, .* got \['linear'\]"),
        ({"name": "dice", "weight": {"name": "linear", "end": -1}}, "multiclass", "weight linear: .* got end -1"),
        ({"name": "dice", "weight": {"name": "after", "before": math.nan}}, "multiclass", "got before nan"),
        ({"name": "dice", "weight": {"name": "cosine", "end": math.inf}}, "multiclass", "got end inf"),
        ({"name": "dice", "weight": {"name": "linear", "begin": 0.5, "until": 0.5}}, "multiclass", "begin < until"),
        ({"name": "dice", "class_weights": {"method": "inverse", "cap": "5"}}, "multiclass", "cap .* above 0, got '5'"),
        ({"name": "dice", "class_weights": {"method": "inverse", "mean_one": "no"}}, "multiclass", "got 'no'"),
        ({"name": "dice", "class_weights": {"method": "effective_number", "beta": "x"}}, "multiclass", "got 'x'"),
        ({"name": "dice", "class_weights": {"method": "effective_number", "counts": [1]}}, "multiclass", "got \\[1\\]"),
        ({"name": "dice", "class_weights": {"method": ["enet"]}}, "multiclass", "list or one of inverse"),
        ({"name": "focal", "gamma": -0.5}, "multiclass", "gamma of 0 or more.* got -0.5"),
        ({"name": "focal", "activation": "softmax"}, "binary", "focal, mode binary: .*softmax.*sigmoid"),
        ({"name": "focal", "activation": "softmax"}, "multilabel", "focal, mode multilabel: .*use activation sigmoid"),
        ({"name": "lovasz_softmax", "classes": ["c"]}, "multiclass", "lovasz_softmax, mode multiclass: .* among back"),
        ({"name": "lovasz_softmax", "classes": [3]}, "multiclass", r"\(or 0 to 2\), got \[3\]"),
        ({"name": "lovasz_softmax", "classes": ["a", 1]}, "multiclass", "distinct classes"),
        ({"name": "lovasz_softmax", "classes": []}, "multiclass", "present, all, or a list"),
        ({"name": "lovasz_softmax", "classes": "presnt"}, "multiclass", "did you mean present"),
        ({"name": "lovasz_softmax", "classes": ["background"]}, "binary", r"among a \(or 1 to 1\)"),
    ],
)  # fmt: skip
def test_invalid_specifications(spec, mode, message):
    with pytest.raises(ValueError, match=message):
        build_loss(spec, labels_of(mode), class_counts=[[1, 2, 3]] if "method" in str(spec) else None)


@pytest.mark.parametrize(
    ("class_counts", "message"),
    [
        ([[5, 3, 0], [1, 2, 0]], "no training case contains b"),
        ([[5, 3], [1, 2]], r"class counts \[cases, 3\].* got shape \[2, 2\]"),
        ([5, 3, 1], r"class counts \[cases, 3\].* got shape \[3\]"),
        ([[5, 3, -1]], "class counts of 0 or more"),
    ],
)
def test_invalid_class_counts(class_counts, message):
    with pytest.raises(ValueError, match=message):
        build_loss({"name": "dice", "class_weights": "inverse"}, labels_of("multiclass"), class_counts)


def test_unknown_class_weight_method():
    with pytest.raises(
        ValueError, match="inverse, sqrt_inverse, median_frequency, enet, effective_number, got 'invers'"
    ):
        class_weights("invers", [[1, 1]])


@pytest.mark.parametrize("name", ["focal", "lovasz_softmax"])
def test_soft_targets_are_refused_by_losses_for_hard_targets(name):
    loss = build_loss(name, labels_of("multiclass"))
    with pytest.raises(ValueError, match=f"{name} is defined for hard targets"):
        loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 1 / 3))


def test_lovasz_refuses_pixel_weights():
    loss = build_loss("lovasz_softmax", labels_of("multiclass"))
    mask = torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="lovasz_softmax counts pixels"):
        loss(torch.zeros(1, 3, 2, 2), mask, pixel_weight=torch.ones(1, 2, 2))


@pytest.mark.parametrize(
    ("logits", "mask", "weight", "message"),
    [
        ((1, 2, 4, 4), (1, 4, 4), None, r"floating logits \[B, 3, \*S\], .* background, a, b, got \[1, 2, 4, 4\]"),
        ((3, 4), (3, 4), None, r"got \[3, 4\]"),
        ((0, 3, 4, 4), (0, 4, 4), None, r"at least one pixel, got \[0, 3, 4, 4\]; drop an empty batch"),
        ((1, 3, 4, 4), (1, 4, 5), None, r"mask .*logits \[1, 3, 4, 4\], got \[1, 4, 5\]"),
        ((2, 3, 4, 4), (1, 4, 4), None, r"mask .*\[2, 4, 4\].* got \[1, 4, 4\]"),
        ((1, 3, 4, 4), (1, 2, 4, 4), None, r"mask .* got \[1, 2, 4, 4\]"),
        ((1, 3, 4, 4), (1, 4, 4), (1, 1, 4, 4), r"pixel_weight .*\[1, 4, 4\].* got \[1, 1, 4, 4\]"),
    ],
)
def test_mismatched_shapes(logits, mask, weight, message):
    loss = build_loss("dice", labels_of("multiclass"))
    with pytest.raises(ValueError, match=message):
        loss(
            torch.zeros(logits),
            torch.zeros(mask, dtype=torch.uint8),
            None if weight is None else torch.ones(weight),
        )


def test_logits_must_be_floating():
    with pytest.raises(ValueError, match=r"expected floating logits .* torch\.int64"):
        build_loss("dice", labels_of("binary"))(torch.zeros(1, 1, 2, 2).long(), torch.zeros(1, 2, 2).long())


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 4, 4), (2, 4, 4, 4), (2, 2, 4, 4), (2, 3, 1, 4), (2, 3, 4)])
def test_mismatched_valid_map(shape):
    logits, mask = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"valid as bool \[2, 4, 4\], \[2, 3, 4, 4\] or \[2, 3, 1, 1\], got"):
        build_loss("dice", labels_of("multiclass"))(logits, mask, valid=torch.ones(shape, dtype=torch.bool))
