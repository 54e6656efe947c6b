"""Several predictors as one: their average on the grid of the image, or each for the cases of its own fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segkit.inference.averaged_network import entropy
from segkit.inference.prediction import Prediction, Progress, Request, silent
from segkit.inference.predictor import ImagePredictor, Predictor, evaluation_mode, explaining_memory, places_for
from segkit.inference.storage import Storage
from segkit.inference.windows import Slab, slab_axis
from segkit.labels import Labels


class _Several:
    """What several predictors have in common."""

    predictors: tuple[ImagePredictor, ...]

    @property
    def labels(self) -> Labels:
        return self.predictors[0].labels

    @property
    def device(self) -> torch.device:
        return self.predictors[0].device

    @property
    def threshold(self) -> float | tuple[float, ...]:
        return self.predictors[0].threshold


@dataclass(frozen=True)
class Ensemble(_Several):
    """Predictors with the same labels, whose probabilities are averaged on the grid of the original image.

    predictors: for one device.
    weights: of each predictor in the mean, such as the number of networks that it averages itself.
    """

    predictors: tuple[Predictor, ...]
    weights: tuple[float, ...]

    def predict(
        self, image: Sequence[Tensor], size: Sequence[int], *, keep_logits: bool = False, progress: Progress = silent
    ) -> Prediction:
        """Predict one image, given as each predictor needs it, [C, *S] each; otherwise as `Predictor.predict`.

        All predictors work along the same axis, so that only the slabs that are worked on are in memory.
        """
        first = self.predictors[0]
        axis = slab_axis(size, first.window or [1] * len(size))
        request = Request(self.labels, self.threshold, tuple(size), keep_logits, first.disagreement, progress)
        with ExitStack() as stack:
            stack.enter_context(explaining_memory(size, first.advice))
            for predictor in self.predictors:
                stack.enter_context(evaluation_mode(predictor.model))
            stack.enter_context(torch.inference_mode())
            windows = [predictor.window_for(seen) for predictor, seen in zip(self.predictors, image, strict=True)]
            views = list(zip(self.predictors, image, windows, strict=True))
            needed = request.bytes + sum(
                predictor.stored_bytes(seen, window, axis) for predictor, seen, window in views
            )

            def slabs(storage: Storage, nonfinite: Tensor) -> Iterator[Slab]:
                streams = [
                    predictor.slabs(seen, window, size, storage, nonfinite, axis) for predictor, seen, window in views
                ]
                return averaged_slabs(streams, self.weights, self.labels)

            reserved = max(predictor.reserved_bytes(seen, window) for predictor, seen, window in views)
            return request.answered(slabs, self.device, places_for(self.device, needed, reserved))


@dataclass(frozen=True)
class FoldPredictors(_Several):
    """The predictors of a cross-validation. Each predicts the cases on which it was not trained.

    predictors: for each fold, with the same labels, device and threshold.
    """

    predictors: tuple[ImagePredictor, ...]

    def predict(
        self, image: tuple[int, Any], size: Sequence[int], *, keep_logits: bool = False, progress: Progress = silent
    ) -> Prediction:
        """Predict one image. image: the number of its fold, and the image as that predictor needs it."""
        fold, images = image
        return self.predictors[fold].predict(images, size, keep_logits=keep_logits, progress=progress)


def averaged_slabs(streams: Sequence[Iterator[Slab]], weights: Sequence[float], labels: Labels) -> Iterator[Slab]:
    """The weighted mean probabilities of several predictions of one image, as logits.

    Where disagreement follows the logits, that of the mean is the mean of those of the predictions and what the
    predictions differ among themselves.

    streams: the slabs of each prediction, without gaps along one axis, the same for all.
    """
    shares = [weight / sum(weights) for weight in weights]
    current = [next(stream) for stream in streams]
    while len(current) == len(streams):
        start, stop = current[0].start, min(slab.stop for slab in current)
        parts = [slab.logits.narrow(slab.axis + 2, 0, stop - start) for slab in current]
        yield Slab(start, _averaged(parts, shares, labels), current[0].axis)
        following = [_after(slab, stop, stream) for slab, stream in zip(current, streams, strict=True)]
        current = [slab for slab in following if slab is not None]  # all streams end at the same position


def _after(slab: Slab, stop: int, stream: Iterator[Slab]) -> Slab | None:
    """What is left of a slab from a position on, or the next one; None at the end."""
    if slab.stop == stop:
        return next(stream, None)
    dim = slab.axis + 2
    return Slab(stop, slab.logits.narrow(dim, stop - slab.start, slab.stop - stop), slab.axis)


def _averaged(parts: Sequence[Tensor], shares: Sequence[float], labels: Labels) -> Tensor:
    """The mean of logits [1, K, *S], or of logits and disagreement, over predictions."""
    probabilities = [labels.probabilities(part[:, : labels.channels]) for part in parts]
    mean = torch.stack([share * part for share, part in zip(shares, probabilities, strict=True)]).sum(0)
    logits = labels.logits(mean)
    if parts[0].shape[1] == labels.channels:
        return logits
    disagreement = entropy(mean, labels)
    for part, share, probability in zip(parts, shares, probabilities, strict=True):
        disagreement += share * (part[:, labels.channels :] - entropy(probability, labels))
    return torch.cat([logits, disagreement.clamp_(min=0)], 1)
