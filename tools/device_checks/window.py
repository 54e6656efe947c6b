"""Part: prediction of images and volumes on the device, compared with that on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from meters import meter_of
from torch import Tensor, nn

from device_checks.checks import Check, Measured, Setup
from segkit import Labels
from segkit.inference.prediction import Prediction
from segkit.inference.predictor import Predictor
from segkit.models import UNet
from segkit.utils.seeding import configure_backends

LABELS = Labels(["background", "a", "b"])
TOLERANCE, PIXELS = 1e-3, 1e-4  # largest difference of logits over the largest logit; share of pixels that differ
REPEATS, SECONDS = 5, 3.0
COLUMNS = ("ms", "peak MiB", "difference of logits", "pixels that differ")
NOTE = f"""\
A U-Net with random weights in fp32. The largest difference of the logits from those on the CPU, relative to the
largest logit, may be {TOLERANCE:g}, and the share of pixels with another class {PIXELS:g}. Large volumes are only
timed.\
"""


@dataclass(frozen=True)
class Case:
    """An image, the window in which it is predicted, and the size of the mask.

    compared: whether it is small enough for a prediction on the CPU.
    """

    image: Sequence[int]
    window: tuple[int, ...] | None = None
    size: Sequence[int] | None = None
    compared: bool = True


CASES = {
    "2D, whole": Case([1024, 768]),
    "3D, windows": Case([96, 112, 80], (48, 48, 48)),
    "3D, windows, resampled": Case([96, 112, 80], (48, 48, 48), [80, 160, 120]),
    "3D, large": Case([320, 320, 256], (128, 128, 128), compared=False),
}
SHORT_CASES = {
    "2D, whole": Case([40, 56]),
    "3D, windows": Case([24, 20, 16], (16, 16, 16)),
    "3D, windows, resampled": Case([24, 20, 16], (16, 16, 16), [16, 20, 24]),
}


def checks(setup: Setup) -> Iterator[Check]:
    """A row per image."""
    configure_backends(deterministic=False, tf32=False)
    for name, case in (SHORT_CASES if setup.short else CASES).items():
        shown = "x".join(map(str, case.image))
        yield Check(f"{name}, {shown}", partial(_compare, setup, case))


def _compare(setup: Setup, case: Case) -> Measured:
    image = torch.randn(1, *case.image, generator=torch.Generator().manual_seed(0))
    network = _network(len(case.image), setup.short)
    size = case.size or case.image
    predictor = _predictor(copy.deepcopy(network), setup.torch_device, case)
    meter = meter_of(setup.torch_device)
    milliseconds = meter.milliseconds(lambda: predictor.predict(image, size), 1 if setup.short else REPEATS, SECONDS)
    peak = meter.peak_bytes(lambda: predictor.predict(image, size))
    cells = [f"{milliseconds:.1f}", f"{peak / 2**20:.0f}"]
    if not case.compared:
        return Measured(cells)
    return _compared(
        cells,
        predictor.predict(image, size, keep_logits=True),
        _predictor(network, torch.device("cpu"), case).predict(image, size, keep_logits=True),
    )


def _compared(cells: list[str], found: Prediction, expected: Prediction) -> Measured:
    assert found.logits is not None
    assert expected.logits is not None
    difference = _relative_difference(found.logits.cpu(), expected.logits)
    pixels = (found.mask.cpu() != expected.mask).double().mean().item()
    problem = None if difference <= TOLERANCE and pixels <= PIXELS else "the prediction differs from that on the CPU"
    return Measured([*cells, f"{difference:.0e}", f"{pixels:.0e}"], problem)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _network(dims: int, short: bool) -> nn.Module:
    torch.manual_seed(0)
    widths = [4, 8] if short else [16, 32, 64]
    return UNet(in_channels=1, out_channels=LABELS.channels, dims=dims, widths=widths, norm="instance")


def _predictor(network: nn.Module, device: torch.device, case: Case) -> Predictor:
    return Predictor(network.to(device), LABELS, device, multiple=4, window=case.window)
