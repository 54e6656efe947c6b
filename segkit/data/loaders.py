"""Batches: collating samples, padded with the padding value, and the data loader for training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from segkit.data.datasets import TrainingSet
from segkit.data.sampling import BatchSampler, Key, cut
from segkit.utils.padding import Multiple, padded


def collate(samples: Sequence[dict[str, Any]], padding_value: int, multiple: Multiple) -> dict[str, Any]:
    """Stack samples into a batch.

    Each axis is padded at its end to the largest sample and then to a multiple of `multiple`. Images, weights and maps
    are padded with 0, masks with the padding value. Maps with one axis are padded to the longest.
    """
    dims = samples[0]["image"].ndim - 1
    largest = [max(sample["image"].shape[1 + axis] for sample in samples) for axis in range(dims)]
    size = padded(largest, multiple)
    start = (0,) * dims

    def stacked(name: str, fill: float) -> torch.Tensor:
        return torch.from_numpy(np.stack([cut(sample[name].numpy(), start, size, fill) for sample in samples]))

    def stacked_maps(name: str) -> torch.Tensor:
        arrays = [sample["maps"][name].numpy() for sample in samples]
        along = tuple(size) if arrays[0].ndim > 1 else (max(len(array) for array in arrays),)
        return torch.from_numpy(np.stack([cut(array, (0,) * len(along), along, 0) for array in arrays]))

    names = {key: [sample[key] for sample in samples] for key in ("case", "group", "spacing")}
    weights = {"weight": stacked("weight", 0.0)} if "weight" in samples[0] else {}
    maps = {"maps": {name: stacked_maps(name) for name in samples[0]["maps"]}} if "maps" in samples[0] else {}
    return {"image": stacked("image", 0.0), "mask": stacked("mask", padding_value), **weights, **maps, **names}


@dataclass(frozen=True)
class Failure:
    """A known error in a worker, in place of its batch. torch itself would print the traceback of the worker."""

    error: Exception


class ErrorsAsBatches(Dataset):
    """A data set whose batches are collated in the worker, where a known error becomes a `Failure`.

    Known errors are those with an `exit_code`; any other is a bug and keeps its traceback.
    """

    def __init__(self, dataset: TrainingSet, multiple: Multiple):
        self.dataset, self.multiple = dataset, multiple

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any] | Failure:
        try:
            return collate([self.dataset[key] for key in keys], self.dataset.labels.padding_value, self.multiple)
        except Exception as error:
            if not hasattr(error, "exit_code"):
                raise
            return Failure(error.with_traceback(None))


class TrainingLoader(DataLoader):
    """A data loader that raises the error of a `Failure` as it is."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                raise batch.error
            yield batch


def _as_collated(batch: Any) -> Any:
    """The batch of `ErrorsAsBatches`, which has been collated already."""
    return batch


def _start_worker(_number: int, exiting: Any) -> None:
    """Limit a worker to one thread, since more would compete with the training process, and let it ignore signals.

    A signal sent to all processes of a job must not end the workers first: the training process also receives it, and
    needs its workers to finish the step. They end with it.

    exiting: see `_exit_flag`. Once it is 1, SIGTERM ends the worker.
    """
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if exiting.value else None)
    if exiting.value:  # SIGTERM came before its handler was set
        os._exit(0)


def _exit_flag() -> Any:
    """A shared byte that becomes 1 when this process exits.

    Unlike an event it has no lock, which a worker that ends in its signal handler might hold for ever.
    """
    flag = torch.multiprocessing.get_context().RawValue("b", 0)

    def exiting() -> None:
        flag.value = 1

    # unlike atexit, also in a process that multiprocessing started, such as a worker of a comparison, and before the
    # loader workers are asked to end
    Finalize(None, exiting, exitpriority=100)
    return flag


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
    frequent: Sequence[int] = (),
    frequent_share: float = 0.0,
    timeout: float = 0.0,
) -> DataLoader:
    """Return the loader of the micro-batches of steps `start` to `steps`.

    The batches do not depend on the number of workers. See `BatchSampler` for `batch`, `accumulate`, `share`,
    `frequent` and `frequent_share`. timeout: seconds to wait for a batch of the workers, after which a RuntimeError is
    raised; 0 for no limit.
    """
    sampler = BatchSampler(
        len(dataset),
        batch,
        steps,
        seed,
        start,
        accumulate=accumulate,
        share=share,
        frequent=frequent,
        frequent_share=frequent_share,
    )
    return TrainingLoader(
        ErrorsAsBatches(dataset, multiple),
        batch_sampler=sampler,  # pyright: ignore[reportArgumentType]  (keys instead of integers)
        num_workers=workers,
        collate_fn=_as_collated,
        pin_memory=pin,
        worker_init_fn=partial(_start_worker, exiting=_exit_flag()) if workers else None,
        # a separate generator, so that loading does not advance the generator that training uses
        generator=torch.Generator().manual_seed(seed),
        prefetch_factor=4 if workers else None,
        timeout=timeout if workers else 0,
    )
