"""Cases as training takes pieces of them, and where they are kept: in memory, on disk, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from segkit.data.cases import Case, RawCase, Source, file_stamps
from segkit.data.disk_cache import DiskCache, Entry, Made, StoredArray
from segkit.data.preprocess import Preprocess
from segkit.data.sampling import Balance, Locations, find_locations
from segkit.labels import Labels

Keep = Literal["memory", "disk", "none"]
Pixels = np.ndarray | StoredArray


@dataclass(frozen=True)
class Prepared:
    """A case on the grid that the network sees, not yet normalised: `(image - shift) / scale` will do that."""

    image: Pixels
    mask: Pixels
    shift: np.ndarray
    scale: np.ndarray
    limits: tuple[float, float]  # what is 0 and 1 to augmentation that comes before normalisation
    spacing: tuple[float, ...]
    foreground: Locations

    def in_memory(self) -> Prepared:
        return replace(self, image=self.image[...], mask=self.mask[...])


class CachedSource:
    """A source whose cases are read from their files once, and then from the cache; files that have changed are read
    again by the next source that is made."""

    def __init__(self, source: Source, disk: DiskCache):
        self.source, self.disk = source, disk
        self._keys: dict[str, dict[str, Any]] = {}  # the files are looked at once

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.source.cases

    def read(self, case: Case) -> RawCase:
        return raw_of(self.entry(case))

    def entry(self, case: Case) -> Entry:
        """The pixels of a case as stored."""
        return self.disk.entry(self.key(case), lambda: made_of(self.source.read(case)))

    def key(self, case: Case) -> dict[str, Any]:
        if case.name not in self._keys:
            self._keys[case.name] = {"case": case.name, "files": file_stamps(case)}
        return self._keys[case.name]


class CaseStore:
    """Reads cases and prepares them for training.

    keep: `memory`, what was read stays there; `disk`, it lies in the cache of the source, from which pieces are read;
    `none`. A source with a cache on disk fills the memory from there too.
    """

    def __init__(self, source: Source, keep: Keep = "none"):
        self.source, self.keep = source, keep
        self.raw: dict[str, RawCase] = {}

    def read(self, case: Case) -> RawCase:
        if case.name in self.raw:
            return self.raw[case.name]
        raw = self.source.read(case)
        if self.keep == "memory" and not isinstance(self.source, CachedSource):  # which has it at hand
            self.raw[case.name] = raw
        return raw

    def prepared(self, case: Case, preprocess: Preprocess, labels: Labels, *, locate: Balance | None) -> Prepared:
        """A case on the grid of the network. locate: how foreground is looked for, if it is."""
        if isinstance(self.source, CachedSource):
            prepared = _from_disk(self.source, case, preprocess, labels, locate)
            prepared = prepared.in_memory() if self.keep == "memory" else prepared
        else:
            raw = preprocess.resample(self.read(case))
            prepared = _prepared(raw.image, raw.mask, raw.spacing, _measured(raw, preprocess, labels, locate))
        self.raw.pop(case.name, None)  # it is kept in this form, if at all
        return prepared


def _from_disk(
    source: CachedSource, case: Case, preprocess: Preprocess, labels: Labels, locate: Balance | None
) -> Prepared:
    key = source.key(case)
    if preprocess.spacing is None:
        pixels = source.entry(case)
    else:
        resampled = {**key, "spacing": preprocess.spacing}
        pixels = source.disk.entry(resampled, lambda: made_of(preprocess.resample(source.read(case))))
    measured = {**key, "measured": preprocess.to_dict(), "locate": locate}
    numbers = source.disk.entry(measured, lambda: ({}, _measured(raw_of(pixels), preprocess, labels, locate))).numbers
    spacing = tuple(pixels.numbers["spacing"].tolist())
    return _prepared(pixels.arrays["image"], pixels.arrays.get("mask"), spacing, numbers)


def _measured(raw: RawCase, preprocess: Preprocess, labels: Labels, locate: Balance | None) -> dict[str, np.ndarray]:
    assert raw.mask is not None
    shift, scale = preprocess.intensity_map(raw.image)
    dims = raw.image.ndim - 1
    nothing = Locations(np.zeros((0, dims), np.int64), np.zeros(1, np.int64))
    found = nothing if locate is None else find_locations(raw.mask, labels, dims, locate)
    places = {"places": found.places, "starts": found.starts}
    return {"shift": shift, "scale": scale, "limits": unit_limits(raw.image), **places}


def _prepared(
    image: Pixels, mask: Pixels | None, spacing: tuple[float, ...], numbers: Mapping[str, np.ndarray]
) -> Prepared:
    assert mask is not None
    low, high = numbers["limits"].tolist()
    found = Locations(numbers["places"], numbers["starts"])
    return Prepared(image, mask, numbers["shift"], numbers["scale"], (low, high), spacing, found)


def made_of(raw: RawCase) -> Made:
    """A case as what a cache keeps."""
    arrays = {"image": raw.image} if raw.mask is None else {"image": raw.image, "mask": raw.mask}
    return arrays, {"spacing": np.array(raw.spacing, dtype=np.float64)}


def raw_of(entry: Entry) -> RawCase:
    """The case that a cache keeps."""
    mask = entry.arrays.get("mask")
    spacing = tuple(entry.numbers["spacing"].tolist())
    return RawCase(entry.arrays["image"][...], None if mask is None else mask[...], spacing)


def unit_limits(image: np.ndarray) -> np.ndarray:
    """0 and 1 for pictures that lie between them, else the 0.5th and the 99.5th percentile, so that a few bright pixels
    do not make all others dark: [2]."""
    if image.min() >= 0 and image.max() <= 1:
        return np.array([0.0, 1.0])
    low, high = np.percentile(image, (0.5, 99.5))
    return np.array([low, high if high > low else low + 1.0])
