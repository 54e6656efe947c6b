"""Disks that are full or read-only, folders that vanish, and memory that runs out, while a command works.

Full and read-only disks are small file systems in memory, which only root may mount: elsewhere these kinds try nothing.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from support.faults.commands import COMMANDS, differences, fresh_copy, make_workplace, run

NAMES = ("train", "evaluate", "predict", "compare")
CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
TOLD = {"full": ("full", "No space"), "read-only": ("read-only", "Read-only")}


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    return os.geteuid() == 0 and shutil.which("mount") is not None and os.path.exists("/proc/mounts")


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system of a few bytes at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def reference(command: str, folder: Path, *changes: str) -> tuple[Path, Path, Path]:
    """The workplace, a run without a fault in a copy of it, and the folder of its results."""
    arguments, result = COMMANDS[command]
    workplace, whole = folder / "workplace", folder / "whole"
    make_workplace(workplace)
    fresh_copy(workplace, whole)
    ended = run([*arguments, *changes], whole)
    assert ended.exit_code == 0, ended.output
    return workplace, whole, whole / result


def judged(first: Any, again: Any, told: tuple[str, ...], expected: Path, result: Path) -> str | None:
    """What is wrong with a run that met a fault and with the one after it, if anything."""
    if first.problem:
        return first.problem
    if first.exit_code and not any(word in first.output for word in told):
        return f"exit code {first.exit_code} without {told[0]!r}: {first.output[-400:]!r}"
    if again.exit_code != 0:
        return f"the same command again: exit code {again.exit_code}: {again.output[-400:]!r}"
    differing = [name for name in differences(expected, result) if not _is_reported(name, first, again)]
    return f"differs: {differing}" if differing else None


def _is_reported(name: str, first: Any, again: Any) -> bool:
    """Whether the commands themselves say why a result differs."""
    if name.endswith(".png"):
        return "could not be drawn" in first.output
    # the plan was deleted after the first unit had finished or while it did
    return name == "comparison.json" and "the plan was written after" in " ".join(again.output.split())


def full_disk(command: str, folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """The disk of the results is full at some moment; with more space, the same command goes on."""
    if not can_mount():
        return
    draw, (arguments, result) = random.Random(seed), COMMANDS[command]
    workplace, _whole, expected = reference(command, folder)
    total = sum(file.stat().st_size for file in expected.rglob("*") if file.is_file())
    for _ in range(tries):
        place = fresh_copy(workplace, folder / "full")
        with mounted(place / result, int(draw.uniform(0.02, 0.95) * total) // 4096 * 4096 + 4096):
            first = run(arguments, place)
            remount(place / result, "size=1g")
            yield judged(first, run(arguments, place), TOLD["full"], expected, place / result)


def full_temporary_folder(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """The temporary folder of the system is full: only pictures may be missing."""
    if not can_mount():
        return
    arguments, result = COMMANDS["evaluate"]
    workplace, _whole, expected = reference("evaluate", folder)
    draw = random.Random(seed)
    for _ in range(tries):
        place = fresh_copy(workplace, folder / "full")
        with mounted(folder / "temporary", draw.choice([4096, 8192, 16384])) as temporary:
            first = run(arguments, place, environment={"TMPDIR": str(temporary)})
        yield judged(first, run(arguments, place), TOLD["full"], expected, place / result)


def read_only(command: str, folder: Path, tries: int, _seed: int) -> Iterator[str | None]:
    """The folder of the results is read-only, from the start."""
    if not can_mount():
        return
    arguments, result = COMMANDS[command]
    workplace, _whole, expected = reference(command, folder)
    for _ in range(min(tries, 1)):
        place = fresh_copy(workplace, folder / "read-only")
        with mounted(place / result, 2**30):
            remount(place / result, "ro")
            first = run(arguments, place)
            if first.exit_code == 0:
                yield "exit code 0 in a read-only folder"
                continue
            remount(place / result, "rw")
            yield judged(first, run(arguments, place), TOLD["read-only"], expected, place / result)


def finished_and_read_only(folder: Path, _tries: int, _seed: int) -> Iterator[str | None]:
    """A finished run in a read-only folder prints its scores."""
    if not can_mount():
        return
    arguments, result = COMMANDS["train"]
    make_workplace(folder / "workplace")
    with mounted(folder / "workplace" / result, 2**30):
        first = run(arguments, folder / "workplace")
        remount(folder / "workplace" / result, "ro")
        again = run(arguments, folder / "workplace")
    if first.exit_code or again.exit_code or "holds the finished run" not in again.output:
        yield f"exit codes {first.exit_code}, {again.exit_code}: {again.output[-400:]!r}"
    else:
        yield None


def vanishing(
    command: str, vanish: Callable[[Path], None], folder: Path, tries: int, seed: int
) -> Iterator[str | None]:
    """The folder of the results is deleted or renamed while the command runs; the command is given again."""
    draw, (arguments, result) = random.Random(seed), COMMANDS[command]
    workplace, whole, expected = reference(command, folder)
    seconds = run(arguments, fresh_copy(workplace, whole)).seconds
    for _ in range(tries):
        place = fresh_copy(workplace, folder / "vanishing")

        def meanwhile(process: Any, place: Path = place) -> None:
            moment = time.monotonic() + draw.uniform(0.05, 0.9) * seconds
            while (time.monotonic() < moment or not (place / result).exists()) and process.is_alive():
                time.sleep(0.01)
            if (place / result).exists():
                vanish(place / result)

        first = run(arguments, place, meanwhile=meanwhile)
        away = place / f"{result}.away"
        if away.exists():  # as the user would: what the command made in its place does not belong to the run
            shutil.rmtree(place / result, ignore_errors=True)
            away.rename(place / result)
        told = ("deleted or renamed", "cannot write", "no longer exists", "does not exist")
        yield judged(first, run(arguments, place), told, expected, place / result)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path) -> None:
    folder.rename(folder.with_name(f"{folder.name}.away"))


CACHED = ("loader.cache=disk", "loader.cache_dir=cache", "loader.workers=0")


def damaged_cache(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Entries of the disk cache are deleted, cut or changed while the training reads them."""
    draw, (arguments, result) = random.Random(seed), COMMANDS["train"]
    arguments = [*arguments, *CACHED]
    workplace, _whole, expected = reference("train", folder, *CACHED)
    for number in range(tries):
        place = fresh_copy(workplace, folder / "damaged")

        def meanwhile(process: Any, place: Path = place, number: int = number) -> None:
            while process.is_alive() and not (place / result / "log.jsonl").exists():
                time.sleep(0.01)
            if number % 4 == 3:
                shutil.rmtree(place / "cache", ignore_errors=True)
                return
            files = sorted(file for file in (place / "cache").rglob("*") if file.is_file())
            for file in draw.sample(files, min(len(files), 4)):
                _damage(file, number % 4)

        first = run(arguments, place, meanwhile=meanwhile)
        if first.exit_code != 0:
            yield f"exit code {first.exit_code}: {first.output[-400:]!r}"
            continue
        differing = differences(expected, place / result)
        yield f"differs: {differing}" if differing else None


