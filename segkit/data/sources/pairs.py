"""Images in one folder and masks in another, paired by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segkit.data.cases import Case, MaskFile
from segkit.data.formats import EXTENSIONS, is_image
from segkit.data.mask_encoding import MaskCode
from segkit.data.sources.base import (
    FileSource,
    distinguished,
    existing_folder,
    group_reader,
    refuse_unpaired,
    sorted_cases,
)
from segkit.data.splits import PARTS
from segkit.labels import Labels
from segkit.utils.errors import DataError

ANY_EXTENSION = "(?:" + "|".join(re.escape(known) for known in EXTENSIONS) + ")"
SPLIT = "{split}"


class PairsSource(FileSource):
    """Pairs of files whose names share the name of the case.

    images, masks: the folders. With `{split}` in both, `splits` says what stands there for `train`, `validation`
        and `test`, and each case knows its part.
    image_pattern, mask_pattern: file names with `{case}` in place of the case name; `*` is any text, and `.*` at the
        end any known extension. `{annotator}` in `mask_pattern` stands for one of several annotators of a case.
    annotator: whose masks to take.
    group: a regular expression with one pair of brackets, which picks the group out of the case name;
        without it every case is a group of its own.
    value_map, colors, threshold, one_hot, nearest_color: see `segkit.data.mask_encoding.MaskCode`.
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
        colors: dict[str, list[int]] | None = None,
        threshold: float | None = None,
        one_hot: bool = False,
        nearest_color: bool = False,
        splits: dict[str, str] | None = None,
        unpaired: Literal["refuse", "skip"] = "refuse",
    ):
        super().__init__(labels, MaskCode(value_map, colors, threshold, one_hot, nearest_color))
        layout = Layout(image_pattern, mask_pattern, annotator)
        group_of = group_reader(group)
        cases: list[Case] = []
        strays: list[str] = []
        for part, image_folder, mask_folder in _folders(Path(images), Path(masks), splits):
            image_of, mask_of = layout.find(image_folder, mask_folder)
            cases += [
                Case(name, group_of(name), part, (image_of[name],), (MaskFile(mask_of[name]),))
                for name in image_of
                if name in mask_of
            ]
            strays += [f"image without mask: {image_of[name]}" for name in image_of if name not in mask_of]
            strays += [f"mask without image: {mask_of[name]}" for name in mask_of if name not in image_of]
        if unpaired == "refuse":
            refuse_unpaired(strays)
        self.cases = sorted_cases(distinguished(cases), Path(images))


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
    """(case, annotator, image) of the images in a folder that a pattern describes, sorted by path."""
    existing_folder(folder)
    of_files, of_folders = _expression(pattern, ANY_EXTENSION), _expression(pattern, "")
    wide = re.sub(r"\{\w+\}", "*", pattern.replace("[", "[[]"))
    wide = re.sub(r"\*+", "*", f"{wide.removesuffix('.*')}*") if wide.endswith(".*") else wide
    found = []
    for path in sorted(path for path in folder.glob(wide) if is_image(path)):
        match = (of_folders if path.is_dir() else of_files).fullmatch(path.relative_to(folder).as_posix())
        if match:
            found.append((match["case"], match.groupdict().get("annotator") or "", path))
    return found


def _expression(pattern: str, any_ending: str) -> re.Pattern[str]:
    """The regular expression of a pattern of names. any_ending: what `.*` at its end stands for."""
    ending = any_ending if pattern.endswith(".*") else ""
    pieces = re.split(r"(\{case\}|\{annotator\}|\*)", pattern.removesuffix(".*"))
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
