"""Checking a data set: the summaries of its cases are compared with each other, the labels and the split."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from segkit.data.cases import Case
from segkit.data.formats import is_raster
from segkit.data.inspection.case_summaries import CaseSummary
from segkit.data.inspection.group_names import GROUP_IN_NAME, group_in_name, groups_in_names
from segkit.data.splits import PARTS, Split
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed

MAX_SPACING_RATIO = 2.0  # to the median spacing
MAX_NAMED = 5  # cases named in a finding before the rest is only counted
_named = partial(listed, limit=MAX_NAMED)
Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """A problem in the data.

    Attributes:
        level: `error` for problems that prevent training or invalidate its scores, else `warning`.
        text: What is wrong, and how to fix it.
        cases: Names of the affected cases.
    """

    level: Level
    text: str
    cases: tuple[str, ...] = field(default=())


def find_problems(
    summaries: Sequence[CaseSummary], cases: Sequence[Case], split: Split | None, labels: Labels
) -> list[Finding]:
    """All problems in the data, errors first.

    Args:
        summaries: Summaries of the cases.
        cases: The cases.
        split: Their split, or None if it could not be made.
        labels: Their labels.
    """
    read = [case for case in summaries if not case.errors]
    part_of = {} if split is None else {name: part for part in PARTS for name in getattr(split, part)}
    findings = [
        *_unreadable(summaries),
        *_inconsistent(
            read, "channels", lambda case: case.shape[0], "keep only images with the same number of channels"
        ),
        *_inconsistent(
            read, "axes", lambda case: len(case.shape) - 1, "use separate configurations for 2D images and volumes"
        ),
        *_shared_groups(cases, part_of),
        *_unused_groups(cases, part_of),
        *_duplicates(read, part_of),
        *_missing_classes(read, part_of, labels),
        *_constant(read),
        *_mixed_number_types(read, are_raster=all(is_raster(path) for case in cases for path in case.images)),
        *_turned(read),
        *_geometry_errors(read),
        *_header_notes(read),
        *_unusual_spacings(read),
        *_unlabelled(read),
    ]
    return sorted(findings, key=lambda finding: finding.level != "error")


def _unreadable(summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Cases that cannot be read, with one finding for errors that differ only in names and numbers.

    Several such errors of the same case are in separate findings.
    """
    by_message: dict[tuple[str, int], list[tuple[str, str]]] = defaultdict(list)
    for case in summaries:
        messages = [_without_numbers(error) for error in case.errors]
        for position, (error, message) in enumerate(zip(case.errors, messages, strict=True)):
            by_message[message, messages[:position].count(message)].append((case.name, error))
    return [
        Finding("error", f"{similar[0][1]}{_same_in_others(len(similar))}", tuple(name for name, _error in similar))
        for similar in by_message.values()
    ]


def _without_numbers(error: str) -> str:
    """A message without the name of its case, and with one # for each number or list of numbers."""
    text = re.sub(r"\d+(\.\d+)?", "#", error.partition(": ")[2])
    text = re.sub(r"# \(# pixels\)((, | and )(# \(# pixels\)|# more))*", "#", text)
    return re.sub(r"#(: #)?(, #(: #)?)+", "#", text)


def _same_in_others(count: int) -> str:
    return f" (and the same in {count - 1} more cases)" if count > 1 else ""


def _inconsistent(
    summaries: Sequence[CaseSummary], quantity: str, count: Callable[[CaseSummary], int], fix: str
) -> list[Finding]:
    """Images whose number of channels or axes differs from the most common one."""
    by_number: dict[int, list[CaseSummary]] = defaultdict(list)
    for case in summaries:
        by_number[count(case)].append(case)
    if len(by_number) < 2:
        return []
    usual = max(by_number, key=lambda number: len(by_number[number]))
    text = ", ".join(f"{len(same)} with {number}" for number, same in sorted(by_number.items()))
    deviating = [case for number, same in by_number.items() if number != usual for case in same]
    return [
        Finding("error", f"expected images with the same number of {quantity}, got {text}; {fix}", _names(deviating))
    ]


def _shared_groups(cases: Sequence[Case], part_of: Mapping[str, str]) -> list[Finding]:
    """Groups with cases in more than one part of the split."""
    shared = _in_several_parts({case.name: case.group for case in cases}, part_of)
    if not shared:
        return []
    text = (
        f"{len(shared)} groups are in more than one part of the split ({_named(shared)}), so scores may be too high: "
        "`split: {name: kfold}` keeps groups together; if these cases have nothing to do with each other, correct "
        "`group` under `data` and keep the split"
    )
    return [Finding("warning", text, tuple(case.name for case in cases if case.group in shared))]


