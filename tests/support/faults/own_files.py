"""Damaged files of runs and comparisons: what can be made again is made again, and the rest is named."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from support.faults.commands import COMMANDS, differences, fresh_copy, make_workplace, run

HALF = ("train.max_steps=12", "--allow", "train.max_steps")  # the first half of the training
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "deleted": lambda _: None,
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a list": lambda _: b"[]",
    "a mapping": lambda _: b"{}",
    "brackets": lambda _: b"[" * 200_000,
    "no text": lambda _: b"\xff\xfe\x00\x01",
    "flipped": lambda content: bytes(
        byte ^ 0x15 if place % 61 == 7 and place > len(content) // 3 else byte for place, byte in enumerate(content)
    ),
}


def of_a_run(stage: str, folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Damage a file of a run that is half done, or finished, and continue it."""
    arguments, result = COMMANDS["train"]
    workplace, whole, half = folder / "workplace", folder / "whole", folder / "half"
    make_workplace(workplace)
    fresh_copy(workplace, whole)
    fresh_copy(workplace, half)
    ended = run(arguments, whole)
    begun = run([*arguments, *HALF[:1]] if stage == "half" else arguments, half)
    assert (ended.exit_code, begun.exit_code) == (0, 0), begun.output
    again = [*arguments, "--allow", "train.max_steps"] if stage == "half" else arguments
    for place, file, how in _damaged(half, result, folder / "damaged", tries, seed):
        end = run(again, place)
        yield _judged(end, file, how, whole / result, place / result)


def of_a_comparison(folder: Path, tries: int, seed: int) -> Iterator[str | None]:
    """Damage a file of a finished comparison, and give the command again."""
    arguments, result = COMMANDS["compare"]
    workplace, whole = folder / "workplace", folder / "whole"
    make_workplace(workplace)
    fresh_copy(workplace, whole)
    ended = run(arguments, whole)
    assert ended.exit_code == 0, ended.output
    for place, file, how in _damaged(whole, result, folder / "damaged", tries, seed):
        yield _judged(run(arguments, place), file, how, whole / result, place / result)


def _damaged(source: Path, result: str, place: Path, tries: int, seed: int) -> Iterator[tuple[Path, Path, str]]:
    """Copies of a folder, in each of which a file of the results is damaged in some way."""
    names = sorted(file.relative_to(source) for file in (source / result).rglob("*") if file.is_file())
    pairs = [(name, how) for name in names if name.name not in ("lock", "plan.lock") for how in DAMAGES]
    random.Random(seed).shuffle(pairs)
    for name, how in (pairs * (1 + tries // len(pairs)))[:tries]:
        fresh_copy(source, place)
        file, content = place / name, DAMAGES[how]((place / name).read_bytes())
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        yield place, name, how


def _judged(end: object, file: Path, how: str, expected: Path, result: Path) -> str | None:
    """What is wrong with the command that met a damaged file, if anything."""
    problem, exit_code, output = end.problem, end.exit_code, " ".join(end.output.split())  # pyright: ignore
    what = f"{file}, {how}"
    if problem:
        return f"{what}: {problem}"
    if exit_code:
        named = file.name in output.replace(" ", "")
        return None if named else f"{what}: exit code {exit_code} without the name of the file: {output[-300:]!r}"
    if file.name == "log.jsonl" and "log.jsonl" in output:
        return None  # the report says that it lacks this log
    only_here = ("evaluation", "log.jsonl", "figures", "best.pt", "step-")  # what the command does not need or make
    differing = [name for name in differences(expected, result) if not _is_left(name, file, only_here)]
    return f"{what}: differs: {differing}" if differing else None


def _is_left(name: str, file: Path, places: tuple[str, ...]) -> bool:
    """Whether a difference is the damage itself, of a file that this command neither reads nor writes."""
    return file.name in name and any(place in str(file) for place in places)


FAULTS = {
    "a run that is half done": partial(of_a_run, "half"),
    "a finished run": partial(of_a_run, "finished"),
    "a finished comparison": of_a_comparison,
}
