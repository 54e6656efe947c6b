"""Speed against peers, interleaved in one run: python tools/benchmark.py train, losses or metrics."""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from segkit import Labels
from segkit.losses import build_loss
from segkit.models import UNet
from segkit.optimizers import build_optimizer
from segkit.predict import Predictor
from segkit.stopping import Limits
from segkit.trainer import Experiment, Settings, Trainer

LABELS = Labels(["background", "a", "b"])
CPU = torch.device("cpu")
TABLES = ("speed", "memory", "accuracy")  # of the losses
PEERS = "monai|segmentation_models_pytorch|kornia|timm"  # whose warnings are theirs


def benchmark_train(rounds: int) -> Table:
    """The training step against a bare loop with the same network, loss, optimiser and ready batches."""
    table = Table(title="training step over a bare loop, CPU", title_justify="left")
    for heading in ("network", "bare ms", "segkit ms", "difference ms", "ratio of medians", "ratio of minima"):
        table.add_column(heading, justify="right")
    for name, widths, side, batch in (("tiny 2D", [4, 8], 32, 2), ("small 2D", [8, 16, 32], 96, 4)):
        torch.manual_seed(0)
        network = UNet(in_channels=1, out_channels=3, dims=2, widths=widths)
        data = {
            "image": torch.randn(batch, 1, side, side),
            "mask": torch.randint(0, 3, (batch, side, side), dtype=torch.uint8),
        }
        bare, ours = interleaved(bare_step(copy.deepcopy(network), data), trainer_step(network, data), rounds)
        medians, minima = (statistics.median(bare), statistics.median(ours)), (min(bare), min(ours))
        table.add_row(
            name,
            f"{1e3 * medians[0]:.2f}",
            f"{1e3 * medians[1]:.2f}",
            f"{1e3 * (medians[1] - medians[0]):+.2f}",
            f"{medians[1] / medians[0]:.3f}",
            f"{minima[1] / minima[0]:.3f}",
        )
    return table


def bare_step(network: UNet, data: dict[str, torch.Tensor]) -> Callable[[], None]:
    loss = build_loss("dice_ce", LABELS)
    optimizer = build_optimizer("adamw", network, {"lr": 1e-3})

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(data["image"]), data["mask"]).backward()
        optimizer.step()

    return step


def trainer_step(network: UNet, data: dict[str, torch.Tensor]) -> Callable[[], None]:
    experiment = Experiment(
        labels=LABELS,
        model=network,
        loss=build_loss("dice_ce", LABELS),
        optimizer=build_optimizer("adamw", network, {"lr": 1e-3}),
        schedule=lambda _step: 1.0,
        batches=lambda _start: [],
        validation=None,
        predictor=lambda model: Predictor(model, CPU),
        settings=Settings(Limits(10**9), steps_per_epoch=10**9),
        device=CPU,
        threshold=0.5,
    )
    trainer = Trainer(experiment)

    def step() -> None:
        trainer.step([data])

    return step


def interleaved(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each call, the two in turn, so that a machine that changes its speed changes it for both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 10):
        for step, record in zip((first, second), seconds, strict=True):
            started = time.perf_counter()
            step()
            if number >= 10:  # the first ones compile kernels and fill caches
                record.append(time.perf_counter() - started)
    return seconds


def run_train(arguments: argparse.Namespace) -> None:
    Console().print(benchmark_train(arguments.rounds))


def run_losses(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module=PEERS)
    from benchmark_losses import SHAPES, benchmark_losses  # what it imports takes seconds, and train needs none of it

    shapes = arguments.shape or SHAPES
    benchmark_losses(shapes, arguments.rounds, arguments.threads, arguments.tables, arguments.markdown)


def run_metrics(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module=PEERS)
    from benchmark_metrics import benchmark_metrics

    benchmark_metrics(arguments.rounds, arguments.threads, arguments.markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="the training step beside a bare loop")
    train.set_defaults(run=run_train)
    train.add_argument("--rounds", type=int, default=300)
    losses = commands.add_parser("losses", help="losses beside torch, MONAI, smp and kornia: speed, memory, accuracy")
    losses.set_defaults(run=run_losses)
    losses.add_argument("--rounds", type=int, default=15)
    losses.add_argument("--threads", type=int, default=2, help="of torch")
    losses.add_argument("--shape", nargs="+", help="of the logits, such as 4x4x512x512; all three if left out")
    losses.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="which to make; all if left out")
    losses.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    metrics = commands.add_parser("metrics", help="counts and surfaces beside MONAI, torchmetrics and smp")
    metrics.set_defaults(run=run_metrics)
    metrics.add_argument("--rounds", type=int, default=7)
    metrics.add_argument("--threads", type=int, default=2, help="of torch")
    metrics.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
