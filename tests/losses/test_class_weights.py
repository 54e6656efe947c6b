"""Class weights from the class counts of the training cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from segkit.losses import build_loss
from segkit.losses.class_weights import class_weights

from support.loss_oracle import batch, labels_of


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda rows: np.array(rows, dtype=np.int32)])
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("inverse", [120 / (3 * 80), 120 / (3 * 30), 120 / (3 * 10)]),
        ("sqrt_inverse", [0.5**0.5, (4 / 3) ** 0.5, 2.0]),
        # q: 80 of 120, 30 of 120, and 10 of the 60 pixels of the only case that contains the third class
        ("median_frequency", [0.25 / (80 / 120), 1.0, 0.25 / (10 / 60)]),
        ("enet", [1 / math.log(1.02 + 80 / 120), 1 / math.log(1.02 + 0.25), 1 / math.log(1.02 + 10 / 120)]),
    ],
)
def test_class_weights_from_class_counts(method, expected, form):
    class_counts = form([[50, 10, 0], [30, 20, 10]])
    assert_close(class_weights(method, class_counts), torch.tensor(expected, dtype=torch.float64))
    logits, mask = batch("multiclass", (4, 5))
    by_name = build_loss({"name": "cross_entropy", "class_weights": method}, labels_of("multiclass"), class_counts)
    by_list = build_loss({"name": "cross_entropy", "class_weights": expected}, labels_of("multiclass"))
    assert_close(by_name(logits, mask), by_list(logits, mask))


def test_the_median_of_an_even_number_of_classes_is_the_mean_of_the_middle_two():
    assert_close(
        class_weights("median_frequency", [[60, 40]]), torch.tensor([0.5 / 0.6, 0.5 / 0.4], dtype=torch.float64)
    )


CLASS_COUNTS = {"pixels": [[50, 10, 0], [30, 20, 10]], "components": [[1, 4, 0], [1, 1, 2]]}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"method": "inverse", "cap": 2.0}, [0.5, 4 / 3, 2.0]),
        ({"method": "inverse", "mean_one": True}, [0.5 / (35 / 18), (4 / 3) / (35 / 18), 4 / (35 / 18)]),
        ({"method": "inverse", "cap": 2.0, "mean_one": True}, [0.5 / (23 / 18), (4 / 3) / (23 / 18), 2 / (23 / 18)]),
    ],
)
def test_weights_are_capped_before_they_are_scaled_to_mean_one(method, expected):
    assert_close(class_weights(method, CLASS_COUNTS), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("counts", "samples"), [("images", [2, 2, 1]), ("components", [2, 5, 2])])
def test_the_effective_number_counts_images_or_components(counts, samples):
    beta = 0.9
    raw = [1 / sum(beta**i for i in range(n)) for n in samples]  # E_n = 1 + beta + ... + beta^(n-1)
    weights = class_weights({"method": "effective_number", "beta": beta, "counts": counts}, CLASS_COUNTS)
    assert_close(weights, torch.tensor([3 * weight / sum(raw) for weight in raw], dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "inverse", "cop": 2}, "got 'cop'"),
        ({"cap": 2}, "got None"),
        ({"method": "inverse", "cap": 0}, "cap of class_weights as a number above 0, got 0"),
        ({"method": "inverse", "beta": 0.9}, "beta .*effective_number, got it with inverse"),
        ({"method": "effective_number", "beta": 1.0}, "as a number between 0 and 1, got 1.0"),
        ({"method": "effective_number", "counts": "pixels"}, "images or components, got 'pixels'"),
    ],
)
def test_invalid_methods(method, message):
    with pytest.raises(ValueError, match=message):
        class_weights(method, CLASS_COUNTS)


def test_missing_component_counts():
    with pytest.raises(ValueError, match="expected class counts with components"):
        class_weights({"method": "effective_number", "counts": "components"}, CLASS_COUNTS["pixels"])