def _unused_groups(cases: Sequence[Case], part_of: Mapping[str, str]) -> list[Finding]:
    """Cases whose names suggest one patient and that are in different parts."""
    number = groups_in_names(cases)
    group_of = {case.name: str(group_in_name(case)) for case in cases} if number else {}
    shared = _in_several_parts(group_of, part_of)
    if not shared:
        return []
    text = (
        f"the names suggest {number} patients or series, of which {len(shared)} are in several parts of the split "
        f"({_named(shared)}); if they are, keep them together with `group: '{GROUP_IN_NAME}'` under `data`, or with "
        "the column group of a table"
    )
    return [Finding("warning", text, tuple(name for name, group in group_of.items() if group in shared))]


def _in_several_parts(group_of: Mapping[str, str], part_of: Mapping[str, str]) -> list[str]:
    """The groups whose cases are in more than one part of the split. group_of, part_of: by the name of the case."""
    parts: dict[str, set[str]] = defaultdict(set)
    for name, group in group_of.items():
        if name in part_of:
            parts[group].add(part_of[name])
    return [group for group, names in parts.items() if len(names) > 1]


def _duplicates(summaries: Sequence[CaseSummary], part_of: Mapping[str, str]) -> list[Finding]:
    """Cases with the same image, which are errors if they are in different parts of the split."""
    by_image: dict[str, list[CaseSummary]] = defaultdict(list)
    for case in summaries:
        by_image[case.image_digest].append(case)
    findings = []
    for same in by_image.values():
        if len(same) < 2 or same[0].lowest == same[0].highest:
            continue
        names, parts = _names(same), {part_of[case.name] for case in same if case.name in part_of}
        if len(parts) > 1:
            text = (
                f"the same image is in {' and '.join(part for part in PARTS if part in parts)}: {_named(names)}; "
                "scores would be too high: put these cases into the same group, or keep one of them"
            )
            findings.append(Finding("error", text, names))
        else:
            same_masks = len({case.mask_digest for case in same}) == 1
            text = f"the same image {'and mask' if same_masks else 'with different masks'}: {_named(names)}; keep one"
            findings.append(Finding("warning", text, names))
    return findings


def _missing_classes(summaries: Sequence[CaseSummary], part_of: Mapping[str, str], labels: Labels) -> list[Finding]:
    """Classes that are absent from all cases, or from all cases of a part of the split."""
    if not summaries:
        return []
    absent: list[str] = []
    missing_in: dict[str, list[str]] = defaultdict(list)  # parts of the split: classes with their numbers of cases
    for number, name in enumerate(labels.names):
        cases_with_class = [case for case in summaries if case.pixels[number]]
        if not cases_with_class:
            absent.append(name)
            continue
        parts_with_class = {part_of.get(case.name) for case in cases_with_class}
        missing = [part for part in PARTS if part in part_of.values() and part not in parts_with_class]
        if missing:
            missing_in[" and ".join(missing)].append(name)
    findings = []
    if absent:
        classes = f"the class {absent[0]}" if len(absent) == 1 else f"{len(absent)} classes: {_named(absent)}"
        text = f"no mask contains {classes}; remove from `labels` what does not exist, or check the values of the masks"
        findings.append(Finding("warning", text))
    for parts, names in missing_in.items():
        classes = f"the class {names[0]} is" if len(names) == 1 else f"{len(names)} classes, {_named(names)}, are"
        text = (
            f"{classes} missing from {parts}, though other cases contain them; use another split, for example with "
            "`stratify: true`"
        )
        findings.append(Finding("warning", text))
    return findings


