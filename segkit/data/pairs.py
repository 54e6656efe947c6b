"""Images in one folder and masks in another, paired by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from segkit.data.cases import Case, DataError, RawCase, listed
from segkit.data.readers import EXTENSIONS, is_image_file, read_pair
from segkit.data.splits import PARTS
from segkit.labels import Labels

ANY_EXTENSION = "(?:" + "|".join(re.escape(known) for known in EXTENSIONS) + ")"
SPLIT = "{split}"


class PairsSource:
    """Pairs of files whose names share the name of the case.

    images, masks: the folders. With `{split}` in both, `splits` says what stands there for `train`, `validation`
        and `test`, and each case knows its part.
    image_pattern, mask_pattern: file names with `{case}` in place of the case name; `*` is any text, and `.*` at the
        end any known extension. `{annotator}` in `mask_pattern` stands for one of several annotators of a case.
    annotator: whose masks to take.
    group: a regular expression with one pair of brackets, which picks the group out of the case name;
        without it every case is a group of its own.
    value_map: mask values of the files by the class numbers that they mean, `{255: 1}`.
    unpaired: `refuse` images without mask and masks without image, or `skip` them.

    Files of other formats and hidden files are passed over. Raises DataError for folders that are missing or empty,
    files without partner, several masks for one case, case names that occur twice or do not match `group`.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        images: Path,
        masks: Path,
        image_pattern: str = "{case}.*",
        mask_pattern: str = "{case}.*",
        annotator: str | None = None,
        group: str | None = None,
        value_map: dict[int, int] | None = None,
        splits: dict[str, str] | None = None,
        unpaired: Literal["refuse", "skip"] = "refuse",
    ):
        self.labels, self.value_map = labels, value_map
        layout = Layout(image_pattern, mask_pattern, annotator)
        group_of = group_reader(group)
        cases: list[Case] = []
        strays: list[str] = []
        for part, image_folder, mask_folder in _folders(Path(images), Path(masks), splits):
            image_of, mask_of = layout.find(image_folder, mask_folder)
            cases += [
                Case(name, group_of(name), part, image_of[name], mask_of[name]) for name in image_of if name in mask_of
            ]
            strays += [f"image without mask: {image_of[name]}" for name in image_of if name not in mask_of]
            strays += [f"mask without image: {mask_of[name]}" for name in mask_of if name not in image_of]
        if unpaired == "refuse":
            refuse_unpaired(strays)
        self.cases = sorted_cases(distinguished(cases), Path(images))

    def read(self, case: Case) -> RawCase:
        """The pixels of one case, the mask's values checked. Raises DataError."""
        assert case.image is not None
        return read_pair(case.image, case.mask, self.labels, self.value_map, case.name)


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
    image_of: dict[str, Path | None] = {}
    shared = any(image_of.setdefault(case.name, case.image) != case.image for case in cases)
    return [replace(case, name=f"{case.split}/{case.name}") for case in cases] if shared else list(cases)


def sorted_cases(cases: Sequence[Case], folder: Path) -> tuple[Case, ...]:
    """The cases by name. Raises DataError if there are none, or two of one name."""
    if not cases:
        raise DataError(f"expected images with masks in {folder}, found none")
    by_name: dict[str, Case] = {}
    for case in cases:
        other = by_name.setdefault(case.name, case)
        if other is not case:
            raise DataError(f"case {case.name} occurs twice: {other.image} and {case.image}; rename one of them")
    return tuple(by_name[name] for name in sorted(by_name))


def _folders(images: Path, masks: Path, splits: dict[str, str] | None) -> list[tuple[str | None, Path, Path]]:
    """The pairs of folders to look in, each with the part of the split that it makes."""
    divided = SPLIT in str(images), SPLIT in str(masks)
    if divided != (splits is not None,) * 2:
        raise ValueError(
            f"expected `{SPLIT}` in both images and masks together with splits, such as "
            f"{{train: train, validation: val, test: test}}, or none of the three; got images {images}, masks {masks}, "
            f"splits {splits}"
        )
    if splits is None:
        return [(None, images, masks)]
    unknown = [part for part in splits if part not in PARTS]
    if unknown or not splits:
        raise ValueError(f"expected splits with keys among {', '.join(PARTS)}, got {', '.join(splits) or 'none'}")
    return [
        (part, Path(str(images).replace(SPLIT, name)), Path(str(masks).replace(SPLIT, name)))
        for part, name in splits.items()
    ]


