"""Kill a training at random times, resume it after each kill, and compare it with an uninterrupted run.

python tools/kill_and_resume.py --kills 200

Every third kill is a SIGTERM, after which the training finishes its step. Every second run ends early, by patience.
Weights, optimiser state, random states and scores must be identical, bit for bit. The log must be identical except for
the fields under `time`. The exit code is 0 if everything is identical; otherwise it is 1 and the differences are
printed.
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

ALBUMENTATIONS["horizontal_flip"](p=0.5)  # imports albumentations once, before the child processes are forked

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
PATIENCE = (1000, 13)  # the first is never reached, the second often lies between two validations
KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
WORKERS = (0, 2)  # number of loader workers, in turn: it must make no difference


def train(config: str, folder: str, workers: int) -> None:
    """Start or resume the run, in a child process."""
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull), contextlib.redirect_stderr(devnull):
        try:
            overrides = [f"run.dir={folder}", f"loader.workers={workers}"]
            training.train(Path(config), overrides, resume=True, console=Console())
        except Interrupted as interrupted:
            sys.exit(interrupted.exit_code)


def run_until_killed(
    context: Any, config: Path, folder: Path, workers: int, seconds: float | None, kill: int = signal.SIGKILL
) -> bool:
    """Train in a child process that is killed after the given time. Returns whether it finished before."""
    process = context.Process(target=train, args=(str(config), str(folder), workers))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, kill)
        process.join()
        if process.exitcode in (-kill, 128 + kill):
            return False
    if process.exitcode:
        raise SystemExit(f"the training failed with exit code {process.exitcode}")
    return True


def differences(first: Path, second: Path) -> list[str]:
    """The differences between two finished runs."""
    names = [sorted(file.name for file in (run / "checkpoints").glob("*.pt")) for run in (first, second)]
    if names[0] != names[1]:
        return [f"the checkpoints {', '.join(of_run)}" for of_run in names]
    differing = [place for name in names[0] for place in checkpoint_differences(first, second, name)]
    logs = [[without_time(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (first, second)]
    differing += [f"log line {number}" for number, (a, b) in enumerate(zip(*logs, strict=False), 1) if a != b]
    if len(logs[0]) != len(logs[1]):
        differing.append(f"logs of {len(logs[0])} and {len(logs[1])} lines")
    for name in ("evaluation/test/scores.json", "evaluation/test/cases.csv"):
        tables = [list(csv.reader((run / name).open())) for run in (first, second)]
        differing += [name] if tables[0] != tables[1] else []
    return differing


def checkpoint_differences(first: Path, second: Path, name: str) -> list[str]:
    """The differences between two checkpoints of the same name, except for what may differ between runs."""
    states = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (first, second)]
    for state in states:
        del state["time"], state["environment"]
        for config in (state["config"], state["resolved"]):
            del config["run"], config["loader"]["workers"]
    return [f"{name}: {place}" for place in differing_places(*states)]


def end_of(run: Path) -> str:
    """Why and at which step a run ended."""
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return f"ended by {state['finished']} at step {state['step']}"


def differing_places(first: Any, second: Any, name: str = "") -> list[str]:
    """The paths at which two nested structures of plain data and tensors are not identical."""
    if isinstance(first, torch.Tensor):
        same = isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [name]
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        pairs = [(key, first[key], second[key]) for key in first]
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = [(index, *pair) for index, pair in enumerate(zip(first, second, strict=True))]
    else:
        return [] if first == second else [name]
    return [place for key, a, b in pairs for place in differing_places(a, b, f"{name}.{key}".strip("."))]


def without_time(line: str) -> dict[str, Any]:
    """A log record without the fields that may differ between runs."""
    record = json.loads(line)
    record.pop("time", None)
    return record


def uninterrupted_run(context: Any, folder: Path, number: int, patience: int) -> tuple[Path, float]:
    """Train once without a kill. Returns the configuration and the time in seconds."""
    config = folder / f"config{number}.yaml"
    config.write_text(CONFIG % patience)
    start = time.perf_counter()
    run_until_killed(context, config, folder / f"whole{number}", 0, None)
    seconds = time.perf_counter() - start
    print(f"uninterrupted, patience {patience}: {end_of(folder / f'whole{number}')}, {seconds:.1f} s", flush=True)
    return config, seconds


def main() -> None:
    """Kill and resume runs until the requested number of kills is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times at which runs are killed")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    # forked, so that a child starts at once; this process must not compute before, as threads do not survive a fork
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        references = [uninterrupted_run(context, folder, *pair) for pair in enumerate(PATIENCE)]
        kills, number = 0, 0
        while kills < arguments.kills:
            which = number % len(PATIENCE)
            config, seconds = references[which]
            number += 1
            killed, ended = folder / f"broken{number}", False
            while not ended:
                limit = None if kills >= arguments.kills else draw.uniform(0.05, 0.6) * seconds
                kill, workers = KILLS[kills % len(KILLS)], WORKERS[kills % len(WORKERS)]
                ended = run_until_killed(context, config, killed, workers, limit, kill)
                kills += not ended
            differing = differences(folder / f"whole{which}", killed)
            print(f"run {number}: {kills} kills so far, {'the same' if not differing else 'DIFFERENT'}", flush=True)
            if differing:
                sys.exit("\n".join(differing[:40]))


if __name__ == "__main__":
    main()
