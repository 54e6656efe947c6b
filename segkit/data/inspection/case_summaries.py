"""Reading every case once, in several processes, into a summary of its properties without its pixels."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from segkit.data.cases import Case, RawCase, Source
from segkit.data.class_counts import count_class_components, count_classes
from segkit.data.readers import check_geometry, header_notes, number_type, orientation
from segkit.labels import Labels
from segkit.utils.errors import DataError

IN_FLIGHT = 4  # cases submitted ahead per process


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
