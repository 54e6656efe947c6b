"""Time per training step of segkit, a bare loop, Lightning and MONAI, and of segkit's options.

Run as tools/benchmark.py train. All loops use the same network, loss, optimiser and prepared batches. A step is timed
from one request for a batch to the next, so that it includes everything that a loop does per step. The loops take
turns of a few dozen steps.
"""

import copy
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from benchmark_tables import Sheet, write_page
from monai.engines.trainer import SupervisedTrainer
from rich.console import Console
from torch import Tensor, nn

from segkit import Labels
from segkit.inference.predictor import Predictor
from segkit.losses import build_loss
from segkit.models import MODELS, UNet
from segkit.training.compile import Compiled
from segkit.training.loop import fit
from segkit.training.optimizers import build_optimizer
from segkit.training.run_folder import Run
from segkit.training.stopping import Limits
from segkit.training.trainer import Experiment, Settings, Trainer

LABELS = Labels(["background", "a", "b"])
CPU = torch.device("cpu")
STEPS, WARM_UP = 40, 10  # steps per turn, of which the first are not timed
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "tiny 2D": ({"dims": 2, "widths": [4, 8]}, (2, 1, 32, 32)),
    "small 2D": ({"dims": 2, "widths": [8, 16, 32]}, (2, 1, 96, 96)),
}
# the networks of the shipped configurations for camvid and hippocampus
SHIPPED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "2D U-Net, 8x3x160x224": ({"dims": 2, "widths": [16, 32, 64, 128, 256], "residual": True}, (8, 3, 160, 224)),
    "3D U-Net, 2x1x48x64x48": (
        {"dims": 3, "widths": [12, 24, 48, 96], "residual": True, "norm": "instance"},
        (2, 1, 48, 64, 48),
    ),
}
# networks of other libraries, by their names in segkit
FOREIGN: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "MONAI's DynUNet, 2x1x16x32x32": ("monai_dynunet", {"dims": 3, "widths": [8, 16, 32]}, (2, 1, 16, 32, 32)),
    "MONAI's SegResNet, 2x1x96x96": ("monai_segresnet", {"dims": 2, "width": 8}, (2, 1, 96, 96)),
    "torchvision's LR-ASPP, 4x3x160x224": ("lraspp_mobilenet", {"dims": 2}, (4, 3, 160, 224)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "compile": {"compile": True},
    "compile, channels_last": {"compile": True, "channels_last": True},
}


class TimedBatches:
    """Yields the same batch repeatedly and records the time of each request."""

    def __init__(self, batch: dict[str, Any]):
        self.batch = batch
        self.requests: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _step in range(STEPS):
            self.requests.append((time.perf_counter(), time.process_time()))
            yield self.batch

    def steps(self) -> list[tuple[float, float]]:
        """Wall time and CPU time in seconds of each step after the warm-up."""
        pairs = itertools.pairwise(self.requests[WARM_UP:])
        return [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in pairs]


Loop = Callable[[nn.Module, TimedBatches], None]


def bare(network: nn.Module, batches: TimedBatches) -> None:
    loss, optimizer = build_loss("dice_ce", LABELS), build_optimizer("adamw", network, {"lr": 1e-3})
    network.train()
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss(network(batch["image"]), batch["mask"]).backward()
        optimizer.step()


def segkit_loop(network: nn.Module, batches: TimedBatches) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fit(experiment(network, batches), Run(Path(folder)), console=Console(quiet=True))


def experiment(network: nn.Module, batches: TimedBatches, **settings: Any) -> Experiment:
    return Experiment(
        labels=LABELS,
        model=network,
        loss=build_loss("dice_ce", LABELS),
        optimizer=build_optimizer("adamw", network, {"lr": 1e-3}),
        schedule=lambda _step: 1.0,
        batches=lambda _start: batches,
        validation=None,
        predictor=lambda model: Predictor(model, LABELS, CPU),
        settings=Settings(Limits(STEPS), steps_per_epoch=STEPS, **settings),
        device=CPU,
    )


class Module(lightning.LightningModule):
    """A module as in the documentation of Lightning: the loss is computed and logged in `training_step`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.loss = network, build_loss("dice_ce", LABELS)

    def training_step(self, batch: dict[str, Any], _number: int) -> Tensor:
        loss = self.loss(self.network(batch["image"]), batch["mask"])
        self.log("loss", loss, batch_size=len(batch["image"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer("adamw", self.network, {"lr": 1e-3})


def lightning_loop(network: nn.Module, batches: TimedBatches) -> None:
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(network), batches)


def monai_loop(network: nn.Module, batches: TimedBatches) -> None:
    loss = build_loss("dice_ce", LABELS)
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=build_optimizer("adamw", network, {"lr": 1e-3}),
        loss_function=loss,
        optim_set_to_none=True,
    )
    trainer.run()


LOOPS: dict[str, Loop] = {"bare": bare, "segkit": segkit_loop, "Lightning": lightning_loop, "MONAI": monai_loop}


def benchmark_train(rounds: int, threads: int, tables: Sequence[str], markdown: Path | None) -> None:
    """Print each table when it is finished, and write all tables to a Markdown file."""
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning|monai|ignite")
    makers = {"loops": loops_sheet, "networks": networks_sheet, "switches": options_sheet}
    sheets = (makers[name](rounds) for name in tables)
    write_page("Benchmark: training steps", "train", "", sheets, threads, markdown)


def make_batch(shape: tuple[int, ...]) -> dict[str, Any]:
    """A batch of random images and masks."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(shape, generator=generator)
    mask = torch.randint(0, 3, (shape[0], *shape[2:]), generator=generator, dtype=torch.uint8)
    return {"image": image, "mask": mask, "label": mask, "case": [f"case{number}" for number in range(shape[0])]}


