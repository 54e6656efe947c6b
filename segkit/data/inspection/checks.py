"""What is wrong with a data set: every case is read once, in several processes, and what they tell is put together."""

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
from typing import Any, Literal

import numpy as np

from segkit.data.cases import Case, Source
from segkit.data.class_counts import count_class_components, count_classes
from segkit.data.formats import is_raster
from segkit.data.readers import check_geometry, number_type
from segkit.data.splits import PARTS, Split
from segkit.labels import Labels
from segkit.utils.errors import DataError

IN_FLIGHT = 4  # cases for each process that are asked for ahead
FAR = 2.0  # times the usual spacing
Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Facts:
    """What a case is found to be; without pixels, so that those of all cases fit into memory.

    errors: why it cannot be read. place: how image and mask disagree about where they lie. shape: of the image,
    [C, *S]. lowest, highest: of its values. stored: how image and mask store their numbers. image, mask: digests of the
    pixels. pixels, components: of each class.
    """

    case: str
    errors: tuple[str, ...] = ()
    place: str | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    lowest: float = 0.0
    highest: float = 0.0
    stored: tuple[str, str] = ("", "")
    image: str = ""
    mask: str = ""
    pixels: tuple[int, ...] = ()
    components: tuple[int, ...] = ()
    counted: int = 0  # pixels that are not to be ignored


@dataclass(frozen=True)
class Finding:
    """level: `error`, which keeps from training or spoils its scores, or `warning`. text: what is wrong, and what mends
    it. cases: whose it is."""

    level: Level
    text: str
    cases: tuple[str, ...] = field(default=())


def examine(source: Source, case: Case, labels: Labels) -> Facts:
    """Read one case and say what it is; what is wrong with it is no error here."""
    try:
        raw = source.read(case)
    except DataError as error:
        return Facts(case.name, error.messages)
    assert raw.mask is not None
    low, high = float(raw.image.min()), float(raw.image.max())
    ignored = 0 if labels.ignore_index is None else int((raw.mask == labels.ignore_index).sum())
    return Facts(
        case.name,
        place=_place(case),
        shape=raw.image.shape,
        spacing=tuple(raw.spacing),
        lowest=low,
        highest=high,
        stored=_stored(case),
        image=_digest(raw.image),
        mask=_digest(raw.mask),
        pixels=tuple(count_classes(raw.mask, labels).tolist()),
        components=tuple(count_class_components(raw.mask, labels).tolist()),
        counted=raw.mask.size - ignored,
    )


def _place(case: Case) -> str | None:
    if not case.images or not case.masks:
        return None
    try:
        check_geometry(case.images[0], case.masks[0].path, f"case {case.name}, file {case.images[0]}", exactly=True)
    except DataError as error:
        return str(error)
    return None


def _stored(case: Case) -> tuple[str, str]:
    if not case.images or not case.masks:
        return "", ""
    return number_type(case.images[0]), number_type(case.masks[0].path)


def _digest(array: np.ndarray) -> str:
    content = hashlib.sha1(str(array.shape).encode(), usedforsecurity=False)  # processors have instructions for it
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


# --- in several processes ---------------------------------------------------------------------------------------------

_shared: tuple[Source, Labels, Mapping[str, Case]]  # of a worker process


def _begin(source: Source, labels: Labels) -> None:
    global _shared
    _shared = source, labels, {case.name: case for case in source.cases}


def _examine_named(name: str) -> Facts:
    source, labels, cases = _shared
    return examine(source, cases[name], labels)


def examine_all(source: Source, labels: Labels, workers: int) -> Iterator[Facts]:
    """The facts of all cases, as they come. A case at which its process dies is one that cannot be read."""
    left = dict.fromkeys(case.name for case in source.cases)
    while left:
        asked: list[str] = []
        try:
            for facts in _together(source, labels, workers, list(left), asked):
                del left[facts.case]
                yield facts
        except BrokenProcessPool:
            # one of those that were asked for has killed its process: alone it is found out
            for name in [name for name in asked if name in left]:
                del left[name]
                yield _examine_alone(source, labels, name)


def _together(source: Source, labels: Labels, workers: int, names: Sequence[str], asked: list[str]) -> Iterator[Facts]:
    """The facts of the named cases; `asked` says which of them a process was given."""
    rest = iter(names)
    with _pool(source, labels, workers) as pool:
        running: set[Future[Facts]] = set()
        while True:
            for name in itertools.islice(rest, IN_FLIGHT * workers - len(running)):
                asked.append(name)
                running.add(pool.submit(_examine_named, name))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                yield one.result()


