"""Part: training steps of the shipped configurations, by precision, memory format and compilation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from meters import Meter, meter_of
from ruamel.yaml import YAML

from device_checks.checks import Check, Measured, Setup, Skip
from device_checks.experiments import configured
from segkit.config import Config
from segkit.experiment.build_training import build_experiment
from segkit.experiment.model_summary import summarise_model
from segkit.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
# channels and image sizes of the data sets, for synthetic images in their place
IMAGES: dict[str, tuple[int, list[int]]] = {
    "camvid": (3, [360, 480]),
    "chase_db1": (3, [960, 999]),
    "hippocampus": (1, [48, 64, 48]),
    "isbi2012": (1, [512, 512]),
}
VARIANTS: dict[str, Sequence[str]] = {
    "fp32": ("train.precision=fp32", "train.channels_last=false"),
    "fp32, channels_last": ("train.precision=fp32", "train.channels_last=true"),
    "bf16, channels_last": ("train.precision=bf16", "train.channels_last=true"),
    "fp16, channels_last": ("train.precision=fp16", "train.channels_last=true"),
    "compile, bf16, channels_last": ("train.precision=bf16", "train.channels_last=true", "train.compile=true"),
}
SHORT_VARIANTS = ["fp32", "bf16, channels_last"]
REPEATS, SECONDS = 15, 2.0  # timed steps
COMPILATION = 45.0  # seconds that compiling a network may take
TOLERANCE = 0.02  # relative difference of the first loss from that in fp32
COLUMNS = ("ms per step", "steps per second", "peak MiB", "counted MiB", "first loss")
NOTE = f"""\
Steps with one batch that stays the same: synthetic images in the sizes of the data set. Median over the device's events
after a warm-up; the time includes the copy of the batch to the device, and no loading. Peak memory: measured, and
counted as `segkit model summary` does, both beyond weights and optimiser state. The first loss may differ from that in
fp32 by {TOLERANCE:.0%}. Networks with pretrained weights start from random ones.\
"""


def checks(setup: Setup) -> Iterator[Check]:
    """A row per variant and configuration; compilation, which takes longest, comes last."""
    first_losses: dict[str, float] = {}
    names = SHORT_VARIANTS if setup.short else list(VARIANTS)
    for variant, overrides in ((name, VARIANTS[name]) for name in names):
        seconds = COMPILATION if "train.compile=true" in overrides else 0.0
        for file in sorted(CONFIGS.glob("*.yaml")):
            yield Check(f"{file.stem}, {variant}", partial(_measure, setup, file, overrides, first_losses), seconds)


def _measure(setup: Setup, file: Path, overrides: Sequence[str], first_losses: dict[str, float]) -> Measured:
    if not setup.is_cuda and "train.precision=fp16" in overrides:
        raise Skip("fp16 needs an accelerator")
    config = _config(setup, file, overrides)
    step = prepared(config)
    loss = _first_loss(step)
    meter = meter_of(setup.torch_device)
    milliseconds, peak = _numbers(setup, meter, step)
    memory = [f"{number / 2**20:.4g}" for number in (peak, _counted(config))]
    cells = [f"{milliseconds:.2f}", f"{1e3 / milliseconds:.1f}", *memory, f"{loss:.4f}"]
    expected = first_losses.setdefault(file.stem, loss)  # of the first variant, which is fp32
    if not abs(loss - expected) <= TOLERANCE * abs(expected):
        return Measured(cells, f"expected the first loss {expected:.4f} of fp32")
    is_finite = bool(torch.isfinite(step()["loss"]))
    return Measured(cells, None if is_finite else "the loss is not finite after these steps")


def _first_loss(step: Callable[[], dict[str, torch.Tensor]]) -> float:
    """The loss of the first step. Raises RuntimeError if compilation has failed, after which training goes on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = step()["loss"].item()
    failures = [str(warning.message) for warning in caught if "compilation failed" in str(warning.message)]
    if failures:
        raise RuntimeError(failures[0])
    return loss


def _numbers(setup: Setup, meter: Meter, step: Callable[[], Any]) -> tuple[float, int]:
    return meter.milliseconds(step, 1 if setup.short else REPEATS, SECONDS), meter.peak_bytes(step)


def _config(setup: Setup, file: Path, overrides: Sequence[str]) -> Config:
    """A configuration with synthetic data."""
    return configured(setup, with_synthetic_data(YAML(typ="safe").load(file), setup.short), overrides)


def _counted(config: Config) -> int:
    """Bytes of a step beyond weights and optimiser state, counted tensor by tensor."""
    memory = summarise_model(config).memory
    return memory.peak - memory.weights - memory.moments


def prepared(config: Config) -> Callable[[], dict[str, torch.Tensor]]:
    """A training step of a configuration, which leaves no gradients."""
    experiment = build_experiment(config).experiment
    batches = list(islice(iter(experiment.batches(0)), experiment.settings.accumulate))
    trainer = Trainer(experiment)
    trainer.train_mode()

    def step() -> dict[str, torch.Tensor]:
        scalars = trainer.step(batches)
        trainer.optimizer.zero_grad(set_to_none=True)
        return scalars

    return step


def with_synthetic_data(tree: dict[str, Any], short: bool) -> dict[str, Any]:
    """A configuration with synthetic images instead of its data, and without pretrained weights.

    short: whether images, batch and network are made tiny.
    """
    tree = {name: section for name, section in tree.items() if name != "split"}
    channels, size = _image(tree["data"])
    batch, patch = tree["loader"]["batch"], tree.get("sampling", {}).get("patch")
    model = {**tree["model"], **({"weights": "none"} if "weights" in tree["model"] else {})}
    if short:
        size, batch = [16] * len(size), 2
        patch = patch and [16] * len(patch)
        model = {**model, **({"widths": [4, 8]} if "widths" in model else {})}
    preprocess = {name: value for name, value in tree.get("preprocess", {}).items() if name != "spacing"}
    data = {"name": "synthetic", "size": size, "channels": channels, "train": batch, "validation": 1, "test": 1}
    train = {name: value for name, value in tree["train"].items() if name != "epochs"}
    return {
        **tree,
        "data": data,
        "preprocess": preprocess,
        "loader": {**tree["loader"], "batch": batch, "workers": 0},
        "model": model,
        "train": {**train, "steps": 1000, "validate_every": {"steps": 1000}},
        **({} if patch is None else {"sampling": {**tree["sampling"], "patch": patch}}),
    }


def _image(data: dict[str, Any]) -> tuple[int, list[int]]:
    """Channels and size of the images of a data set. Raises ValueError if they are not known here."""
    if data["name"] == "synthetic":
        return data.get("channels", 1), data["size"]
    folder = str(data.get("root", data.get("images", "")))
    names = [name for name in IMAGES if f"/{name}" in folder]
    if not names:
        raise ValueError(f"the image size of {folder or data} is not known; add it to IMAGES in tools/device_checks")
    return IMAGES[names[0]]
