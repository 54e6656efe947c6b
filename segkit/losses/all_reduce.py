"""Sums over the processes of a group, which give every process the loss of the whole batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Reduce(Protocol):
    """Sums tensors over processes; `processes` is their number."""

    processes: int

    def __call__(self, *tensors: Tensor) -> list[Tensor]: ...


class SingleProcess:
    """The sum over one process: returns the tensors unchanged."""

    processes = 1

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        return list(tensors)


single_process = SingleProcess()


class GlobalSum:
    """Sums tensors of equal dtype over the processes of a group, in one message.

    Every process then computes the same loss, and DDP averages the gradients over the processes. A process only
    contributes its own part to the sums, so the backward multiplies by the number of processes; the average is then
    the gradient of the whole batch. The backward does not communicate.
    """

    def __init__(self, group: Any):
        self.group, self.processes = group, dist.get_world_size(group)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        packed = torch.cat([tensor.reshape(-1) for tensor in tensors])
        summed = _AllReduce.apply(packed, self.group, self.processes)
        sums = summed.split([tensor.numel() for tensor in tensors])  # pyright: ignore[reportAttributeAccessIssue]
        return [flat.view_as(tensor) for flat, tensor in zip(sums, tensors, strict=True)]


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, group: Any, processes: int) -> Tensor:
        ctx.processes = processes
        summed = packed.clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.processes, None, None
