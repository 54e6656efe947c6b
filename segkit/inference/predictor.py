"""Prediction of one image: network, sliding window, resampling to the original grid, and decoding to a mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.data.pieces import Pieces
from segkit.inference.averaged_network import disagreement_channels
from segkit.inference.memory import SMALL, WHOLE, PredictionMemoryError, bytes_per_pixel, check_fits, sample_size
from segkit.inference.piecewise import PiecewiseBatch
from segkit.inference.windows import Network, Slab, resampled_slabs, window_slabs, windows_per_pass
from segkit.labels import Labels
from segkit.utils.errors import is_out_of_memory
from segkit.utils.padding import Multiple, padded

SMALL_WINDOW = 256  # largest side of the window that is proposed when the memory does not suffice


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
    logits = []
    for single in image.split(1):
        slabs = [(slab.axis, slab.logits.clone()) for slab in window_slabs(single, network, window, overlap)]
        logits.append(torch.cat([part for _axis, part in slabs], slabs[0][0] + 2))
    return torch.cat(logits)


def whole_image(image: Tensor, network: Network, multiple: Multiple, minimum_pixels: int = 1) -> Tensor:
    """Predict whole images in one pass: [B, C, *S] -> [B, K, *S].

    Images are padded with 0 at the end of each axis to the size that the network can take, see `padded`; the logits are
    cropped to the original size.
    """
    size = image.shape[2:]
    sides = padded(size, multiple, minimum_pixels)
    if sides == tuple(size):
        return network(image)
    padding = [target - side for target, side in zip(sides, size, strict=True)]
    logits = network(F.pad(image, [amount for number in reversed(padding) for amount in (0, number)]))
    return logits[(..., *(slice(side) for side in size))]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, on the requested grid and on the device of the predictor.

    mask: the decoded mask, [1, *S], or [1, K, *S] for overlapping classes.
    nonfinite: the number of pixels of the network's output that are NaN or infinite for any class, int64 []. Where it
        is not 0, the mask means nothing.
    logits: float32 [1, K, *S]; None unless they were asked for.
    disagreement: float32 [1, 1, *S], or [1, K, *S] for overlapping classes; None unless the network gives it.
    """

    mask: Tensor
    nonfinite: Tensor
    logits: Tensor | None = None
    disagreement: Tensor | None = None


class ImagePredictor(Protocol):
    """What evaluation needs: `Predictor`, and several of them as one, see `segkit.inference.ensemble`."""

    @property
    def labels(self) -> Labels: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def threshold(self) -> float | tuple[float, ...]: ...

    def predict(self, image: Any, size: Sequence[int], *, keep_logits: bool = False) -> Prediction:
        """Predict an image, prepared for this predictor, on a grid of the given size."""
        ...


