"""The memory of a prediction: estimated, bounded, and explained when it runs out."""

import math

import pytest
import torch

from segkit import Labels
from segkit.experiment.planning import Fingerprint, memory_limit, propose
from segkit.experiment.planning.memory import prediction_bytes
from segkit.inference import memory
from segkit.inference.memory import PredictionMemoryError, bytes_per_pixel, free_bytes
from segkit.inference.predictor import Predictor
from segkit.models import UNet
from segkit.utils.live_bytes import LiveBytes

CPU = torch.device("cpu")
LABELS = Labels(["background", "a", "b"])


class Repeat(torch.nn.Module):
    """Three classes from one channel, with `hidden` channels in between."""

    def __init__(self, hidden=3):
        super().__init__()
        self.hidden, self.sizes = hidden, []

    def forward(self, image):
        self.sizes.append(tuple(image.shape))
        hidden = image.repeat_interleave(self.hidden, 1)
        return torch.cat([hidden[:, :1], -hidden[:, :1], hidden[:, :1] / 2], 1)


@pytest.mark.parametrize("size", [(300, 280), (50, 40), (60, 50, 70)])
def test_the_estimate_is_the_bytes_of_the_tensors_that_are_alive_together(size):
    """A convolution to 8 channels, its activation, and one to 3: 8 and 8, or 8 and 3, numbers of 4 bytes per pixel."""
    convolution = torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d
    network = torch.nn.Sequential(convolution(1, 8, 3, padding=1), torch.nn.LeakyReLU(), convolution(8, 3, 1))
    with torch.inference_mode():
        estimate = bytes_per_pixel(network, torch.zeros(1, 1, *size), network)
    assert estimate == pytest.approx(memory.WORKSPACE * (8 + 8) * 4)


@pytest.mark.parametrize(("size", "new"), [((240, 12, 12), (240, 12, 12)), ((12, 240, 12), (18, 400, 9))])
def test_logits_of_the_whole_image_are_never_in_memory(size, new, monkeypatch):
    """In windows of a twentieth of the image, less than half of its logits is alive at any time."""
    monkeypatch.setattr("segkit.inference.windows.PIECE", 2**14)
    labels = Labels([f"class {number}" for number in range(20)], "multilabel")
    network = torch.nn.Conv3d(1, 20, 1)
    predictor = Predictor(network, labels, CPU, window=(12, 12, 12))
    image = torch.randn(1, *size)
    with LiveBytes([*network.parameters()]) as counter:
        predictor.predict(image, new)
    mask = 20 * math.prod(new)
    assert counter.peak - mask < 4 * 20 * max(math.prod(new), math.prod(size)) / 2
    with LiveBytes([*network.parameters()]) as counter:
        predictor.predict(image, new, keep_logits=True)
    assert counter.peak - mask > 4 * 20 * math.prod(new)


@pytest.mark.parametrize(("limit", "passes"), [(4e9, [(1, 1, 1200, 900)]), (1e6, [(1, 1, 512, 512)])])
def test_images_are_predicted_in_windows_above_an_estimate(limit, passes, monkeypatch):
    """The estimate does not depend on the memory of this machine."""
    monkeypatch.setattr("segkit.inference.predictor.WHOLE", limit)
    model = Repeat()
    predictor = Predictor(model, LABELS, CPU, large_window=(512, 512))
    predictor.predict(torch.zeros(1, 1200, 900), (1200, 900))
    sample, *sizes = model.sizes
    assert sample == (1, 1, 256, 256)
    assert sum(size[0] for size in sizes) == (1 if limit > 1e9 else 4 * 3)
    assert set(passes[:1]) <= set(sizes)
    model.sizes.clear()
    predictor.predict(torch.zeros(1, 600, 900), (600, 900))
    assert model.sizes == [(1, 1, 600, 900)]  # a small image costs no estimate


def test_a_pass_that_cannot_fit_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 10**6)
    model = Repeat()
    predictor = Predictor(model, LABELS, CPU, multiple=16)
    with pytest.raises(PredictionMemoryError, match=r"about .* GB of memory.*evaluation.window=\[256, 256\]") as caught:
        predictor.predict(torch.zeros(1, 1100, 1100), (1100, 1100))
    assert caught.value.exit_code == 4
    assert model.sizes == [(1, 1, 256, 256)]


class Greedy(torch.nn.Module):
    def forward(self, image):
        return torch.empty(2**56, device=image.device)


def test_an_allocation_that_fails_names_the_option():
    predictor = Predictor(Greedy().train(), LABELS, CPU, multiple=8, window=(20, 20))
    with (
        pytest.warns(UserWarning, match="predicted again, with its logits in a temporary file"),
        pytest.raises(PredictionMemoryError, match=r"an image of 30 x 40 pixels.*evaluation.window=\[16, 16\]"),
    ):
        predictor.predict(torch.zeros(1, 30, 40), (30, 40))
    assert predictor.model.training


def test_other_errors_of_the_network_stay_as_they_are():
    with pytest.raises(RuntimeError, match="expected input"):
        Predictor(torch.nn.Conv2d(3, 3, 1), LABELS, CPU).predict(torch.zeros(1, 8, 8), (8, 8))


def test_free_memory_is_known_for_the_cpu_only_where_there_is_no_accelerator():
    assert 0 < free_bytes(CPU) < 2**50
    assert free_bytes(torch.device("meta")) is None


@pytest.mark.parametrize(("gigabytes", "window"), [(1.5, True), (100, False)])
def test_a_plan_predicts_in_windows_what_does_not_fit_as_a_whole(gigabytes, window):
    """A U-Net with 16 channels at full resolution keeps some 400 bytes per pixel: 20 GB for 6000 x 8000 pixels."""
    sides, spacing = (6000, 8000), (1.0, 1.0)
    fingerprint = Fingerprint(
        *(
            20,
            20,
            0,
            20,
            3,
            sides,
            sides,
            sides,
            spacing,
            spacing,
            spacing,
            spacing,
            sides,
            (0.0, 255.0),
            (0.0, 0.5, 1.0),
        ),
        between=0.1,
        with_foreground=1.0,
        shares=(0.8, 0.1, 0.1),
        class_counts=((8, 1, 1),) * 20,
    )
    proposal = propose(fingerprint, LABELS, memory_limit(gigabytes, "cpu"))
    sections = proposal.sections
    options = {key: value for key, value in sections["model"].items() if key != "name"}
    with torch.device("meta"):
        network = UNet(in_channels=3, out_channels=3, dims=2, **options)
    assert 15e9 < prediction_bytes(network, 3, sides) < 30e9
    assert sections.get("evaluation") == ({"window": sections["sampling"]["patch"]} if window else None)
    assert ("evaluation.window" in proposal.reasons) == window
