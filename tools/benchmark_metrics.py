"""Speed of counting, of surface distances and of a whole evaluation. Run as tools/benchmark.py metrics."""

import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch.metrics as smp
import torch
from benchmark_tables import Sheet, write_page
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from torchmetrics.functional.segmentation import dice_score

from segkit import Labels
from segkit.evaluation.results import scores_json, write_results
from segkit.evaluation.scorer import Scorer, score_cases
from segkit.evaluation.scoring import Scoring
from segkit.inference.predictor import Predictor
from segkit.metrics import count, dice
from segkit.metrics.surface import surface_scores
from segkit.models import UNet

COUNTED = {"8x512x512, 19 classes": (19, (8, 512, 512), 20.0), "192x192x96, 4 classes": (4, (1, 192, 192, 96), 8.0)}
VOLUMES = {
    "20 of 35x50x35, 2 structures": (20, (35, 50, 35), 2, (1.0, 1.0, 1.0)),
    "5 of 256x256x256, 1 structure": (5, (256, 256, 256), 1, (1.5, 0.8, 0.8)),
}
Call = Callable[[], Any]
LIBRARIES = ("segkit", "MONAI", "torchmetrics", "smp")


def benchmark_metrics(rounds: int, threads: int, markdown: Path | None) -> None:
    """Print each table when it is finished, and write all tables to a Markdown file."""
    torch.set_num_threads(threads)
    sheets = (make(rounds) for make in (counting_sheet, surface_sheet, evaluation_sheet, memory_sheet))
    write_page("Benchmark: metrics", "metrics", "", sheets, threads, markdown)