@dataclass(frozen=True)
class Layout:
    """How the files of a case are named."""

    image_pattern: str
    mask_pattern: str
    annotator: str | None

    def __post_init__(self) -> None:
        for option, pattern in (("image_pattern", self.image_pattern), ("mask_pattern", self.mask_pattern)):
            if pattern.count("{case}") != 1 or pattern.count("{annotator}") > 1:
                raise ValueError(f"expected {option} with {{case}} once, such as '{{case}}.png', got {pattern!r}")
        if "{annotator}" in self.image_pattern:
            raise ValueError(f"expected {{annotator}} in mask_pattern only, got image_pattern {self.image_pattern!r}")
        if self.annotator is not None and "{annotator}" not in self.mask_pattern:
            raise ValueError(f"annotator needs {{annotator}} in mask_pattern, got {self.mask_pattern!r}")

    def find(self, images: Path, masks: Path) -> tuple[dict[str, Path], dict[str, Path]]:
        """The image and the mask of each case name."""
        found = _matches(masks, self.mask_pattern)
        mask_of = self._choose(found, masks)
        in_one_folder = images.resolve() == masks.resolve()
        taken = {path for _case, _annotator, path in found} if in_one_folder else set()
        if in_one_folder and self.image_pattern == self.mask_pattern:
            raise ValueError(f"images and masks are both {self.image_pattern!r} in {images}; give them other patterns")
        image_of = _one_each(
            [(case, path) for case, _none, path in _matches(images, self.image_pattern) if path not in taken]
        )
        if not image_of:
            raise DataError(f"expected images named {self.image_pattern!r} in {images}, found none")
        return image_of, mask_of

    def _choose(self, found: Sequence[tuple[str, str, Path]], folder: Path) -> dict[str, Path]:
        """The masks of the chosen annotator; without one, the only masks there are."""
        if not found:
            raise DataError(f"expected masks named {self.mask_pattern!r} in {folder}, found none")
        if self.annotator is not None:
            own = _matches(folder, self.mask_pattern.replace("{annotator}", self.annotator))
            if own:
                return _one_each([(case, path) for case, _annotator, path in own])
        by_annotator: dict[str, list[str]] = defaultdict(list)
        for case, annotator, _path in found:
            by_annotator[annotator].append(case)
        ambiguous = len(by_annotator) > 1 and len({case for case, _annotator, _path in found}) < len(found)
        if self.annotator is not None or ambiguous:
            raise DataError(
                f"{folder}: expected annotator to be one of {', '.join(sorted(by_annotator))}, "
                f"whose masks are there, got {self.annotator}"
            )
        return _one_each([(case, path) for case, _annotator, path in found])


def _matches(folder: Path, pattern: str) -> list[tuple[str, str, Path]]:
    """(case, annotator, file) of the files in a folder that a pattern describes, sorted by path."""
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    expression = _expression(pattern)
    wide = re.sub(r"\{\w+\}", "*", pattern.replace("[", "[[]"))
    files = sorted(file for file in folder.glob(wide) if is_image_file(file))
    matches = [(expression.fullmatch(file.relative_to(folder).as_posix()), file) for file in files]
    return [(match["case"], match.groupdict().get("annotator") or "", file) for match, file in matches if match]


def _expression(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern of file names."""
    ending = ANY_EXTENSION if pattern.endswith(".*") else ""
    pieces = re.split(r"(\{case\}|\{annotator\}|\*)", pattern.removesuffix(".*") if ending else pattern)
    meaning = {"{case}": "(?P<case>[^/]+)", "{annotator}": "(?P<annotator>[^/]+?)", "*": "[^/]*"}
    text = "".join(meaning.get(piece) or re.escape(piece) for piece in pieces)
    return re.compile(f"{text}(?i:{ending})" if ending else text)


def _one_each(found: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """The file of each case. Raises DataError if a case has two."""
    files: dict[str, Path] = {}
    for case, file in found:
        other = files.setdefault(case, file)
        if other != file:
            raise DataError(f"case {case} has two files, {other} and {file}; narrow the pattern, or move one away")
    return files
