"""One or several trained models that predict together, with test-time augmentation if that is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from segkit.config import Config
from segkit.data.cases import RawCase
from segkit.data.datasets import check_axes, network_image
from segkit.data.pieces import Pieces, is_large, network_pieces
from segkit.data.preprocess import Preprocess
from segkit.evaluation.results import Origin
from segkit.experiment.trained_model import TrainedModel, load_trained
from segkit.experiment.validate import fixed_size
from segkit.inference.averaged_network import AveragedNetwork
from segkit.inference.ensemble import Ensemble
from segkit.inference.orientations import AS_IT_IS, Orientation, trained_orientations
from segkit.inference.prediction import Prediction, Progress, silent
from segkit.inference.predictor import ImagePredictor, Predictor, nonfinite_text
from segkit.labels import Labels
from segkit.utils.errors import DataError, RunError

PreparedImage = Tensor | Pieces | tuple[Tensor, ...] | tuple[Pieces, ...]  # as a predictor needs it


@dataclass(frozen=True)
class TrainedEnsemble:
    """Trained models whose probabilities are averaged, or a single one.

    members: the models, at least one, with the same labels.
    predictor: the predictor of all members together.
    preprocesses: the preprocessing of the image that each part of the predictor needs; one unless it is an `Ensemble`.
    orientations: of the images that the members predict: the original one first.
    """

    members: tuple[TrainedModel, ...]
    predictor: ImagePredictor
    preprocesses: tuple[Preprocess, ...]
    orientations: tuple[Orientation, ...]

    @property
    def labels(self) -> Labels:
        return self.members[0].labels

    @property
    def config(self) -> Config:
        """The configuration of the first member."""
        return self.members[0].config

    @property
    def predictions(self) -> int:
        """How many predictions of an image are averaged."""
        return len(self.members) * len(self.orientations)

    def images(self, raw: RawCase, where: str) -> Tensor | tuple[Tensor, ...]:
        """The image as the predictor needs it: [C, *S], or one for each part of an `Ensemble`.

        where: names the image in errors.

        Raises DataError for an image with other channels or axes than those in training.
        """
        images = tuple(torch.from_numpy(network_image(raw, preprocess, where)) for preprocess in self.preprocesses)
        return images[0] if len(images) == 1 else images

    def pieces(self, image: Pieces, spacing: tuple[float, ...], where: str) -> Pieces | tuple[Pieces, ...]:
        """The same for an image that is read in pieces."""
        for preprocess in self.preprocesses:
            check_axes(image.shape, preprocess, where)
        different = {preprocess: network_pieces(image, spacing, preprocess, where) for preprocess in self._different}
        prepared = tuple(different[preprocess] for preprocess in self.preprocesses)
        return prepared[0] if len(prepared) == 1 else prepared

    def is_large(self, shape: Sequence[int], spacing: tuple[float, ...]) -> bool:
        """Whether an image [C, *S] is prepared in pieces, for its size or for the size to which it is resampled."""
        channels, *size = shape
        if len(size) != self.preprocesses[0].dims:
            return False
        sizes = [preprocess.resampled_size(tuple(size), spacing) for preprocess in self._different]
        return any(is_large(channels * math.prod(sides)) for sides in [size, *sizes])

    @property
    def _different(self) -> list[Preprocess]:
        return list(dict.fromkeys(self.preprocesses))

    def predict(self, raw: RawCase, where: str = "image", *, keep_logits: bool = False) -> Prediction:
        """Predict an image on its own grid. where: names it in errors.

        Raises DataError for an image with other channels or axes than those in training, and for logits that are not
        finite.
        """
        return self.prediction(self.images(raw, where), raw.image.shape[1:], where, keep_logits=keep_logits)

    def prediction(
        self,
        images: PreparedImage,
        size: Sequence[int],
        where: str,
        *,
        keep_logits: bool = False,
        progress: Progress = silent,
    ) -> Prediction:
        """Predict what `images` gave on a grid of the given size. Raises DataError for logits that are not finite."""
        prediction = self.predictor.predict(images, size, keep_logits=keep_logits, progress=progress)
        if pixels := int(prediction.nonfinite):
            raise DataError(f"{where}: {nonfinite_text(pixels)}")
        return prediction

    @property
    def origin(self) -> Origin:
        """The checkpoints, for scores.json."""
        origins = [member.origin for member in self.members]
        orientations = tuple(map(str, self.orientations)) if len(self.orientations) > 1 else ()
        if len(origins) == 1:
            return replace(origins[0], orientations=orientations)
        return origin_of(f"average of {len(origins)} checkpoints", origins, orientations)


def origin_of(name: str, origins: Sequence[Origin], orientations: tuple[str, ...]) -> Origin:
    """The origin of several checkpoints. What they do not have in common is None."""
    return Origin(
        name,
        common([origin.step for origin in origins]),
        common([origin.steps for origin in origins]),
        common([origin.finished for origin in origins]),
        next((origin.selected_on for origin in origins if origin.selected_on), None),
        common([origin.split_hash for origin in origins]),
        common([origin.data_hash for origin in origins]),
        tuple(origins),
        orientations,
    )


Value = TypeVar("Value")


def common(values: Sequence[Value]) -> Value | None:
    """The value that all have; None if they differ."""
    return values[0] if all(value == values[0] for value in values) else None


def load_members(
    files: Sequence[Path], device: str | None = None, overrides: Sequence[str] = ()
) -> tuple[TrainedModel, ...]:
    """Load checkpoints that predict together. Arguments and errors as for `load_trained`.

    Raises RunError for checkpoints that cannot be averaged.
    """
    members = tuple(load_trained(file, device, overrides) for file in files)
    for member in members[1:]:
        check_alike(members[0], member)
    return members


def together(members: Sequence[TrainedModel], *, tta: bool = False, disagreement: bool = False) -> TrainedEnsemble:
    """Trained models as one that averages their probabilities.

    tta: whether the members also predict the flips and right-angle turns that their training has allowed.
    disagreement: whether predictions tell how much the members, and the orientations, differ.

    Raises RunError if no training has allowed any of them.
    """
    orientations = [tuple(orientations_of(member)) if tta else (AS_IT_IS,) for member in members]
    if tta and all(found == (AS_IT_IS,) for found in orientations):
        raise RunError(
            "--tta needs a training with random flips or right-angle turns (augment.transforms), which tell what an "
            "image may look like; this one had none"
        )
    groups: dict[str, list[int]] = {}
    for number, member in enumerate(members):
        groups.setdefault(_view(member, orientations[number]), []).append(number)
    predictors = [
        _averaged([members[number] for number in group], orientations[group[0]], disagreement)
        for group in groups.values()
    ]
    predictor = predictors[0]
    if len(predictors) > 1:
        predictor = Ensemble(tuple(predictors), tuple(float(len(group)) for group in groups.values()))
    preprocesses = tuple(members[group[0]].preprocess for group in groups.values())
    return TrainedEnsemble(tuple(members), predictor, preprocesses, max(orientations, key=len))


def check_alike(first: TrainedModel, other: TrainedModel) -> None:
    """Raise RunError unless two models predict the same classes from the same kind of image."""
    facts = {
        "classes": [list(model.labels.channel_names) for model in (first, other)],
        "mode": [model.labels.mode for model in (first, other)],
        "regions": [model.labels.regions for model in (first, other)],
        "image channels": [model.preprocess.channels for model in (first, other)],
        "image axes": [model.preprocess.dims for model in (first, other)],
    }
    for name, (ours, theirs) in facts.items():
        if ours != theirs:
            raise RunError(
                f"{first.origin.checkpoint} and {other.origin.checkpoint} cannot be averaged: {name} {ours} and "
                f"{theirs}"
            )
    if first.predictor.threshold != other.predictor.threshold and first.labels.mode != "multiclass":
        raise RunError(
            f"{first.origin.checkpoint} and {other.origin.checkpoint} have different thresholds, "
            f"{first.predictor.threshold} and {other.predictor.threshold}: choose one with evaluation.threshold="
        )


def orientations_of(trained: TrainedModel) -> list[Orientation]:
    """The orientations of images that the training of a model has allowed."""
    config, predictor, dims = trained.config, trained.predictor, trained.preprocess.dims
    multiple = predictor.multiple
    sides = fixed_size(predictor.model) or ([multiple] * dims if isinstance(multiple, int) else multiple)
    transforms = [(transform.name, transform.args) for transform in config.augment.transforms]
    exchanges = bool(config.augment.swap_on_flip)
    found = trained_orientations(transforms, dims, exchanges=exchanges, turns=sides[-1] == sides[-2])
    if exchanges and trained.labels.mode == "binary":  # one channel has no other to change places with
        return [orientation for orientation in found if not orientation.mirrors_sides(dims)]
    return found


def _view(member: TrainedModel, orientations: Sequence[Orientation]) -> str:
    """What a member sees of an image. Members with the same view share one pass over the windows."""
    predictor = member.predictor
    return json.dumps(
        [
            member.preprocess.to_dict(),
            *(predictor.multiple, predictor.window, predictor.overlap, predictor.channels_last),
            *(predictor.minimum_pixels, predictor.large_window),
            *(list(map(str, orientations)), member.config.augment.swap_on_flip),
        ]
    )


def _averaged(members: Sequence[TrainedModel], orientations: tuple[Orientation, ...], disagreement: bool) -> Predictor:
    """The predictor of members with the same view. That of a single one without orientations is its own."""
    first = members[0]
    if len(members) == 1 and orientations == (AS_IT_IS,) and not disagreement:
        return first.predictor
    names = first.labels.channel_names
    pairs = first.config.augment.swap_on_flip if first.labels.mode != "binary" else ()
    exchanged = [(names.index(left), names.index(right)) for left, right in pairs]
    networks = [member.predictor.model for member in members]
    network = AveragedNetwork(networks, first.labels, orientations, exchanged, disagreement=disagreement)
    return replace(first.predictor, model=network.eval(), disagreement=disagreement)