def network_of(options: dict[str, Any], shape: tuple[int, ...]) -> UNet:
    torch.manual_seed(0)
    return UNet(in_channels=shape[1], out_channels=3, **options)


def loops_sheet(rounds: int) -> Sheet:
    """The time per step of each loop, for a tiny and a small network."""
    sheet = Sheet(
        f"Time per training step, ms: median of {rounds} turns of {STEPS - WARM_UP} steps, and relative to the bare "
        "loop",
        ["network, loop", "ms", "ratio to bare", "quartiles", "CPU ms above bare", "quartiles "],
        note="Lightning and MONAI run without logger, progress bar and checkpoints; segkit runs with its log, which "
        "cannot be disabled. Each turn is compared with the turn of the bare loop in the same round. The table gives "
        "the median and the quartiles over the rounds.",
    )
    for name, (options, shape) in NETWORKS.items():
        turns = [one_round(network_of(options, shape), shape, number) for number in range(rounds)]
        for loop in LOOPS:
            median = f"{1e3 * statistics.median(turn[loop][0] for turn in turns):.2f}"
            ratio = median_and_quartiles([turn[loop][0] / turn["bare"][0] for turn in turns], "{:.3f}")
            cpu = median_and_quartiles([1e3 * (turn[loop][1] - turn["bare"][1]) for turn in turns], "{:+.2f}")
            sheet.rows.append([f"{name}, {loop}", median, *(("-",) * 4 if loop == "bare" else (*ratio, *cpu))])
    return sheet


def networks_sheet(rounds: int) -> Sheet:
    """The time per step of segkit and of the bare loop, in pairs, for networks of other libraries."""
    sheet = Sheet(
        f"Time per training step of networks of other libraries, ms: median of {rounds} turns of {STEPS - WARM_UP} "
        "steps",
        ["network", "bare loop", "segkit", "ratio", "quartiles", "CPU ms above bare", "quartiles "],
        note="The bare loop and segkit take turns, and each turn of segkit is compared with that of the bare loop in "
        "the same round. The table gives the median and the quartiles over the rounds.",
    )
    for title, (name, options, shape) in FOREIGN.items():
        torch.manual_seed(0)
        network = MODELS[name](in_channels=shape[1], out_channels=3, **options)
        turns = [one_round(network, shape, number, ("bare", "segkit")) for number in range(rounds)]
        medians = [f"{1e3 * statistics.median(turn[loop][0] for turn in turns):.2f}" for loop in ("bare", "segkit")]
        ratio = median_and_quartiles([turn["segkit"][0] / turn["bare"][0] for turn in turns], "{:.3f}")
        cpu = median_and_quartiles([1e3 * (turn["segkit"][1] - turn["bare"][1]) for turn in turns], "{:+.2f}")
        sheet.rows.append([title, *medians, *ratio, *cpu])
    return sheet


def one_round(
    network: nn.Module, shape: tuple[int, ...], number: int, loops: Sequence[str] = tuple(LOOPS)
) -> dict[str, tuple[float, float]]:
    """The median wall and CPU time per step of each loop. Each round starts with another loop."""
    names, medians = list(loops), {}
    for loop in names[number % len(names) :] + names[: number % len(names)]:
        batches = TimedBatches(make_batch(shape))
        LOOPS[loop](copy.deepcopy(network), batches)
        seconds, cpu = zip(*batches.steps(), strict=True)
        medians[loop] = statistics.median(seconds), statistics.median(cpu)
    return medians


def median_and_quartiles(values: Sequence[float], template: str) -> tuple[str, str]:
    """The median, and the first and third quartile, as text."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return template.format(median), f"{template.format(low)} to {template.format(high)}"


def options_sheet(_rounds: int) -> Sheet:
    """The time per step of the networks of two shipped configurations, for each option."""
    sheet = Sheet(
        "Time per training step of segkit by option, ms: minimum of 8 steps after 3 warm-up steps",
        ["option", *SHIPPED],
        note="The networks and patches are those of configs/camvid.yaml and configs/hippocampus.yaml.",
    )
    for name, chosen in OPTIONS.items():
        cells = [f"{1e3 * step_seconds(chosen, *shipped):.0f}" for shipped in SHIPPED.values()]
        sheet.rows.append([name, *cells])
    return sheet


def step_seconds(chosen: dict[str, Any], network_options: dict[str, Any], shape: tuple[int, ...]) -> float:
    """The minimum time in seconds of a training step."""
    network, settings = network_of(network_options, shape), dict(chosen)
    if settings.get("channels_last"):
        memory_format: Any = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        network = network.to(memory_format=memory_format)
    compiled = Compiled(network) if settings.pop("compile", False) else None
    batch = make_batch(shape)
    built = experiment(network, TimedBatches(batch), **settings)
    built.network = compiled
    trainer, seconds = Trainer(built), []
    trainer.train_mode()
    for number in range(11):
        start = time.perf_counter()
        trainer.step([batch])
        if number >= 3:
            seconds.append(time.perf_counter() - start)
    return min(seconds)
