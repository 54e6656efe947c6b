"""Speed of data loading of segkit, MONAI's CacheDataset and an albumentations script.

Run as tools/benchmark.py data. All loaders read the same cases, apply the same transforms with the same probabilities,
and return batches of the same size, with and without worker processes. Whole batches are timed, after a first pass that
fills the caches. The loaders take turns.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from benchmark_tables import Sheet, write_page
from torch.utils.data import DataLoader, Dataset

from segkit.data.cases import Case
from segkit.data.loaders import training_loader
from segkit.experiment.build import build_augment_from, build_data, build_labels, build_source, load_config, split_cases
from segkit.experiment.build_training import training_set

CONFIGS = Path(__file__).parents[1] / "configs"
PATCH, VOLUMES, PICTURES = (32, 40, 32), 2, 8  # patch size of volumes; batch sizes of volumes and of pictures
BATCHES = {"hippocampus": 60, "camvid": 12}  # per turn
PREFETCHED = 10  # batches that workers may have prepared before a turn
Makers = dict[str, Callable[[int], Iterator[Any]]]  # functions from the number of workers to endless batches


def benchmark_data(rounds: int, workers: Sequence[int], data: Path, markdown: Path | None) -> None:
    """Print each table when it is finished, and write all tables to a Markdown file."""
    os.environ |= {"SEGKIT_DATA": str(data), "NO_ALBUMENTATIONS_UPDATE": "1"}
    torch.set_num_threads(1)
    sheets = (make(rounds, workers) for make in (hippocampus_sheet, camvid_sheet))
    write_page("Benchmark: data loading", "data", "", sheets, 1, markdown)


def hippocampus_sheet(rounds: int, workers: Sequence[int]) -> Sheet:
    sheet = Sheet(
        f"Samples per second: patches of {'x'.join(map(str, PATCH))} from 160 cached hippocampus volumes, preset "
        "medium",
        ["loader", *(f"{number} workers" for number in workers), *(f"ratio to MONAI, {number}" for number in workers)],
        note="Rotation by 15 degrees and scaling by 0.15 with probability 0.5; intensity scaling and gamma with "
        "probability 0.3. Half of the patches are centred on foreground. margin: size of the augmented region relative "
        "to the patch that is cropped from its centre.",
    )
    for margin in (1.0, 1.5):
        makers: Makers = {"MONAI": partial(monai_volumes, margin), "segkit": partial(segkit_volumes, margin)}
        _add_rows(sheet, makers, "hippocampus", VOLUMES, rounds, workers, f", margin {margin:g}", "MONAI")
    return sheet


def camvid_sheet(rounds: int, workers: Sequence[int]) -> Sheet:
    sheet = Sheet(
        "Samples per second: CamVid 360x480, whole frames, preset medium",
        ["loader", *(f"{number} workers" for number in workers), *(f"ratio to script, {number}" for number in workers)],
        note="Horizontal flip with probability 0.5, rotation by 15 degrees and scaling by 0.2 with probability 0.7, "
        "brightness and contrast with probability 0.5. The script reads the files in each epoch, as is common, or "
        "keeps the images in memory.",
    )
    makers: Makers = {
        "script": partial(script_pictures, False),
        "script, in memory": partial(script_pictures, True),
        "segkit": partial(segkit_pictures, "memory"),
        "segkit, no cache": partial(segkit_pictures, "none"),
    }
    _add_rows(sheet, makers, "camvid", PICTURES, rounds, workers, "", "script")
    return sheet


def _add_rows(
    sheet: Sheet, makers: Makers, data: str, batch: int, rounds: int, workers: Sequence[int], suffix: str, peer: str
) -> None:
    """Time each loader with each number of workers; the ratio to the peer is a median over rounds."""
    loaders = {(name, number): make(number) for name, make in makers.items() for number in workers}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    for _round in range(rounds):
        for key, loader in loaders.items():
            seconds[key].append(_turn(loader, BATCHES[data]))
    for name in makers:
        rates, ratios = [], []
        for number in workers:
            own, other = seconds[name, number], seconds[peer, number]
            rates.append(f"{BATCHES[data] * batch / statistics.median(own):.0f}")
            ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
            ratios.append("-" if name == peer else f"{ratio:.2f}")
        sheet.rows.append([f"{name}{suffix}", *rates, *ratios])


def _turn(loader: Iterator[Any], batches: int) -> float:
    """Time in seconds for a number of batches, without those that workers prepared during other turns."""
    for _number in range(PREFETCHED):
        next(loader)
    start = time.perf_counter()
    for _number in range(batches):
        next(loader)
    return time.perf_counter() - start


# --- segkit ----------------------------------------------------------------------------------------------------------


def segkit_loader(config: str, workers: int, batch: int, overrides: Sequence[str]) -> Iterator[Any]:
    """The loader of a shipped configuration with the preset medium."""
    read = load_config(CONFIGS / config, ["augment.transforms=null", "augment.preset=medium", *overrides])
    labels = build_labels(read)
    data = build_data(read, labels, multiple=lambda _dims: 1)
    training = training_set(read, data, build_augment_from(read, labels))
    if read.loader.cache == "memory":
        training.prepare()
    options = {"batch": batch, "workers": workers, "multiple": 1, "pin": False}
    return tracking(False, iter(training_loader(training, steps=10**6, seed=0, start=0, **options)))


def tracking(meta: bool, batches: Iterator[Any]) -> Iterator[Any]:
    """Set MONAI's tracking of metadata before each batch.

    segkit's MONAI engine disables it for the whole process, and this benchmark runs both loaders in one process.
    """
    from monai.data.meta_obj import set_track_meta

    while True:
        set_track_meta(meta)
        yield next(batches)


def training_cases(config: str) -> list[Case]:
    """The training cases of a shipped configuration."""
    read = load_config(CONFIGS / config, [])
    source = build_source(read, build_labels(read))
    names = set(split_cases(read, source).train)
    return [case for case in source.cases if case.name in names]


def segkit_volumes(margin: float, workers: int) -> Iterator[Any]:
    patch = f"sampling.patch={list(PATCH)}"
    return segkit_loader(
        "hippocampus.yaml", workers, VOLUMES, [patch, "sampling.foreground=0.5", f"sampling.margin={margin}"]
    )


def segkit_pictures(cache: str, workers: int) -> Iterator[Any]:
    whole = ["preprocess.spacing=null", "sampling.patch=null", f"loader.cache={cache}"]
    return segkit_loader("camvid.yaml", workers, PICTURES, whole)


# --- the peers -------------------------------------------------------------------------------------------------------


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def monai_volumes(margin: float, workers: int) -> Iterator[Any]:
    """A loader as in MONAI's tutorials: cached deterministic transforms, then random crop, affine and intensity."""
    from monai.data.dataloader import DataLoader as MonaiLoader
    from monai.data.dataset import CacheDataset
    from monai.data.meta_obj import set_track_meta
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import CenterSpatialCropd, RandCropByPosNegLabeld, SpatialPadd
    from monai.transforms.intensity.dictionary import NormalizeIntensityd, RandAdjustContrastd, RandScaleIntensityd
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.spatial.dictionary import RandAffined
    from monai.transforms.utility.dictionary import EnsureChannelFirstd

    set_track_meta(True)
    files = [
        {"image": str(case.images[0]), "label": str(case.masks[0].path)} for case in training_cases("hippocampus.yaml")
    ]
    keys, region = ["image", "label"], [int(side * margin) for side in PATCH]
    angles = [(-float(np.deg2rad(15)), float(np.deg2rad(15)))] * 3
    fixed = [LoadImaged(keys), EnsureChannelFirstd(keys), NormalizeIntensityd("image"), SpatialPadd(keys, region)]
    random = [
        RandCropByPosNegLabeld(keys, "label", region, pos=1, neg=1, num_samples=1),
        RandAffined(
            keys,
            prob=0.5,
            rotate_range=angles,
            scale_range=[(-0.15, 0.15)] * 3,
            mode=["bilinear", "nearest"],
            padding_mode=["border", "zeros"],
        ),
        RandScaleIntensityd("image", 0.25, prob=0.3),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        *([CenterSpatialCropd(keys, PATCH)] if margin > 1 else []),
    ]
    dataset = CacheDataset(files, Compose([*fixed, *random]), progress=False)
    loader = MonaiLoader(dataset, batch_size=VOLUMES, shuffle=True, drop_last=True, **loading(workers))
    return tracking(True, endless(loader))


