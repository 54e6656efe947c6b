"""Exponential moving average of a network, and restoring its buffers after a skipped step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, weight: Tensor) -> None:
    """Update average <- average + weight * (model - average), for parameters and buffers. Integer buffers are copied.

    weight: Scalar on the device, 0 after a skipped step.

    PyTorch's AveragedModel is not used because it reads its update counter back in each step, which waits for the
    device.
    """
    new, old = model.state_dict(), average.state_dict()
    floating = [name for name, value in old.items() if value.is_floating_point()]
    weights = [weight] * len(floating)
    torch._foreach_lerp_([old[name] for name in floating], [new[name] for name in floating], weights)  # pyright: ignore
    for name in old.keys() - set(floating):
        old[name].copy_(new[name])


class BufferBackup:
    """A copy of the buffers of a network, to restore them after a skipped step.

    The running statistics of normalisation layers change in the forward pass: after an image with NaN they would stay
    NaN.

    All buffers of one data type become views into one tensor, so that saving takes one operation and restoring two.
    """

    def __init__(self, model: nn.Module):
        self.pairs: list[tuple[Tensor, Tensor]] = []  # per data type: all buffers in one tensor, and its copy
        owners: dict[torch.dtype, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                owners.setdefault(buffer.dtype, []).append((module, name))
        for modules_and_names in owners.values():
            buffers = [module.get_buffer(name) for module, name in modules_and_names]
            current = torch.cat([buffer.flatten() for buffer in buffers])
            views = current.split([buffer.numel() for buffer in buffers])
            for (module, name), buffer, view in zip(modules_and_names, buffers, views, strict=True):
                module._buffers[name] = view.view(buffer.shape)
            self.pairs.append((current, current.clone()))

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers."""
        for current, copy in self.pairs:
            copy.copy_(current)

    @torch.no_grad()
    def restore(self, condition: Tensor) -> None:
        """Restore the copy if `condition`, a bool scalar on the device, is true. It is not read back to the host."""
        for current, copy in self.pairs:
            current.copy_(torch.where(condition, copy, current))
