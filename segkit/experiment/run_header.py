"""What is printed before and after a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from segkit.config import Config
from segkit.experiment.build import Data, scoring_of
from segkit.experiment.build_training import Built
from segkit.experiment.preflight import absent_class_warnings, loss_notes, loss_warnings, mirror_warnings
from segkit.labels import Labels
from segkit.losses.deep_supervision import DeepSupervision
from segkit.training.loaded_weights import Loaded
from segkit.training.profiling import Profiler
from segkit.training.run_folder import Run
from segkit.training.stopping import Limits
from segkit.training.trainer import Experiment
from segkit.utils.console import warn
from segkit.utils.text import listed

SHOWN_CLASSES = 8


def print_profile(profiler: Profiler, console: Console) -> None:
    """Print the time of each phase of a training step."""
    from segkit.report.console import print_parts

    print_parts(profiler.means(), console)


def print_overfit(run: Run, batches: int, console: Console) -> None:
    """Print how far the loss fell on the overfitted batches; the scores are those of other cases."""
    losses = [line["loss"] for line in run.records() if line["kind"] == "step" and line["loss"] is not None]
    if losses:
        console.print(
            f"loss on {batches} overfitted batches: {losses[0]:.4f} at the start, {losses[-1]:.4f} at the end"
        )


def print_header(config: Config, built: Built, console: Console) -> None:
    """Print what is about to be trained, with notes and warnings."""
    from segkit.report.console import print_class_weights, print_facts

    title, *rows = header(config, built.experiment, built.data)
    console.print(f"{title[0]}  {title[1]}", style="bold", highlight=False, markup=False)
    print_facts(rows, console)
    for line in on_micro_batches(built.experiment):
        console.print(line, highlight=False, markup=False)
    for line in built.notes:
        console.print(line, highlight=False, markup=False)
    if built.loaded is not None and config.train.init is not None:
        print_loaded(built.loaded, config.train.init, built.data, console)
    for weighted in built.weighted:
        print_class_weights(weighted.term, weighted.method, weighted.names, weighted.share, weighted.weights, console)
    pooled = scoring_of(config, built.data.labels).rules.aggregation_of("dice") in ("global", "micro")
    for note in loss_notes(config.loss, pooled=pooled):
        console.print(note, style="dim", highlight=False, markup=False)
    sides = mirror_warnings(config.labels.names, config.augment, built.data.preprocess.dims)
    absent = absent_class_warnings(built.data.labels, built.data.absent_classes)
    for warning in [*loss_warnings(config.loss), *sides, *absent]:
        warn(warning, console)


def print_loaded(loaded: Loaded, path: Path, data: Data, console: Console) -> None:
    """Print which of the initial weights were loaded, and what may be a mistake."""
    from segkit.report.console import print_modules

    for line in loaded.describe(path):
        console.print(line, highlight=False, markup=False)
    if rows := loaded.rows():
        print_modules([row.cells for row in rows], console)
    differences = [] if loaded.origin is None else loaded.origin.differences(data.labels, data.preprocess)
    for warning in [*loaded.warnings(path), *differences]:
        warn(warning, console)


def header(config: Config, experiment: Experiment, data: Data) -> list[tuple[str, str]]:
    """The experiment in a few facts, the first of which is its name and where it runs."""
    settings, processes = experiment.settings, experiment.processes.world_size
    where = [f"on {experiment.device}", *([f"in {processes} processes"] if processes > 1 else []), settings.precision]
    split, channels = data.split, data.preprocess.channels
    image_channels = "1 image channel" if channels == 1 else f"{channels} image channels"
    tested = f", {len(split.test)} test" if split.test else ""
    validated = f"{len(split.validation)} validation" if split.validation else "no validation, so no best checkpoint"
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    return [
        (config.name, ", ".join(where)),
        ("cases", f"{len(split.train)} train, {validated}{tested}; {image_channels}"),
        ("classes", counted_classes(data.labels)),
        ("network", f"{config.model.name}, {parameters:,} parameters"),
        ("loss", " + ".join(f"{shown_weight(term['weight'])} {term['name']}" for term in config.loss)),
        ("steps", f"{shown_steps(settings.limits)}, each {shown_batch(config)}; {settings.steps_per_epoch} per epoch"),
    ]


def counted_classes(labels: Labels) -> str:
    """Which classes count as foreground, so that means are over them."""
    if labels.mode == "binary":
        return f"{labels.names[1]}; {labels.names[0]} is everything else"
    foreground = listed([labels.names[channel] for channel in labels.foreground], limit=SHOWN_CLASSES)
    if labels.background_channel is None:
        return f"{foreground}; means are over all {len(labels.foreground)}"
    return f"{foreground}; means are without {labels.background}"


def shown_steps(limits: Limits) -> str:
    """The number of steps, and of those over which schedules extend if it is another one."""
    if limits.last_step == limits.steps:
        return f"{limits.steps:,}"
    return f"{limits.last_step:,} of {limits.steps:,} of the schedule"


def shown_batch(config: Config) -> str:
    """The images of a step, with the size of a patch if they are patches."""
    micro, batch, patch = config.train.accumulate, config.loader.batch, config.sampling.patch
    number = f"{micro} x {batch}" if micro > 1 else f"{batch}"
    return f"{number} images" if patch is None else f"{number} patches of {' x '.join(map(str, patch))}"


def on_micro_batches(experiment: Experiment) -> list[str]:
    """A line that names the terms whose value with accumulation or several processes is not that of one large batch."""
    loss = experiment.loss.loss if isinstance(experiment.loss, DeepSupervision) else experiment.loss
    local = loss.defined_on_micro_batches if experiment.settings.accumulate > 1 else []
    return [f"computed per micro-batch and averaged: {', '.join(local)}"] if local else []


def shown_weight(weight: Any) -> str:
    """A weight as a number, or as the name of its schedule with arguments."""
    if not isinstance(weight, Mapping):
        return f"{weight:g}"
    return f"({weight['name']} {', '.join(f'{key} {value:g}' for key, value in weight.items() if key != 'name')})"
