"""A prediction window by window of an image in pieces is that of the image as a whole tensor."""

import numpy as np
import pytest
import torch
from torch import nn

from segkit import Labels
from segkit.data.pieces import ArrayPieces
from segkit.inference.ensemble import Ensemble
from segkit.inference.piecewise import PiecewiseBatch
from segkit.inference.predictor import Predictor

LABELS = Labels(["background", "a", "b"])
CPU = torch.device("cpu")


def network(dims):
    torch.manual_seed(0)
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 3, 3, padding=1).eval()


def image(*sides):
    return np.random.default_rng(0).normal(0, 1, (2, *sides)).astype(np.float32)


def pieces(array):
    return ArrayPieces(array, lambda piece: piece, "image")


@pytest.mark.parametrize(
    ("sides", "window"), [((50, 37), (16, 16)), ((10, 40), (16, 16)), ((20, 9, 33), (8, 16, 16)), ((5, 6), (16, 16))]
)
@pytest.mark.parametrize("new", [1.0, 1.3])
def test_the_prediction_is_that_of_the_tensor(sides, window, new):
    array, size = image(*sides), tuple(round(side * new) for side in sides)
    predictor = Predictor(network(len(sides)), LABELS, CPU, window=window)
    expected = predictor.predict(torch.from_numpy(array), size, keep_logits=True)
    found = predictor.predict(pieces(array), size, keep_logits=True)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.logits, expected.logits)


def test_an_ensemble_takes_pieces():
    array = image(40, 30)
    predictor = Predictor(network(2), LABELS, CPU, window=(16, 16))
    ensemble = Ensemble((predictor, predictor), (1.0, 1.0))
    expected = ensemble.predict([torch.from_numpy(array)] * 2, (40, 30))
    assert torch.equal(ensemble.predict([pieces(array)] * 2, (40, 30)).mask, expected.mask)


def test_a_large_image_is_predicted_in_windows_without_being_read_as_a_whole(monkeypatch):
    monkeypatch.setattr("segkit.inference.predictor.WHOLE", 1e6)
    read = []

    class Watched(ArrayPieces):
        def read(self, box):
            read.append(tuple(part.stop - part.start for part in box))
            return super().read(box)

    array = image(1200, 1000)
    predictor = Predictor(network(2), LABELS, CPU, large_window=(512, 512))
    found = predictor.predict(Watched(array, lambda piece: piece, "image"), (1200, 1000))
    assert torch.equal(found.mask, predictor.predict(torch.from_numpy(array), (1200, 1000)).mask)
    assert max(map(max, read)) == 512


def test_crops_have_zeros_beyond_the_image():
    array = image(6, 7)
    batch = PiecewiseBatch.of(pieces(array), CPU).padded((2, 0), (1, 3))
    expected = np.pad(array, ((0, 0), (2, 1), (0, 3)))[None]
    assert batch.shape == expected.shape
    for place in (
        (slice(0, 9), slice(0, 10)),
        (slice(0, 2), slice(1, 4)),
        (slice(3, 9), slice(6, 10)),
        (slice(8, 9), slice(8, 10)),
    ):
        np.testing.assert_array_equal(batch[(..., *place)].numpy(), expected[(..., *place)])
