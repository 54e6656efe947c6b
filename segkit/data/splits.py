"""Which cases train, validate and test: pure functions of the cases and a few options."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import Case, listed
from segkit.utils.errors import DataError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Case names by part."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def to_json(self) -> dict[str, list[str]]:
        """Plain lists by part."""
        return {part: list(names) for part, names in asdict(self).items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Sequence[str]]) -> Split:
        """What `to_json` gave; a part may be left out. Raises ValueError for other keys."""
        unknown = [key for key in plain if key not in PARTS]
        if unknown:
            raise ValueError(f"expected a split with the keys {', '.join(PARTS)}, got {', '.join(map(str, unknown))}")
        return cls(**{part: tuple(names) for part, names in plain.items()})

    @property
    def content_hash(self) -> str:
        """16 hexadecimal digits that differ where the lists differ."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def source_split(cases: Sequence[Case]) -> Split:
    """The split that the source gives. Raises DataError where a case has none."""
    without = [case.name for case in cases if case.split not in PARTS]
    if without:
        raise DataError(
            f"expected every case to come with one of {', '.join(PARTS)}, but {len(without)} do not:{listed(without)}\n"
            "use the split kfold or lists, or a source that divides its cases (`{split}` in the folders of pairs)"
        )
    by_part = {part: tuple(case.name for case in cases if case.split == part) for part in PARTS}
    return _checked(Split(**by_part), cases)


Counts = Mapping[str, Sequence[int]]  # pixels of each class in a case, by its name


def kfold_split(
    cases: Sequence[Case],
    *,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    test_fold: int | None = None,
    holdout: float | None = None,
    stratify: bool = False,
    counts: Callable[[], Counts] | None = None,
) -> Split:
    """Cut the shuffled groups into `folds` parts: number `fold` validates, `test_fold` tests, the others train.

    holdout: a share of the groups that tests, whatever the folds and the seed are; the folds are cut from the others.
    stratify: give each part its share of every class, beginning with the one that the fewest groups have (iterative
    stratification, Sechidis et al. 2011); `counts` then says what the cases hold, for which all masks are read.

    A group is never divided. Without `stratify` the parts differ by at most one group, the first being larger. The cut
    depends on the names of the groups, on these options and, stratified, on the masks.

    Raises ValueError for numbers out of range, DataError where there are fewer groups than folds.
    """
    _check_folds(folds, fold, test_fold)
    if holdout is not None and (not 0 < holdout < 1 or test_fold is not None):
        raise ValueError(f"expected holdout between 0 and 1, in place of test_fold, got {holdout} and {test_fold}")
    found = counts() if stratify and counts is not None else {}
    groups = sorted({case.group for case in cases})
    tested: set[str] = set()
    if holdout is not None:
        wanted = max(1, round(holdout * len(groups)))
        tested = set(_cut(groups, [wanted, len(groups) - wanted], 0, cases, found)[0])
        groups = [group for group in groups if group not in tested]
    if len(groups) < folds:
        raise DataError(
            f"expected at least {folds} groups for {folds} folds, got {len(groups)}:{listed(groups)}\n"
            "use fewer folds, or smaller groups"
        )
    length, longer = divmod(len(groups), folds)
    chunks = _cut(groups, [length + (number < longer) for number in range(folds)], seed, cases, found)
    part_of = {group: part for part, chunk in enumerate(chunks) for group in chunk}

    def names(chosen: Callable[[int], bool]) -> tuple[str, ...]:
        return tuple(sorted(case.name for case in cases if case.group in part_of and chosen(part_of[case.group])))

    held_out = tuple(sorted(case.name for case in cases if case.group in tested))
    return Split(
        train=names(lambda part: part not in (fold, test_fold)),
        validation=names(lambda part: part == fold),
        test=held_out or names(lambda part: part == test_fold),
    )


