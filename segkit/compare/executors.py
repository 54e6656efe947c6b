"""Executors: train units in this process, in several processes on this machine, or on a Ray cluster.

Every executor goes through the units until each has finished or failed. It holds a lease on a unit while training it,
so any number of executors, shells and machines can work on the same folder.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from segkit.compare.design import Unit
from segkit.compare.unit_results import FAILED
from segkit.training.stopping import Interrupted
from segkit.utils.leases import Leases
from segkit.utils.optional import require
from segkit.utils.text import readable_duration

POLL_SECONDS = 2.0
CORES_PER_UNIT = 4
STOP_SECONDS = 60.0  # for a worker to finish its step and save, after which it is killed
START_METHOD = "spawn"  # of worker processes; CUDA does not survive a fork
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
TrainUnit = Callable[[Unit, Leases, float, Console], bool]  # see `segkit.compare.units.train_unit`


class WorkersFailed(RuntimeError):
    """Worker processes ended with errors that do not belong to a unit."""

    exit_code = 1


class Executor(Protocol):
    """Trains units, up to `parallel` of them at the same time."""

    parallel: int

    def run(self, units: Sequence[Unit], train: TrainUnit, console: Console) -> None: ...


class UnitProgress:
    """Tells how many units are done and about how long the others take.

    Args:
        units: The units to train.
        console: Where to tell it.
    """

    def __init__(self, units: Sequence[Unit], console: Console):
        self.units, self.open, self.console = len(units), list(units), console
        self.start = time.monotonic()
        self.earlier = {unit.folder: _results(unit) for unit in units}

    def after(self, train: TrainUnit) -> TrainUnit:
        """The function that trains a unit, after which the progress is shown."""

        def trained(unit: Unit, leases: Leases, since: float, console: Console) -> bool:
            ended = train(unit, leases, since, console)
            self.show()
            return ended

        return trained

    def show(self) -> None:
        """Print a line if units have ended since the last one."""
        still_open = [unit for unit in self.open if not self._has_ended(unit)]
        if len(still_open) == len(self.open):
            return
        self.open, done = still_open, self.units - len(still_open)
        seconds = (time.monotonic() - self.start) / done * len(still_open)
        left = f", about {readable_duration(seconds)} left" if still_open else ""
        self.console.print(f"{done} of {self.units} units done{left}", highlight=False)

    def _has_ended(self, unit: Unit) -> bool:
        """Whether a unit was scored or has failed since the start, judging by its files, which takes little time."""
        return not _results(unit) <= self.earlier[unit.folder]


def _results(unit: Unit) -> set[tuple[Path, int]]:
    """The files with the scores and the failure of a unit, and when they were modified."""
    found = set()
    for file in (unit.folder / FAILED, *unit.folder.glob("evaluation/*/scores.json")):
        with suppress(FileNotFoundError):
            found.add((file, file.stat().st_mtime_ns))
    return found


def train_all(units: Sequence[Unit], train: TrainUnit, console: Console, since: float, wait: bool) -> None:
    """Train one unit after another, except those that other processes are training.

    With `wait`, poll the units of other processes until they are done, and train those whose process died.
    """
    leases, remaining = Leases(), list(units)
    while remaining:
        busy = [unit for unit in remaining if not train(unit, leases, since, console)]
        if len(busy) == len(remaining):
            if not wait:
                return
            time.sleep(POLL_SECONDS)
        remaining = busy


class LocalExecutor:
    """Trains units on this machine.

    A single unit at a time is trained in this process. Several units at a time are trained in separate processes, which
    share the CPU cores equally or get one GPU each, and write their output to `logs` beside the folder of the units.

    Args:
        parallel: Number of units at a time; None for the number of GPUs, or a quarter of the CPU cores without a GPU.
        wait: Whether to wait for units that other processes are training.
    """

    def __init__(self, parallel: int | None = None, *, wait: bool = True):
        self.wait = wait
        gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
        self.parallel = parallel or gpus or max(1, cores // CORES_PER_UNIT)

    def run(self, units: Sequence[Unit], train: TrainUnit, console: Console) -> None:
        """Train the units.

        Raises:
            Interrupted: A worker process received SIGTERM or SIGINT.
            WorkersFailed: A worker process ended with an error.
        """
        if not units:
            return
        since, progress = time.time(), UnitProgress(units, console)
        if self.parallel == 1 or len(units) == 1:
            train_all(units, progress.after(train), console, since, self.wait)
            return
        logs = units[0].folder.parent.parent / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        workers = min(self.parallel, len(units))
        threads = max(1, (os.cpu_count() or 1) // workers)
        console.print(f"training {workers} units at a time, {threads} threads each; output in {logs}", highlight=False)
        pool = WorkerPool(workers, (threads, list(units), train, since, logs, self.wait))
        exit_codes = pool.join(console, progress)
        signals = [number for number in map(_stop_signal, exit_codes) if number is not None]
        if signals:
            raise Interrupted(signals[0])
        if any(exit_codes):
            raise WorkersFailed(f"worker processes ended with errors, exit codes {exit_codes}; see {logs}")


class WorkerPool:
    """Worker processes that train units.

    A worker that is killed is replaced and its unit is tried again. A unit that kills its process repeatedly counts as
    failed (see `segkit.compare.units.train_unit`), so the replacements come to an end.
    """

    def __init__(self, workers: int, arguments: tuple[Any, ...]):
        self.arguments = arguments
        self.context: Any = multiprocessing.get_context(START_METHOD)
        self.running = {index: self._start(index) for index in range(workers)}

    def join(self, console: Console, progress: UnitProgress) -> list[int]:
        """Wait until all workers have ended, show their progress, and return their exit codes.

        An interruption of this process terminates the workers.
        """
        exit_codes = []
        try:
            with _noted_sigterm() as received:
                while self.running:
                    wait_for_any([process.sentinel for process in self.running.values()], POLL_SECONDS)
                    _check(received)
                    exit_codes += self._ended(console)
                    progress.show()
        except BaseException:
            self._terminate(console)
            raise
        return exit_codes

    def _ended(self, console: Console) -> list[int]:
        """The exit codes of the workers that have ended. Those that were killed are replaced."""
        exit_codes = []
        for index, process in list(self.running.items()):
            if process.exitcode is None:
                continue
            if _was_killed(process.exitcode):
                console.print(f"a worker process was killed by signal {-process.exitcode}; starting another one")
                self.running[index] = self._start(index)
            else:
                exit_codes.append(process.exitcode)
                del self.running[index]
        return exit_codes

    def _start(self, index: int) -> BaseProcess:
        process = self.context.Process(target=_worker, args=(index, *self.arguments))
        process.start()
        return process

    def _terminate(self, console: Console) -> None:
        """Ask the workers to stop after their current step, and kill those that do not."""
        processes = list(self.running.values())
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in processes:
            if process.is_alive():
                console.print(
                    f"worker process {process.pid} did not stop within {STOP_SECONDS:.0f} s and is killed; its unit "
                    "continues from its last checkpoint when the same command is given again"
                )
                process.kill()
                process.join()


@contextmanager
def _noted_sigterm() -> Iterator[list[int]]:
    """Note SIGTERM, which would end this process before it stops its workers, in the list that is yielded.

    The signal raises nothing by itself: an exception inside Ray's compiled functions would leave them as another one.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM that was set before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check(received: Sequence[int]) -> None:
    """Raise Interrupted if a signal was received."""
    if received:
        raise Interrupted(received[0])


