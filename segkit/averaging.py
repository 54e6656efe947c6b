"""What happens to the state of a network beside the optimiser's step: moving averages, and steps that do not count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters and buffers; counters are copied.

    torch's AveragedModel counts its updates in a tensor and looks at it at each of them, which waits for the device.
    """
    new = dict(model.state_dict())
    old = average.state_dict()
    floating = [name for name, value in old.items() if value.is_floating_point()]
    torch._foreach_lerp_([old[name] for name in floating], [new[name] for name in floating], 1 - decay)  # pyright: ignore
    for name in old.keys() - set(floating):
        old[name].copy_(new[name])


class KeptBuffers:
    """The buffers of a network (the statistics of its norms) as they were before a step, to be put back if it does not
    count: a forward pass over NaN would be in their running means for good."""

    def __init__(self, model: nn.Module):
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self.buffers = list(by_type.values())
        self.kept = [[buffer.clone() for buffer in buffers] for buffers in self.buffers]

    @torch.no_grad()
    def remember(self) -> None:
        for kept, buffers in zip(self.kept, self.buffers, strict=True):
            torch._foreach_copy_(kept, buffers)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def put_back(self, where: Tensor) -> None:
        """where: bool on the device, a scalar; nothing is read back."""
        for kept, buffers in zip(self.kept, self.buffers, strict=True):
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                buffers, [torch.where(where, old, new) for old, new in zip(kept, buffers, strict=True)]
            )
