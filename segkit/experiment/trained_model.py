"""A trained model rebuilt from a checkpoint alone: labels, preprocessing and split as stored, nothing fitted again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segkit.config import Config, ConfigError, Named
from segkit.data.case_store import CaseStore
from segkit.data.cases import RawCase
from segkit.data.datasets import network_image
from segkit.data.preprocess import Preprocess
from segkit.data.splits import Split
from segkit.evaluation.results import Origin
from segkit.experiment.build import (
    Data,
    build_labels,
    build_model,
    build_source,
    choose_device,
    predictor_factory,
    restore_config,
    to_format,
)
from segkit.experiment.plugins import warn_of_changes
from segkit.inference.predictor import Prediction, Predictor
from segkit.labels import Labels
from segkit.training import checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A network from a checkpoint with its labels, preprocessing, predictor and split."""

    config: Config
    labels: Labels
    preprocess: Preprocess
    predictor: Predictor
    split: Split
    origin: Origin
    integers_scaled: bool | None = None  # whether integers of training images were scaled to 0..1; None if unknown

    def predict(self, raw: RawCase) -> np.ndarray:
        """The mask of one image on its own grid, [*S], or [K, *S] for overlapping classes."""
        return self._prediction(raw).mask[0].cpu().numpy()

    def probabilities(self, raw: RawCase) -> np.ndarray:
        """The class probabilities of one image on its own grid, float32 [K, *S]."""
        return self.labels.probabilities(self._prediction(raw).logits)[0].cpu().numpy()

    def _prediction(self, raw: RawCase) -> Prediction:
        image = torch.from_numpy(network_image(raw, self.preprocess))
        return self.predictor.predict(image, raw.image.shape[1:])

    def data(self) -> Data:
        """The cases of the training data, in the split of the training."""
        return self._data(self.config, self.split)

    def other_data(self, folder: Path) -> Data:
        """All cases of another folder with the same layout, as the part `test`."""
        moved = moved_paths(self.config.data, folder)
        content = self.config.to_dict()
        content["data"] |= {name: str(path) for name, path in moved.items()}
        config = restore_config(content)
        source = build_source(config, self.labels)
        return self._data(config, Split(test=tuple(case.name for case in source.cases)))

    def _data(self, config: Config, split: Split) -> Data:
        source = build_source(config, self.labels)
        return Data(self.labels, source, split, CaseStore(source), self.preprocess)


def moved_paths(data: Named, folder: Path) -> dict[str, Path]:
    """The paths of a data section, with their common folder replaced by another one."""
    paths = {name: value for name, value in data.args.items() if isinstance(value, Path)}
    if not paths:
        raise ConfigError(f"--data needs a data source that reads a folder, and {data.name} reads none; use --split")
    common = os.path.commonpath(list(paths.values()))
    return {name: folder.absolute() / path.relative_to(common) for name, path in paths.items()}


CHANGEABLE = ("data.", "evaluation.", "loader.")


def load_trained(path: Path, device: str | None = None, overrides: Sequence[str] = ()) -> TrainedModel:
    """Rebuild network, labels and preprocessing from a checkpoint alone.

    overrides: `key=value` in the sections data, evaluation and loader, for example for data that have moved. Raises
    ConfigError for other sections, which would change the network.
    """
    fixed = [text for text in overrides if not text.startswith(CHANGEABLE)]
    if fixed:
        raise ConfigError(f"{fixed[0]}: only {', '.join(CHANGEABLE)}* of a trained model can be changed")
    content = checkpoint.load(path)
    config = restore_config(content["config"], [*overrides, *([f"device={device}"] if device else [])])
    warn_of_changes(content.get("plugins", {}))
    labels = build_labels(config)
    preprocess = Preprocess.from_dict(content["preprocess"])
    model = build_model(config, preprocess.channels, labels, preprocess.dims)
    model.load_state_dict(content["model"])
    device_used = choose_device(config.device)
    model = to_format(model, config, preprocess.dims).to(device_used).eval()
    predictor = predictor_factory(config, labels, preprocess, device_used)(model)
    finished = content.get("finished", "steps" if content["step"] == content["steps"] else None)
    split = Split.from_json(content["split"])
    origin = Origin(str(path), content["step"], content["steps"], finished, content["selected_on"], split.content_hash)
    return TrainedModel(config, labels, preprocess, predictor, split, origin, content.get("integers_scaled"))
