"""Processes that start at once: forks of a server that has already imported torch and segkit.

A new interpreter needs several seconds for these imports. The server has the environment variables of the moment at
which the first of its processes was started.
"""

import contextlib
import multiprocessing
import os
import socket
from pathlib import Path
from typing import NamedTuple

import torch
import torch.multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch._dynamo",  # which the first optimizer of a process imports
        "torch.nn.parallel.distributed",
        "albumentations",
        "pytest",
        "segkit.cli",
        "segkit.commands.compare",
        "segkit.commands.train",
        "segkit.experiment.runner",
        "segkit.report.evaluation_figures",
    ]
)


def run_ranks(target, arguments, number):
    """Call `target(rank, *arguments)` in several processes at once. An error in one of them is raised here."""
    torch.multiprocessing.start_processes(target, arguments, nprocs=number, start_method="forkserver")  # pyright: ignore


def start_tool(name, *arguments, folder, output, environment=None):
    """Start what `tools/NAME.py` runs, in the folder and with one thread; both outputs go to files of that name."""
    call = ([name, *map(str, arguments)], Path(folder), Path(output), environment or {})
    process = FORKS.Process(target=_run_tool, args=call)
    process.start()
    return process


def _run_tool(arguments, folder, output, environment):
    from segkit import cli

    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    with (
        open(output.with_suffix(".out"), "w", buffering=1) as out,
        open(output.with_suffix(".err"), "w", buffering=1) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        cli.main(arguments)


class Finished(NamedTuple):
    """The exit codes of all ranks, and their outputs one after the other."""

    exit_codes: list[int | None]
    stdout: str
    stderr: str


def run_tool_ranks(name, *arguments, folder, number=2):
    """Run a tool in several processes with the environment variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(number)}
    outputs = [Path(folder) / f"rank{rank}" for rank in range(number)]
    processes = [
        start_tool(
            name,
            *arguments,
            folder=folder,
            output=output,
            environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        process.join()
    texts = ["".join(output.with_suffix(kind).read_text() for output in outputs) for kind in (".out", ".err")]
    return Finished([process.exitcode for process in processes], *texts)
