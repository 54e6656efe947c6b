"""The command `doctor`: what segkit finds on a machine, and what to do about what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segkit._version import VERSION
from segkit.data.memory_check import available, in_gb
from segkit.training.precision import chosen_precision
from segkit.utils.console import warn
from segkit.utils.environment import environment
from segkit.utils.text import one_line

PACKAGE = "segkit-trainer"
LITTLE_MEMORY, LITTLE_DISK, LITTLE_SHARED = 4e9, 5e9, 1e9  # bytes
FEW_FILES = 1024  # open files, of which workers of a loader need many
CONFLICTS = (("opencv-python", "opencv-python-headless"), ("opencv-contrib-python", "opencv-python-headless"))


@dataclass(frozen=True)
class Finding:
    """Something about the machine. advice: what to do; None if nothing is wrong."""

    name: str
    value: str
    advice: str | None = None


def doctor(console: Console) -> list[Finding]:
    """Print and return all findings, with the advice below them."""
    found = [finding for check in CHECKS for finding in _findings(check)]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        mark = "" if finding.advice is None else "[yellow]![/] "
        table.add_row(f"{mark}{escape(finding.name)}", escape(finding.value))
    console.print(table)
    advised = [finding for finding in found if finding.advice is not None]
    for finding in advised:
        warn(f"{finding.name}: {finding.advice}", console)
    if not advised:
        console.print("no problems found")
    return found


def _findings(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check finds. If it fails, that is a finding: the machine may be the one that has to be looked at."""
    found = []
    try:
        for finding in check():
            found.append(finding)  # noqa: PERF402  (those before a failure count)
    except Exception as error:  # of any type, such as of a driver
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        found.append(Finding(check.__name__, f"cannot be found out ({reason})", "see the reason above"))
    return found


def software() -> Iterator[Finding]:
    """Versions, and whether they are those that segkit needs."""
    recorded = environment()
    yield Finding("segkit", f"{VERSION}, code {recorded['revision'] or 'installed'}, {Path(__file__).parents[1]}")
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    try:
        needed = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        yield Finding(PACKAGE, "not installed, but found on the path", "install it: pip install -e .")
        return
    for requirement in map(Requirement, needed):
        if requirement.marker is None:
            yield from _package(requirement)
    missing = sorted(extra for extra in _extras() if not _has_extra(extra))
    yield Finding("extras not installed", ", ".join(missing) or "none")


def _package(requirement: Requirement) -> Iterator[Finding]:
    """The version of a package that segkit needs."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        yield Finding(requirement.name, "missing", f"pip install '{requirement}'")
        return
    fits = requirement.specifier.contains(version, prereleases=True)
    if requirement.name in ("torch", "torchvision", "monai", "albumentations") or not fits:
        advice = None if fits else f"segkit needs {requirement}: pip install '{requirement}'"
        yield Finding(requirement.name, version, advice)


def _extras() -> list[str]:
    provided = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    return [extra for extra in provided if extra not in ("all", "test", "dev", "docs")]


def _has_extra(extra: str) -> bool:
    """Whether the packages of an extra are installed."""
    for requirement in map(Requirement, metadata.requires(PACKAGE) or []):
        if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
            try:
                metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                return False
    return True


def conflicts() -> Iterator[Finding]:
    """Packages that overwrite each other's files."""
    installed = {str(name).lower() for found in metadata.distributions() if (name := found.metadata["Name"])}
    for first, second in CONFLICTS:
        if {first, second} <= installed:
            advice = f"both bring the module cv2: pip uninstall {first} {second}, then pip install {second}"
            yield Finding("conflict", f"{first} and {second}", advice)


def processor() -> Iterator[Finding]:
    """Cores, threads and number formats."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = min(usable, psutil.cpu_count(logical=False) or usable)  # two threads of a core gain nothing
    threads, set_by = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    advice = None
    if threads < physical and set_by:
        advice = f"a training uses {threads} of {physical} cores, since OMP_NUM_THREADS is {set_by}: unset it"
    elif threads > usable:
        advice = f"{threads} threads share {usable} cores, which is slower: set OMP_NUM_THREADS={usable}"
    yield Finding("cores, threads", f"{physical}, {threads}", advice)
    yield Finding("precision auto", f"{chosen_precision('auto', torch.device('cpu'))} on the CPU")


def devices() -> Iterator[Finding]:
    """GPUs, and why there is none."""
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            device = torch.device("cuda", number)
            value = (
                f"{torch.cuda.get_device_name(number)}, {in_gb(free)} of {in_gb(total)} free, precision auto: "
                f"{chosen_precision('auto', device)}"
            )
            full = free < total / 2
            yield Finding(f"GPU {number}", value, "another process uses its memory: see nvidia-smi" if full else None)
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "Apple, device mps")
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        advice = "this build of torch is for CPUs: install one for CUDA, see https://pytorch.org/get-started/locally"
        yield Finding("GPU", f"a driver, but torch {torch.__version__} without CUDA", advice)
    elif shutil.which("nvidia-smi"):
        advice = f"torch is built for CUDA {torch.version.cuda}: is the driver new enough? nvidia-smi shows its version"
        yield Finding("GPU", "a driver, but no device that torch can use", advice)
    else:
        yield Finding("GPU", "none; trainings run on the CPU")


def memory() -> Iterator[Finding]:
    """Main memory, and the memory that loader workers share."""
    free, total = available(), psutil.virtual_memory().total
    advice = "cached cases and a training step may not fit: loader.cache=disk, and a smaller batch"
    value = f"{in_gb(free)} of {in_gb(total)} free for this process"
    yield Finding("memory", value, advice if free < LITTLE_MEMORY else None)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        advice = "loader workers pass batches through it: start the container with --shm-size=8g, or loader.workers=0"
        yield Finding("shared memory", in_gb(size), advice if size < LITTLE_SHARED else None)


def disks() -> Iterator[Finding]:
    """Room where runs and temporary files are written, and limits on files."""
    for name, folder in (("disk of this folder", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        advice = None
        if not os.access(folder, os.W_OK):
            advice = "it cannot be written to: choose another folder"
        elif free < LITTLE_DISK:
            advice = "checkpoints and caches need room" if name != "temporary files" else "set TMPDIR to a larger disk"
        yield Finding(name, f"{in_gb(free)} free, {folder}", advice)
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        few = 0 <= limit < FEW_FILES
        yield Finding("open files", str(limit), "loader workers need more: ulimit -n 4096" if few else None)
    except ImportError:  # Windows
        return


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (software, conflicts, processor, devices, memory, disks)
