"""Samples and batches: reading, placing, augmenting, normalising, padding with the padding value."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from segkit.data.augment import Augment, NoAugment
from segkit.data.case_store import CaseStore, Prepared
from segkit.data.cases import Case, RawCase, Source
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Balance, BatchSampler, Key, cut, place_window, sample_seeds
from segkit.labels import Labels
from segkit.utils.padding import Multiple, padded


class TrainingSet(Dataset):
    """Random augmented patches, or whole images where `patch` is None, by `Key`.

    Each sample is a pure function of (seed, key.epoch, key.position) and the case, whoever computes it and when.
    patch: sides [D] of the piece shown to the network. foreground: the share of patches centred on a foreground
    pixel, which is drawn from all of them or, by `balance: classes`, of a class drawn before. margin: how many times
    larger a piece is augmented before the patch is cut from its middle.

    Raises ValueError for a patch with another number of sides than the images have.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        store: CaseStore,
        preprocess: Preprocess,
        labels: Labels,
        augment: Augment,
        *,
        patch: Sequence[int] | None,
        foreground: float,
        margin: float,
        seed: int,
        balance: Balance = "pixels",
    ):
        if patch is not None and len(patch) != preprocess.dims:
            raise ValueError(f"expected sampling.patch with {preprocess.dims} sides, as the images, got {list(patch)}")
        self.cases, self.store, self.preprocess, self.labels = cases, store, preprocess, labels
        self.augment = augment
        self.patch = tuple(patch) if patch is not None else None
        self.foreground = foreground
        self.balance: Balance = balance
        self.margin = 1.0 if isinstance(augment, NoAugment) else margin
        self.seed = seed
        self.prepared: dict[int, Prepared] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def prepare(self) -> None:
        """Read every case now, so that worker processes share them."""
        for number in range(len(self.cases)):
            self._prepared(number)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        case, prepared = self.cases[key.case], self._prepared(key.case)
        placing, augmenting = sample_seeds(self.seed, key)
        image, mask = self._augmented_piece(prepared, placing, augmenting)
        return as_sample(image, mask, case, prepared.spacing)

    def _augmented_piece(
        self, prepared: Prepared, placing: np.random.Generator, augmenting: int
    ) -> tuple[np.ndarray, np.ndarray]:
        size = prepared.image.shape[1:]
        patch = self.patch or size
        window = place_window(size, patch, self.margin, self._centre(prepared, placing), placing)
        where = (..., *window.slices)
        image, mask = self._transform(prepared, prepared.image[where], prepared.mask[where], augmenting)
        return cut(image, window.offset, patch, 0.0), cut(mask, window.offset, patch, self.labels.padding_value)

    def _transform(
        self, prepared: Prepared, image: np.ndarray, mask: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        def normalise(image: np.ndarray) -> np.ndarray:
            return self.preprocess.normalise(image, prepared.shift, prepared.scale)

        if self.augment.before_normalisation:
            low, high = prepared.limits
            if (low, high) == (0.0, 1.0):  # as most pictures have it, and each pass over them takes its time
                image, mask = self.augment(image, mask, seed)
                return normalise(image), mask
            image, mask = self.augment((image - low) / (high - low), mask, seed)
            return normalise(image * (high - low) + low), mask
        return self.augment(normalise(image), mask, seed)

    def _centre(self, prepared: Prepared, placing: np.random.Generator) -> np.ndarray | None:
        wanted = placing.random() < self.foreground
        return prepared.foreground.draw(placing) if wanted else None

    def _prepared(self, number: int) -> Prepared:
        if number in self.prepared:
            return self.prepared[number]
        case = self.cases[number]
        prepared = self.store.prepared(
            case, self.preprocess, self.labels, locate=self.balance if self.foreground > 0 else None
        )
        if self.store.keep != "none":
            self.prepared[number] = prepared
        return prepared


class EvaluationSet(Dataset):
    """Whole images as the network sees them, with the mask on the original grid, by case number.

    keep: in memory, once read.
    """

    def __init__(self, cases: Sequence[Case], source: Source, preprocess: Preprocess, *, keep: bool):
        self.cases, self.source, self.preprocess, self.keep = cases, source, preprocess, keep
        self.samples: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def raw(self, number: int) -> RawCase:
        """The case as stored."""
        return self.source.read(self.cases[number])

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number in self.samples:
            return self.samples[number]
        raw = self.raw(number)
        image = network_image(raw, self.preprocess)
        assert raw.mask is not None
        sample = as_sample(image, raw.mask, self.cases[number], raw.spacing)
        if self.keep:
            self.samples[number] = sample
        return sample


def network_image(raw: RawCase, preprocess: Preprocess) -> np.ndarray:
    """The image as the network sees it, [C, *S]: on the target spacing, normalised."""
    image = preprocess.resample(raw).image
    return preprocess.normalise(image, *preprocess.intensity_map(image))


def as_sample(image: np.ndarray, mask: np.ndarray, case: Case, spacing: Sequence[float]) -> dict[str, Any]:
    """The sample of the design: image float32 [C, *S], mask small integers, names and spacing."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)),
        "mask": torch.from_numpy(np.ascontiguousarray(mask)),
        "case": case.name,
        "group": case.group,
        "spacing": list(spacing),
    }


def collate(samples: Sequence[dict[str, Any]], padding_value: int, multiple: Multiple) -> dict[str, Any]:
    """Stack samples, padded at their ends to the largest of them and to a multiple: images with 0, masks with the
    padding value."""
    dims = samples[0]["image"].ndim - 1
    largest = [max(sample["image"].shape[1 + axis] for sample in samples) for axis in range(dims)]
    size = padded(largest, multiple)
    start = (0,) * dims

    def stacked(name: str, fill: float) -> torch.Tensor:
        return torch.from_numpy(np.stack([cut(sample[name].numpy(), start, size, fill) for sample in samples]))

    names = {key: [sample[key] for sample in samples] for key in ("case", "group", "spacing")}
    return {"image": stacked("image", 0.0), "mask": stacked("mask", padding_value), **names}


def _start_worker(_number: int, ending: Any) -> None:
    """One thread a worker: more would compete with the training itself.

    Signals are for the training, which gets them too where they are sent to all processes of a job, and finishes its
    step with what its workers load; they end with it. ending: set once the training process itself ends, after which a
    worker that is still there is ended by SIGTERM as any process is.
    """
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)


def _ending() -> Any:
    """An event that is set when this process ends."""
    event = torch.multiprocessing.get_context().Event()
    atexit.register(event.set)
    return event


def training_loader(
    dataset: TrainingSet,
    *,
    batch: int,
    workers: int,
    steps: int,
    seed: int,
    start: int,
    multiple: Multiple,
    pin: bool,
    accumulate: int = 1,
    share: slice = slice(None),
) -> DataLoader:
    """The micro-batches of steps `start` to `steps`, the same with any number of workers; see `BatchSampler`."""
    sampler = BatchSampler(len(dataset), batch, steps, seed, start, accumulate=accumulate, share=share)
    return DataLoader(
        dataset,
        batch_sampler=sampler,  # pyright: ignore[reportArgumentType]  (keys instead of numbers)
        num_workers=workers,
        collate_fn=partial(collate, padding_value=dataset.labels.padding_value, multiple=multiple),
        pin_memory=pin,
        worker_init_fn=partial(_start_worker, ending=_ending()) if workers else None,
        # a generator of its own, so that loading draws nothing from the generator that training uses
        generator=torch.Generator().manual_seed(seed),
        prefetch_factor=4 if workers else None,
    )
