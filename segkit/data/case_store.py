"""Cases prepared for training, and where they are cached: in memory, on disk, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from segkit.data.cases import Case, RawCase, Source, file_stamps
from segkit.data.disk_cache import Content, DiskCache, Entry, StoredArray
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Balance, Locations, find_locations
from segkit.labels import Labels

Keep = Literal["memory", "disk", "none"]
Pixels = np.ndarray | StoredArray
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedCase:
    """A case on the grid of the network, not yet normalised; `(image - shift) / scale` normalises it.

    image: float32 [C, *S], or, if `is_scaled`, what augmentation receives.
    mask: uint8 or int32, [*S] or [K, *S].
    weight: float32 [*S], or None for 1 everywhere. Image, mask and weight may be read lazily from disk.
    shift, scale: float32 [C].
    low, width: float32 [C], the range of the case after normalisation, see `Preprocess.case_range`.
    spacing: length D.
    foreground: pixels that patches may be centred on.
    """

    image: Pixels
    mask: Pixels
    shift: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    width: np.ndarray
    spacing: tuple[float, ...]
    foreground: Locations
    weight: Pixels | None = None
    is_scaled: bool = False

    def in_memory(self) -> PreparedCase:
        """The same case with all pixels loaded into memory."""
        weight = None if self.weight is None else self.weight[...]
        return replace(self, image=self.image[...], mask=self.mask[...], weight=weight)


class CachedSource:
    """A source that reads the files of a case once and afterwards reads the case from a disk cache.

    A changed file is detected by its time of modification, size and content at both ends (see `file_stamps`) and read
    again. Each object checks the files of a case only once.
    """

    def __init__(self, source: Source, disk: DiskCache):
        self.source, self.disk = source, disk
        self._keys: dict[str, dict[str, Any]] = {}  # by case name, so that the files of a case are checked once

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.source.cases

    def read(self, case: Case) -> RawCase:
        """Return the pixels of a case. Raises DataError."""
        return self.disk.with_repair(lambda: raw_case_from(self.entry(case)))

    def entry(self, case: Case) -> Entry:
        """The cache entry with the pixels of a case as stored in its files."""
        return self.disk.entry(self.key(case), lambda: cache_content(self.source.read(case)))

    def key(self, case: Case) -> dict[str, Any]:
        """The cache key of a case: its name and the stamps of its files."""
        if case.name not in self._keys:
            self._keys[case.name] = {"case": case.name, "files": file_stamps(case)}
        return self._keys[case.name]


class CaseStore:
    """Reads cases and prepares them for training.

    keep: `memory` keeps every case that was read in memory. `disk` reads only the required region of a case from the
        disk cache of the source. `none` reads the files each time. With `memory`, a source with a disk cache is read
        through that cache.
    """

    def __init__(self, source: Source, keep: Keep = "none"):
        self.source, self.keep = source, keep
        self.raw: dict[str, RawCase] = {}

    def read(self, case: Case) -> RawCase:
        """Return the pixels of a case, from memory if it is there. Raises DataError."""
        if case.name in self.raw:
            return self.raw[case.name]
        raw = self.source.read(case)
        if self.keep == "memory" and not isinstance(self.source, CachedSource):  # reads it from disk quickly
            self.raw[case.name] = raw
        return raw

    def with_repair(self, read: Callable[[], Result]) -> Result:
        """Return what `read` returns, after making damaged entries of the disk cache again."""
        return self.source.disk.with_repair(read) if isinstance(self.source, CachedSource) else read()

    def prepared(self, case: Case, preprocess: Preprocess, labels: Labels, *, locate: Balance | None) -> PreparedCase:
        """Return a case on the grid of the network.

        locate: how foreground pixels are sampled; None does not search for them.
        """
        source = self.source
        if isinstance(source, CachedSource):
            prepared = source.disk.with_repair(
                lambda: _from_disk(source, case, preprocess, labels, locate, in_memory=self.keep == "memory")
            )
        else:
            raw = preprocess.resample(self.read(case))
            prepared = _prepared(
                raw.image, raw.mask, raw.weight, raw.spacing, _measured(raw, preprocess, labels, locate)
            )
        self.raw.pop(case.name, None)  # from now on only the prepared case is kept
        return prepared


def _from_disk(
    source: CachedSource,
    case: Case,
    preprocess: Preprocess,
    labels: Labels,
    locate: Balance | None,
    *,
    in_memory: bool,
) -> PreparedCase:
    key = source.key(case)
    if preprocess.spacing is None:
        pixels = source.entry(case)
    else:
        resampled = {**key, "spacing": preprocess.spacing}
        pixels = source.disk.entry(resampled, lambda: cache_content(preprocess.resample(source.read(case))))
    measured = {**key, "measured": preprocess.to_dict(), "locate": locate}
    numbers = source.disk.entry(
        measured, lambda: ({}, _measured(raw_case_from(pixels), preprocess, labels, locate))
    ).numbers
    spacing = tuple(pixels.numbers["spacing"].tolist())
    prepared = _prepared(
        pixels.arrays["image"], pixels.arrays.get("mask"), pixels.arrays.get("weight"), spacing, numbers
    )
    return prepared.in_memory() if in_memory else prepared


def _measured(raw: RawCase, preprocess: Preprocess, labels: Labels, locate: Balance | None) -> dict[str, np.ndarray]:
    assert raw.mask is not None
    shift, scale = preprocess.intensity_map(raw.image)
    low, width = preprocess.case_range(raw.image, shift, scale)
    dims = raw.image.ndim - 1
    no_locations = Locations(np.zeros((0, dims), np.int64), np.zeros(1, np.int64))
    foreground = no_locations if locate is None else find_locations(raw.mask, labels, dims, locate)
    return {
        "shift": shift,
        "scale": scale,
        "low": low,
        "width": width,
        "places": foreground.places,
        "starts": foreground.starts,
    }


def _prepared(
    image: Pixels,
    mask: Pixels | None,
    weight: Pixels | None,
    spacing: tuple[float, ...],
    numbers: Mapping[str, np.ndarray],
) -> PreparedCase:
    assert mask is not None
    foreground = Locations(numbers["places"], numbers["starts"])
    shift, scale, low, width = (numbers[name] for name in ("shift", "scale", "low", "width"))
    return PreparedCase(image, mask, shift, scale, low, width, spacing, foreground, weight)


def cache_content(raw: RawCase) -> Content:
    """The arrays and numbers to cache for a case; the inverse of `raw_case_from`."""
    arrays = {"image": raw.image, "mask": raw.mask, "weight": raw.weight}
    return {name: array for name, array in arrays.items() if array is not None}, {
        "spacing": np.array(raw.spacing, dtype=np.float64)
    }


def raw_case_from(entry: Entry) -> RawCase:
    """Read a case from its cache entry."""
    arrays = {name: array[...] for name, array in entry.arrays.items()}
    spacing = tuple(entry.numbers["spacing"].tolist())
    return RawCase(arrays["image"], arrays.get("mask"), spacing, arrays.get("weight"))
