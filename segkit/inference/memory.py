"""The memory of a prediction: estimated before it starts, and explained when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from segkit.data.memory_check import available, in_gb
from segkit.utils.live_bytes import LiveBytes

# images of at most this many pixels are predicted without an estimate: it would cost more than it tells
SMALL = 2**20
# images whose prediction in one pass is estimated above this number of bytes are predicted in windows. It is a constant
# rather than the free memory, so that scores do not depend on the machine
WHOLE = 4e9
SAMPLE = {2: 256, 3: 48}  # sides of the image on which the memory of a network is measured
WORKSPACE = 1.25  # peak memory of a pass relative to its tensors: the largest ratio measured for six networks


class PredictionMemoryError(MemoryError):
    """An image cannot be predicted in the memory there is. The message says what to change."""

    exit_code = 4


def sample_size(size: Sequence[int]) -> tuple[int, ...]:
    """The size of the corner of an image on which the memory of a network is measured."""
    most = SAMPLE.get(len(size), min(SAMPLE.values()))
    return tuple(min(side, most) for side in size)


def bytes_per_pixel(network: nn.Module, sample: Tensor, run: Callable[[Tensor], Tensor]) -> float:
    """Estimate the peak memory of a pass per pixel of its images, by a pass with a small one.

    network: its weights do not count.
    sample: a corner of an image, [1, C, *S] of `sample_size`. It does not count either.
    run: image -> logits, with the padding that the network needs.
    """
    with LiveBytes([*network.parameters(), *network.buffers(), sample]) as counter:
        run(sample)
    return WORKSPACE * counter.peak / sample[0, 0].numel()


def check_fits(needed: float, device: torch.device, advice: str) -> None:
    """Raise PredictionMemoryError if a pass needs more memory than there is, before the system ends the process."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise PredictionMemoryError(
            f"prediction needs about {in_gb(int(needed))} of memory, but only {in_gb(free)} are available; {advice}"
        )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None if that is unknown."""
    if device.type == "cpu":
        return available()
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
