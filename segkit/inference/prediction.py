"""The prediction of one image: its mask, and what else is asked for, put together from the logits of its slabs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.inference.averaged_network import disagreement_channels
from segkit.inference.storage import Storage, with_storage
from segkit.inference.windows import Slab
from segkit.labels import Labels

# storage, and the number of pixels that are not finite, to which is added -> logits of the image
Slabs = Callable[[Storage, Tensor], Iterator[Slab]]
Progress = Callable[[float], object]  # receives the share of an image that is predicted, 0 to 1


def silent(_share: float) -> None:
    """Tell nobody how far a prediction is."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, on the requested grid, and on the device of the predictor or, where its memory does
    not suffice, on the CPU.

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


@dataclass(frozen=True)
class Request:
    """What is asked about an image.

    size: of the grid of the prediction, [D].
    keep_logits, disagreement: whether they are asked for. The disagreement follows the logits in the slabs.
    progress: is told the share of the image that is predicted.
    """

    labels: Labels
    threshold: float | tuple[float, ...]
    size: tuple[int, ...]
    keep_logits: bool
    disagreement: bool
    progress: Progress = silent

    @property
    def bytes(self) -> int:
        """The memory of the prediction."""
        mask = self._mask_channels * self._mask_type.itemsize
        numbers = self.labels.channels * self.keep_logits + self._disagreement_channels
        return (mask + 4 * numbers) * math.prod(self.size)

    def answered(self, slabs: Slabs, device: torch.device, places: list[Storage]) -> Prediction:
        """The prediction with the first of the places for which the memory suffices.

        device: of the network.
        """

        def filled(storage: Storage) -> Prediction:
            nonfinite = torch.zeros((), dtype=torch.int64, device=device)
            return self._filled(slabs(storage, nonfinite), nonfinite, storage)

        return with_storage(places, filled)

    def _filled(self, slabs: Iterator[Slab], nonfinite: Tensor, storage: Storage) -> Prediction:
        per_class = self.labels.mode == "multilabel"
        mask = storage.zeros([1, *([self._mask_channels] if per_class else []), *self.size], self._mask_type)
        logits = storage.zeros([1, self.labels.channels, *self.size]) if self.keep_logits else None
        disagreed = storage.zeros([1, self._disagreement_channels, *self.size]) if self.disagreement else None
        for slab in slabs:
            rows = slab.stop - slab.start
            classes, others = slab.logits[:, : self.labels.channels], slab.logits[:, self.labels.channels :]
            decoded = self.labels.decode(classes, self.threshold)
            mask.narrow(slab.axis + 1 + per_class, slab.start, rows).copy_(decoded)
            for kept, channels in ((logits, classes), (disagreed, others)):
                if kept is not None:
                    kept.narrow(slab.axis + 2, slab.start, rows).copy_(channels)
            self.progress(slab.stop / self.size[slab.axis])
        return Prediction(mask, nonfinite, logits, disagreed)

    @property
    def _mask_type(self) -> torch.dtype:
        return self.labels.mask_dtype if self.labels.mode == "multiclass" else torch.uint8

    @property
    def _mask_channels(self) -> int:
        return self.labels.channels if self.labels.mode == "multilabel" else 1

    @property
    def _disagreement_channels(self) -> int:
        return disagreement_channels(self.labels) if self.disagreement else 0
