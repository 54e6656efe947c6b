"""Images in one folder and masks in another, paired by name."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

from segkit.data.cases import Case, MaskFile
from segkit.data.formats import EXTENSIONS, case_name, is_image
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.sources.base import (
    FileSource,
    existing_folder,
    group_reader,
    refuse_unpaired,
    sorted_cases,
    with_unique_names,
)
from segkit.data.splits import PARTS
from segkit.labels import Labels
from segkit.utils.errors import DataError

ANY_EXTENSION = "(?:" + "|".join(re.escape(known) for known in EXTENSIONS) + ")"
SPLIT = "{split}"
NUMBERED = re.compile(r"(?P<name>.+?)[_\-. ]+\(?\d+\)?")  # such as `a_mask_1` and `a_mask (2)`


class PairsSource(FileSource):
    """Images and masks paired by the case name in their file names.

    images, masks: the folders. Both may contain `{split}`, which is replaced by the values of `splits`.
    image_pattern, mask_pattern: file names with `{case}` for the case name. `*` stands for any text, and `.*` at the
        end for any known extension. `{annotator}` in `mask_pattern` stands for the annotator, if there are several.
    annotator: the annotator whose masks are used.
    group: a regular expression with one pair of brackets that extracts the group from the case name. By default every
        case is its own group.
    value_map, colors, threshold, one_hot, nearest_color: see `segkit.data.mask_encoding.MaskEncoding`.
    splits: the text that replaces `{split}` for each of `train`, `validation` and `test`. It assigns each case to a
        part.
    unpaired: `refuse` raises an error for images without mask and masks without image; `skip` skips them.
    numbered_masks: what to do with masks that are named like the mask of a case and a number, such as `a_mask_1.png`
        beside `a_mask.png`: `refuse` raises an error, `unite` adds their pixels to the mask, `skip` skips them.

    Files of unknown formats and hidden files are skipped. Raises DataError for folders that are missing or empty,
    images without mask and masks without image, several masks for one case, and case names that occur twice or do not
    match `group`.
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
        numbered_masks: Literal["refuse", "unite", "skip"] = "refuse",
    ):
        super().__init__(labels, MaskEncoding(value_map, colors, threshold, one_hot, nearest_color))
        nfc = partial(unicodedata.normalize, "NFC")
        layout = Layout(nfc(image_pattern), nfc(mask_pattern), annotator)
        group_of = group_reader(group)
        cases: list[Case] = []
        unpaired_files: list[str] = []
        for part, image_folder, mask_folder in _folders(Path(images), Path(masks), splits):
            image_of, mask_of, numbered = layout.find(image_folder, mask_folder)
            if numbered and numbered_masks == "refuse":
                _refuse_numbered(mask_of, numbered)
            further = numbered if numbered_masks == "unite" else {}
            cases += [
                Case(name, group_of(name), part, (image_of[name],), _mask_files(mask_of[name], further.get(name, [])))
                for name in image_of
                if name in mask_of
            ]
            unpaired_files += [f"image without mask: {image_of[name]}" for name in image_of if name not in mask_of]
            unpaired_files += [f"mask without image: {mask_of[name]}" for name in mask_of if name not in image_of]
        if unpaired == "refuse":
            refuse_unpaired(unpaired_files)
        self.cases = sorted_cases(with_unique_names(cases, group), Path(images))


def _mask_files(mask: Path, further: Sequence[Path]) -> tuple[MaskFile, ...]:
    return tuple(MaskFile(path) for path in (mask, *further))


def _refuse_numbered(mask_of: Mapping[str, Path], numbered: Mapping[str, Sequence[Path]]) -> NoReturn:
    case, files = next(iter(numbered.items()))
    raise DataError(
        f"{sum(map(len, numbered.values()))} masks look like further masks of an image, such as {files[0]} beside "
        f"{mask_of[case].name}: write `numbered_masks: unite` under `data` to add their pixels, or "
        "`numbered_masks: skip` to leave them out"
    )


def find_numbered(mask_of: Mapping[str, Path], files: Iterable[Path]) -> dict[str, list[Path]]:
    """For each case the files that are named like its mask and a number, and are not the mask of another case.

    mask_of: the masks of the cases that have an image. A mask that is numbered itself, `a_1` of the case `a`, is the
    first of its numbers.
    """
    case_of = {(path.parent, case_name(path)): case for case, path in mask_of.items()}
    for case, path in mask_of.items():
        first = NUMBERED.fullmatch(case_name(path))
        if first and case_name(path) != case:
            case_of.setdefault((path.parent, first["name"]), case)
    known = set(mask_of.values())
    numbered: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        match = NUMBERED.fullmatch(case_name(path))
        case = case_of.get((path.parent, match["name"])) if match and path not in known else None
        if case is not None:
            numbered[case].append(path)
    return numbered


