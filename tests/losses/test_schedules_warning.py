"""A loss with scheduled weights warns if the progress of the training is never set."""

import warnings

import pytest
import torch

from segkit import Labels
from segkit.losses import build_loss
from segkit.losses.deep_supervision import DeepSupervision

LABELS = Labels(["background", "a", "b"], ignore_index=255)
SCHEDULED = ["cross_entropy", {"name": "dice", "weight": {"name": "linear", "start": 0, "end": 1}}]
CONSTANT = ["cross_entropy", {"name": "dice", "weight": 0.5}]


def train(loss, steps, heads=1, progress=None):
    """A training loop of a user. Returns the messages of the warnings raised in each step."""
    mask = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    messages = []
    for step in range(steps):
        logits = [torch.randn(2, 3, 8 // 2**head, 8 // 2**head, requires_grad=True) for head in range(heads)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if progress is not None:
                loss.set_progress(progress(step))
            loss(logits if heads > 1 else logits[0], mask).backward()
        messages.append([str(warning.message) for warning in caught if warning.category is UserWarning])
    return messages


@pytest.mark.parametrize("heads", [1, 2])
def test_warns_once_on_the_second_step(heads):
    """Several heads of deep supervision are one step."""
    loss = build_loss(SCHEDULED, LABELS)
    first, (message,), *later = train(DeepSupervision(loss) if heads > 1 else loss, steps=5, heads=heads)
    assert first == []
    assert later == [[], [], []]
    assert "dice" in message
    assert "cross_entropy" not in message
    assert "set_progress" in message


def test_each_loss_object_warns():
    assert [sum(map(len, train(build_loss(SCHEDULED, LABELS), steps=3))) for _ in range(2)] == [1, 1]


def test_no_warning_if_progress_is_set():
    loss = build_loss(SCHEDULED, LABELS)
    assert train(loss, steps=4, progress=lambda step: step / 4) == [[]] * 4
    assert train(loss, steps=2) == [[]] * 2


def test_no_warning_for_constant_weights():
    assert train(build_loss(CONSTANT, LABELS), steps=3) == [[]] * 3


def test_no_warning_without_gradients():
    """An evaluation of the loss is not a training."""
    loss, mask = build_loss(SCHEDULED, LABELS), torch.zeros(2, 8, 8, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            loss(torch.randn(2, 3, 8, 8), mask)
            with torch.no_grad():
                loss(torch.randn(2, 3, 8, 8, requires_grad=True), mask)
