"""Processes that are killed: at random times, and before each of their file operations."""

import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from support.faults.commands import COMMANDS, differences, file_operations, fresh_copy, make_workplace, run

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)


def at_random_times(command: str, folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Kill a command at random times until it has finished, and compare with a run that was not killed."""
    draw = random.Random(seed)
    arguments, result = COMMANDS[command]
    workplace, whole = folder / "workplace", folder / "whole"
    make_workplace(workplace)
    fresh_copy(workplace, whole)
    ended = run(arguments, whole)
    assert ended.exit_code == 0, ended.output
    kills = 0
    while kills < tries:
        place, of_this = fresh_copy(workplace, folder / "killed"), 0
        while True:
            number = SIGNALS[kills % len(SIGNALS)]
            limit = draw.uniform(0.02, 0.9) * ended.seconds if kills < tries else None
            end = run(arguments, place, kill_after=limit, number=number)
            if end.exit_code == 0:
                break
            if limit is None or end.exit_code not in (-number, 128 + number):
                yield f"after {of_this} kills: exit code {end.exit_code}: {end.output[-600:]!r}"
                return
            kills, of_this = kills + 1, of_this + 1
        differing = differences(whole / result, place / result)
        for _ in range(of_this - 1):
            yield None
        if of_this:
            yield f"after {of_this} kills: {differing}" if differing else None


def at_file_operations(command: str, folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Kill a command before one of its file operations, give it again, and compare with a run that was not killed."""
    arguments, result = COMMANDS[command]
    workplace, whole = folder / "workplace", folder / "whole"
    make_workplace(workplace)
    operations = file_operations(arguments, fresh_copy(workplace, whole))
    chosen = random.Random(seed).sample(range(1, operations + 1), min(tries, operations))
    for number in chosen:
        place = fresh_copy(workplace, folder / "killed")
        run(arguments, place, kill_at=number)
        again = run(arguments, place)
        if again.exit_code != 0:
            yield f"before operation {number} of {operations}: {again.problem or again.output[-300:]!r}"
            continue
        differing = differences(whole / result, place / result)
        yield f"before operation {number} of {operations}: {differing}" if differing else None


FAULTS = {
    **{f"{command}, at random times": partial(at_random_times, command) for command in COMMANDS},
    **{
        f"{command}, before a file operation": partial(at_file_operations, command)
        for command in ("train", "evaluate", "predict", "compare")
    },
}
