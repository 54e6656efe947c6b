"""The training step beside a bare loop, Lightning and MONAI's engine, and its switches: tools/benchmark.py train.

Every loop gets the same network, loss, optimiser and ready batches. What is timed is from one batch being asked for to
the next, so that everything that a loop does a step is in it. The loops take turns, a few dozen steps each.
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
from benchmark_tables import Sheet, as_markdown, as_rich, circumstances
from monai.engines.trainer import SupervisedTrainer
from rich.console import Console
from torch import Tensor, nn

from segkit import Labels
from segkit.inference.predictor import Predictor
from segkit.losses import build_loss
from segkit.models import UNet
from segkit.training.compile import Compiled
from segkit.training.loop import fit
from segkit.training.optimizers import build_optimizer
from segkit.training.run_folder import Run
from segkit.training.stopping import Limits
from segkit.training.trainer import Experiment, Settings, Trainer

LABELS = Labels(["background", "a", "b"])
CPU = torch.device("cpu")
STEPS, WARM_UP = 40, 10  # of each turn
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "tiny 2D": ({"dims": 2, "widths": [4, 8]}, (2, 1, 32, 32)),
    "small 2D": ({"dims": 2, "widths": [8, 16, 32]}, (2, 1, 96, 96)),
}
# of the shipped configurations for camvid and hippocampus
SHIPPED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "2D U-Net, 8x3x160x224": ({"dims": 2, "widths": [16, 32, 64, 128, 256], "residual": True}, (8, 3, 160, 224)),
    "3D U-Net, 2x1x48x64x48": (
        {"dims": 3, "widths": [12, 24, 48, 96], "residual": True, "norm": "instance"},
        (2, 1, 48, 64, 48),
    ),
}
SWITCHES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "compile": {"compile": True},
    "compile, channels_last": {"compile": True, "channels_last": True},
}


class Clock:
    """The same batch over and over, with the times at which it was asked for."""

    def __init__(self, batch: dict[str, Any]):
        self.batch = batch
        self.asked: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _step in range(STEPS):
            self.asked.append((time.perf_counter(), time.process_time()))
            yield self.batch

    def steps(self) -> list[tuple[float, float]]:
        """Seconds, and seconds of the CPU, of each step after the first ones."""
        pairs = itertools.pairwise(self.asked[WARM_UP:])
        return [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in pairs]


Loop = Callable[[nn.Module, Clock], None]


def bare(network: nn.Module, clock: Clock) -> None:
    loss, optimizer = build_loss("dice_ce", LABELS), build_optimizer("adamw", network, {"lr": 1e-3})
    network.train()
    for batch in clock:
        optimizer.zero_grad(set_to_none=True)
        loss(network(batch["image"]), batch["mask"]).backward()
        optimizer.step()


def segkit_loop(network: nn.Module, clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fit(experiment(network, clock), Run(Path(folder)), console=Console(quiet=True))


def experiment(network: nn.Module, clock: Clock, **settings: Any) -> Experiment:
    return Experiment(
        labels=LABELS,
        model=network,
        loss=build_loss("dice_ce", LABELS),
        optimizer=build_optimizer("adamw", network, {"lr": 1e-3}),
        schedule=lambda _step: 1.0,
        batches=lambda _start: clock,
        validation=None,
        predictor=lambda model: Predictor(model, CPU),
        settings=Settings(Limits(STEPS), steps_per_epoch=STEPS, **settings),
        device=CPU,
        threshold=0.5,
    )


class Module(lightning.LightningModule):
    """As their documentation has it: the loss in `training_step`, logged."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.loss = network, build_loss("dice_ce", LABELS)

    def training_step(self, batch: dict[str, Any], _number: int) -> Tensor:
        loss = self.loss(self.network(batch["image"]), batch["mask"])
        self.log("loss", loss, batch_size=len(batch["image"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer("adamw", self.network, {"lr": 1e-3})


def lightning_loop(network: nn.Module, clock: Clock) -> None:
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(network), clock)


def monai_loop(network: nn.Module, clock: Clock) -> None:
    loss = build_loss("dice_ce", LABELS)
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=clock,
        network=network,
        optimizer=build_optimizer("adamw", network, {"lr": 1e-3}),
        loss_function=loss,
        optim_set_to_none=True,
    )
    trainer.run()


LOOPS: dict[str, Loop] = {"bare": bare, "segkit": segkit_loop, "Lightning": lightning_loop, "MONAI": monai_loop}


def benchmark_train(rounds: int, threads: int, tables: Sequence[str], markdown: Path | None) -> None:
    """Print the tables as they come, and write them to a file of markdown."""
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning|monai|ignite")
    console, written = Console(width=120), [circumstances(threads)]
    console.print(written[0], highlight=False)
    makers = {"loops": loops_sheet, "switches": switches_sheet}
    for name in tables:
        sheet = makers[name](rounds)
        console.print("", sheet.title, as_rich(sheet), sheet.note, sep="\n", highlight=False)
        written.append(as_markdown(sheet))
        if markdown is not None:
            markdown.write_text("\n\n".join(written) + "\n", encoding="utf-8")


def ready(shape: tuple[int, ...]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(shape, generator=generator)
    mask = torch.randint(0, 3, (shape[0], *shape[2:]), generator=generator, dtype=torch.uint8)
    return {"image": image, "mask": mask, "label": mask, "case": [f"case{number}" for number in range(shape[0])]}


def network_of(options: dict[str, Any], shape: tuple[int, ...]) -> UNet:
    torch.manual_seed(0)
    return UNet(in_channels=shape[1], out_channels=3, **options)


def loops_sheet(rounds: int) -> Sheet:
    """Every loop on a tiny and on a small network."""
    sheet = Sheet(
        f"A training step, ms: median of {rounds} turns of {STEPS - WARM_UP} steps, and over the bare loop",
        ["network, loop", "ms", "over bare", "middle half", "CPU ms over bare", "middle half "],
        note="Lightning and MONAI without logger, bar and checkpoints; segkit with its log, as it always is. Each turn "
        "is compared with the bare loop's of its round; given are the median over the rounds and the middle half.",
    )
    for name, (options, shape) in NETWORKS.items():
        turns = [turn_of_each(network_of(options, shape), shape, number) for number in range(rounds)]
        for loop in LOOPS:
            median = f"{1e3 * statistics.median(turn[loop][0] for turn in turns):.2f}"
            ratio = middle([turn[loop][0] / turn["bare"][0] for turn in turns], "{:.3f}")
            cpu = middle([1e3 * (turn[loop][1] - turn["bare"][1]) for turn in turns], "{:+.2f}")
            sheet.rows.append([f"{name}, {loop}", median, *(("-",) * 4 if loop == "bare" else (*ratio, *cpu))])
    return sheet


def turn_of_each(network: nn.Module, shape: tuple[int, ...], number: int) -> dict[str, tuple[float, float]]:
    """Median seconds, and seconds of the CPU, of a step of every loop, another one first in each round."""
    names, taken = list(LOOPS), {}
    for loop in names[number % len(names) :] + names[: number % len(names)]:
        clock = Clock(ready(shape))
        LOOPS[loop](copy.deepcopy(network), clock)
        seconds, cpu = zip(*clock.steps(), strict=True)
        taken[loop] = statistics.median(seconds), statistics.median(cpu)
    return taken


def middle(values: Sequence[float], form: str) -> tuple[str, str]:
    """The median, and the middle half."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return form.format(median), f"{form.format(low)} to {form.format(high)}"


def switches_sheet(_rounds: int) -> Sheet:
    """The networks of two shipped configurations under each switch."""
    sheet = Sheet(
        "A training step of segkit by its switches, ms: least of 8 after 3 to warm up",
        ["switch", *SHIPPED],
        note="The networks and patches of configs/camvid.yaml and configs/hippocampus.yaml.",
    )
    for name, switches in SWITCHES.items():
        cells = [f"{1e3 * step_seconds(switches, *shipped):.0f}" for shipped in SHIPPED.values()]
        sheet.rows.append([name, *cells])
    return sheet


def step_seconds(switches: dict[str, Any], options: dict[str, Any], shape: tuple[int, ...]) -> float:
    network, settings = network_of(options, shape), dict(switches)
    if settings.get("channels_last"):
        formats: Any = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        network = network.to(memory_format=formats)
    compiled = Compiled(network) if settings.pop("compile", False) else None
    made = experiment(network, Clock(ready(shape)), **settings)
    made.network = compiled
    trainer, seconds = Trainer(made), []
    trainer.train_mode()
    for number in range(11):
        started = time.perf_counter()
        trainer.step([made.batches(0).batch])  # pyright: ignore[reportAttributeAccessIssue]
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return min(seconds)
