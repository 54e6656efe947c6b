"""Speed and memory of prediction in overlapping windows: segkit, MONAI's inferer, nnU-Net's predictor.

Run as tools/benchmark.py predict. All use the same network with the same weights, windows of the same size with half an
overlap and Gaussian weights, and return the mask of the whole image. segkit also takes part with `train.channels_last`,
as its shipped configurations have it; of volumes on a CPU, networks receive that format in any case. The tools take
turns in processes of their own, whose peak of resident memory is read after each image. nnU-Net takes part where
nnunetv2 can be imported.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from benchmark_tables import Sheet, write_page
from torch import Tensor, nn

from segkit.inference.predictor import Predictor
from segkit.labels import Labels
from segkit.models.unet import UNet

BATCH = 4  # windows that go through the network together, of all tools
OVERLAP = 0.5
Predict = Callable[[Tensor], Tensor]  # image [C, *S] -> mask [*S]


@dataclass(frozen=True)
class Task:
    """An image to predict.

    widths: of the U-Net; a single one makes the network so fast that the rest of the work shows.
    """

    name: str
    channels: int
    classes: int
    size: tuple[int, ...]
    window: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def labels(self) -> Labels:
        return Labels(["background", *(f"class {number}" for number in range(1, self.classes))])

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return UNet(
            in_channels=self.channels, out_channels=self.classes, dims=len(self.size), widths=list(self.widths)
        ).eval()

    def image(self) -> Tensor:
        return torch.randn(self.channels, *self.size, generator=torch.Generator().manual_seed(1))


TASKS = (
    Task("volume 128x192x160, 3 classes", 1, 3, (128, 192, 160), (64, 64, 64), (8, 16, 32, 64)),
    Task("volume 128x192x160, 20 classes, small network", 1, 20, (128, 192, 160), (64, 64, 64), (4, 8)),
    Task("picture 2048x2048, 12 classes", 3, 12, (2048, 2048), (512, 512), (16, 32, 64)),
)


def segkit(task: Task, network: nn.Module, *, channels_last: bool = False) -> Predict:
    if channels_last:
        formats: dict[int, Any] = {2: torch.channels_last, 3: torch.channels_last_3d}
        network = network.to(memory_format=formats[len(task.size)])
    received = channels_last or len(task.size) == 3  # as `predictor_factory` does
    cpu, options = torch.device("cpu"), {"window": task.window, "overlap": OVERLAP, "channels_last": received}
    predictor = Predictor(network, task.labels, cpu, **options)
    return lambda image: predictor.predict(image, image.shape[1:]).mask[0]


def monai(task: Task, network: nn.Module) -> Predict:
    from monai.inferers.inferer import SlidingWindowInferer

    inferer = SlidingWindowInferer(task.window, BATCH, OVERLAP, mode="gaussian")

    def predict(image: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Any = inferer(image[None], network)
            return logits[0].argmax(0).to(torch.uint8)

    return predict


def nnunet(task: Task, network: nn.Module) -> Predict:
    """Its predictor without test-time mirroring, which the others do not do either; it predicts window by window."""
    predictor: Any = import_module("nnunetv2.inference.predict_from_raw_data").nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(task.window))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=task.classes)

    def predict(image: Tensor) -> Tensor:
        flat = len(task.size) == 2
        logits = predictor.predict_sliding_window_return_logits(image[:, None] if flat else image)
        mask = logits.argmax(0).to(torch.uint8)
        return mask[0] if flat else mask

    return predict


def tools() -> dict[str, Callable[[Task, nn.Module], Predict]]:
    """The tools that are installed."""
    found = {"segkit": segkit, "segkit, channels_last": partial(segkit, channels_last=True), "MONAI": monai}
    return found | ({"nnU-Net": nnunet} if find_spec("nnunetv2") is not None else {})


def benchmark_predict(rounds: int, threads: int, markdown: Path | None) -> None:
    """Print each table when it is finished, and write all tables to a Markdown file."""
    sheets = (_sheet(task, rounds, threads) for task in TASKS)
    write_page("Benchmark: prediction", "predict", "", sheets, threads, markdown)


def _sheet(task: Task, rounds: int, threads: int) -> Sheet:
    sheet = Sheet(
        f"{task.name}, windows of {'x'.join(map(str, task.window))}, network {'-'.join(map(str, task.widths))}",
        ["tool", "seconds", "images a minute", "time to MONAI", "peak memory, MB", "memory to MONAI", "equal pixels"],
        note=f"Medians of {rounds} rounds in turn. Peak memory: resident memory beyond that of the process before the "
        "image was predicted. Equal pixels: of the mask, to MONAI's.",
    )
    measured: dict[str, list[tuple[float, float, np.ndarray]]] = {name: [] for name in tools()}
    for _round in range(rounds):
        for name in measured:
            measured[name].append(_in_own_process(partial(_measured, name, task, threads)))
    monai_seconds, monai_bytes = _medians(measured["MONAI"])
    for name, results in measured.items():
        seconds, peak = _medians(results)
        equal = float((results[0][2] == measured["MONAI"][0][2]).mean())
        sheet.rows.append(
            [
                name,
                f"{seconds:.2f}",
                f"{60 / seconds:.2f}",
                f"{seconds / monai_seconds:.2f}",
                f"{peak / 1e6:.0f}",
                f"{peak / monai_bytes:.2f}",
                f"{100 * equal:.4f} %",
            ]
        )
    return sheet


def _medians(results: Sequence[tuple[float, float, np.ndarray]]) -> tuple[float, float]:
    return statistics.median(result[0] for result in results), statistics.median(result[1] for result in results)


def _measured(name: str, task: Task, threads: int) -> tuple[float, float, np.ndarray]:
    """The seconds and the bytes for one image, and its mask, after some windows."""
    torch.set_num_threads(threads)
    predict, image = tools()[name](task, task.network()), task.image()
    predict(image[(..., *(slice(3 * side // 2) for side in task.window))])
    before = _reset_peak()
    start = time.perf_counter()
    mask = predict(image)
    seconds = time.perf_counter() - start
    return seconds, _status()["VmHWM"] - before, mask.numpy()


def _reset_peak() -> int:
    """Set the peak of resident memory to what is resident now, and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status()["VmRSS"]


def _status() -> Mapping[str, int]:
    """Numbers of bytes of /proc/self/status."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Vm")]
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines}


def _in_own_process(function: Callable[[], Any]) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function)
