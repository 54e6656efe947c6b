"""Distributed training with `torchrun`: the rank of this process, and collective operations on Python objects."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


class RankZeroFailed(Exception):
    """Raised on all other ranks if rank 0 has failed. Rank 0 itself reports the error."""

    silent = True

    def __init__(self, exit_code: int):
        super().__init__("the process of rank 0 has failed")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """The rank of this process in a process group. The default is a single process without a group.

    Only the process of rank 0 (`is_first`) prints and writes files.

    rank: rank in the group.
    world_size: number of processes.
    local_rank: rank on this machine, which selects the GPU.
    group: the process group; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process of rank 0."""
        return self.rank == 0

    def batch_slice(self, batch: int) -> slice:
        """The slice of a global batch that this process loads. All slices have the same size.

        Raises ValueError if the batch size is not a multiple of the number of processes.
        """
        if batch % self.world_size:
            raise ValueError(f"expected loader.batch to be a multiple of the {self.world_size} processes, got {batch}")
        per_process = batch // self.world_size
        return slice(self.rank * per_process, (self.rank + 1) * per_process)

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, returned on all ranks."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def run_on_first(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 only, and return its result on all ranks.

        An exception of the function is raised on rank 0; all other ranks raise RankZeroFailed.
        """
        result, error = None, None
        if self.is_first:
            try:
                result = function()
            except Exception as raised:
                error = raised
        result, code = self.broadcast((result, None if error is None else getattr(error, "exit_code", 1)))
        if error is not None:
            raise error
        if code is not None:
            raise RankZeroFailed(code)
        return result

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of the ranks, returned on all ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values


SINGLE_PROCESS = Processes()


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the process group that torchrun's environment variables describe, and leave it at the end.

    Without these variables, yields `SINGLE_PROCESS`. The backend is NCCL if there is a GPU, and gloo otherwise. With
    NCCL, each process uses the GPU of its local rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, local_rank, dist.group.WORLD)
    except BaseException as error:
        # objects in the frames that use the group, such as DDP, must be freed before the group is destroyed
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()  # modules wrapped in DDP are part of reference cycles
        dist.destroy_process_group()
