"""What is printed before and after a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from segkit.config import Config
from segkit.experiment.build import Data, scoring_of
from segkit.experiment.build_training import Built
from segkit.experiment.preflight import absent_class_warnings, loss_notes, loss_warnings, mirror_warnings
from segkit.labels import Labels
from segkit.losses.deep_supervision import DeepSupervision
from segkit.training.loaded_weights import Loaded
from segkit.training.profiling import Profiler
from segkit.training.run_folder import Run
from segkit.training.trainer import Experiment
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
    from segkit.report.console import print_class_weights

    for line in header(config, built.experiment, built.data):
        console.print(line, highlight=False)
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
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def print_loaded(loaded: Loaded, path: Path, data: Data, console: Console) -> None:
    """Print which of the initial weights were loaded, and what may be a mistake."""
    from segkit.report.console import print_modules

    for line in loaded.describe(path):
        console.print(line, highlight=False, markup=False)
    if rows := loaded.rows():
        print_modules([row.cells for row in rows], console)
    differences = [] if loaded.origin is None else loaded.origin.differences(data.labels, data.preprocess)
    for warning in [*loaded.warnings(path), *differences]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def header(config: Config, experiment: Experiment, data: Data) -> list[str]:
    """The experiment in a few lines."""
    parts = ", ".join(f"{len(getattr(data.split, part))} {part}" for part in ("train", "validation", "test"))
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    terms = " + ".join(f"{shown_weight(term['weight'])} {term['name']}" for term in config.loss)
    settings, channels = experiment.settings, data.preprocess.channels
    processes = experiment.processes.world_size
    return [
        f"[bold]{escape(config.name)}[/bold]  {parts} cases, {channels} image channels, {experiment.device}",
        escape(counted_classes(data.labels)),
        f"{config.model.name}: {parameters:,} parameters; loss: {terms}",
        f"{settings.limits.steps} steps of {shown_batch(config)}, {settings.steps_per_epoch} per epoch"
        + (f", in {processes} processes" if processes > 1 else ""),
        *([] if data.split.validation else ["no validation part: no validation and no best checkpoint"]),
        *on_micro_batches(experiment),
    ]


def counted_classes(labels: Labels) -> str:
    """Which classes count as foreground, so that means are over them."""
    if labels.mode == "binary":
        return f"scored class: {labels.names[1]}; {labels.names[0]} is everything else"
    counted = listed([labels.names[channel] for channel in labels.foreground], limit=SHOWN_CLASSES)
    without = f"without {labels.background}" if labels.background_channel is not None else "all classes"
    return f"means over {len(labels.foreground)} classes, {without}: {counted}"


def shown_batch(config: Config) -> str:
    micro, batch = config.train.accumulate, config.loader.batch
    return f"{batch}" if micro == 1 else f"{micro} x {batch}"


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
