"""Splits into training, validation and test cases, as pure functions of the cases and a few options."""

from __future__ import annotations

import hashlib
import json
import random
import reprlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import Case
from segkit.data.documents import read_document
from segkit.utils.errors import DataError
from segkit.utils.text import listed, listed_lines, one_line

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Case names by part."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def to_json(self) -> dict[str, list[str]]:
        """The case names as one list per part."""
        return {part: list(names) for part, names in asdict(self).items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Sequence[str]]) -> Split:
        """Restore a split from the result of `to_json`. Missing parts are empty.

        Raises ValueError for other keys, and for parts that are not lists of names.
        """
        unknown = [key for key in plain if key not in PARTS]
        if unknown:
            raise ValueError(f"expected a split with the keys {', '.join(PARTS)}, got {', '.join(map(str, unknown))}")
        for part, names in plain.items():
            if not isinstance(names, (list, tuple)) or any(type(name) not in (str, int) for name in names):
                raise ValueError(f"expected {part} to be a list of case names, got {reprlib.repr(names)}")
        return cls(**{part: tuple(names) for part, names in plain.items()})

    @property
    def content_hash(self) -> str:
        """A hash of the lists, 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def source_split(cases: Sequence[Case]) -> Split:
    """The split that the source defines. Raises DataError if a case belongs to no part."""
    unassigned = [case.name for case in cases if case.split not in PARTS]
    if unassigned:
        raise DataError(
            f"expected the source to assign every case to one of {', '.join(PARTS)}, but {len(unassigned)} cases have "
            f"no part:{listed_lines(unassigned)}\n"
            "use the split kfold or lists, or a source that defines the parts (`{split}` in the folders of pairs)"
        )
    by_part = {part: tuple(case.name for case in cases if case.split == part) for part in PARTS}
    return _checked(Split(**by_part), cases)


Counts = Mapping[str, Sequence[int]]  # case name -> pixels of each class


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
    """Divide the shuffled groups into folds and use them for training, validation and test.

    folds: number of folds.
    fold: the fold for validation.
    seed: seed of the shuffle.
    test_fold: the fold for test. All remaining folds are for training.
    holdout: fraction of the groups held out for test, in place of `test_fold`. The held-out groups depend on neither
        the folds nor the seed; the other groups are divided into folds.
    stratify: distribute the pixels of each class evenly over the folds by iterative stratification, starting with the
        class that occurs in the fewest groups (Sechidis et al. 2011).
    counts: returns the class counts of the cases. It is called only with `stratify`, and reads all masks.

    A group is never divided. Without `stratify`, the sizes of the folds differ by at most one group, and the first
    folds are the larger ones. The result depends on the names of the groups, on these options and, with `stratify`, on
    the masks.

    Raises ValueError for options out of range, DataError if there are fewer groups than folds.
    """
    _check_folds(folds, fold, test_fold)
    if holdout is not None and (not 0 < holdout < 1 or test_fold is not None):
        raise ValueError(f"expected holdout between 0 and 1 and no test_fold, got {holdout} and {test_fold}")
    class_counts = counts() if stratify and counts is not None else {}
    groups = sorted({case.group for case in cases})
    test_groups: set[str] = set()
    if holdout is not None:
        test_size = max(1, round(holdout * len(groups)))
        test_groups = set(_divide(groups, [test_size, len(groups) - test_size], 0, cases, class_counts)[0])
        groups = [group for group in groups if group not in test_groups]
    if len(groups) < folds:
        raise DataError(
            f"expected at least {folds} groups for {folds} folds, got {len(groups)}:{listed_lines(groups)}\n"
            "use fewer folds, or smaller groups"
        )
    size, remainder = divmod(len(groups), folds)
    groups_of_folds = _divide(
        groups, [size + (number < remainder) for number in range(folds)], seed, cases, class_counts
    )
    fold_of = {group: number for number, members in enumerate(groups_of_folds) for group in members}

    def names(in_part: Callable[[int], bool]) -> tuple[str, ...]:
        return tuple(sorted(case.name for case in cases if case.group in fold_of and in_part(fold_of[case.group])))

    held_out = tuple(sorted(case.name for case in cases if case.group in test_groups))
    return Split(
        train=names(lambda number: number not in (fold, test_fold)),
        validation=names(lambda number: number == fold),
        test=held_out or names(lambda number: number == test_fold),
    )


def _divide(
    groups: Sequence[str], sizes: Sequence[int], seed: int, cases: Sequence[Case], counts: Counts
) -> list[list[str]]:
    """Divide the shuffled groups into folds of the given sizes, stratified by class if there are class counts."""
    shuffled = list(groups)
    random.Random(seed).shuffle(shuffled)
    if not counts:
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        return [shuffled[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    return _stratified(shuffled, sizes, cases, counts)


def _stratified(groups: Sequence[str], sizes: Sequence[int], cases: Sequence[Case], counts: Counts) -> list[list[str]]:
    """Divide groups into folds of the given sizes by iterative stratification.

    Each step takes the class that occurs in the fewest remaining groups (of several, the one with the fewest pixels)
    and assigns the group with most of its pixels to the fold that needs most of them. Full folds get no more groups.
    """
    pixels = {group: np.zeros(len(next(iter(counts.values())))) for group in groups}
    for case in cases:
        if case.group in pixels:
            pixels[case.group] += counts[case.name]
    fractions = np.array(sizes) / sum(sizes)
    needed = np.outer(fractions, sum(pixels.values()))  # [folds, classes]
    folds: list[list[str]] = [[] for _ in sizes]
    remaining = list(groups)
    while remaining:
        remaining_pixels = np.array([pixels[group] for group in remaining])
        order = np.lexsort((remaining_pixels.sum(0), (remaining_pixels > 0).sum(0)))  # by groups, then by pixels
        rarest = next((number for number in order if remaining_pixels[:, number].any()), 0)
        group = max(remaining, key=lambda name: pixels[name][rarest])
        open_folds = [number for number, fold in enumerate(folds) if len(fold) < sizes[number]]
        fold = max(open_folds, key=lambda number: (needed[number, rarest], sizes[number] - len(folds[number])))
        folds[fold].append(group)
        needed[fold] -= pixels[group]
        remaining.remove(group)
    return folds


def _check_folds(folds: int, fold: int, test_fold: int | None) -> None:
    held_out = [fold] if test_fold is None else [fold, test_fold]
    if folds <= len(held_out):
        raise ValueError(
            f"expected at least {len(held_out) + 1} folds, so that at least one is left for training, got {folds}"
        )
    outside = [number for number in held_out if not 0 <= number < folds]
    if outside:
        raise ValueError(f"expected fold and test_fold from 0 to {folds - 1}, got {outside[0]}")
    if test_fold == fold:
        raise ValueError(f"expected test_fold to differ from fold, the fold for validation, got {fold} for both")


def lists_split(
    cases: Sequence[Case],
    *,
    file: Path | None = None,
    train: list[str] | None = None,
    validation: list[str] | None = None,
    test: list[str] | None = None,
) -> Split:
    """A split by lists of case names, inline or in a JSON file `{"train": [...], "validation": [...], "test": [...]}`.

    Raises ValueError unless exactly one of both forms is used, DataError for an unreadable file, unknown or repeated
    names, and a split without training cases.
    """
    inline = {"train": train, "validation": validation, "test": test}
    lists = {part: names for part, names in inline.items() if names is not None}
    if (file is None) == (not lists):
        raise ValueError("expected either file or the lists train, validation and test, got both or neither")
    return _checked(Split.from_json(lists if file is None else _read_lists(file)), cases)


def _read_lists(file: Path) -> dict[str, Any]:
    content = read_document(Path(file), dict[str, list[str | int]])
    unknown = [key for key in content if key not in PARTS]
    if unknown:
        raise DataError(f"{file}: expected the keys {', '.join(PARTS)}, got {listed(list(map(one_line, unknown)))}")
    return content


def _checked(split: Split, cases: Sequence[Case]) -> Split:
    """Return the split after checking it.

    Raises DataError for unknown or repeated names and if there is no training case. Warns about groups in several
    parts.
    """
    group_of = {case.name: case.group for case in cases}
    parts = {part: [unicodedata.normalize("NFC", str(name)) for name in getattr(split, part)] for part in PARTS}
    split = Split.from_json(parts)
    names = [*split.train, *split.validation, *split.test]
    unknown = [str(name) for name in names if name not in group_of]
    if unknown:
        raise DataError(
            f"{len(unknown)} names in the split do not exist in the data:{listed_lines(list(map(one_line, unknown)))}\n"
            f"the data have {len(group_of)} cases, such as {', '.join(list(group_of)[:3])}"
        )
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise DataError(
            f"expected each case once in the split, but these occur more than once:{listed_lines(repeated)}"
        )
    if not split.train:
        raise DataError("expected at least one training case, got none")
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
            f"{len(shared)} groups are in more than one part of the split, so scores may be too high:"
            f"{listed_lines(shared)}",
            stacklevel=3,
        )


SPLITS: dict[str, Callable[..., Split]] = {"source": source_split, "kfold": kfold_split, "lists": lists_split}