def _cut(
    groups: Sequence[str], sizes: Sequence[int], seed: int, cases: Sequence[Case], counts: Counts
) -> list[list[str]]:
    """Groups in parts of these sizes, shuffled; with counts, each part with its share of every class."""
    shuffled = list(groups)
    random.Random(seed).shuffle(shuffled)
    if not counts:
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        return [shuffled[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    return _stratified(shuffled, sizes, cases, counts)


def _stratified(groups: Sequence[str], sizes: Sequence[int], cases: Sequence[Case], counts: Counts) -> list[list[str]]:
    """One group after another, of the class that the fewest of those left have, or else the fewest pixels, the one with
    most of it first, to the part that lacks most of it. Parts are full once they have their size."""
    held = {group: np.zeros(len(next(iter(counts.values())))) for group in groups}
    for case in cases:
        if case.group in held:
            held[case.group] += counts[case.name]
    share = np.array(sizes) / sum(sizes)
    lacking = np.outer(share, sum(held.values()))  # [parts, classes]
    parts: list[list[str]] = [[] for _ in sizes]
    left = list(groups)
    while left:
        rest = np.array([held[group] for group in left])
        order = np.lexsort((rest.sum(0), (rest > 0).sum(0)))  # by groups, then by pixels
        rare = next((number for number in order if rest[:, number].any()), 0)
        group = max(left, key=lambda one: held[one][rare])
        room = [number for number, part in enumerate(parts) if len(part) < sizes[number]]
        part = max(room, key=lambda number: (lacking[number, rare], sizes[number] - len(parts[number])))
        parts[part].append(group)
        lacking[part] -= held[group]
        left.remove(group)
    return parts


def _check_folds(folds: int, fold: int, test_fold: int | None) -> None:
    held_out = [fold] if test_fold is None else [fold, test_fold]
    if folds <= len(held_out):
        raise ValueError(f"expected at least {len(held_out) + 1} folds, so that some are left to train, got {folds}")
    outside = [number for number in held_out if not 0 <= number < folds]
    if outside:
        raise ValueError(f"expected fold and test_fold from 0 to {folds - 1}, got {outside[0]}")
    if test_fold == fold:
        raise ValueError(f"expected a test_fold that is not the fold that validates, got {fold} for both")


def lists_split(
    cases: Sequence[Case],
    *,
    file: Path | None = None,
    train: list[str] | None = None,
    validation: list[str] | None = None,
    test: list[str] | None = None,
) -> Split:
    """The case names given, or those of a JSON file `{"train": [...], "validation": [...], "test": [...]}`.

    Raises DataError for names that the source does not have and for cases that are named twice.
    """
    inline = {"train": train, "validation": validation, "test": test}
    given = {part: names for part, names in inline.items() if names is not None}
    if (file is None) == (not given):
        raise ValueError("expected either file or the lists train, validation and test, got both or neither")
    return _checked(Split.from_json(given if file is None else _read_lists(file)), cases)


def _read_lists(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the split file {file} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(names, list) for names in content.values()):
        raise DataError(f"{file}: expected lists of case names under {', '.join(PARTS)}")
    unknown = [key for key in content if key not in PARTS]
    if unknown:
        raise DataError(f"{file}: expected the keys {', '.join(PARTS)}, got {', '.join(unknown)}")
    return content


def _checked(split: Split, cases: Sequence[Case]) -> Split:
    """The split itself. Raises DataError for unknown or repeated names and no training case; warns of groups."""
    group_of = {case.name: case.group for case in cases}
    named = [*split.train, *split.validation, *split.test]
    unknown = [str(name) for name in named if name not in group_of]
    if unknown:
        raise DataError(
            f"{len(unknown)} names of the split are no case of the data:{listed(unknown)}\n"
            f"the data have {len(group_of)} cases, such as {', '.join(list(group_of)[:3])}"
        )
    repeated = [name for name, times in Counter(named).items() if times > 1]
    if repeated:
        raise DataError(f"expected each case once in the split, but these are named twice:{listed(repeated)}")
    if not split.train:
        raise DataError("expected at least one case to train on, got none")
    _warn_of_shared_groups(split, group_of)
    return split


def _warn_of_shared_groups(split: Split, group_of: Mapping[str, str]) -> None:
    groups = {part: {group_of[name] for name in names} for part, names in split.to_json().items()}
    shared = [
        f"{group}: {' and '.join(part for part in PARTS if group in groups[part])}"
        for group in sorted(set(group_of.values()))
        if sum(group in members for members in groups.values()) > 1
    ]
    if shared:
        warnings.warn(
            f"{len(shared)} groups lie in more than one part of the split, so scores may be too high:{listed(shared)}",
            stacklevel=3,
        )


SPLITS: dict[str, Callable[..., Split]] = {"source": source_split, "kfold": kfold_split, "lists": lists_split}
