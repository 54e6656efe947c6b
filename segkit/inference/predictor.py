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
from segkit.inference.prediction import Prediction, Progress, Request, silent
from segkit.inference.storage import Storage, fitting_storages, storages
from segkit.inference.windows import Network, Slab, resampled_slabs, slab_axis, window_slabs, windows_per_pass
from segkit.labels import Labels
from segkit.utils.errors import is_out_of_memory
from segkit.utils.padding import Multiple, padded

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes
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
    axis, storage = slab_axis(image.shape[2:], window), Storage(image.device)
    for single in image.split(1):
        parts = [slab.logits.clone() for slab in window_slabs(single, network, window, overlap, storage, axis)]
        logits.append(torch.cat(parts, axis + 2))
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


class ImagePredictor(Protocol):
    """What evaluation needs: `Predictor`, and several of them as one, see `segkit.inference.ensemble`."""

    @property
    def labels(self) -> Labels: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def threshold(self) -> float | tuple[float, ...]: ...

    def predict(
        self, image: Any, size: Sequence[int], *, keep_logits: bool = False, progress: Progress = silent
    ) -> Prediction:
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
    channels_last: whether the network receives images in the channels-last memory format.
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

    def predict(
        self, image: Tensor | Pieces, size: Sequence[int], *, keep_logits: bool = False, progress: Progress = silent
    ) -> Prediction:
        """Predict one image [C, *S] and return its mask on a grid of the given size [D].

        image: a tensor, or pieces that are read window by window.

        If the size differs from that of the image, as after preprocessing to another spacing, the logits are resampled
        as by `Labels.resample`. The network runs in evaluation mode; its mode is restored afterwards.

        keep_logits: whether to return the logits as well, which need 4 bytes per pixel and class.
        progress: receives the share of the image that is predicted, 0 to 1, again and again.

        What does not fit into the memory of the device, by an estimate or because an allocation has failed, is kept in
        the main memory, and what does not fit there in a temporary file, see `Storage`.

        Raises PredictionMemoryError if the memory does not suffice.
        """
        request = Request(self.labels, self.threshold, tuple(size), keep_logits, self.disagreement, progress)
        with explaining_memory(image.shape[1:], self.advice), evaluation_mode(self.model), torch.inference_mode():
            window = self.window_for(image)
            axis = 0 if window is None else slab_axis(image.shape[1:], window)
            needed = request.bytes + self.stored_bytes(image, window, axis)
            places = places_for(self.device, needed, self.reserved_bytes(image, window))

            def slabs(storage: Storage, nonfinite: Tensor) -> Iterator[Slab]:
                return self.slabs(image, window, size, storage, nonfinite, axis)

            return request.answered(slabs, self.device, places)

    def __call__(self, image: Tensor) -> Tensor:
        """Logits [1, K, *S], float32, of one image [C, *S] on the grid of that image."""
        logits = self.predict(image, image.shape[1:], keep_logits=True).logits
        assert logits is not None
        return logits

    def slabs(
        self,
        image: Tensor | Pieces,
        window: tuple[int, ...] | None,
        size: Sequence[int],
        storage: Storage,
        nonfinite: Tensor,
        axis: int,
    ) -> Iterator[Slab]:
        """The logits of an image [C, *S] on a grid of the given size, slab by slab. The network has to be in evaluation
        mode.

        window: as `window_for` says.
        storage: where logits are added up.
        nonfinite: the number of pixels that are not finite is added to it.
        axis: along which the slabs follow each other.
        """
        slabs = self._finite(self._network_slabs(self._batch(image, storage), window, storage, axis), nonfinite)
        if tuple(size) == tuple(image.shape[1:]):
            return slabs
        return resampled_slabs(slabs, self.labels, image.shape[1:], size)

    def _batch(self, image: Tensor | Pieces, storage: Storage) -> Tensor | PiecewiseBatch:
        """The image with a batch axis: on the device, unless its memory is short."""
        if isinstance(image, Tensor) and storage.device.type == self.device.type:
            return to_device(image[None], self.device)
        return PiecewiseBatch.of(image, self.device)

    def _network_slabs(
        self, batch: Tensor | PiecewiseBatch, window: tuple[int, ...] | None, storage: Storage, axis: int
    ) -> Iterator[Slab]:
        """The logits [1, K, *S] of an image [1, C, *S] on its own grid."""
        if window is None:
            whole = batch if isinstance(batch, Tensor) else batch[(..., *(slice(None) for _side in batch.shape[2:]))]
            yield Slab(0, self._whole(whole).float(), axis)
        else:
            yield from window_slabs(batch, self._network, window, self.overlap, storage, axis)

    def _whole(self, batch: Tensor) -> Tensor:
        return whole_image(batch, self._network, self.multiple, self.minimum_pixels)

    def _network(self, batch: Tensor) -> Tensor:
        return self.model(in_channels_last(batch) if self.channels_last else batch)

    @staticmethod
    def _finite(slabs: Iterator[Slab], nonfinite: Tensor) -> Iterator[Slab]:
        """The slabs in thin pieces, whose pixels are checked."""
        for slab in slabs:
            for piece in slab.pieces():
                nonfinite += (~piece.logits.isfinite()).any(1).sum().to(nonfinite.device)
                yield piece

    def window_for(self, image: Tensor | Pieces) -> tuple[int, ...] | None:
        """The window in which an image [C, *S] is predicted; None for one pass. The network has to be in evaluation
        mode.

        Raises PredictionMemoryError if a pass needs more memory than there is.
        """
        size = tuple(image.shape[1:])
        window = self.window
        if window is None and self.large_window is not None and math.prod(size) > SMALL:
            window = self.large_window if self._bytes_per_pixel(image) * math.prod(size) > WHOLE else None
        if window is not None and all(side <= limit for side, limit in zip(size, window, strict=True)):
            window = None
        if self._pixels_per_pass(size, window) > SMALL:
            check_fits(self.pass_bytes(image, window), self.device, self.advice(size))
        return window

    def _pixels_per_pass(self, size: Sequence[int], window: tuple[int, ...] | None) -> int:
        return math.prod(size) if window is None else windows_per_pass(window, self.device) * math.prod(window)

    def pass_bytes(self, image: Tensor | Pieces, window: tuple[int, ...] | None) -> float:
        """The estimated peak memory of a pass through the network."""
        return self._bytes_per_pixel(image) * self._pixels_per_pass(image.shape[1:], window)

    def stored_bytes(self, image: Tensor | Pieces, window: tuple[int, ...] | None, axis: int) -> int:
        """The memory of the image on the device, and of the logits that windows add up there."""
        channels, *sides = image.shape
        moved = isinstance(image, Tensor) and image.device.type != self.device.type
        image_bytes = 4 * channels * math.prod(sides) if moved else 0
        if window is None:
            return image_bytes
        sides = [max(side, length) for side, length in zip(sides, window, strict=True)]
        sides[axis] = window[axis]
        numbers = self.labels.channels + (disagreement_channels(self.labels) if self.disagreement else 0)
        return image_bytes + 4 * (numbers + 1) * math.prod(sides)

    def reserved_bytes(self, image: Tensor | Pieces, window: tuple[int, ...] | None) -> float:
        """The memory that a pass needs beside what is stored; of small images 0, for which it is not measured."""
        return self.pass_bytes(image, window) if self._pixels_per_pass(image.shape[1:], window) > SMALL else 0

    def _bytes_per_pixel(self, image: Tensor | Pieces) -> float:
        """See `bytes_per_pixel`, per pixel of the padded image. It is measured once."""
        if "bytes" not in self._measured:
            size = sample_size(image.shape[1:])
            sample = PiecewiseBatch.of(image, self.device)[(..., *(slice(side) for side in size))]
            share = math.prod(size) / math.prod(padded(size, self.multiple, self.minimum_pixels))
            self._measured["bytes"] = share * bytes_per_pixel(self.model, sample, self._whole)
        return self._measured["bytes"]

    @cached_property
    def _measured(self) -> dict[str, float]:
        return {}

    def advice(self, size: Sequence[int]) -> str:
        """How to predict with less memory: windows of half the sides."""
        sides = self.window or [min(side, 2 * SMALL_WINDOW) for side in size]
        smaller = padded([max(1, side // 2) for side in sides], self.multiple, self.minimum_pixels)
        return f"predict in smaller windows, such as evaluation.window={list(smaller)}, or on another device"


def places_for(device: torch.device, needed: int, reserved: float) -> list[Storage]:
    """The places that have room, see `fitting_storages`; all for small images, for which nothing is measured."""
    return storages(device) if needed <= SMALL else fitting_storages(device, needed, reserved)


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


def in_channels_last(batch: Tensor) -> Tensor:
    """The same images [B, C, *S] in the channels-last memory format; 1D images as they are.

    An image with one channel is in both formats at once, and counts as channels-last by its strides alone, so it has to
    be copied.
    """
    if batch.ndim not in CHANNELS_LAST:
        return batch
    return torch.empty_like(batch, memory_format=CHANNELS_LAST[batch.ndim]).copy_(batch)


def to_device(tensor: Tensor, device: torch.device, *, channels_last: bool = False) -> Tensor:
    """Move a tensor to the device without blocking; with `channels_last`, also to that memory format (4D and 5D)."""
    if channels_last and tensor.ndim in CHANNELS_LAST:
        return tensor.to(device, non_blocking=True, memory_format=CHANNELS_LAST[tensor.ndim])
    return tensor.to(device, non_blocking=True)
