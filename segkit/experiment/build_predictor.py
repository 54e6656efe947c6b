"""Build the predictor of a configuration: the window in which a network sees an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from segkit.config import Config, ConfigError
from segkit.data.preprocess import Preprocess
from segkit.experiment.validate import check_fixed_size, fixed_size
from segkit.inference.predictor import Predictor
from segkit.labels import Labels
from segkit.utils.padding import Multiple, padded

LARGE_WINDOW = {2: 512, 3: 128}  # smallest sides of the windows of large images, unless `evaluation.window` is set


def predictor_factory(
    config: Config, labels: Labels, preprocess: Preprocess, device: torch.device
) -> Callable[[nn.Module], Predictor]:
    """A function from a network to its predictor, the same for validation, evaluation and prediction."""
    prediction_window(config, preprocess.dims, preprocess.multiple)  # checked now rather than at the first validation

    def predictor(model: nn.Module) -> Predictor:
        minimum = getattr(model, "minimum_pixels", 1)
        return Predictor(
            model,
            labels,
            device,
            preprocess.multiple,
            _window(config, preprocess, model),
            config.evaluation.overlap,
            # twice as fast for volumes on CPUs, however the weights lie in memory
            config.train.channels_last or (preprocess.dims == 3 and device.type == "cpu"),
            config.evaluation.threshold,
            minimum,
            large_window(config, preprocess.dims, preprocess.multiple, minimum),
        )

    return predictor


def _window(config: Config, preprocess: Preprocess, model: nn.Module) -> tuple[int, ...] | None:
    """The window in which a network predicts: the only size that it takes, or `prediction_window`."""
    size = fixed_size(model)
    try:
        check_fixed_size(config, size)
    except ValueError as error:
        raise ConfigError(f"{config.name}: {error}") from error
    minimum = getattr(model, "minimum_pixels", 1)
    return size or prediction_window(config, preprocess.dims, preprocess.multiple, minimum)


def prediction_window(config: Config, dims: int, multiple: Multiple, minimum_pixels: int = 1) -> tuple[int, ...] | None:
    """`evaluation.window`; by default the training patch for volumes and None, the whole image, for 2D images.

    minimum_pixels: see `padded`.
    """
    window = config.evaluation.window or (config.sampling.patch if dims == 3 else None)
    if window is None:
        return None
    if len(window) != dims:
        raise ConfigError(f"expected evaluation.window with {dims} sides, one per axis, got {list(window)}")
    return padded(window, multiple, minimum_pixels)


def large_window(config: Config, dims: int, multiple: Multiple, minimum_pixels: int = 1) -> tuple[int, ...]:
    """The window for images that are too large for one pass: the training patch, but with sides of at least
    LARGE_WINDOW, since a small window sees little of its surroundings."""
    patch = config.sampling.patch or [1] * dims
    return padded([max(side, LARGE_WINDOW[dims]) for side in patch], multiple, minimum_pixels)
