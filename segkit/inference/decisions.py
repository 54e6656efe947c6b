"""Decisions about predictions that were chosen on validation cases: thresholds, temperature and post-processing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.inference.ensemble import Ensemble, FoldPredictors
from segkit.inference.post_processing import NOTHING, PostProcess, processed
from segkit.inference.prediction import Prediction, Progress, silent
from segkit.inference.predictor import ImagePredictor, Predictor
from segkit.labels import Labels


@dataclass(frozen=True)
class Decisions:
    """How predictions become masks and probabilities.

    thresholds: for classes by name, the probability above which they are predicted, for binary and overlapping classes.
    temperature: by which logits are divided before they become probabilities. It changes neither masks nor thresholds.
    post_processing: for classes by name.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    post_processing: Mapping[str, PostProcess] = field(default_factory=dict)

    def check(self, labels: Labels) -> None:
        """Raise ValueError for values out of range, and for classes that the labels do not have."""
        for name in (*self.thresholds, *self.post_processing):
            if name not in labels.channel_names:
                raise ValueError(f"expected decisions on {', '.join(labels.channel_names)}, got {name}")
        if self.thresholds and labels.mode == "multiclass":
            raise ValueError("expected no thresholds for exclusive classes, of which the most probable is predicted")
        if any(not 0 < threshold < 1 for threshold in self.thresholds.values()):
            raise ValueError(f"expected thresholds between 0 and 1, got {dict(self.thresholds)}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"expected a positive temperature, got {self.temperature}")

    def in_words(self) -> list[str]:
        """What is decided, one text each; empty if nothing is."""
        words = [f"threshold of {name} {value:g}" for name, value in self.thresholds.items()]
        words += [f"temperature {self.temperature:.3g}"] if self.temperature != 1 else []
        return words + [f"{name}: {process}" for name, process in self.post_processing.items() if process != NOTHING]


@dataclass(frozen=True)
class DecidedPredictor:
    """A predictor whose decisions are applied to its masks and logits; see `decided`."""

    predictor: ImagePredictor
    decisions: Decisions

    @property
    def labels(self) -> Labels:
        return self.predictor.labels

    @property
    def device(self) -> torch.device:
        return self.predictor.device

    @property
    def threshold(self) -> float | tuple[float, ...]:
        return self.predictor.threshold

    def predict(
        self, image: Any, size: Sequence[int], *, keep_logits: bool = False, progress: Progress = silent
    ) -> Prediction:
        """Predict an image and apply the decisions."""
        prediction = self.predictor.predict(image, size, keep_logits=keep_logits, progress=progress)
        if prediction.logits is not None and self.decisions.temperature != 1:
            with torch.inference_mode():
                prediction.logits.div_(self.decisions.temperature)
        return replace(prediction, mask=post_processed(prediction.mask, self.decisions, self.labels))


def decided(predictor: ImagePredictor, decisions: Decisions) -> DecidedPredictor:
    """A predictor that follows decisions. Raises ValueError as `Decisions.check`."""
    decisions.check(predictor.labels)
    names, thresholds = predictor.labels.channel_names, predictor.threshold
    if decisions.thresholds:
        present = thresholds if isinstance(thresholds, tuple) else (thresholds,) * len(names)
        chosen = [decisions.thresholds.get(name, value) for name, value in zip(names, present, strict=True)]
        predictor = with_thresholds(predictor, tuple(chosen))
    return DecidedPredictor(predictor, decisions)


def with_thresholds(predictor: ImagePredictor, thresholds: float | tuple[float, ...]) -> ImagePredictor:
    """The same predictor with other thresholds."""
    if isinstance(predictor, Predictor):
        return replace(predictor, threshold=thresholds)
    if isinstance(predictor, Ensemble):
        return replace(
            predictor, predictors=tuple(replace(part, threshold=thresholds) for part in predictor.predictors)
        )
    assert isinstance(predictor, FoldPredictors)
    return FoldPredictors(tuple(with_thresholds(fold, thresholds) for fold in predictor.predictors))


def post_processed(mask: Tensor, decisions: Decisions, labels: Labels) -> Tensor:
    """A predicted mask [1, *S] or [1, K, *S] with its classes post-processed, on its device.

    Pixels that are removed from an exclusive class become background; without a background class there is none.
    """
    wanted = {name: process for name, process in decisions.post_processing.items() if process != NOTHING}
    if not wanted:
        return mask
    array = mask[0].cpu().numpy()
    channels = {labels.channel_names.index(name): process for name, process in wanted.items()}
    if labels.mode == "multilabel":
        planes = [channels.get(number, NOTHING).apply(plane == 1) for number, plane in enumerate(array)]
        result = np.stack(planes).astype(array.dtype)
    else:
        first = 1 if labels.mode == "binary" else 0
        background = 0 if labels.mode == "binary" else labels.background_channel
        assert background is not None
        result = processed(array, {first + number: process for number, process in channels.items()}, background)
    return torch.from_numpy(result)[None].to(mask.device)
