"""Helpers shared by the sources that read files."""

from __future__ import annotations

import inspect
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segkit.data.cases import Case, RawCase, mask_dtype
from segkit.data.documents import MAX_NAME, name_problem
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.readers import background_value, only_annotated, read_files
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import is_control, listed_lines, one_line


class FileSource:
    """Base of the sources whose cases are read by `read_files`. Subclasses set `cases` in their constructor.

    encoding: how classes are encoded in the mask files.
    class_files: whether a mask file may hold a single class.

    Raises ValueError if the encoding does not fit the labels.
    """

    cases: tuple[Case, ...]

    def __init__(self, labels: Labels, encoding: MaskEncoding, *, class_files: bool = False):
        encoding.check(labels, class_files=class_files)
        self.labels = labels
        self.encoding = replace(encoding, accepted=frozenset(inspect.signature(type(self)).parameters))

    def read(self, case: Case) -> RawCase:
        """Read the pixels of one case and check the values of its mask. Raises DataError."""
        return read_files(case, self.labels, self.encoding)


def group_reader(pattern: str | None) -> Callable[[str], str]:
    """Return a function that maps the name of a case to its group.

    The group is the bracketed part of the regular expression `pattern`, or the name itself if the pattern is None.

    Raises ValueError for an invalid pattern. The function raises DataError for names that do not match.
    """
    if pattern is None:
        return lambda name: name
    try:
        expression = re.compile(unicodedata.normalize("NFC", pattern))
    except re.error as error:
        raise ValueError(f"expected group to be a regular expression, got {pattern!r}: {error}") from error
    if expression.groups != 1:
        raise ValueError(f"expected group to have one pair of brackets, such as '(.*)_', got {pattern!r}")

    def group_of(name: str) -> str:
        match = expression.search(name)
        if match is None or match.group(1) is None:
            raise DataError(f"case {name}: the name does not match group {pattern!r}; change `group` under `data`")
        return match.group(1)

    return group_of


def with_empty_mask(raw: RawCase, case: Case, labels: Labels) -> RawCase:
    """A case without mask files as one in which all classes are absent; other cases unchanged."""
    if raw.mask is not None:
        return raw
    size = raw.image.shape[1:]
    shape = (len(labels.names), *size) if labels.has_mask_channels else size
    empty = 0 if labels.has_mask_channels else background_value(labels, f"case {case.name}")
    return replace(raw, mask=only_annotated(np.full(shape, empty, mask_dtype(labels)), case, labels))


def refuse_unpaired(unpaired_files: Sequence[str], *, can_skip: bool = True) -> None:
    """Raise DataError if there are images without mask or masks without image.

    can_skip: whether the source has the option `unpaired`.
    """
    if unpaired_files:
        skip = ", or skip these files with `unpaired: skip` under `data`" if can_skip else ", or move these files away"
        raise DataError(
            f"{len(unpaired_files)} files have no counterpart:{listed_lines(unpaired_files)}\ncorrect the names{skip}"
        )


def with_unique_names(cases: Sequence[Case], group: str | None = None) -> list[Case]:
    """Prefix all case names with their part, as in `train/0001`, if a name occurs in two parts.

    group: the user's expression for groups. Without one every case is a group of its own, whatever its name.
    """
    images_of: dict[str, tuple[Path, ...]] = {}
    if not any(images_of.setdefault(case.name, case.images) != case.images for case in cases):
        return list(cases)
    named = [replace(case, name=f"{case.split}/{case.name}") for case in cases]
    return named if group is not None else [replace(case, group=case.name) for case in named]


def sorted_cases(cases: Iterable[Case], folder: Path) -> tuple[Case, ...]:
    """Sort cases by name. Raises DataError if there are none, if a name occurs twice, and for names of cases that
    cannot name files: the names of pictures and masks are made from them."""
    by_name: dict[str, Case] = {}
    for case in cases:
        _check_names(case)
        other = by_name.setdefault(case.name, case)
        if other is not case:
            files = [", ".join(map(str, duplicate.images)) for duplicate in (other, case)]
            if files[0] == files[1]:
                raise DataError(
                    f"case {case.name} is listed twice, with the image {files[0]}; remove one of the entries"
                )
            raise DataError(f"case {case.name} occurs twice: {files[0]} and {files[1]}; rename one of them")
    if not by_name:
        raise DataError(f"expected images with masks in {folder}, found none")
    return tuple(by_name[name] for name in sorted(by_name))


def _check_names(case: Case) -> None:
    """Raise DataError for a name that is no path below a folder, and for a group that is no short text."""
    files = listed_lines([one_line(path) for path in case.images], limit=1)
    problem = name_problem(case.name)
    if not problem and (set(case.name.split("/")) & {"", ".", ".."}):
        problem = f"a name that stays in its folder, got {one_line(case.name)}"
    if not problem and (any(map(is_control, case.group)) or len(case.group) > MAX_NAME):
        problem = f"a group of at most {MAX_NAME} characters without control characters, got {one_line(case.group, 80)}"
    if problem:
        raise DataError(f"case {one_line(case.name, 80)}: expected {problem}; rename it{files}")


def listed_file(text: str, root: Path, listing: Path) -> Path:
    """The path of a file named in a listing. Raises DataError if it is missing or outside the folder `root`."""
    if problem := name_problem(text):
        raise DataError(f"{listing}: expected {problem}")
    # links are not resolved, since data are often linked from elsewhere
    path = Path(os.path.normpath(root / text))
    if not path.is_relative_to(os.path.normpath(root)):
        raise DataError(f"{listing} lists {text}, which lies outside the folder {root}")
    path = in_any_form(path)
    if path == Path(os.path.normpath(root)):
        raise DataError(f"{listing} lists {text}, which is the folder {root}; list a file in it")
    if not os.path.exists(path):
        raise DataError(f"{listing} lists {text}, but there is no such file in {root}{windows_hint(text)}")
    return path


def in_any_form(path: Path) -> Path:
    """The path, or one whose names are the same text in another Unicode form, as in archives packed on macOS."""
    if os.path.exists(path):
        return path
    found = Path()
    for part in path.parts:
        forms = [
            found / form for form in (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        ]
        existing = next((form for form in forms if form.exists()), None)
        if existing is None:
            return path
        found = existing
    return found


def files_like(folder: Path, pattern: str) -> list[Path]:
    """The files that match a glob pattern, sorted, without hidden ones such as the `._name` of macOS."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def windows_hint(text: str) -> str:
    """What to append to a message about a file that is missing, if its path is one of Windows."""
    return "; it is a path of Windows: write / for \\" if "\\" in text else ""


def existing_folder(folder: Path) -> Path:
    """Return the folder. Raises DataError if it does not exist."""
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    return folder