def loading(workers: int) -> dict[str, Any]:
    """Options of a data loader."""
    prefetching = {"prefetch_factor": 4, "persistent_workers": True} if workers else {}
    return {"num_workers": workers, **prefetching}


class Script(Dataset):
    """A data set as in typical albumentations scripts: 8-bit images are augmented, then scaled and normalised."""

    def __init__(self, keep: bool):
        import albumentations as library

        self.cases, self.keep = training_cases("camvid.yaml"), keep
        self.cached: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.augment = library.Compose(
            [
                library.HorizontalFlip(p=0.5),
                library.Affine(rotate=(-15, 15), scale=(0.8, 1.2), fill=0, fill_mask=11, p=0.7),
                library.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            ]
        )
        for number in range(len(self.cases) if keep else 0):
            self.cached[number] = self.read(number)

    def __len__(self) -> int:
        return len(self.cases)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        case = self.cases[number]
        image: Any = cv2.imread(str(case.images[0]))
        mask: Any = cv2.imread(str(case.masks[0].path), cv2.IMREAD_GRAYSCALE)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), mask

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.cached[number] if self.keep else self.read(number)
        augmented = self.augment(image=image, mask=mask)
        normalised = (augmented["image"].astype(np.float32) / 255 - 0.45) / 0.25
        return torch.from_numpy(normalised).permute(2, 0, 1), torch.from_numpy(augmented["mask"].astype(np.int64))


def script_pictures(keep: bool, workers: int) -> Iterator[Any]:
    return endless(DataLoader(Script(keep), batch_size=PICTURES, shuffle=True, drop_last=True, **loading(workers)))
