"""Prediction of whole images and in sliding windows, resampling and decoding."""

import pytest
import torch

from segkit import Labels
from segkit.inference.predictor import Predictor, sliding_window, whole_image
from segkit.models.unet import UNet

LABELS = Labels(["background", "a"])
CPU = torch.device("cpu")


def pointwise(image):
    """A network without spatial context: its result must not depend on how the image is divided."""
    return torch.cat([image.sum(1, keepdim=True), image.square().sum(1, keepdim=True)], dim=1)


@pytest.mark.parametrize("size", [(20, 31), (5, 9), (17, 12, 25)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_windows_cover_every_pixel(size, overlap):
    image = torch.randn(2, 3, *size)
    window = [8] * len(size)
    logits = sliding_window(image, pointwise, window, overlap)
    torch.testing.assert_close(logits, pointwise(image))


def test_window_centres_have_more_weight():
    """Where two windows overlap, the one whose centre is nearer has more weight."""

    def distance_to_border(image):
        return torch.minimum(torch.arange(8), torch.arange(7, -1, -1)).float().repeat(len(image), 1, 8, 1)

    logits = sliding_window(torch.zeros(1, 1, 8, 12), distance_to_border, [8, 8], 0.5)
    blend = logits[0, 0, 0]
    plain_mean = torch.tensor([0.0, 1, 2, 3, 1.5, 1.5, 1.5, 1.5, 3, 2, 1, 0])
    assert (blend >= plain_mean - 1e-5).all()
    assert blend[4] > 1.5


def test_sliding_window_validates_its_arguments():
    with pytest.raises(ValueError, match="a window with 2 sides"):
        sliding_window(torch.zeros(1, 1, 8, 8), pointwise, [8])
    with pytest.raises(ValueError, match="an overlap of at least 0"):
        sliding_window(torch.zeros(1, 1, 8, 8), pointwise, [8, 8], 1.0)


@pytest.mark.parametrize("size", [(13, 8), (5, 6, 7)])
def test_whole_images_are_padded_at_their_ends(size):
    seen = []

    def network(image):
        seen.append(image)
        return pointwise(image)

    image = torch.randn(1, 1, *size)
    torch.testing.assert_close(whole_image(image, network, 8), pointwise(image))
    assert all(side % 8 == 0 for side in seen[0].shape[2:])
    assert seen[0].sum() == pytest.approx(image.sum().item(), abs=1e-4)


class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, image):
        assert not self.training
        self.sizes.append(tuple(image.shape[2:]))
        return pointwise(image)


@pytest.mark.parametrize(("size", "windows"), [((8, 8), 1), ((9, 8), 2)])
def test_sliding_window_is_used_only_for_larger_images(size, windows):
    model = Recorder().train()
    logits = Predictor(model, LABELS, torch.device("cpu"), window=(8, 8))(torch.randn(1, *size))
    assert logits.shape == (1, 2, *size)
    assert model.training
    assert model.sizes in ([(8, 8)] * windows, [(8, 8)])  # windows of one image may go through in one batch


@pytest.mark.parametrize("labels", [Labels(["no", "yes"]), Labels(["x", "y"], mode="multilabel")])
def test_resampling_interpolates_probabilities_not_logits(labels):
    """Between a confident and an uncertain pixel, the probability is the mean, however large the confident logit is."""
    logits = torch.tensor([[[[50.0, -1.0]], [[-50.0, 1.0]]]])
    left, right = labels.probabilities(logits)[0, 0, 0].tolist()
    resampled = labels.resample(logits, (1, 4))
    probabilities = labels.probabilities(resampled)[0, 0, 0].tolist()
    assert probabilities == pytest.approx(
        [left, 0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right, right], abs=1e-6
    )
    assert labels.decode(resampled).shape[-1] == 4
    assert labels.resample(logits, (1, 2)) is logits


class Identity(torch.nn.Module):
    def forward(self, image):
        return image


@pytest.mark.parametrize("labels", [Labels(["no", "yes"], "binary"), Labels(["x"], "multilabel"), LABELS])
def test_predict_resamples_and_decodes_with_the_threshold(labels):
    image = torch.randn(labels.channels, 6, 7)
    predictor = Predictor(Identity(), labels, torch.device("cpu"), threshold=0.3)
    for size in ((6, 7), (9, 14)):
        prediction = predictor.predict(image, size, keep_logits=True)
        torch.testing.assert_close(prediction.logits, labels.resample(image[None], size), rtol=1e-4, atol=1e-5)
        assert torch.equal(prediction.mask, labels.decode(prediction.logits, 0.3))
        assert torch.equal(predictor.predict(image, size).mask, prediction.mask)


class Blend(torch.nn.Module):
    """A network whose result depends on the position in the window, so that the blending matters."""

    def forward(self, image):
        ramp = torch.linspace(0, 1, image.shape[-1]) + torch.linspace(0, 2, image.shape[2]).view(
            -1, *[1] * (image.ndim - 3)
        )
        return torch.cat([image[:, :1] * ramp, image.square().sum(1, keepdim=True) - ramp], 1)


@pytest.mark.parametrize(
    ("size", "window"),
    [
        *[((40, 33), (16, 16)), ((17, 90), (16, 24)), ((9, 50), (16, 16)), ((5, 6), (8, 8)), ((8, 8), (8, 8))],
        *[((21, 14, 33), (8, 8, 8)), ((6, 40, 7), (8, 16, 8)), ((11, 12, 13), (11, 4, 6))],
    ],
)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_windows_give_what_monai_gives(size, window, overlap):
    from monai.inferers.utils import sliding_window_inference

    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = sliding_window_inference(image, list(window), 4, Blend(), overlap=overlap, mode="gaussian")
    torch.testing.assert_close(sliding_window(image, Blend(), window, overlap), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labels", [Labels(["no", "yes"], "binary"), Labels(["x", "y"], "multilabel"), LABELS])
@pytest.mark.parametrize("piece", [1, 200, 2**22])
@pytest.mark.parametrize(
    ("size", "new"),
    [((20, 13), (37, 13)), ((20, 13), (7, 5)), ((13, 41), (40, 60)), ((1, 30), (5, 9)), ((9, 21, 8), (17, 13, 11))],
)
def test_slabs_are_resampled_as_whole_images_are(labels, piece, size, new, monkeypatch):
    """The mask is that of `Labels.resample` and `Labels.decode`, except where two classes are equally likely."""
    monkeypatch.setattr("segkit.inference.windows.PIECE", piece)
    image = torch.randn(labels.channels, *size, generator=torch.Generator().manual_seed(1))
    predictor = Predictor(Identity(), labels, torch.device("cpu"), window=(8,) * len(size), threshold=0.4)
    prediction = predictor.predict(image, new, keep_logits=True)
    expected = labels.resample(image[None], new)
    assert prediction.logits is not None
    torch.testing.assert_close(
        labels.probabilities(prediction.logits), labels.probabilities(expected), rtol=0, atol=1e-5
    )
    assert (prediction.mask != labels.decode(expected, 0.4)).sum() <= 1
    assert prediction.nonfinite == 0


@pytest.mark.parametrize("window", [None, (8, 8)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_whose_logits_are_not_finite_are_counted(window, value):
    image = torch.zeros(2, 20, 24)
    image[0, 3, 5] = image[1, 3, 5] = image[1, 19, 23] = value
    predictor = Predictor(Identity(), LABELS, torch.device("cpu"), window=window)
    for size in ((20, 24), (40, 30)):
        assert predictor.predict(image, size).nonfinite == 2


@pytest.mark.parametrize(
    ("size", "multiple", "pixels", "expected"),
    [
        ((8, 8), 8, 128, (8, 16)),
        ((5, 7), 1, 1, (5, 7)),
        ((1, 1), (4, 2), 1, (4, 2)),
        ((5, 9, 2), 4, 2 * 8 * 12 * 4, (8, 12, 8)),
    ],
)
def test_small_images_are_padded_to_the_smallest_size_of_the_network(size, multiple, pixels, expected):
    model = Recorder()
    predictor = Predictor(model, LABELS, torch.device("cpu"), multiple, minimum_pixels=pixels)
    image = torch.randn(1, *size)
    torch.testing.assert_close(predictor(image), pointwise(image[None]))
    assert model.sizes == [expected]


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (1, 1)])
def test_images_of_one_pixel_at_the_lowest_resolution_are_predicted(size):
    """An instance norm needs two: the image is padded as it would be by hand."""
    torch.manual_seed(0)
    network = UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 4, 4, 4], norm="instance").eval()
    image = torch.randn(1, *size)
    predictor = Predictor(network, LABELS, torch.device("cpu"), network.multiple, minimum_pixels=2 * 8 * 8)
    by_hand = torch.zeros(1, 1, 8, 16)
    by_hand[0, :, : size[0], : size[1]] = image
    with torch.no_grad():
        expected = network(by_hand)[:, :, : size[0], : size[1]]
    torch.testing.assert_close(predictor(image), expected)


@pytest.mark.parametrize(("window", "size"), [(None, (12, 16)), ((8, 8), (40, 24)), ((8, 8), (21, 33))])
def test_progress_is_told_up_to_the_end(window, size):
    """Along an axis of the image, also if the mask is resampled to another grid."""
    told = []
    predictor = Predictor(UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8]), LABELS, CPU, 2, window)
    predictor.predict(torch.randn(1, *size), (30, 50), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) > (3 if window else 0)


class FormatRecorder(torch.nn.Module):
    """A network that records whether the channels of what it receives are last in memory."""

    def __init__(self):
        super().__init__()
        self.formats = []

    def forward(self, image):
        self.formats.append(image.stride()[1] == 1)
        return pointwise(image)


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_that_the_network_receives(dims, window, channels_last):
    """Also with a single channel, which is in both formats at once, and counts as the one of its strides."""
    network, image = FormatRecorder(), torch.randn(1, *[16] * dims)
    window = None if window is None else (window,) * dims
    predictor = Predictor(network, LABELS, CPU, window=window, channels_last=channels_last)
    logits = predictor(image)
    assert set(network.formats) == {channels_last}
    torch.testing.assert_close(logits, pointwise(image[None]))
