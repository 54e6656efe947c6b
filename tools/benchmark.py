"""Speed against peers, interleaved in one run: python tools/benchmark.py train, losses, metrics or data."""

import argparse
import os
import warnings
from pathlib import Path

TABLES = ("speed", "memory", "accuracy")  # of the losses
STEPS = ("loops", "switches")  # of training
PEERS = "monai|segmentation_models_pytorch|kornia|timm"  # whose warnings are theirs


# What the tables import takes seconds, so each command imports its own.


def run_train(arguments: argparse.Namespace) -> None:
    from benchmark_train import benchmark_train

    benchmark_train(arguments.rounds, arguments.threads, arguments.tables, arguments.markdown)


def run_losses(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module=PEERS)
    from benchmark_losses import SHAPES, benchmark_losses

    shapes = arguments.shape or SHAPES
    benchmark_losses(shapes, arguments.rounds, arguments.threads, arguments.tables, arguments.markdown)


def run_metrics(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module=PEERS)
    from benchmark_metrics import benchmark_metrics

    benchmark_metrics(arguments.rounds, arguments.threads, arguments.markdown)


def run_data(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module=PEERS)
    from benchmark_data import benchmark_data

    benchmark_data(arguments.rounds, arguments.workers, arguments.data, arguments.markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="the training step beside a bare loop, Lightning and MONAI")
    train.set_defaults(run=run_train)
    train.add_argument("--rounds", type=int, default=8)
    train.add_argument("--threads", type=int, default=2, help="of torch")
    train.add_argument("--tables", nargs="+", choices=STEPS, default=STEPS, help="which to make; both if left out")
    train.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
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
    data = commands.add_parser("data", help="batches beside MONAI's CacheDataset and an albumentations script")
    data.set_defaults(run=run_data)
    data.add_argument("--rounds", type=int, default=7)
    data.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes that make batches")
    data.add_argument("--data", type=Path, default=os.environ.get("SEGKIT_DATA"), help="with hippocampus and camvid")
    data.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