def _examine_alone(source: Source, labels: Labels, name: str) -> Facts:
    with _pool(source, labels, 1) as pool:
        try:
            return pool.submit(_examine_named, name).result()
        except BrokenProcessPool:
            died = f"case {name}: the process that read it died; the file is damaged, or larger than the memory"
            return Facts(name, (died,))


def _pool(source: Source, labels: Labels, workers: int) -> ProcessPoolExecutor:
    # forked where that is safe: a process that imports everything anew would take longer than the work
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(source, labels))


# --- put together -----------------------------------------------------------------------------------------------------


def find(facts: Sequence[Facts], cases: Sequence[Case], split: Split | None, labels: Labels) -> list[Finding]:
    """All that is wrong, errors first. split: None where it cannot be made."""
    read = [one for one in facts if not one.errors]
    part_of = {} if split is None else {name: part for part in PARTS for name in getattr(split, part)}
    found = [
        *_unreadable(facts),
        *_different(read, "channels", lambda one: one.shape[0], "train on those of one number of channels"),
        *_different(read, "axes", lambda one: len(one.shape) - 1, "pictures and volumes need a configuration each"),
        *_shared_groups(cases, part_of),
        *_repeated(read, part_of),
        *_lacking(read, part_of, labels),
        *_constant(read),
        *_types(read, pictures=all(is_raster(path) for case in cases for path in case.images)),
        *_misplaced(read),
        *_spacings(read),
        *_nothing_to_learn(read),
    ]
    return sorted(found, key=lambda finding: finding.level != "error")


def _unreadable(facts: Sequence[Facts]) -> list[Finding]:
    """Those with the same words but for names and numbers together: it is one mistake, unless one case has it twice."""
    by_words: dict[tuple[str, int], list[tuple[str, str]]] = defaultdict(list)
    for one in facts:
        words = [re.sub(r"\d+", "#", error.partition(": ")[2]) for error in one.errors]
        for place, (error, said) in enumerate(zip(one.errors, words, strict=True)):
            by_words[said, words[:place].count(said)].append((one.case, error))
    found = []
    for alike in by_words.values():
        more = f" ({len(alike) - 1} more cases have the same)" if len(alike) > 1 else ""
        found.append(Finding("error", f"{alike[0][1]}{more}", tuple(case for case, _error in alike)))
    return found


def _different(facts: Sequence[Facts], what: str, count: Callable[[Facts], int], way_out: str) -> list[Finding]:
    by_number: dict[int, list[Facts]] = defaultdict(list)
    for one in facts:
        by_number[count(one)].append(one)
    if len(by_number) < 2:
        return []
    usual = max(by_number, key=lambda number: len(by_number[number]))
    text = ", ".join(f"{len(some)} with {number}" for number, some in sorted(by_number.items()))
    odd = [one for number, some in by_number.items() if number != usual for one in some]
    return [Finding("error", f"expected images with one number of {what}, got {text}; {way_out}", _names(odd))]


def _shared_groups(cases: Sequence[Case], part_of: Mapping[str, str]) -> list[Finding]:
    parts: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.name in part_of:
            parts[case.group].add(part_of[case.name])
    shared = [group for group, found in parts.items() if len(found) > 1]
    if not shared:
        return []
    text = (
        f"{len(shared)} groups lie in more than one part of the split ({_some(shared)}), so scores may be too high; "
        "use `split: {name: kfold}`, which keeps groups together"
    )
    return [Finding("warning", text, tuple(case.name for case in cases if case.group in shared))]


def _repeated(facts: Sequence[Facts], part_of: Mapping[str, str]) -> list[Finding]:
    by_image: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        by_image[one.image].append(one)
    found = []
    for same in by_image.values():
        if len(same) < 2 or same[0].lowest == same[0].highest:
            continue
        names, parts = _names(same), {part_of[one.case] for one in same if one.case in part_of}
        if len(parts) > 1:
            text = f"the same image is in {' and '.join(part for part in PARTS if part in parts)}: {_some(names)}"
            found.append(Finding("error", f"{text}; scores would be too high: give them one group, or keep one", names))
        elif len({one.mask for one in same}) > 1:
            found.append(Finding("warning", f"the same image with different masks: {_some(names)}; keep one", names))
        else:
            found.append(Finding("warning", f"the same image and mask: {_some(names)}; keep one", names))
    return found


