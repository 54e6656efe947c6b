"""The processes that train one network together, as `torchrun` starts them: who is who, and agreeing on something."""

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
    """The first process has failed, and says why."""

    silent = True

    def __init__(self, exit_code: int):
        super().__init__("the first process has failed")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """This process among those of a group; a single one by default. group: None for a single one.

    Only the `first` one prints and writes files.
    """

    rank: int = 0
    number: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """The part of a batch that this process takes. Raises ValueError if all cannot have equally much."""
        if batch % self.number:
            raise ValueError(f"expected loader.batch to be a multiple of the {self.number} processes, got {batch}")
        each = batch // self.number
        return slice(self.rank * each, (self.rank + 1) * each)

    def agreed(self, mine: Any) -> Any:
        """What the first process says, on all of them."""
        if self.group is None:
            return mine
        said = [mine]
        dist.broadcast_object_list(said, src=0, group=self.group)
        return said[0]

    def first_does(self, work: Callable[[], Any]) -> Any:
        """What comes of work that the first process does, on all of them. An error of it is raised there, and
        RankZeroFailed
        on the others."""
        result, error = None, None
        if self.first:
            try:
                result = work()
            except Exception as raised:
                error = raised
        result, code = self.agreed((result, None if error is None else getattr(error, "exit_code", 1)))
        if error is not None:
            raise error
        if code is not None:
            raise RankZeroFailed(code)
        return result

    def gathered(self, mine: Any) -> list[Any]:
        """What every process says, on all of them, in the order of ranks."""
        if self.group is None:
            return [mine]
        said: list[Any] = [None] * self.number
        dist.all_gather_object(said, mine, group=self.group)
        return said


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the group that torchrun's environment variables tell of, and leave it at the end; else be alone.

    NCCL where there are GPUs, gloo otherwise. Each process then uses the GPU of its local rank.
    """
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        yield ALONE
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), number, local_rank, dist.group.WORLD)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # what they hold of the group, DDP for one, has to go before it
        raise
    finally:
        gc.collect()  # modules under DDP lie in cycles
        dist.destroy_process_group()
