"""Prediction of one image: network, sliding window, resampling to the original grid, and decoding to a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.labels import Labels
from segkit.utils.padding import Multiple, padded

Network = Callable[[Tensor], Tensor]


def sliding_window(image: Tensor, network: Network, window: Sequence[int], overlap: float = 0.5) -> Tensor:
    """Predict images of any size in overlapping windows: [B, C, *S] -> [B, K, *S].

    Windows are blended with Gaussian weights, so the centre of a window has more weight than its border. Images that
    are smaller than the window are padded with 0; the logits are cropped to the size of the image.

    window: side lengths in pixels, [D].
    overlap: fraction of a window that overlaps with the next one, 0 <= overlap < 1.

    Raises ValueError if the window does not fit the number of axes or the overlap is out of range.
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
    """Predict whole images in one pass: [B, C, *S] -> [B, K, *S].

    Images are padded with 0 at the end of each axis to the next multiple; the logits are cropped to the original size.
    """
    size = image.shape[2:]
    padding = [target - side for target, side in zip(padded(size, multiple), size, strict=True)]
    logits = network(F.pad(image, [amount for number in reversed(padding) for amount in (0, number)]))
    return logits[(..., *(slice(side) for side in size))]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, on the requested grid and on the device of the predictor.

    logits: float32 [1, K, *S].
    mask: the decoded mask, [1, *S], or [1, K, *S] for overlapping classes.
    """

    logits: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Predictor:
    """A network and everything that is needed to predict one preprocessed image [C, *S].

    model: image [B, C, *S] -> logits [B, K, *S].
    labels: classes, which define how logits are decoded.
    multiple: see `whole_image`.
    window, overlap: see `sliding_window`. Images that fit into the window, and all images if it is None, are predicted
        as a whole.
    channels_last: whether images are moved to the channels-last memory format.
    threshold: probability above which a class is predicted, for binary and multilabel.
    """

    model: nn.Module
    labels: Labels
    device: torch.device
    multiple: Multiple = 1
    window: tuple[int, ...] | None = None
    overlap: float = 0.5
    channels_last: bool = False
    threshold: float = 0.5

    def predict(self, image: Tensor, size: Sequence[int]) -> Prediction:
        """Predict one image [C, *S] and return logits and mask on a grid of the given size [D].

        If the size differs from that of the image, as after preprocessing to another spacing, the logits are resampled
        by `Labels.resample`.
        """
        logits = self.labels.resample(self(image), size)
        return Prediction(logits, self.labels.decode(logits, self.threshold))

    def __call__(self, image: Tensor) -> Tensor:
        """Logits [1, K, *S], float32, of one image [C, *S] on the grid of that image.

        The network runs in evaluation mode; its mode is restored afterwards.
        """
        training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            batch = to_device(image[None], self.device, channels_last=self.channels_last)
            logits = self._logits(batch).float()
        self.model.train(training)
        return logits

    def _logits(self, batch: Tensor) -> Tensor:
        if self.window is None or all(side <= limit for side, limit in zip(batch.shape[2:], self.window, strict=True)):
            return whole_image(batch, self.model, self.multiple)
        return sliding_window(batch, self.model, self.window, self.overlap)


def to_device(tensor: Tensor, device: torch.device, *, channels_last: bool = False) -> Tensor:
    """Move a tensor to the device without blocking; with `channels_last`, also to that memory format (4D and 5D)."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if channels_last and tensor.ndim in formats:
        return tensor.to(device, non_blocking=True, memory_format=formats[tensor.ndim])
    return tensor.to(device, non_blocking=True)