def _damage(file: Path, how: int) -> None:
    """Delete a file, cut it, or change some of its bytes."""
    if how == 0:
        file.unlink()
        return
    content = bytearray(file.read_bytes())
    if how == 1:
        file.write_bytes(content[: len(content) // 2])
        return
    for position in range(len(content) // 3, len(content), 97):
        content[position] ^= 0x55
    file.write_bytes(content)


def little_memory(command: str, folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """The address space is limited: the command says that memory ran out, or has enough of it.

    Libraries may crash when an allocation fails. This is like a kill: the same command must go on.
    """
    draw, (arguments, result) = random.Random(seed), COMMANDS[command]
    workplace, _whole, expected = reference(command, folder)
    for _ in range(tries):
        place = fresh_copy(workplace, folder / "little")
        first = run(arguments, place, memory=int(draw.uniform(0.02, 1.0) * 2**29))
        again = run(arguments, place)
        if first.exit_code in CRASHES:
            differing = differences(expected, place / result)
            yield f"differs after a crash: {differing}" if again.exit_code or differing else None
        else:
            yield judged(first, again, ("memory",), expected, place / result)


FAULTS = {
    **{f"{command}, full disk": partial(full_disk, command) for command in NAMES},
    "evaluate, full temporary folder": full_temporary_folder,
    **{f"{command}, read-only folder": partial(read_only, command) for command in NAMES},
    "train, finished run in a read-only folder": finished_and_read_only,
    **{
        f"{command}, folder {what} meanwhile": partial(vanishing, command, vanish)
        for command in ("train", "compare")
        for what, vanish in (("deleted", _delete), ("renamed", _rename))
    },
    "train, damaged cache": damaged_cache,
    **{f"{command}, little memory": partial(little_memory, command) for command in NAMES},
}
