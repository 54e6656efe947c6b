"""Checking a data set: every case is read once, in several processes, and the summaries are compared."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from segkit.data.cases import Case, RawCase, Source
from segkit.data.class_counts import count_class_components, count_classes
from segkit.data.formats import is_raster
from segkit.data.readers import check_geometry, header_notes, number_type, orientation
from segkit.data.splits import PARTS, Split
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed

IN_FLIGHT = 4  # cases submitted ahead per process
MAX_SPACING_RATIO = 2.0  # to the median spacing
MAX_NAMED = 5  # cases named in a finding before the rest is only counted
_named = partial(listed, limit=MAX_NAMED)
GROUP_IN_NAME = r"^(.*?\d[^_.-]*)[_.-]"  # the parts of a name up to the first one with a digit, if others follow
MIN_GROUPS_IN_NAMES = 3
Level = Literal["error", "warning"]


@dataclass(frozen=True)
class CaseSummary:
    """The properties of a case, without its pixels, so that the summaries of all cases fit into memory.

    Attributes:
        name: Name of the case.
        errors: Why the case cannot be read; all other attributes are unset then.
        geometry_error: How the geometries of image and mask differ, or None.
        header_notes: What the headers of image and mask say differently about the directions of the axes.
        shape: Shape of the image, [C, *S].
        spacing: Spacing of the image, one number per spatial axis.
        lowest: Lowest value of the image.
        highest: Highest value of the image.
        number_types: Stored number types of image and mask.
        orientations: EXIF orientations of image and mask.
        image_digest: Hash of the image's pixels.
        mask_digest: Hash of the mask's pixels.
        pixels: Number of pixels of each class.
        components: Number of connected components of each class.
        labelled: Number of mask pixels that are not ignored.
    """

    name: str
    errors: tuple[str, ...] = ()
    geometry_error: str | None = None
    header_notes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    lowest: float = 0.0
    highest: float = 0.0
    number_types: tuple[str, str] = ("", "")
    orientations: tuple[int, int] = (1, 1)
    image_digest: str = ""
    mask_digest: str = ""
    pixels: tuple[int, ...] = ()
    components: tuple[int, ...] = ()
    labelled: int = 0


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


def examine(source: Source, case: Case, labels: Labels) -> CaseSummary:
    """Read a case and summarise it. A case that cannot be read gives a summary with errors; nothing is raised."""
    try:
        return _summary(source.read(case), case, labels)
    except DataError as error:
        return CaseSummary(case.name, error.messages)


def _summary(raw: RawCase, case: Case, labels: Labels) -> CaseSummary:
    assert raw.mask is not None
    low, high = float(raw.image.min()), float(raw.image.max())
    ignored = 0 if labels.ignore_index is None else int((raw.mask == labels.ignore_index).sum())
    return CaseSummary(
        case.name,
        geometry_error=_geometry_error(case),
        header_notes=tuple(header_notes(case)),
        shape=raw.image.shape,
        spacing=tuple(raw.spacing),
        lowest=low,
        highest=high,
        number_types=_number_types(case),
        orientations=_orientations(case),
        image_digest=_digest(raw.image),
        mask_digest=_digest(raw.mask),
        pixels=tuple(count_classes(raw.mask, labels).tolist()),
        components=tuple(count_class_components(raw.mask, labels).tolist()),
        labelled=raw.mask.size - ignored,
    )


def _geometry_error(case: Case) -> str | None:
    """How the geometries of image and mask differ, or None."""
    if not case.images or not case.masks:
        return None
    try:
        check_geometry(case.images[0], case.masks[0].path, f"case {case.name}, file {case.images[0]}", exactly=True)
    except DataError as error:
        return str(error)
    return None


def _number_types(case: Case) -> tuple[str, str]:
    """The stored number types of image and mask, empty for cases without files."""
    if not case.images or not case.masks:
        return "", ""
    return number_type(case.images[0]), number_type(case.masks[0].path)


def _orientations(case: Case) -> tuple[int, int]:
    """The EXIF orientations of image and mask; masks that are drawn from annotations have none."""
    image = orientation(case.images[0]) if case.images else 1
    return image, orientation(case.masks[0].path) if case.masks else 1


def _digest(array: np.ndarray) -> str:
    """A hash of shape and content."""
    content = hashlib.sha1(str(array.shape).encode(), usedforsecurity=False)  # fast: CPUs have instructions for SHA-1
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


# --- reading in several processes -------------------------------------------------------------------------------------

_shared: tuple[Source, Labels, Mapping[str, Case]]  # of a worker process


def _initialise_worker(source: Source, labels: Labels) -> None:
    global _shared
    _shared = source, labels, {case.name: case for case in source.cases}


def _examine_named(name: str) -> CaseSummary:
    source, labels, cases = _shared
    return examine(source, cases[name], labels)


def examine_all(source: Source, labels: Labels, workers: int) -> Iterator[CaseSummary]:
    """Summarise all cases in parallel, in order of completion.

    A case that kills its process, for example for lack of memory, is summarised as one that cannot be read.
    """
    remaining = dict.fromkeys(case.name for case in source.cases)
    while remaining:
        submitted: list[str] = []
        try:
            for summary in _examine_parallel(source, labels, workers, list(remaining), submitted):
                del remaining[summary.name]
                yield summary
        except BrokenProcessPool:
            # one of the submitted cases has killed its process: read each of them in a process of its own
            for name in [name for name in submitted if name in remaining]:
                del remaining[name]
                yield _examine_alone(source, labels, name)


def _examine_parallel(
    source: Source, labels: Labels, workers: int, names: Sequence[str], submitted: list[str]
) -> Iterator[CaseSummary]:
    """Summarise the named cases in a pool of processes. The names given to a process are appended to `submitted`."""
    queue = iter(names)
    with _pool(source, labels, workers) as pool:
        running: set[Future[CaseSummary]] = set()
        while True:
            for name in itertools.islice(queue, IN_FLIGHT * workers - len(running)):
                submitted.append(name)
                running.add(pool.submit(_examine_named, name))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _examine_alone(source: Source, labels: Labels, name: str) -> CaseSummary:
    with _pool(source, labels, 1) as pool:
        try:
            return pool.submit(_examine_named, name).result()
        except BrokenProcessPool:
            message = f"case {name}: the process that read it died; the file is damaged, or does not fit into memory"
            return CaseSummary(name, (message,))


def _pool(source: Source, labels: Labels, workers: int) -> ProcessPoolExecutor:
    # fork where that is safe: importing everything in a spawned process would take longer than the work
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_initialise_worker, initargs=(source, labels))


# --- comparing the summaries ------------------------------------------------------------------------------------------


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


def groups_in_names(cases: Sequence[Case]) -> int:
    """How many patients or series the names of cases without groups suggest, such as `p03_a` and `p03_b`; 0 for none.

    The parts of all names up to the first one with a digit must be followed by another part, and stand for two cases or
    more on average. Data with a split of their own are left alone.
    """
    if any(case.group != case.name or case.split for case in cases):
        return 0
    groups = [_group_in_name(case) for case in cases]
    distinct = len(set(groups))
    return distinct if None not in groups and MIN_GROUPS_IN_NAMES <= distinct <= len(cases) / 2 else 0


def _group_in_name(case: Case) -> str | None:
    match = re.match(GROUP_IN_NAME, case.name)
    return None if match is None else match[1]


def _unused_groups(cases: Sequence[Case], part_of: Mapping[str, str]) -> list[Finding]:
    """Cases whose names suggest one patient and that are in different parts."""
    number = groups_in_names(cases)
    group_of = {case.name: str(_group_in_name(case)) for case in cases} if number else {}
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
