"""Part: a deterministic training that is killed and resumed ends with the same files as one that is not."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from device_checks.checks import Check, Measured, Setup, Skip
from segkit import cli

from support.faults.commands import differences  # pyright: ignore[reportMissingImports]

PLANE: dict[str, Any] = {
    "labels": {"names": ["background", "a", "b"]},
    "data": {"name": "synthetic", "size": [64, 64], "train": 16, "validation": 2, "test": 2, "foreground": 0.3},
    "augment": {"engine": "albumentations", "transforms": ["horizontal_flip", {"name": "affine", "rotate": 10}]},
    "loader": {"batch": 4},
    "model": {"name": "unet", "widths": [8, 16], "dropout": 0.1},
    "loss": "ce_then_lovasz",
    "optimizer": {"name": "adamw", "lr": 1e-2},
    "train": {
        "ema": 0.8,
        "deterministic": True,
        "log_every": {"steps": 2},
        "validate_every": {"epochs": 4},
        "gradients_every": {"steps": 7},
    },
    "checkpoints": {"every": {"steps": 7}, "keep": 2},
    "evaluation": {"overlays": False},
}
VOLUME: dict[str, Any] = {
    **PLANE,
    "data": {**PLANE["data"], "size": [24, 24, 24], "train": 8},
    "augment": {"engine": "monai", "transforms": [{"name": "flip", "axes": "all"}]},
    "loader": {"batch": 2},
    "model": {"name": "unet", "widths": [8, 16], "norm": "instance", "residual": True, "deep_supervision": True},
    "loss": ["dice", "focal"],
}
TRAININGS = {
    "2D, fp32": (PLANE, "fp32"),
    "3D, deep supervision, bf16": (VOLUME, "bf16"),
    "2D, fp16": (PLANE, "fp16"),
}
NOTE = """\
Two trainings with `train.deterministic: true`, one of which is killed (SIGKILL) and resumed. Weights, states of the
optimiser and of random generators, log and scores are compared to the bit.\
"""
SECONDS = 300  # after which a training counts as hanging


def checks(setup: Setup) -> Iterator[Check]:
    """A row per training."""
    trainings = dict(list(TRAININGS.items())[:1]) if setup.short else TRAININGS
    for name, (tree, precision) in trainings.items():
        yield Check(name, partial(_compare, setup, tree, precision), seconds=40)


def _compare(setup: Setup, tree: dict[str, Any], precision: str) -> Measured:
    """Train twice at the same time, kill one after a third of the steps, and resume it."""
    if not setup.is_cuda and precision == "fp16":
        raise Skip("fp16 needs an accelerator")
    steps = 24 if setup.short else 90
    with tempfile.TemporaryDirectory() as name:
        whole, killed = (_folder(Path(name) / which, setup, tree, precision, steps) for which in ("whole", "killed"))
        undisturbed, victim = (_start(setup, folder) for folder in (whole, killed))
        last = _kill(victim, killed, steps // 3)
        _finish(undisturbed, whole)
        _finish(_start(setup, killed), killed)
        differing = differences(whole / "run", killed / "run")
    cells = [str(steps), str(last)]
    return Measured(cells, f"these files differ: {', '.join(differing)}" if differing else None)


def _folder(folder: Path, setup: Setup, tree: dict[str, Any], precision: str, steps: int) -> Path:
    """A folder with the configuration."""
    folder.mkdir()
    train = {**tree["train"], "steps": steps, "precision": precision}
    with (folder / "small.yaml").open("w") as file:
        YAML(typ="safe").dump({**tree, "train": train, "device": setup.torch_device.type}, file)
    return folder


def _start(setup: Setup, folder: Path) -> Any:
    context: Any = multiprocessing.get_context(setup.start)
    process = context.Process(target=_train, args=(str(folder),))
    process.start()
    return process


def _train(folder: str) -> None:
    """The process of a training, whose output goes to a file in the folder."""
    os.chdir(folder)
    descriptor = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), write_through=True) for number in (1, 2))
    cli.main(["train", "--config", "small.yaml", "run.dir=run", "--resume"])


def _kill(process: Any, folder: Path, step: int) -> int:
    """Kill a training after this step or soon after it. Returns the last step in its log."""
    end = time.monotonic() + SECONDS
    while process.exitcode is None and time.monotonic() < end and _last_step(folder) < step:
        time.sleep(0.002)
    process.kill()
    process.join()
    if process.exitcode != -9 or _last_step(folder) < step:
        raise RuntimeError(f"could not be killed in the middle: exit code {process.exitcode}, {_output(folder)}")
    return _last_step(folder)


def _finish(process: Any, folder: Path) -> None:
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"exit code {process.exitcode}: {_output(folder)}")


def _last_step(folder: Path) -> int:
    """The last step in the log; 0 without a log."""
    log = folder / "run" / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def _output(folder: Path) -> str:
    file = folder / "output.txt"
    return file.read_text(errors="replace")[-250:] if file.exists() else "it has not started"
