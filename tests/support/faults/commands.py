"""Commands in processes of their own, that are killed or meet a fault, and the comparison of what they wrote."""

import csv
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segkit import cli

from support.processes import FORKS

CONFIG = """\
labels: {names: [background, a, b]}
data: {name: synthetic, size: [32, 32], train: 8, validation: 4, test: 6, foreground: 0.3, noise: 0.02}
augment: {engine: albumentations, transforms: [horizontal_flip, {name: affine, scale: 0.1, rotate: 10}]}
loader: {batch: 4}
model: {name: unet, widths: [8, 16], dropout: 0.1}
loss: ce_then_lovasz
optimizer: {name: adamw, lr: 1e-2}
train: {steps: 24, ema: 0.8, log_every: {steps: 4}, validate_every: {epochs: 2}, gradients_every: {steps: 7}}
checkpoints: {every: {steps: 7}, keep: 2}
device: cpu
"""
COMMANDS = {
    "train": (["train", "--config", "small.yaml", "run.dir=run", "--resume"], "run"),
    "evaluate": (["evaluate", "--checkpoint", "trained", "--out", "scores"], "scores"),
    "predict": (
        ["predict", "--checkpoint", "trained", "--input", "images", "--output", "masks", "--skip-existing"],
        "masks",
    ),
    "compare": (
        ["compare", "--config", "small.yaml", "--out", "out", "--losses", "dice,cross_entropy", "--seeds", "1"],
        "out",
    ),
}
PATIENCE = ("train.patience={steps: 5}", "loader.workers=2", "checkpoints.every=null")
COMMANDS["train by patience, two loader workers"] = ([*COMMANDS["train"][0], *PATIENCE], "run")
COMMANDS["compare --parallel 2"] = ([*COMMANDS["compare"][0], "--parallel", "2"], "out")
COMMANDS["compare --engine ray"] = ([*COMMANDS["compare"][0], "--engine", "ray", "--parallel", "1"], "out")
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")  # besides opening a file to write
SECONDS = 300  # after which a command counts as hanging
EXPECTED = (0, 2, 3, 4, 5, 130, 143)


@dataclass(frozen=True)
class Ended:
    """How a command ended. A negative exit code is a signal; None means that it hung and was killed."""

    exit_code: int | None
    output: str
    seconds: float

    @property
    def problem(self) -> str | None:
        """What is wrong with this end, if anything: a hang, an unexpected exit code, a traceback."""
        if self.exit_code is None:
            return f"hangs: {self.output[-300:]!r}"
        if self.exit_code not in EXPECTED or "Traceback" in self.output or "this is a bug" in self.output:
            return f"exit code {self.exit_code}: {self.output[-600:]!r}"
        return None


def make_workplace(folder: Path) -> None:
    """A folder with a configuration, a trained network and some images."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(CONFIG)
    (folder / "images").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 255, (32, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"case {number}.png")
    arguments = ["train", "--config", "small.yaml", "run.dir=trained"]
    ended = run(arguments, folder)
    assert ended.exit_code == 0, ended.output


def run(
    arguments: list[str],
    folder: Path,
    *,
    kill_after: float | None = None,
    kill_at: int | None = None,
    number: int = signal.SIGKILL,
    memory: int | None = None,
    meanwhile: Any = None,
    environment: dict[str, str] | None = None,
    seconds: float = SECONDS,
) -> Ended:
    """Run a command and wait for its end.

    kill_after: Seconds after which it is sent the signal `number`.
    kill_at: The number of the file operation before which it kills itself.
    memory: Bytes of address space beyond those of a process that has just started.
    meanwhile: A function that is called with the process while it runs.
    """
    output, start = folder.parent / f"{folder.name}.output", time.monotonic()
    call = (arguments, str(folder), str(output), kill_at, memory, environment or {})
    process: Any = FORKS.Process(target=_target, args=call)
    process.start()
    if meanwhile is not None:
        meanwhile(process)
    if kill_after is not None:
        process.join(kill_after)
        if process.exitcode is None:
            os.kill(process.pid, number)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Ended(None, output.read_text(), time.monotonic() - start)
    return Ended(process.exitcode, output.read_text(errors="replace"), time.monotonic() - start)


def file_operations(arguments: list[str], folder: Path) -> int:
    """The number of file operations of a command that is not killed."""
    ended = run(arguments, folder, kill_at=sys.maxsize)
    assert ended.exit_code == 0, ended.output
    return int((folder.parent / f"{folder.name}.operations").read_text())


def _target(
    arguments: list[str],
    folder: str,
    output: str,
    kill_at: int | None,
    memory: int | None,
    environment: dict[str, str],
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), write_through=True) for number in (1, 2))
    if memory is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    if kill_at is not None:
        _kill_at(kill_at, folder)
    cli.main(arguments)


def _kill_at(limit: int, folder: str) -> None:
    """Count the operations that change files in the folder, and kill this process before one of them."""
    count, own = 0, os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if not (writes or event in OPERATIONS) or os.getpid() != own:
            return
        if not str(os.path.abspath(os.fsdecode(arguments[0]))).startswith(folder):
            return
        count += 1
        if count == limit:
            os.kill(own, signal.SIGKILL)

    sys.addaudithook(hook)
    if limit == sys.maxsize:
        Finalize(None, lambda: Path(f"{folder}.operations").write_text(str(count)), exitpriority=0)


def differences(first: Path, second: Path) -> list[str]:
    """The differences between two folders of results, but for times and for files that only the process needs."""
    names = [_names(folder) for folder in (first, second)]
    alone = sorted(names[0] ^ names[1])
    return [*(f"only in one of both: {name}" for name in alone), *_different(first, second, names[0] & names[1])]


def _different(first: Path, second: Path, names: set[str]) -> list[str]:
    return [name for name in sorted(names) if _content(first / name) != _content(second / name)]


IGNORED = ("lock", "plan.lock", "environment.json", "config.yaml", "report.html", "report.md", "manifest.json")
IGNORED_FOLDERS = ("cache", "logs", "figures")


def _names(folder: Path) -> set[str]:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {
        str(file)
        for file in files
        if file.name not in IGNORED and not set(file.parts[:-1]) & set(IGNORED_FOLDERS) and file.suffix != ".lease"
    }


def _content(file: Path) -> Any:
    """The content of a file without times, in a form that can be compared; the bytes of a damaged one."""
    try:
        return _parsed(file)
    except Exception:
        return file.read_bytes()


def _parsed(file: Path) -> Any:
    if file.suffix == ".pt":
        content = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("time", "environment", "config", "resolved"):
            content.pop(key, None)
        return _plain(content)
    if file.suffix == ".jsonl":
        records = [json.loads(line) for line in file.read_text().splitlines()]
        return [{key: value for key, value in record.items() if key != "time"} for record in records]
    if file.suffix == ".json":
        return _without_times(json.loads(file.read_text()))
    if file.suffix == ".png":
        return np.asarray(Image.open(file)).tolist()
    if file.suffix == ".csv":
        with file.open() as opened:
            return list(csv.reader(opened))
    return file.read_bytes()


def _without_times(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    times = ("written", "when", "plan", "finished_units")
    return {key: _without_times(value) for key, value in content.items() if key not in times}


def _plain(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        return str(content.dtype), list(content.shape), content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, (list, tuple)) else content


def fresh_copy(workplace: Path, folder: Path) -> Path:
    """A copy of the workplace, in which a command has not run yet."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(workplace, folder)
    return folder