def _constant(summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Images with a single value."""
    constant = _names([case for case in summaries if case.lowest == case.highest])
    text = f"{len(constant)} images have the same value everywhere: {_named(constant)}"
    return [Finding("warning", text, constant)] if constant else []


def _mixed_number_types(summaries: Sequence[CaseSummary], are_raster: bool) -> list[Finding]:
    """Raster images whose integers are scaled by different ranges, and masks of floating-point numbers."""
    findings = []
    by_type: dict[str, list[CaseSummary]] = defaultdict(list)
    for case in summaries if are_raster else []:
        by_type[case.number_types[0]].append(case)
    if len(by_type) > 1:
        usual = max(by_type, key=lambda number_type: len(by_type[number_type]))
        counts = ", ".join(f"{len(same)} of {number_type}" for number_type, same in sorted(by_type.items()))
        deviating = _names([case for number_type, same in by_type.items() if number_type != usual for case in same])
        text = (
            f"images are stored with different number types, {counts}, and each type is scaled to 0..1 by its own "
            f"range; save all images with the same type ({_named(deviating)})"
        )
        findings.append(Finding("warning", text, deviating))
    fractional = _names([case for case in summaries if "float" in case.number_types[1]])
    if fractional:
        text = (
            f"{len(fractional)} masks store floating-point numbers: {_named(fractional)}; all values are whole, but "
            "resampling with interpolation would have created wrong classes along the borders: resample masks by "
            "nearest neighbour and save integers"
        )
        findings.append(Finding("warning", text, fractional))
    return findings


def _turned(summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Pictures that viewers turn by their EXIF orientation, while their masks carry another one."""
    turned = _names([case for case in summaries if case.orientations[0] != case.orientations[1]])
    if not turned:
        return []
    text = (
        f"{len(turned)} images are turned by an EXIF orientation that their masks do not have: {_named(turned)}; "
        "both are read as viewers show them. Compare them with `segkit data preview`: masks that were drawn on the "
        "stored pixels lie turned and have to be turned, too"
    )
    return [Finding("warning", text, turned)]


def _geometry_errors(summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Cases whose mask and image lie at different positions in space."""
    misplaced = [case for case in summaries if case.geometry_error is not None]
    if not misplaced:
        return []
    text = f"{misplaced[0].geometry_error}{_same_in_others(len(misplaced))}"
    return [Finding("warning", text, _names(misplaced))]


def _header_notes(summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Headers that disagree about the directions of the axes, with one finding for each kind of disagreement."""
    by_text: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for case in summaries:
        for note in case.header_notes:
            by_text[re.sub(r"than \S+;", "", note.partition(": ")[2])].append((case.name, note))
    return [
        Finding("warning", f"{same[0][1]}{_same_in_others(len(same))}", tuple(name for name, _note in same))
        for same in by_text.values()
    ]


def _unusual_spacings(summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Volumes whose spacing differs much from the median, so that structures have another size in voxels."""
    volumes = [case for case in summaries if len(case.spacing) == 3]
    if len({case.spacing for case in volumes}) < 2:
        return []
    median = np.median([case.spacing for case in volumes], axis=0)
    deviating = _names(
        [
            case
            for case in volumes
            if np.max(np.maximum(case.spacing / median, median / case.spacing)) > MAX_SPACING_RATIO
        ]
    )
    if not deviating:
        return []
    shown = ", ".join(f"{side:.3g}" for side in median)
    text = (
        f"the spacing of {len(deviating)} cases differs by a factor of more than {MAX_SPACING_RATIO:g} from the median "
        f"of {shown} mm: {_named(deviating)}; write `spacing: median` under `preprocess`"
    )
    return [Finding("warning", text, deviating)]


def _unlabelled(summaries: Sequence[CaseSummary]) -> list[Finding]:
    """Cases in which every pixel is ignored."""
    unlabelled = _names([case for case in summaries if case.labelled == 0])
    text = f"every pixel is ignored in {len(unlabelled)} cases: {_named(unlabelled)}"
    return [Finding("warning", text, unlabelled)] if unlabelled else []


def class_table(summaries: Sequence[CaseSummary], labels: Labels) -> list[dict[str, Any]]:
    """For each class: its pixels and their share, the cases that contain it, and its connected components."""
    read = [case for case in summaries if not case.errors]
    pixels = np.array([case.pixels for case in read], dtype=np.int64).reshape(len(read), len(labels.names))
    components = np.array([case.components for case in read], dtype=np.int64).reshape(pixels.shape)
    total = sum(case.labelled for case in read) / (len(labels.names) if labels.has_mask_channels else 1)
    return [
        {
            "class": name,
            "pixels": int(pixels[:, number].sum()),
            "share": float(pixels[:, number].sum() / total) if total else 0.0,
            "cases": int((pixels[:, number] > 0).sum()),
            "components": int(components[:, number].sum()),
        }
        for number, name in enumerate(labels.names)
    ]


def try_split(make: Callable[[], Split]) -> tuple[Split | None, list[Finding]]:
    """Make the split, or return the reason why it fails as a finding. Its warnings are suppressed, since
    `find_problems` reports groups in several parts of the split."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return make(), []
    except DataError as error:
        return None, [Finding("error", str(error))]


def _names(summaries: Sequence[CaseSummary]) -> tuple[str, ...]:
    return tuple(case.name for case in summaries)
