"""What sources of files have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from segkit.data.cases import Case, RawCase, listed
from segkit.data.mask_encoding import MaskCode
from segkit.data.readers import read_files
from segkit.labels import Labels
from segkit.utils.errors import DataError


class FileSource:
    """Cases whose files are read alike. A constructor finds `cases`."""

    cases: tuple[Case, ...]

    def __init__(self, labels: Labels, code: MaskCode, *, files_of_classes: bool = False):
        code.check(labels, files_of_classes=files_of_classes)
        self.labels, self.code = labels, code

    def read(self, case: Case) -> RawCase:
        """The pixels of one case, the mask's values checked. Raises DataError."""
        return read_files(case, self.labels, self.code)


def group_reader(pattern: str | None) -> Callable[[str], str]:
    """From the name of a case to its group: the bracketed part of a regular expression, or the name itself."""
    if pattern is None:
        return lambda name: name
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected group to be a regular expression, got {pattern!r}: {error}") from error
    if expression.groups != 1:
        raise ValueError(f"expected group with one pair of brackets, such as '(.*)_', got {pattern!r}")

    def group_of(name: str) -> str:
        match = expression.search(name)
        if match is None or match.group(1) is None:
            raise DataError(f"case {name}: its name does not match group {pattern!r}; change `group` under `data`")
        return match.group(1)

    return group_of


def refuse_unpaired(strays: Sequence[str]) -> None:
    """Raise DataError if there are files without partner."""
    if strays:
        raise DataError(
            f"{len(strays)} files have no partner:{listed(list(strays))}\n"
            "mend the names or the patterns, or leave these files out with `unpaired: skip` under `data`"
        )


def distinguished(cases: Sequence[Case]) -> list[Case]:
    """Cases as they are, or with their part of the split in front, `train/0001`, if two parts use one name."""
    images_of: dict[str, tuple[Path, ...]] = {}
    shared = any(images_of.setdefault(case.name, case.images) != case.images for case in cases)
    return [replace(case, name=f"{case.split}/{case.name}") for case in cases] if shared else list(cases)


def sorted_cases(cases: Iterable[Case], folder: Path) -> tuple[Case, ...]:
    """The cases by name. Raises DataError if there are none, or two of one name."""
    by_name: dict[str, Case] = {}
    for case in cases:
        other = by_name.setdefault(case.name, case)
        if other is not case:
            files = [", ".join(map(str, one.images)) for one in (other, case)]
            raise DataError(f"case {case.name} occurs twice: {files[0]} and {files[1]}; rename one of them")
    if not by_name:
        raise DataError(f"expected images with masks in {folder}, found none")
    return tuple(by_name[name] for name in sorted(by_name))


def listed_file(text: str, root: Path, listing: Path) -> Path:
    """The path of a file that a listing names. Raises DataError if it is missing or leaves the folder `root`."""
    # by text and not by what links point to: data are often linked in from elsewhere
    path = Path(os.path.normpath(root / text))
    if not path.is_relative_to(os.path.normpath(root)):
        raise DataError(f"{listing} lists {text}, which lies outside the folder {root}")
    if not path.exists():
        raise DataError(f"{listing} lists {text}, but there is no such file in {root}")
    return path


def existing_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    return folder
