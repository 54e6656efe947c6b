"""Speed of counting, of surface distances and of a whole evaluation: python tools/benchmark.py metrics."""

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
from benchmark_tables import Sheet, as_markdown, as_rich, circumstances
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from rich.console import Console
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
    """Print the tables as they come, and write them to a file of markdown."""
    torch.set_num_threads(threads)
    console, written = Console(width=120), [circumstances(threads)]
    console.print(written[0], highlight=False)
    for make in (counting_sheet, surface_sheet, evaluation_sheet, memory_sheet):
        sheet = make(rounds)
        console.print("", sheet.title, as_rich(sheet), sheet.note, sep="\n", highlight=False)
        written.append(as_markdown(sheet))
        if markdown is not None:
            markdown.write_text("\n\n".join(written) + "\n", encoding="utf-8")


def cpu_seconds(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """The least CPU time of each call, all threads together; all in turn in each round."""
    best = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number:  # the first round fills caches
                best[name] = min(best[name], time.process_time() - started)
    return best


def counting_sheet(rounds: int) -> Sheet:
    """Dice of each class and image from uint8 masks; each library gets them as it takes them."""
    sheet = Sheet(
        f"Dice of each image and class: least CPU time of {rounds} rounds, ms",
        ["masks", *LIBRARIES, "faster than MONAI", "than torchmetrics", "asked"],
        note="MONAI and torchmetrics get class numbers, which is faster than their one-hot masks; smp counts only.",
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
    wide: Any = (prediction.long(), mask.long())
    channel: Any = [one.unsqueeze(1) for one in wide]
    options: dict[str, Any] = {"num_classes": classes, "average": "none", "input_format": "index"}
    return {
        "segkit": lambda: dice(count(prediction, mask, labels)),
        "MONAI": lambda: compute_dice(*channel, num_classes=classes),
        "torchmetrics": lambda: dice_score(*wide, **options),
        "smp": lambda: smp.get_stats(*wide, mode="multiclass", num_classes=classes),
    }


def surface_sheet(rounds: int) -> Sheet:
    """HD95 and NSD of blobs and the same blobs a little changed."""
    sheet = Sheet(
        "HD95 and NSD (by area, tolerance 1 mm): least CPU time, s",
        ["volumes", "segkit", "MONAI", "faster", "asked", "largest difference"],
        note="MONAI: compute_hausdorff_distance(percentile=95) and compute_surface_dice(use_subvoxels=True).",
    )
    for name, (number, shape, structures, spacing) in VOLUMES.items():
        pairs = [blobs(shape, structures, seed) for seed in range(number)]
        calls = {
            "segkit": partial(all_surfaces, our_surfaces, pairs, spacing),
            "MONAI": partial(all_surfaces, monai_surfaces, pairs, spacing),
        }
        seconds = cpu_seconds(calls, min(rounds, 3) if number > 5 else 1)
        difference = np.abs(calls["segkit"]() - calls["MONAI"]()).max()
        ratio = f"{seconds['MONAI'] / seconds['segkit']:.1f}"
        sheet.rows.append([name, *(f"{value:.2f}" for value in seconds.values()), ratio, "≥ 2", f"{difference:.1e}"])
    return sheet


def blobs(shape: tuple[int, ...], structures: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bool [structures, *S] twice: ellipsoids with a wavy surface, and others whose waves lie elsewhere."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij", sparse=True)
    planes = ([], [])
    for _ in range(structures):
        centre, radii = generator.uniform(-0.3, 0.3, 3), generator.uniform(0.3, 0.6, 3)
        for kept in planes:
            waves, phases = generator.uniform(2, 6, 3), generator.uniform(0, 6, 3)
            bumps = sum(np.sin(wave * axis + phase) for wave, axis, phase in zip(waves, axes, phases, strict=True))
            parts = [((axis - middle) / radius) ** 2 for axis, middle, radius in zip(axes, centre, radii, strict=True)]
            kept.append(sum(parts) < 1 + 0.1 * bumps)
    return np.stack(planes[0]), np.stack(planes[1])


def all_surfaces(measure: Callable[..., Any], pairs: Sequence[Any], spacing: tuple[float, ...]) -> np.ndarray:
    return np.array([measure(*pair, spacing) for pair in pairs])


def our_surfaces(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> list[list[float]]:
    pairs = zip(prediction, reference, strict=True)
    scores_json = [surface_scores(*pair, spacing, ["hd95", "nsd"], tolerance_mm=1.0) for pair in pairs]
    return [[score["hd95"], score["nsd"]] for score in scores_json]


def monai_surfaces(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> list[list[float]]:
    planes: Any = [torch.from_numpy(one)[None] for one in (prediction, reference)]
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    far: Any = compute_hausdorff_distance(*planes, percentile=95, **options)
    near: Any = compute_surface_dice(*planes, class_thresholds=[1.0] * len(prediction), use_subvoxels=True, **options)
    return [[one.item(), other.item()] for one, other in zip(far[0], near[0], strict=True)]


class Pictures:
    """Cases that are in memory already, so that reading is in neither side of the comparison."""

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
    """What counting, table and scores add to predicting alone."""
    pictures, labels = Pictures(32, 256), Labels(["background", "a", "b"])
    torch.manual_seed(0)
    predictor = Predictor(UNet(in_channels=1, out_channels=3, dims=2, widths=[16, 32, 64]), torch.device("cpu"), 4)
    calls: dict[str, Call] = {
        "predicting": lambda: [labels.decode(predictor(pictures[number]["image"])) for number in range(len(pictures))],
        "evaluating": lambda: score_cases(predictor, pictures, labels),  # pyright: ignore[reportArgumentType]
    }
    with tempfile.TemporaryDirectory() as place:
        calls["and writing"] = lambda: evaluate_and_write(predictor, pictures, labels, Path(place))
        seconds = cpu_seconds(calls, rounds)
    alone = seconds.pop("predicting")
    what = {
        "evaluating": "Dice and IoU, counted",
        "and writing": "with intervals and all files but pictures",
    }
    return Sheet(
        "Evaluating 32 pictures of 256x256 (U-Net of 16, 32, 64 channels): least CPU time, s",
        ["", "predicting alone", "evaluating", "ratio", "asked"],
        [
            [what[name], f"{alone:.3f}", f"{taken:.3f}", f"{taken / alone:.3f}", "≤ 1.1"]
            for name, taken in seconds.items()
        ],
    )


def evaluate_and_write(predictor: Predictor, pictures: Pictures, labels: Labels, folder: Path) -> None:
    """Everything that an evaluation does but for its pictures, whose time does not grow with the cases."""
    scored, scoring = score_cases(predictor, pictures, labels), Scoring()  # pyright: ignore[reportArgumentType]
    write_results(folder, scored, labels, scores_json(scored, labels, scoring, split="test", origin=None))


def memory_sheet(_rounds: int) -> Sheet:
    """How the memory of the process grows with the cases, once the first ones have filled the caches."""
    sheet = Sheet(
        "Memory while counting 128x128 masks of 19 classes, with confusion matrix and calibration, MB",
        ["cases", "table on the device", "growth of the process since the 100th case"],
        note="Resident memory, as the system tells it; the table is made before the first case.",
    )
    labels, cases = Labels([f"class {number}" for number in range(19)]), 2000
    generator = torch.Generator().manual_seed(0)
    masks = [torch.randint(0, 19, (1, 128, 128), generator=generator, dtype=torch.uint8) for _ in range(2)]
    probabilities = torch.full((1, 19, 128, 128), 1 / 19)
    scorer = Scorer(cases, labels, Scoring(calibration=True), torch.device("cpu"))
    table, before = scorer.table.nbytes + scorer.unknown.nbytes, 0
    for number in range(1, cases + 1):
        scorer.add(f"case{number}", f"case{number}", masks[0], masks[1], (1.0, 1.0), probabilities)
        if number == 100:
            before = resident_bytes()
        if number in (200, 1000, cases):
            sheet.rows.append([str(number), f"{table / 1e6:.2f}", f"{(resident_bytes() - before) / 1e6:.2f}"])
    return sheet


def resident_bytes() -> int:
    """Of this process; the system has to be Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
