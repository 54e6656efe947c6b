"""What happens to the state of a network beside the optimiser's step: moving averages, and steps that do not count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, weight: Tensor) -> None:
    """average <- average + weight * (model - average), for parameters and buffers; counters are copied.

    weight: a scalar on the device, 0 after a step that did not count. torch's AveragedModel counts its updates in a
    tensor and looks at it at each of them, which waits for the device.
    """
    new = dict(model.state_dict())
    old = average.state_dict()
    floating = [name for name, value in old.items() if value.is_floating_point()]
    weights = [weight] * len(floating)
    torch._foreach_lerp_([old[name] for name in floating], [new[name] for name in floating], weights)  # pyright: ignore
    for name in old.keys() - set(floating):
        old[name].copy_(new[name])


class KeptBuffers:
    """The buffers of a network (the statistics of its norms) as they were before a step, to be put back if it does not
    count: a forward pass over NaN would be in their running means for good.

    The buffers of a type are laid into one tensor, of which they then are parts, so that this takes two operations.
    """

    def __init__(self, model: nn.Module):
        self.pairs: list[tuple[Tensor, Tensor]] = []  # all buffers of a type, and the same as they were
        places: dict[torch.dtype, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                places.setdefault(buffer.dtype, []).append((module, name))
        for owners in places.values():
            buffers = [module.get_buffer(name) for module, name in owners]
            together = torch.cat([buffer.flatten() for buffer in buffers])
            parts = together.split([buffer.numel() for buffer in buffers])
            for (module, name), buffer, part in zip(owners, buffers, parts, strict=True):
                module._buffers[name] = part.view(buffer.shape)
            self.pairs.append((together, together.clone()))

    @torch.no_grad()
    def remember(self) -> None:
        for together, kept in self.pairs:
            kept.copy_(together)

    @torch.no_grad()
    def put_back(self, where: Tensor) -> None:
        """where: bool on the device, a scalar; nothing is read back."""
        for together, kept in self.pairs:
            together.copy_(torch.where(where, kept, together))
