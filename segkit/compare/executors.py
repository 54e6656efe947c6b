"""Where units are trained: in this process, in several of this machine, or on a Ray cluster.

All of them go through the units until none is left that is neither finished nor failed. Each unit is claimed, so that
any number of engines, shells and machines can work on one folder.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from segkit.compare.design import Unit
from segkit.compare.leases import Claims
from segkit.training.stopping import Interrupted

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
        number = min(self.parallel, len(units))
        threads = max(1, (os.cpu_count() or 1) // number)
        console.print(f"{number} units at once, {threads} threads each; what they print is in {logs}", highlight=False)
        crew = Crew(number, (threads, list(units), train, since, logs, self.wait))
        codes = crew.ended(console)
        stopped = [number for number in map(_stopped_by, codes) if number is not None]
        if stopped:
            raise Interrupted(stopped[0], 0)
        if any(codes):
            raise RuntimeError(f"processes that train units ended with errors, exit codes {codes}; see {logs}")


class Crew:
    """Processes that train units. One that is killed is replaced: its unit is tried again, and failed when it has
    killed too many, so that this comes to an end."""

    def __init__(self, number: int, arguments: tuple[Any, ...]):
        self.arguments, self.context = arguments, multiprocessing.get_context("spawn")
        self.running = {place: self._start(place) for place in range(number)}

    def ended(self, console: Console) -> list[int]:
        """The exit codes, once all have come to their end; all are ended where this one is interrupted."""
        codes = []
        try:
            while self.running:
                wait_for_any([process.sentinel for process in self.running.values()])
                for place, process in list(self.running.items()):
                    if process.exitcode is None:
                        continue
                    del self.running[place]
                    if process.exitcode < 0 and _stopped_by(process.exitcode) is None:
                        console.print(f"a process was killed by signal {-process.exitcode}; another takes its place")
                        self.running[place] = self._start(place)
                    else:
                        codes.append(process.exitcode)
        except BaseException:
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                process.join()
            raise
        return codes

    def _start(self, place: int) -> SpawnProcess:
        process = self.context.Process(target=_worker, args=(place, *self.arguments))
        process.start()
        return process


def _stopped_by(code: int) -> int | None:
    """The signal that asked a process to stop, by its exit code; None for any other end."""
    asked = (signal.SIGTERM, signal.SIGINT)
    return next((number for number in asked if code in (128 + number, -number)), None)


def _worker(place: int, threads: int, units: list[Unit], train: Train, since: float, logs: Path, wait: bool) -> None:
    torch.set_num_threads(threads)
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(place % gpus)
    with open(logs / f"{place}.txt", "a", buffering=1) as file:
        try:
            work(units, train, Console(file=file, width=120), since, wait)
        except Interrupted as error:
            raise SystemExit(error.exit_code) from None
        except Exception:
            traceback.print_exc(file=file)
            raise SystemExit(1) from None


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
