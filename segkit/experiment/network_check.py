"""Whether a network can train on the batches that a configuration and its data give, tried before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import psutil
import torch

from segkit.config import Config, ConfigError
from segkit.data.memory_check import in_gb
from segkit.experiment.build import Data
from segkit.experiment.validate import PIXELS, fixed_size, meta_network
from segkit.utils.distributed import SINGLE_PROCESS, Processes
from segkit.utils.errors import reason
from segkit.utils.padding import padded

WAYS_OUT = {"widths": "fewer model.widths", "norm": "another model.norm"}  # by option of a network
RATIO = 1.5  # by which the axes of the images may differ from those for which a network is built


def check_network(config: Config, data: Data, processes: Processes = SINGLE_PROCESS) -> None:
    """Run the network on the batches of one process on the meta device, without memory.

    Without a patch, a batch is as large as its largest image: those of the smallest and of the largest training images
    are tried. Raises ConfigError if the network cannot train on such a batch, or if it does not fit into the memory.
    """
    preprocess, batch = data.preprocess, config.loader.batch
    _check_resampled(config, data)
    images = batch if config.train.sync_batchnorm else batch // processes.world_size
    network = meta_network(config, preprocess.channels, data.labels.channels, preprocess.dims).train()
    _check_spacing(config, data, getattr(network, "spacing", None))
    source = "sampling.patch gives" if config.sampling.patch is not None else "the training images give"
    for size in _batch_sizes(config, data, images):
        _check_size(config, size, fixed_size(network))
        shape = [images, preprocess.channels, *size]
        where = f"{config.name}: model {config.model.name} cannot train on batches {shape} as {source}"
        if 4 * math.prod(shape) > psutil.virtual_memory().total:
            raise ConfigError(f"{where}: their images alone need {in_gb(4 * math.prod(shape))} of memory")
        try:
            with torch.device("meta"):
                network(torch.zeros(shape))
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ConfigError(f"{where}: {reason(error)}; use {_way_out(config)}") from error


def _way_out(config: Config) -> str:
    """What may let the network train on larger or smaller batches, among the options that it has."""
    options = [text for name, text in WAYS_OUT.items() if name in config.model.args]
    return f"a larger loader.batch or sampling.patch{''.join(f', {text}' for text in options)}, or another network"


def _check_size(config: Config, size: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    """Raise ConfigError if a network that takes images of one size alone gets batches of another one."""
    if expected not in (None, size):
        raise ConfigError(
            f"{config.name}: model {config.model.name} with these options takes only images of {list(expected)} "
            f"pixels, but the training images give batches of {list(size)}; set sampling.patch to {list(expected)}"
        )


def _check_resampled(config: Config, data: Data) -> None:
    """Raise ConfigError if the largest training image has too many pixels after resampling."""
    largest = max(data.sizes, key=math.prod, default=(1,))
    if math.prod(largest) > PIXELS:
        raise ConfigError(
            f"{config.name}: preprocess.spacing: expected images of at most 2^31 pixels after resampling, got "
            f"{list(largest)}"
        )


def _check_spacing(config: Config, data: Data, given: Sequence[float] | None) -> None:
    """Raise ConfigError if a network is built for another ratio of the axes than that of the training images."""
    if given is None:
        return
    ratios = np.divide(given, data.spacing)
    if ratios.max() > RATIO * ratios.min():
        raise ConfigError(
            f"{config.name}: model.spacing: the training images have a spacing of "
            f"{[round(length, 4) for length in data.spacing]}, got {list(given)}; give the spacing of the images after "
            "preprocess.spacing, in the same order of axes"
        )


def _batch_sizes(config: Config, data: Data, images: int) -> list[tuple[int, ...]]:
    """The padded sizes of the smallest and of the largest batch of so many images."""
    if config.sampling.patch is not None:
        return [padded(config.sampling.patch, data.preprocess.multiple)]
    by_size = sorted(data.sizes, key=math.prod)
    batches = [group for group in (by_size[:images], by_size[-images:]) if group]
    largest = [[max(sides) for sides in zip(*group, strict=True)] for group in batches]
    return list(dict.fromkeys(padded(size, data.preprocess.multiple) for size in largest))
