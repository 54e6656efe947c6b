"""Where units are trained: in this process, in several of this machine, or on a Ray cluster.

All of them go through the units until none is left that is neither finished nor failed. Each unit is claimed, so that
any number of engines, shells and machines can work on one folder.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from segkit.compare.claims import Claims
from segkit.compare.plan import Unit
from segkit.stopping import Interrupted

POLL_SECONDS = 2.0
CORES_A_UNIT = 4
Train = Callable[[Unit, Claims, float, Console], bool]


class Engine(Protocol):
    """parallel: units at once."""

    parallel: int

    def run(self, units: Sequence[Unit], train: Train, console: Console) -> None: ...


def work(units: Sequence[Unit], train: Train, console: Console, since: float, wait: bool) -> None:
    """Train what no one else is at, one unit after another, and with `wait` look after what others are at, in case they
    die."""
    claims, left = Claims(), list(units)
    while left:
        busy = [unit for unit in left if not train(unit, claims, since, console)]
        if len(busy) == len(left):
            if not wait:
                return
            time.sleep(POLL_SECONDS)
        left = busy


class Local:
    """This machine. One unit at a time is trained in this process; several each in its own, with an equal share of the
    cores, or a GPU each, and what they print in `logs` beside the units."""

    def __init__(self, parallel: int | None = None, *, wait: bool = True):
        self.wait = wait
        gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
        self.parallel = parallel or gpus or max(1, cores // CORES_A_UNIT)

    def run(self, units: Sequence[Unit], train: Train, console: Console) -> None:
        since = time.time()
        if self.parallel == 1 or len(units) == 1:
            work(units, train, console, since, self.wait)
            return
        logs = units[0].folder.parent.parent / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        number = min(self.parallel, len(units))
        threads = max(1, (os.cpu_count() or 1) // number)
        processes = [
            context.Process(target=_worker, args=(place, threads, list(units), train, since, logs, self.wait))
            for place in range(number)
        ]
        console.print(f"{number} units at once, {threads} threads each; what they print is in {logs}", highlight=False)
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join()
        except BaseException:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
            raise
        codes = [process.exitcode for process in processes]
        stopped = [code - 128 for code in codes if code is not None and code > 128]
        if stopped:
            raise Interrupted(stopped[0], 0)
        if all(codes):  # one that is left goes on with the units of those that died
            console.print(f"all processes died, with exit codes {codes}; going on in this one", highlight=False)
            work(units, train, console, since, self.wait)


def _worker(place: int, threads: int, units: list[Unit], train: Train, since: float, logs: Path, wait: bool) -> None:
    torch.set_num_threads(threads)
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(place % gpus)
    with open(logs / f"{place}.txt", "a", buffering=1) as file:
        try:
            work(units, train, Console(file=file, width=120), since, wait)
        except Interrupted as error:
            raise SystemExit(error.exit_code) from None


class Ray:
    """A Ray cluster, the one that RAY_ADDRESS or `ray start` tells of, or else one on this machine. The folder of the
    comparison has to be seen by all its machines. A unit whose machine or process dies is begun again elsewhere and
    goes on from its checkpoint."""

    def __init__(self, parallel: int | None = None, *, wait: bool = True):
        self.wait = wait
        try:
            import ray
        except ImportError as error:
            raise ValueError("--engine ray needs the package ray: pip install 'segkit-trainer[ray]'") from error
        self.ray: Any = ray
        if not ray.is_initialized():
            keep = {name: os.environ[name] for name in ("SEGKIT_DATA",) if name in os.environ}
            ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": keep})
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        self.gpus = 1 if gpus else 0
        self.cpus = self._cores([node for node in nodes if not gpus or node.get("GPU", 0) >= 1], parallel)
        room = gpus or sum(int(node.get("CPU", 0)) // self.cpus for node in nodes)
        self.parallel = parallel or max(1, room)

    def _cores(self, nodes: Sequence[dict[str, float]], parallel: int | None) -> int:
        """Of a unit, which has to fit on one machine, beside the units of the machine's other GPUs."""
        largest = max(int(node.get("CPU", 1)) // max(1, int(node.get("GPU", 0))) for node in nodes)
        shared = int(sum(node.get("CPU", 1) for node in nodes)) // (parallel or 1)
        return max(1, min(CORES_A_UNIT, largest, shared))

    def run(self, units: Sequence[Unit], train: Train, console: Console) -> None:
        since, threads, wait = time.time(), self.cpus, self.wait

        def train_remotely(unit: Unit) -> None:
            torch.set_num_threads(threads)
            work([unit], train, Console(quiet=True), since, wait)

        remote = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=-1)(train_remotely)
        waiting, running, done = list(units), [], 0
        while waiting or running:
            while waiting and len(running) < self.parallel:
                running.append(remote.remote(waiting.pop(0)))
            ended, running = self.ray.wait(running, num_returns=1)
            self.ray.get(ended)
            done += len(ended)
            console.print(f"{done} of {len(units)} units", highlight=False)


ENGINES: dict[str, Callable[..., Engine]] = {"local": Local, "ray": Ray}