def cpu_seconds(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """The minimum CPU time of each call, summed over threads. Each round runs all calls in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:  # the first round fills caches
                best[name] = min(best[name], time.process_time() - start)
    return best


def counting_sheet(rounds: int) -> Sheet:
    """Dice per class and image from uint8 masks, in the format that each library expects."""
    sheet = Sheet(
        f"Dice per image and class: minimum CPU time of {rounds} rounds, ms",
        ["masks", *LIBRARIES, "speed-up over MONAI", "over torchmetrics", "target"],
        note="MONAI and torchmetrics get class numbers, which is faster than one-hot masks; smp only counts.",
    )
    for name, (classes, shape, factor) in COUNTED.items():
        generator = torch.Generator().manual_seed(0)
        masks: Any = [torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8) for _ in range(2)]
        seconds = cpu_seconds(counting_calls(masks[0], masks[1], classes), rounds)
        cells = [f"{1e3 * seconds[library]:.1f}" for library in LIBRARIES]
        ratios = [f"{seconds[library] / seconds['segkit']:.1f}" for library in ("MONAI", "torchmetrics")]
        sheet.rows.append([name, *cells, *ratios, f"≥ {factor:g}"])
    return sheet


def counting_calls(prediction: torch.Tensor, mask: torch.Tensor, classes: int) -> dict[str, Call]:
    labels = Labels([f"class {number}" for number in range(classes)])
    int64_masks: Any = (prediction.long(), mask.long())
    with_channel: Any = [array.unsqueeze(1) for array in int64_masks]
    options: dict[str, Any] = {"num_classes": classes, "average": "none", "input_format": "index"}
    return {
        "segkit": lambda: dice(count(prediction, mask, labels)),
        "MONAI": lambda: compute_dice(*with_channel, num_classes=classes),
        "torchmetrics": lambda: dice_score(*int64_masks, **options),
        "smp": lambda: smp.get_stats(*int64_masks, mode="multiclass", num_classes=classes),
    }


def surface_sheet(rounds: int) -> Sheet:
    """HD95 and NSD between blobs and slightly different blobs."""
    sheet = Sheet(
        "HD95 and NSD (by area, tolerance 1 mm): minimum CPU time, s",
        ["volumes", "segkit", "MONAI", "speed-up", "target", "largest difference"],
        note="MONAI: compute_hausdorff_distance(percentile=95) and compute_surface_dice(use_subvoxels=True).",
    )
    for name, (number, shape, structures, spacing) in VOLUMES.items():
        pairs = [blobs(shape, structures, seed) for seed in range(number)]
        calls = {
            "segkit": partial(all_surfaces, segkit_surfaces, pairs, spacing),
            "MONAI": partial(all_surfaces, monai_surfaces, pairs, spacing),
        }
        seconds = cpu_seconds(calls, min(rounds, 3) if number > 5 else 1)
        difference = np.abs(calls["segkit"]() - calls["MONAI"]()).max()
        ratio = f"{seconds['MONAI'] / seconds['segkit']:.1f}"
        sheet.rows.append([name, *(f"{value:.2f}" for value in seconds.values()), ratio, "≥ 2", f"{difference:.1e}"])
    return sheet


def blobs(shape: tuple[int, ...], structures: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bool arrays [structures, *S] with the same ellipsoids, whose surfaces have different waves."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij", sparse=True)
    planes = ([], [])
    for _ in range(structures):
        centre, radii = generator.uniform(-0.3, 0.3, 3), generator.uniform(0.3, 0.6, 3)
        for masks in planes:
            waves, phases = generator.uniform(2, 6, 3), generator.uniform(0, 6, 3)
            bumps = sum(np.sin(wave * axis + phase) for wave, axis, phase in zip(waves, axes, phases, strict=True))
            parts = [((axis - middle) / radius) ** 2 for axis, middle, radius in zip(axes, centre, radii, strict=True)]
            masks.append(sum(parts) < 1 + 0.1 * bumps)
    return np.stack(planes[0]), np.stack(planes[1])


def all_surfaces(measure: Callable[..., Any], pairs: Sequence[Any], spacing: tuple[float, ...]) -> np.ndarray:
    return np.array([measure(*pair, spacing) for pair in pairs])


def segkit_surfaces(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> list[list[float]]:
    pairs = zip(prediction, reference, strict=True)
    scores = [surface_scores(*pair, spacing, ["hd95", "nsd"], tolerance_mm=1.0) for pair in pairs]
    return [[score["hd95"], score["nsd"]] for score in scores]


def monai_surfaces(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> list[list[float]]:
    planes: Any = [torch.from_numpy(array)[None] for array in (prediction, reference)]
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    hd95: Any = compute_hausdorff_distance(*planes, percentile=95, **options)
    nsd: Any = compute_surface_dice(*planes, class_thresholds=[1.0] * len(prediction), use_subvoxels=True, **options)
    return [[distance.item(), share.item()] for distance, share in zip(hd95[0], nsd[0], strict=True)]


class Pictures:
    """Cases in memory, so that reading files is not part of the measurement."""

    def __init__(self, number: int, side: int):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(number, 1, side, side, generator=generator)
        self.masks = torch.randint(0, 3, (number, side, side), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> dict[str, Any]:
        name = f"case{number}"
        return {
            "image": self.images[number],
            "mask": self.masks[number],
            "case": name,
            "group": name,
            "spacing": [1.0, 1.0],
        }


def evaluation_sheet(rounds: int) -> Sheet:
    """The time of an evaluation relative to prediction alone."""
    pictures, labels = Pictures(32, 256), Labels(["background", "a", "b"])
    torch.manual_seed(0)
    network = UNet(in_channels=1, out_channels=3, dims=2, widths=[16, 32, 64])
    predictor = Predictor(network, labels, torch.device("cpu"), 4)
    calls: dict[str, Call] = {
        "predicting": lambda: [labels.decode(predictor(pictures[number]["image"])) for number in range(len(pictures))],
        "evaluating": lambda: score_cases(predictor, pictures, labels),  # pyright: ignore[reportArgumentType]
    }
    with tempfile.TemporaryDirectory() as place:
        calls["and writing"] = lambda: evaluate_and_write(predictor, pictures, labels, Path(place))
        seconds = cpu_seconds(calls, rounds)
    alone = seconds.pop("predicting")
    titles = {
        "evaluating": "Dice and IoU",
        "and writing": "with confidence intervals and all files except pictures",
    }
    return Sheet(
        "Evaluation of 32 images of 256x256 (U-Net with 16, 32, 64 channels): minimum CPU time, s",
        ["", "prediction alone", "evaluation", "ratio", "target"],
        [
            [titles[name], f"{alone:.3f}", f"{total:.3f}", f"{total / alone:.3f}", "≤ 1.1"]
            for name, total in seconds.items()
        ],
    )


def evaluate_and_write(predictor: Predictor, pictures: Pictures, labels: Labels, folder: Path) -> None:
    """A complete evaluation without its pictures, whose time does not depend on the number of cases."""
    scored, scoring = score_cases(predictor, pictures, labels), Scoring()  # pyright: ignore[reportArgumentType]
    write_results(folder, scored, labels, scores_json(scored, labels, scoring, split="test", origin=None))


def memory_sheet(_rounds: int) -> Sheet:
    """The growth of the process's memory with the number of cases, after the first cases have filled the caches."""
    sheet = Sheet(
        "Memory while counting 128x128 masks of 19 classes, with confusion matrix and calibration, MB",
        ["cases", "table on the device", "growth of the process since case 100"],
        note="Resident memory as reported by the system. The table is allocated before the first case.",
    )
    labels, cases = Labels([f"class {number}" for number in range(19)]), 2000
    generator = torch.Generator().manual_seed(0)
    masks = [torch.randint(0, 19, (1, 128, 128), generator=generator, dtype=torch.uint8) for _ in range(2)]
    probabilities = torch.full((1, 19, 128, 128), 1 / 19)
    scorer = Scorer(cases, labels, Scoring(calibration=True), torch.device("cpu"))
    table, before = scorer.table.nbytes + scorer.invalid.nbytes, 0
    for number in range(1, cases + 1):
        scorer.add(f"case{number}", f"case{number}", masks[0], masks[1], (1.0, 1.0), probabilities)
        if number == 100:
            before = resident_bytes()
        if number in (200, 1000, cases):
            sheet.rows.append([str(number), f"{table / 1e6:.2f}", f"{(resident_bytes() - before) / 1e6:.2f}"])
    return sheet


def resident_bytes() -> int:
    """Resident memory of this process in bytes. Works on Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
