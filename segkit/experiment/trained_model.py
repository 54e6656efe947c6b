"""A trained model rebuilt from a checkpoint alone: labels, preprocessing and split as stored, nothing fitted again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from segkit.config import Config, ConfigError, Named
from segkit.data.case_store import CaseStore
from segkit.data.preprocess import Preprocess
from segkit.data.splits import Split
from segkit.evaluation.results import Origin
from segkit.experiment.build import (
    Data,
    build_labels,
    build_model,
    build_source,
    choose_device,
    restore_config,
    to_format,
)
from segkit.experiment.build_predictor import predictor_factory
from segkit.experiment.checkpoint_paths import refuse_unconfirmed, unconfirmed_paths
from segkit.experiment.plugins import warn_of_changes
from segkit.inference.predictor import Predictor
from segkit.labels import Labels
from segkit.training import checkpoint
from segkit.training.checkpoint import CheckpointError
from segkit.utils.errors import DataError, reason
from segkit.utils.text import listed


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
    unconfirmed: Mapping[str, str] = field(default_factory=dict)  # paths that only the checkpoint names, by option

    def data(self) -> Data:
        """The cases of the training data, in the split of the training.

        Raises ConfigError if only the checkpoint names these data, see `segkit.experiment.checkpoint_paths`.
        """
        refuse_unconfirmed(self.unconfirmed, Path(self.origin.checkpoint))
        return self._data(self.config, self.split)

    def other_data(self, folder: Path) -> Data:
        """All cases of another folder with the same layout, as the part `test`."""
        moved = moved_paths(self.config.data, folder)
        content = self.config.to_dict()
        content["data"] |= moved
        refuse_unconfirmed(
            {key: path for key, path in self.unconfirmed.items() if key.split(".")[1] not in moved},
            Path(self.origin.checkpoint),
        )
        config = restore_config(content)
        source = build_source(config, self.labels)
        return self._data(config, Split(test=tuple(case.name for case in source.cases)))

    def _data(self, config: Config, split: Split) -> Data:
        source = build_source(config, self.labels)
        known = {case.name for case in source.cases}
        absent = [name for names in split.to_json().values() for name in names if name not in known]
        if absent:
            raise DataError(
                f"{self.origin.checkpoint} was trained on {len(absent)} cases that the data do not have: "
                f"{listed(absent)}; restore them, or evaluate all cases of a folder with --data"
            )
        return Data(self.labels, source, split, CaseStore(source), self.preprocess)


def moved_paths(data: Named, folder: Path) -> dict[str, Any]:
    """The options of a data section that are paths, or mappings to paths, with their common folder replaced by another
    one. Paths are strings."""
    options = {name: value for name, value in data.args.items() if _all_paths(value)}
    if not options:
        raise ConfigError(f"--data needs a data source that reads a folder, and {data.name} reads none; use --split")
    common = os.path.commonpath([path for value in options.values() for path in _all_paths(value)])

    def moved(path: Path) -> str:
        return str(folder.absolute() / path.relative_to(common))

    return {
        name: moved(value) if isinstance(value, Path) else {part: moved(path) for part, path in value.items()}
        for name, value in options.items()
    }


def _all_paths(value: Any) -> list[Path]:
    """The paths in the value of an option: itself, or the values of a mapping."""
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    return values if all(isinstance(item, Path) for item in values) else []


CHANGEABLE = ("data.", "evaluation.", "loader.")


def load_trained(path: Path, device: str | None = None, overrides: Sequence[str] = ()) -> TrainedModel:
    """Rebuild network, labels and preprocessing from a checkpoint alone.

    overrides: `key=value` in the sections data, evaluation and loader, for example for data that have moved. Raises
    ConfigError for other sections, which would change the network, and CheckpointError for a file that is damaged,
    incomplete, or whose weights do not fit its network or are not finite.
    """
    fixed = [text for text in overrides if not text.startswith(CHANGEABLE)]
    if fixed:
        raise ConfigError(f"{fixed[0]}: only {', '.join(CHANGEABLE)}* of a trained model can be changed")
    content = checkpoint.load(path)
    checkpoint.check_complete(path, content, checkpoint.TRAINED)
    config = restore_config(content["config"], [*overrides, *([f"device={device}"] if device else [])], path)
    recorded = content.get("plugins", {})
    warn_of_changes({name: recorded[name] for name in config.plugins if name in recorded})
    preprocess = Preprocess.from_dict(content["preprocess"])
    labels = _of_configuration(path, lambda: build_labels(config))
    model = _network(path, config, labels, preprocess, content["model"])
    device_used = choose_device(config.device)
    model = to_format(model, config, preprocess.dims).to(device_used).eval()
    build_predictor = _of_configuration(path, lambda: predictor_factory(config, labels, preprocess, device_used))
    finished = content.get("finished", "steps" if content["step"] == content["steps"] else None)
    split = Split.from_json(content["split"])
    origin = Origin(
        str(path),
        content["step"],
        content["steps"],
        finished,
        content["selected_on"],
        split.content_hash,
        content.get("data"),
    )
    unconfirmed = unconfirmed_paths(content["config"], config, path, overrides)
    scaled = content.get("integers_scaled")
    return TrainedModel(config, labels, preprocess, build_predictor(model), split, origin, scaled, unconfirmed)


def _network(
    path: Path, config: Config, labels: Labels, preprocess: Preprocess, weights: Mapping[str, Any]
) -> nn.Module:
    """The network with its weights. Without memory first, since a configuration can ask for any size."""

    def build() -> nn.Module:
        return build_model(config, preprocess.channels, labels, preprocess.dims)

    with torch.device("meta"), _few_parameters(path, 1000 + 10 * len(weights)):
        outline = _of_configuration(path, build)
    checkpoint.check_weights(path, "model", weights, outline)
    model = build()
    model.load_state_dict(weights)
    return model


@contextmanager
def _few_parameters(path: Path, limit: int) -> Iterator[None]:
    """Raise CheckpointError for a network with more parameters than `limit`, before it has a billion of them."""
    count = 0

    def registered(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise CheckpointError(f"{path}: the network of its configuration has more parameters than the file")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


Built = TypeVar("Built")


def _of_configuration(path: Path, build: Callable[[], Built]) -> Built:
    """What a function builds from the configuration in a checkpoint. Raises CheckpointError if that is impossible."""
    try:
        return build()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        if hasattr(error, "exit_code"):
            raise
        raise CheckpointError(f"{path}: its configuration cannot be used: {reason(error)}") from error
