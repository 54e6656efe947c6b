"""Kill a training at random moments, continue it each time, and compare it with one that was left alone.

python tools/kill_and_resume.py --kills 200

Every third kill is a SIGTERM, after which the training finishes its step. Every other run ends by patience.
Weights, optimiser state, random states and scores have to be the same to the bit, and so has the log but for the fields
under `time`. Exit code 0 if they are, 1 with the differences if not.
"""

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from segkit.commands import train as training
from segkit.data.augment import ALBUMENTATIONS
from segkit.training.stopping import Interrupted

ALBUMENTATIONS["horizontal_flip"](p=0.5)  # so that its import is not made again by every child

CONFIG = """\
labels: {names: [background, a, b]}
data: {name: synthetic, size: [32, 32], train: 8, validation: 4, test: 12, foreground: 0.3, noise: 0.02}
augment: {engine: albumentations, transforms: [horizontal_flip, {name: affine, scale: 0.1, rotate: 10}]}
loader: {batch: 4}
model: {name: unet, widths: [8, 16], dropout: 0.1}
loss: ce_then_lovasz
optimizer: {name: adamw, lr: 1e-2}
train:
  steps: 120
  ema: 0.8
  log_every: {steps: 4}
  validate_every: {epochs: 2}
  gradients_every: {steps: 7}
  patience: {steps: %d}
checkpoints: {every: {steps: 7}, keep: 2}
evaluation: {overlays: false}
device: cpu
"""
PATIENCE = (1000, 13)  # never reached, and often in the middle between two validations
KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
WORKERS = (0, 2)  # of the loader, in turn, since their number must make no difference


def train(config: str, folder: str, workers: int) -> None:
    """In a process of its own: start or continue the run."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            overrides = [f"run.dir={folder}", f"loader.workers={workers}"]
            training.train(Path(config), overrides, resume=True, console=Console())
        except Interrupted as interrupted:
            sys.exit(interrupted.exit_code)


def run_until_killed(
    context: Any, config: Path, folder: Path, workers: int, seconds: float | None, kill: int = signal.SIGKILL
) -> bool:
    """Train in a process that is killed after so many seconds. Returns whether it came to its end."""
    process = context.Process(target=train, args=(str(config), str(folder), workers))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, kill)
        process.join()
        if process.exitcode in (-kill, 128 + kill):
            return False
    if process.exitcode:
        raise SystemExit(f"the training itself failed with exit code {process.exitcode}")
    return True


def differences(first: Path, second: Path) -> list[str]:
    """What two finished runs differ in."""
    names = [sorted(file.name for file in (run / "checkpoints").glob("*.pt")) for run in (first, second)]
    if names[0] != names[1]:
        return [f"the checkpoints {', '.join(one)}" for one in names]
    found = []
    for name in names[0]:
        states = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (first, second)]
        for state in states:
            del state["time"], state["environment"]
            for config in (state["config"], state["resolved"]):
                del config["run"], config["loader"]["workers"]
        found += [f"{name}: {place}" for place in differing(*states)]
    logs = [[timeless(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (first, second)]
    found += [f"log line {number}" for number, (a, b) in enumerate(zip(*logs, strict=False), 1) if a != b]
    if len(logs[0]) != len(logs[1]):
        found.append(f"log of {len(logs[0])} and {len(logs[1])} lines")
    for name in ("evaluation/test/scores.json", "evaluation/test/cases.csv"):
        texts = [list(csv.reader((run / name).open())) for run in (first, second)]
        found += [name] if texts[0] != texts[1] else []
    return found


def ended_at(run: Path) -> str:
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return f"ended by {state['finished']} at step {state['step']}"


def differing(first: Any, second: Any, name: str = "") -> list[str]:
    """The places in two nests of plain data and tensors where they are not the same to the bit."""
    if isinstance(first, torch.Tensor):
        same = isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [name]
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [place for key in first for place in differing(first[key], second[key], f"{name}.{key}".strip("."))]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [place for number, pair in pairs for place in differing(*pair, f"{name}.{number}")]
    return [] if first == second else [name]


def timeless(line: str) -> dict[str, Any]:
    record = json.loads(line)
    record.pop("time", None)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    # forked, so that a child begins at once; nothing is computed here before, as threads do not survive a fork
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        configs, took = [], []
        for place, patience in enumerate(PATIENCE):
            configs.append(folder / f"config{place}.yaml")
            configs[-1].write_text(CONFIG % patience)
            started = time.perf_counter()
            run_until_killed(context, configs[-1], folder / f"whole{place}", 0, None)
            took.append(time.perf_counter() - started)
            print(
                f"left alone, patience {patience}: {ended_at(folder / f'whole{place}')}, {took[-1]:.1f} s", flush=True
            )
        kills, number = 0, 0
        while kills < arguments.kills:
            which = number % len(PATIENCE)
            number += 1
            broken, ended = folder / f"broken{number}", False
            while not ended:
                last = kills >= arguments.kills
                seconds = None if last else draw.uniform(0.05, 0.6) * took[which]
                kill, workers = KILLS[kills % len(KILLS)], WORKERS[kills % len(WORKERS)]
                ended = run_until_killed(context, configs[which], broken, workers, seconds, kill)
                kills += not ended
            found = differences(folder / f"whole{which}", broken)
            print(f"run {number}: {kills} kills so far, {'the same' if not found else 'DIFFERENT'}", flush=True)
            if found:
                sys.exit("\n".join(found[:40]))


if __name__ == "__main__":
    main()