def _lacking(facts: Sequence[Facts], part_of: Mapping[str, str], labels: Labels) -> list[Finding]:
    """Classes that no case has, or none to learn from or to be judged by."""
    found = []
    for number, name in enumerate(labels.names):
        having = [one for one in facts if one.pixels[number]]
        if facts and not having:
            text = f"no mask has the class {name}; take it out of `labels`, or look at the numbers in the masks"
            found.append(Finding("warning", text))
            continue
        parts = {part_of.get(one.case) for one in having}
        there = {part for part in PARTS if part in part_of.values()}
        without = [part for part in PARTS if part in there - parts]
        if without:
            text = f"the class {name} is not in {' and '.join(without)}: it is in {len(having)} of {len(facts)} cases"
            found.append(Finding("warning", f"{text}; divide the cases otherwise, such as with `stratify: true`"))
    return found


def _constant(facts: Sequence[Facts]) -> list[Finding]:
    flat = [one for one in facts if one.lowest == one.highest]
    text = f"{len(flat)} images have one and the same value everywhere: {_some(_names(flat))}"
    return [Finding("warning", text, _names(flat))] if flat else []


def _types(facts: Sequence[Facts], pictures: bool) -> list[Finding]:
    """Pictures whose integers are scaled by different ranges, and masks of fractions."""
    found = []
    by_type: dict[str, list[Facts]] = defaultdict(list)
    for one in facts if pictures else []:
        by_type[one.stored[0]].append(one)
    if len(by_type) > 1:
        usual = max(by_type, key=lambda kind: len(by_type[kind]))
        shown = ", ".join(f"{len(some)} of {kind}" for kind, some in sorted(by_type.items()))
        odd = tuple(one.case for kind, some in by_type.items() if kind != usual for one in some)
        text = (
            f"images store their numbers in different types, {shown}, each of which is scaled to 0..1 by its own "
            f"range; save all in one type ({_some(odd)})"
        )
        found.append(Finding("warning", text, odd))
    fractions = _names([one for one in facts if "float" in one.stored[1]])
    if fractions:
        text = (
            f"{len(fractions)} masks store their classes as fractions: {_some(fractions)}; all are whole here, but a "
            "mask that was resampled with interpolation has borders of other classes: resample by nearest neighbour "
            "and save integers"
        )
        found.append(Finding("warning", text, fractions))
    return found


def _misplaced(facts: Sequence[Facts]) -> list[Finding]:
    odd = [one for one in facts if one.place is not None]
    more = f" ({len(odd) - 1} more cases have the same)" if len(odd) > 1 else ""
    return [Finding("warning", f"{odd[0].place}{more}", _names(odd))] if odd else []


def _spacings(facts: Sequence[Facts]) -> list[Finding]:
    """Of volumes that differ much, which a network sees as structures of another size."""
    spaced = [one for one in facts if len(one.spacing) == 3]
    if len({one.spacing for one in spaced}) < 2:
        return []
    usual = np.median([one.spacing for one in spaced], axis=0)
    far = [one for one in spaced if np.max(np.maximum(one.spacing / usual, usual / one.spacing)) > FAR]
    if not far:
        return []
    shown = ", ".join(f"{side:.3g}" for side in usual)
    text = (
        f"{len(far)} cases have a spacing more than {FAR:g} times above or below the usual one of {shown} mm: "
        f"{_some(_names(far))}; write `spacing: median` under `preprocess`"
    )
    return [Finding("warning", text, _names(far))]


def _nothing_to_learn(facts: Sequence[Facts]) -> list[Finding]:
    empty = [one for one in facts if one.counted == 0]
    text = f"every pixel is to be ignored in {len(empty)} cases: {_some(_names(empty))}"
    return [Finding("warning", text, _names(empty))] if empty else []


def class_table(facts: Sequence[Facts], labels: Labels) -> list[dict[str, Any]]:
    """For each class its pixels and their share, the cases that have it, and its connected components."""
    read = [one for one in facts if not one.errors]
    pixels = np.array([one.pixels for one in read], dtype=np.int64).reshape(len(read), len(labels.names))
    components = np.array([one.components for one in read], dtype=np.int64).reshape(pixels.shape)
    total = sum(one.counted for one in read) / (len(labels.names) if labels.has_mask_channels else 1)
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


def split_of(make: Callable[[], Split]) -> tuple[Split | None, list[Finding]]:
    """The split, or why there is none. Groups in several parts are found elsewhere."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return make(), []
    except DataError as error:
        return None, [Finding("error", str(error))]


def _names(facts: Sequence[Facts]) -> tuple[str, ...]:
    return tuple(one.case for one in facts)


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