@dataclass(frozen=True)
class Predictor:
    """A network and everything that is needed to predict one preprocessed image [C, *S].

    model: image [B, C, *S] -> logits [B, K, *S].
    labels: classes, which define how logits are decoded.
    multiple, minimum_pixels: see `whole_image`.
    window, overlap: see `sliding_window`. Images that fit into the window, and all images if it is None, are predicted
        as a whole.
    large_window: the window for images that are too large to be predicted as a whole, if `window` is None; None
        predicts them as a whole nevertheless.
    channels_last: whether images are moved to the channels-last memory format.
    threshold: probability above which a class is predicted, for binary and multilabel; one for all, or one each.
    disagreement: whether the disagreement follows the logits, see `AveragedNetwork`.
    """

    model: nn.Module
    labels: Labels
    device: torch.device
    multiple: Multiple = 1
    window: tuple[int, ...] | None = None
    overlap: float = 0.5
    channels_last: bool = False
    threshold: float | tuple[float, ...] = 0.5
    minimum_pixels: int = 1
    large_window: tuple[int, ...] | None = None
    disagreement: bool = False

    def predict(self, image: Tensor | Pieces, size: Sequence[int], *, keep_logits: bool = False) -> Prediction:
        """Predict one image [C, *S] and return its mask on a grid of the given size [D].

        image: a tensor, or pieces that are read window by window.

        If the size differs from that of the image, as after preprocessing to another spacing, the logits are resampled
        as by `Labels.resample`. The network runs in evaluation mode; its mode is restored afterwards.

        keep_logits: whether to return the logits as well, which need 4 bytes per pixel and class.

        Raises PredictionMemoryError if the memory does not suffice.
        """
        with explaining_memory(image.shape[1:], self.advice), evaluation_mode(self.model), torch.inference_mode():
            nonfinite = torch.zeros((), dtype=torch.int64, device=self.device)
            slabs = self.slabs(image, size, nonfinite)
            mask, logits, disagreement = assembled(
                slabs, size, self.labels, self.threshold, self.device, keep_logits, self.disagreement
            )
        return Prediction(mask, nonfinite, logits, disagreement)

    def __call__(self, image: Tensor) -> Tensor:
        """Logits [1, K, *S], float32, of one image [C, *S] on the grid of that image."""
        logits = self.predict(image, image.shape[1:], keep_logits=True).logits
        assert logits is not None
        return logits

    def slabs(
        self, image: Tensor | Pieces, size: Sequence[int], nonfinite: Tensor, axis: int | None = None
    ) -> Iterator[Slab]:
        """The logits of an image [C, *S] on a grid of the given size, slab by slab. The network has to be in evaluation
        mode.

        nonfinite: the number of pixels that are not finite is added to it.
        axis: along which the slabs follow each other; None for that with the thinnest slabs.
        """
        batch = (
            to_device(image[None], self.device, channels_last=self.channels_last)
            if isinstance(image, Tensor)
            else PiecewiseBatch.of(image, self.device)
        )
        slabs = self._finite(self._network_slabs(batch, axis), nonfinite)
        if tuple(size) == tuple(image.shape[1:]):
            return slabs
        return resampled_slabs(slabs, self.labels, image.shape[1:], size)

    def _network_slabs(self, batch: Tensor | PiecewiseBatch, axis: int | None) -> Iterator[Slab]:
        """The logits [1, K, *S] of an image [1, C, *S] on its own grid."""
        window = self._window_for(batch)
        if window is None:
            whole = batch if isinstance(batch, Tensor) else batch[(..., *(slice(None) for _side in batch.shape[2:]))]
            yield Slab(0, self._whole(whole).float(), axis=axis or 0)
        else:
            yield from window_slabs(batch, self.model, window, self.overlap, axis)

    def _whole(self, batch: Tensor) -> Tensor:
        return whole_image(batch, self.model, self.multiple, self.minimum_pixels)

    @staticmethod
    def _finite(slabs: Iterator[Slab], nonfinite: Tensor) -> Iterator[Slab]:
        """The slabs in thin pieces, whose pixels are checked."""
        for slab in slabs:
            for piece in slab.pieces():
                nonfinite += (~piece.logits.isfinite()).any(1).sum()
                yield piece

    def _window_for(self, batch: Tensor | PiecewiseBatch) -> tuple[int, ...] | None:
        """The window in which an image [1, C, *S] is predicted; None for one pass.

        Raises PredictionMemoryError if that needs more memory than there is.
        """
        size = tuple(batch.shape[2:])
        window = self.window
        if window is None and self.large_window is not None and math.prod(size) > SMALL:
            needed = self._bytes_per_pixel(batch) * math.prod(size)
            window = self.large_window if needed > WHOLE else None
        if window is not None and all(side <= limit for side, limit in zip(size, window, strict=True)):
            window = None
        together = math.prod(size) if window is None else windows_per_pass(window, self.device) * math.prod(window)
        if together > SMALL:
            check_fits(self._bytes_per_pixel(batch) * together, self.device, self.advice(size))
        return window

    def _bytes_per_pixel(self, batch: Tensor | PiecewiseBatch) -> float:
        """See `bytes_per_pixel`, per pixel of the padded image. It is measured once."""
        if "bytes" not in self._measured:
            sample = sample_size(batch.shape[2:])
            share = math.prod(sample) / math.prod(padded(sample, self.multiple, self.minimum_pixels))
            self._measured["bytes"] = share * bytes_per_pixel(self.model, batch, self._whole)
        return self._measured["bytes"]

    @cached_property
    def _measured(self) -> dict[str, float]:
        return {}

    def advice(self, size: Sequence[int]) -> str:
        """How to predict with less memory: windows of half the sides."""
        sides = self.window or [min(side, 2 * SMALL_WINDOW) for side in size]
        smaller = padded([max(1, side // 2) for side in sides], self.multiple, self.minimum_pixels)
        return f"predict in smaller windows, such as evaluation.window={list(smaller)}, or on another device"


def assembled(
    slabs: Iterator[Slab],
    size: Sequence[int],
    labels: Labels,
    threshold: float | tuple[float, ...],
    device: torch.device,
    keep_logits: bool,
    disagreement: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mask, the logits and the disagreement of an image of the given size, see `Prediction`, from its slabs."""
    per_class = labels.mode == "multilabel"
    dtype = labels.mask_dtype if labels.mode == "multiclass" else torch.uint8
    mask = torch.empty([1, *([labels.channels] if per_class else []), *size], dtype=dtype, device=device)
    logits = torch.empty(1, labels.channels, *size, device=device) if keep_logits else None
    disagreed = torch.empty(1, disagreement_channels(labels), *size, device=device) if disagreement else None
    for slab in slabs:
        rows = slab.stop - slab.start
        classes, others = slab.logits[:, : labels.channels], slab.logits[:, labels.channels :]
        mask.narrow(slab.axis + 1 + per_class, slab.start, rows).copy_(labels.decode(classes, threshold))
        for kept, channels in ((logits, classes), (disagreed, others)):
            if kept is not None:
                kept.narrow(slab.axis + 2, slab.start, rows).copy_(channels)
    return mask, logits, disagreed


@contextmanager
def explaining_memory(size: Sequence[int], advice: Callable[[Sequence[int]], str]) -> Iterator[None]:
    """Replace the allocator's error by one that says what to change.

    size: of the image that is predicted. advice: what to change for an image of a size.
    """
    try:
        yield
    except PredictionMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise PredictionMemoryError(
            f"out of memory while predicting an image of {' x '.join(map(str, size))} pixels; {advice(size)}"
        ) from error


def nonfinite_text(pixels: int) -> str:
    """What is wrong with a prediction that is not finite, and what to do, after the name of the case."""
    return (
        f"expected finite logits from the network, got NaN or infinity at {pixels} pixels, so it has no mask; either "
        "its weights have diverged (train with a smaller optimizer.lr, or with train.clip_norm), or this image has "
        "values far from those of the training images"
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode, and back to its own mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def to_device(tensor: Tensor, device: torch.device, *, channels_last: bool = False) -> Tensor:
    """Move a tensor to the device without blocking; with `channels_last`, also to that memory format (4D and 5D)."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if channels_last and tensor.ndim in formats:
        return tensor.to(device, non_blocking=True, memory_format=formats[tensor.ndim])
    return tensor.to(device, non_blocking=True)
