"""From an image to logits: whole, or by a sliding window; and from files to masks on their own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.utils.padding import Multiple, padded

Network = Callable[[Tensor], Tensor]


def sliding_window(image: Tensor, network: Network, window: Sequence[int], overlap: float = 0.5) -> Tensor:
    """Predict an image of any size in overlapping windows: [B, C, *S] -> [B, K, *S].

    Windows are blended with Gaussian weights, so that the middle of a window counts more than its border; an image
    smaller than the window is padded with 0 and cut back.
    window: sides [D]. overlap: the share that neighbouring windows have in common, 0 <= overlap < 1.
    """
    if len(window) != image.ndim - 2:
        raise ValueError(f"expected a window with {image.ndim - 2} sides, got {list(window)}")
    if not 0 <= overlap < 1:
        raise ValueError(f"expected an overlap of at least 0 and less than 1, got {overlap}")
    from monai.inferers.utils import sliding_window_inference

    logits = sliding_window_inference(image, list(window), 4, network, overlap=overlap, mode="gaussian")
    assert isinstance(logits, Tensor)
    return logits


def whole_image(image: Tensor, network: Network, multiple: Multiple) -> Tensor:
    """Predict an image at once, padded at its ends with 0 to a multiple and cut back: [B, C, *S] -> [B, K, *S]."""
    size = image.shape[2:]
    missing = [whole - side for whole, side in zip(padded(size, multiple), size, strict=True)]
    logits = network(F.pad(image, [amount for number in reversed(missing) for amount in (0, number)]))
    return logits[(..., *(slice(side) for side in size))]


@dataclass(frozen=True)
class Predictor:
    """A network with all it takes to predict one image [C, *S]. window: None predicts whole images.

    The logits lie on the grid of the image that the network sees; `labels.resample` takes them to another.
    """

    model: nn.Module
    device: torch.device
    multiple: Multiple = 1
    window: tuple[int, ...] | None = None
    overlap: float = 0.5
    channels_last: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """[C, *S] -> logits [1, K, *S] on the device, in float32. Leaves the model's mode as it was."""
        training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            batch = to_device(image[None], self.device, channels_last=self.channels_last)
            logits = self._logits(batch).float()
        self.model.train(training)
        return logits

    def _logits(self, batch: Tensor) -> Tensor:
        if self.window is None or all(a <= b for a, b in zip(batch.shape[2:], self.window, strict=True)):
            return whole_image(batch, self.model, self.multiple)
        return sliding_window(batch, self.model, self.window, self.overlap)


def to_device(tensor: Tensor, device: torch.device, *, channels_last: bool = False) -> Tensor:
    """Move without waiting, into the memory format that the network was given."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if channels_last and tensor.ndim in formats:
        return tensor.to(device, non_blocking=True, memory_format=formats[tensor.ndim])
    return tensor.to(device, non_blocking=True)
