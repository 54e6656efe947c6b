"""Where the logits that windows add up, and the mask, are kept while an image is predicted."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from segkit.data.memory_check import in_gb
from segkit.inference.memory import PredictionMemoryError, free_bytes
from segkit.utils.errors import is_out_of_memory
from segkit.utils.files import reserve

CPU = torch.device("cpu")
ON_DISK = "/var/tmp"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Storage:
    """A place for tensors.

    device: on which the tensors are.
    in_file: whether they lie in a temporary file, see `disk_folder`. It has no name, so nothing is left of it when the
        process ends.
    """

    device: torch.device
    in_file: bool = False

    def zeros(self, size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of zeros. Raises PredictionMemoryError if there is no room for the file."""
        return self._in_file(size, dtype) if self.in_file else torch.zeros(*size, dtype=dtype, device=self.device)

    def _in_file(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        numbers = torch.empty(0, dtype=dtype).numpy().dtype
        needed = int(np.prod(size, dtype=np.int64)) * numbers.itemsize
        folder = disk_folder()
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                reserve(file.fileno(), needed)
                return torch.from_numpy(np.memmap(file, numbers, "r+", shape=tuple(size)))
        except OSError as error:
            raise PredictionMemoryError(
                f"prediction needs a temporary file of {in_gb(needed)}, which cannot be made in {folder} "
                f"({error.strerror}); name a folder with more room by TMPDIR"
            ) from error

    def is_memory_of(self, device: torch.device) -> bool:
        """Whether tensors are in the memory of a device."""
        return self.device.type == device.type and not self.in_file

    def __str__(self) -> str:
        return "a temporary file" if self.in_file else f"the memory of the device {self.device}"


def disk_folder() -> str:
    """The folder for large temporary files: TMPDIR if it is set, otherwise /var/tmp if there is one, since /tmp may lie
    in memory."""
    if "TMPDIR" not in os.environ and os.access(ON_DISK, os.W_OK):
        return ON_DISK
    return tempfile.gettempdir()


def storages(device: torch.device) -> list[Storage]:
    """The places for the prediction of a network on a device, the fastest first."""
    return [Storage(device), *([] if device.type == "cpu" else [Storage(CPU)]), Storage(CPU, in_file=True)]


def fitting_storages(device: torch.device, needed: float, reserved: float) -> list[Storage]:
    """The places that have room, the fastest first: at least that in a file.

    needed: bytes of what is stored. reserved: bytes that passes through the network need on the device.
    """
    found = []
    for storage in storages(device):
        free = free_bytes(storage.device)
        room = needed + (reserved if storage.device == device else 0)
        if storage.in_file or free is None or room <= free:
            found.append(storage)
    return found


def with_storage(places: Sequence[Storage], predict: Callable[[Storage], Result]) -> Result:
    """Predict with the first place of which the memory suffices in the end. A warning says if it is not the first."""
    for storage, following in pairwise(places):
        try:
            return predict(storage)
        except PredictionMemoryError:
            raise
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # outside of the except block, where the traceback would keep the tensors of the failed prediction
        if storage.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory: the image is predicted again, with its logits in {following}", stacklevel=2)
    return predict(places[-1])