def _was_killed(exit_code: int) -> bool:
    """Whether a process ended by a signal that is not a request to stop."""
    return exit_code < 0 and _stop_signal(exit_code) is None


def _stop_signal(exit_code: int) -> int | None:
    """The signal that asked a process to stop, from its exit code; None if it ended for another reason."""
    return next((number for number in STOP_SIGNALS if exit_code in (128 + number, -number)), None)


def _worker(
    index: int, threads: int, units: list[Unit], train: TrainUnit, since: float, logs: Path, wait: bool
) -> None:
    _stop_with_parent()
    torch.set_num_threads(threads)
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(index % gpus)
    with open(logs / f"{index}.txt", "a", buffering=1) as file:
        try:
            train_all(units, train, Console(file=file, width=120), since, wait)
        except Interrupted as error:
            raise SystemExit(error.exit_code) from None
        except Exception:
            traceback.print_exc(file=file)
            raise SystemExit(1) from None


def _stop_with_parent() -> None:
    """Stop after the current step if the process that started this worker ends, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait_for_any([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class RayExecutor:
    """Trains units on a Ray cluster: the one of RAY_ADDRESS or `ray start`, otherwise one on this machine.

    All machines of the cluster must see the folder of the comparison. If the machine or process that trains a unit
    dies, the unit is restarted elsewhere from its checkpoint.

    Args:
        parallel: Number of units at a time; None for one per GPU, or as many as the CPU cores of the cluster allow.
        wait: Whether to wait for units that other processes are training.

    Raises:
        MissingExtra: The package ray is not installed.
    """

    def __init__(self, parallel: int | None = None, *, wait: bool = True):
        self.wait = wait
        self.ray: Any = require("ray", "ray", "--engine ray")
        ray = self.ray
        if not ray.is_initialized():
            variables = {name: os.environ[name] for name in ("SEGKIT_DATA",) if name in os.environ}
            with _kept_sigterm():  # Ray's own handler prints a stack and ends with exit code 1
                ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": variables})
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        self.gpus = 1 if gpus else 0
        self.cpus = self._cores([node for node in nodes if not gpus or node.get("GPU", 0) >= 1], parallel)
        capacity = gpus or sum(int(node.get("CPU", 0)) // self.cpus for node in nodes)
        self.parallel = parallel or max(1, capacity)

    def _cores(self, nodes: Sequence[dict[str, float]], parallel: int | None) -> int:
        """CPU cores per unit, so that a unit fits on one machine together with the units of its other GPUs."""
        largest = max(int(node.get("CPU", 1)) // max(1, int(node.get("GPU", 0))) for node in nodes)
        shared = int(sum(node.get("CPU", 1) for node in nodes)) // (parallel or 1)
        return max(1, min(CORES_PER_UNIT, largest, shared))

    def run(self, units: Sequence[Unit], train: TrainUnit, console: Console) -> None:
        """Train the units."""
        if not units:
            return
        since, threads, wait = time.time(), self.cpus, self.wait

        def train_remotely(unit: Unit) -> None:
            torch.set_num_threads(threads)
            train_all([unit], train, Console(quiet=True), since, wait)

        remote = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=-1)(train_remotely)
        waiting, running, progress = list(units), [], UnitProgress(units, console)
        with _noted_sigterm() as received:
            while waiting or running:
                while waiting and len(running) < self.parallel:
                    running.append(remote.remote(waiting.pop(0)))
                ended, running = self.ray.wait(running, num_returns=1, timeout=POLL_SECONDS)
                _check(received)
                if not ended:
                    continue
                self.ray.get(ended)
                progress.show()


EXECUTORS: dict[str, Callable[..., Executor]] = {"local": LocalExecutor, "ray": RayExecutor}
