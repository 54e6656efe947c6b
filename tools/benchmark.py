"""Benchmarks against other libraries, interleaved in one process.

python tools/benchmark.py train | losses | metrics | data | predict | networks
python tools/benchmark.py all --out docs/benchmarks      makes all pages again, in about two hours
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

TABLES = ("speed", "memory", "spatial", "accuracy", "classes")  # of the losses
STEPS = ("loops", "networks", "switches")  # of training
PAGES = ("losses", "metrics", "data", "predict", "train", "networks")
PEERS = "monai|segmentation_models_pytorch|kornia|timm"  # their warnings are ignored


# Importing the libraries takes seconds, so each command imports only those that it needs.


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


def run_predict(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module=PEERS)
    from benchmark_predict import benchmark_predict

    benchmark_predict(arguments.rounds, arguments.threads, arguments.markdown)


def run_networks(arguments: argparse.Namespace) -> None:
    from benchmark_networks import benchmark_networks

    benchmark_networks(arguments.data, arguments.minutes, arguments.markdown)


def run_all(arguments: argparse.Namespace) -> None:
    """Make every page with the default options, each in a process of its own.

    The pages are moved to the output folder at the end, so that all of them are of one commit without changes.
    """
    with tempfile.TemporaryDirectory() as folder:
        for page in arguments.pages:
            needs_data = ["--data", str(arguments.data)] if page in ("data", "networks") else []
            command = [sys.executable, __file__, page, "--markdown", f"{folder}/{page}.md", *needs_data]
            subprocess.run(command, check=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for page in arguments.pages:
            shutil.copy(f"{folder}/{page}.md", arguments.out / f"{page}.md")


def add_data(parser: argparse.ArgumentParser) -> None:
    given = os.environ.get("SEGKIT_DATA")
    text = "folder with the data sets hippocampus and camvid (default: the environment variable SEGKIT_DATA)"
    parser.add_argument("--data", type=Path, default=given, required=given is None, help=text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="time per training step")
    train.set_defaults(run=run_train)
    train.add_argument("--rounds", type=int, default=8, help="number of rounds")
    train.add_argument("--threads", type=int, default=2, help="number of PyTorch threads")
    train.add_argument("--tables", nargs="+", choices=STEPS, default=STEPS, help="tables to make (default: all)")
    train.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")
    losses = commands.add_parser("losses", help="speed, memory and accuracy of losses")
    losses.set_defaults(run=run_losses)
    losses.add_argument("--rounds", type=int, default=15, help="number of rounds")
    losses.add_argument("--threads", type=int, default=2, help="number of PyTorch threads")
    losses.add_argument("--shape", nargs="+", help="shapes of the logits, such as 4x4x512x512 (default: all three)")
    losses.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="tables to make (default: all)")
    losses.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")
    metrics = commands.add_parser("metrics", help="speed of counts and surface distances")
    metrics.set_defaults(run=run_metrics)
    metrics.add_argument("--rounds", type=int, default=7, help="number of rounds")
    metrics.add_argument("--threads", type=int, default=2, help="number of PyTorch threads")
    metrics.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")
    data = commands.add_parser("data", help="speed of data loading")
    data.set_defaults(run=run_data)
    data.add_argument("--rounds", type=int, default=7, help="number of rounds")
    data.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of loader workers")
    add_data(data)
    data.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")
    predict = commands.add_parser("predict", help="speed and memory of prediction in windows")
    predict.set_defaults(run=run_predict)
    predict.add_argument("--rounds", type=int, default=5, help="number of rounds")
    predict.add_argument("--threads", type=int, default=2, help="number of PyTorch threads")
    predict.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")
    networks = commands.add_parser("networks", help="networks trained for equal minutes")
    networks.set_defaults(run=run_networks)
    networks.add_argument("--minutes", type=float, default=3, help="time of each training")
    add_data(networks)
    networks.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to this file")
    everything = commands.add_parser("all", help="all pages of docs/benchmarks but that of a CUDA device")
    everything.set_defaults(run=run_all)
    everything.add_argument("--out", type=Path, required=True, help="folder of the pages")
    everything.add_argument("--pages", nargs="+", choices=PAGES, default=PAGES, help="pages to make (default: all)")
    add_data(everything)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