def _folders(images: Path, masks: Path, splits: dict[str, str] | None) -> list[tuple[str | None, Path, Path]]:
    """The pairs of image and mask folders, each with its part; the part is None without `splits`."""
    has_placeholder = SPLIT in str(images), SPLIT in str(masks)
    if has_placeholder != (splits is not None,) * 2:
        raise ValueError(
            f"expected `{SPLIT}` in both images and masks together with splits, such as "
            f"{{train: train, validation: val, test: test}}, or none of them; got images {images}, masks {masks}, "
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
    """The file name patterns of images and masks. Raises ValueError for invalid patterns."""

    image_pattern: str
    mask_pattern: str
    annotator: str | None

    def __post_init__(self) -> None:
        for option, pattern in (("image_pattern", self.image_pattern), ("mask_pattern", self.mask_pattern)):
            if pattern.count("{case}") != 1 or pattern.count("{annotator}") > 1:
                raise ValueError(f"expected {option} to contain {{case}} once, such as '{{case}}.png', got {pattern!r}")
        if "{annotator}" in self.image_pattern:
            raise ValueError(f"expected {{annotator}} in mask_pattern only, got image_pattern {self.image_pattern!r}")
        if self.annotator is not None and "{annotator}" not in self.mask_pattern:
            raise ValueError(f"annotator requires {{annotator}} in mask_pattern, got {self.mask_pattern!r}")

    def find(self, images: Path, masks: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, list[Path]]]:
        """The image files, the mask files and further numbered mask files by case name.

        Raises DataError if there are no images or masks.
        """
        matches = _matches(masks, self.mask_pattern)
        mask_of = self._choose(matches, masks)
        same_folder = images.resolve() == masks.resolve()
        mask_files = {path for _case, _annotator, path in matches} if same_folder else set()
        if same_folder and self.image_pattern == self.mask_pattern:
            raise ValueError(
                f"images and masks are both {self.image_pattern!r} in {images}; set different patterns for them"
            )
        image_of = _one_per_case(
            [(case, path) for case, _none, path in _matches(images, self.image_pattern) if path not in mask_files]
        )
        if not image_of:
            raise DataError(f"expected images named {self.image_pattern!r} in {images}, found none")
        # masks with images of their own are cases; in one folder, images and masks are not told apart yet
        own = {case: path for case, path in mask_of.items() if case in image_of}
        files = [path for path in sorted(masks.iterdir()) if is_image(path)]
        candidates = [path for path in files if same_folder or case_name(path) not in image_of]
        # the numbers of annotators, as in `a_rater_1`, do not count masks
        numbered = {} if "{annotator}" in self.mask_pattern else find_numbered(own, candidates)
        known = {path for files in numbered.values() for path in files}
        image_of = {case: path for case, path in image_of.items() if path not in known}
        return image_of, {case: path for case, path in mask_of.items() if path not in known}, numbered

    def _choose(self, matches: Sequence[tuple[str, str, Path]], folder: Path) -> dict[str, Path]:
        """The masks of the selected annotator, or all masks if there is only one per case."""
        if not matches:
            raise DataError(f"expected masks named {self.mask_pattern!r} in {folder}, found none")
        if self.annotator is not None:
            selected = _matches(folder, self.mask_pattern.replace("{annotator}", self.annotator))
            if selected:
                return _one_per_case([(case, path) for case, _annotator, path in selected])
        by_annotator: dict[str, list[str]] = defaultdict(list)
        for case, annotator, _path in matches:
            by_annotator[annotator].append(case)
        ambiguous = len(by_annotator) > 1 and len({case for case, _annotator, _path in matches}) < len(matches)
        if self.annotator is not None or ambiguous:
            raise DataError(
                f"{folder}: expected annotator to be one of {', '.join(sorted(by_annotator))}, got {self.annotator}; "
                "these are the annotators in the file names of the masks"
            )
        return _one_per_case([(case, path) for case, _annotator, path in matches])


def unlabelled_files(folder: Path, image_pattern: str, mask_pattern: str | None) -> dict[str, Path]:
    """The images in a folder by case name, for prediction.

    mask_pattern: the names of masks that may lie beside the images; None if there are none.
    """
    normal = partial(unicodedata.normalize, "NFC")
    masks = [] if mask_pattern is None else _matches(folder, normal(mask_pattern))
    known = {path for _case, _annotator, path in masks}
    images = [(case, path) for case, _none, path in _matches(folder, normal(image_pattern)) if path not in known]
    return _one_per_case(images)


def _matches(folder: Path, pattern: str) -> list[tuple[str, str, Path]]:
    """(case, annotator, path) of the files and DICOM folders that match a pattern, sorted by path."""
    existing_folder(folder)
    file_expression, folder_expression = _expression(pattern, ANY_EXTENSION), _expression(pattern, "")
    glob = re.sub(r"\{\w+\}", "*", pattern.replace("[", "[[]"))
    glob = re.sub(r"\*+", "*", f"{glob.removesuffix('.*')}*") if glob.endswith(".*") else glob
    matches = []
    # both Unicode forms: a pattern that a folder does not contain matches nothing
    globs = {unicodedata.normalize(form, glob) for form in ("NFC", "NFD")}
    for path in sorted({path for form in globs for path in folder.glob(form) if is_image(path)}):
        expression = folder_expression if path.is_dir() else file_expression
        match = expression.fullmatch(unicodedata.normalize("NFC", path.relative_to(folder).as_posix()))
        if match:
            matches.append((match["case"], match.groupdict().get("annotator") or "", path))
    return matches


def _expression(pattern: str, any_ending: str) -> re.Pattern[str]:
    """Convert a file name pattern to a regular expression. any_ending: the expression for `.*` at its end."""
    ending = any_ending if pattern.endswith(".*") else ""
    pieces = re.split(r"(\{case\}|\{annotator\}|\*)", pattern.removesuffix(".*"))
    meaning = {"{case}": "(?P<case>[^/]+)", "{annotator}": "(?P<annotator>[^/]+?)", "*": "[^/]*"}
    text = "".join(meaning.get(piece) or re.escape(piece) for piece in pieces)
    return re.compile(f"{text}(?i:{ending})" if ending else text)


def _one_per_case(matches: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """The file of each case. Raises DataError if a case has several."""
    files: dict[str, Path] = {}
    for case, file in matches:
        other = files.setdefault(case, file)
        if other != file:
            raise DataError(
                f"case {case} has two files, {other} and {file}; make the pattern more specific, or remove one of them"
            )
    return files
