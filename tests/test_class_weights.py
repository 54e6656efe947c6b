"""Class weights from a census of the training cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_oracle import batch, labels_of
from torch.testing import assert_close

from segkit.losses import build_loss
from segkit.losses.weights import class_weights


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda rows: np.array(rows, dtype=np.int32)])
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("inverse", [120 / (3 * 80), 120 / (3 * 30), 120 / (3 * 10)]),
        ("sqrt_inverse", [0.5**0.5, (4 / 3) ** 0.5, 2.0]),
        # shares: 80 of 120, 30 of 120, and 10 of the 60 pixels of the only case that has the third
        ("median_frequency", [0.25 / (80 / 120), 1.0, 0.25 / (10 / 60)]),
        ("enet", [1 / math.log(1.02 + 80 / 120), 1 / math.log(1.02 + 0.25), 1 / math.log(1.02 + 10 / 120)]),
    ],
)
def test_class_weights_follow_from_a_census(method, expected, form):
    census = form([[50, 10, 0], [30, 20, 10]])
    assert_close(class_weights(method, census), torch.tensor(expected, dtype=torch.float64))
    logits, mask = batch("multiclass", (4, 5))
    by_name = build_loss({"name": "cross_entropy", "class_weights": method}, labels_of("multiclass"), census)
    by_list = build_loss({"name": "cross_entropy", "class_weights": expected}, labels_of("multiclass"))
    assert_close(by_name(logits, mask), by_list(logits, mask))


def test_the_median_over_an_even_number_of_classes_is_the_middle_of_two():
    assert_close(
        class_weights("median_frequency", [[60, 40]]), torch.tensor([0.5 / 0.6, 0.5 / 0.4], dtype=torch.float64)
    )
