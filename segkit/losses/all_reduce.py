"""Sums over the processes of a group, so that a loss is that of the whole batch on every one of them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Reduce(Protocol):
    """Sums tensors over processes; `processes` is how many."""

    processes: int

    def __call__(self, *tensors: Tensor) -> list[Tensor]: ...


class Alone:
    """One process: the sums are what they are."""

    processes = 1

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        return list(tensors)


keep = Alone()


class GlobalSum:
    """Sum tensors of equal type over the processes of a group, in one message.

    Every process then computes the same loss, and DDP takes the mean of the gradients of all. What each process
    contributes to the sums has the slope of the one loss, so the backward multiplies by the number of processes,
    and the mean is the gradient of the whole batch. It sends nothing.
    """

    def __init__(self, group: Any):
        self.group, self.processes = group, dist.get_world_size(group)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        packed = torch.cat([tensor.reshape(-1) for tensor in tensors])
        summed = _AllReduce.apply(packed, self.group, self.processes)
        parts = summed.split([tensor.numel() for tensor in tensors])  # pyright: ignore[reportAttributeAccessIssue]
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


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
