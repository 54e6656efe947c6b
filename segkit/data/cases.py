"""A case: where its files are, what belongs together, and its pixels once read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from segkit.labels import Labels
from segkit.utils.errors import DataError

Item = TypeVar("Item")
LISTED = 10  # offending names shown in an error before the rest is only counted
ENDS = 1 << 16  # bytes of the start and of the end of a file that tell it from others


@dataclass(frozen=True)
class MaskFile:
    """A file of a mask. stands_for: the class whose pixels are those that are not 0; None, the file's numbers are
    classes."""

    path: Path
    stands_for: str | None = None


@dataclass(frozen=True)
class Case:
    """One image with its mask.

    name: unique within a source. group: what must not be divided between training and test (patient, drive).
    split: `train`, `validation` or `test` where the source says so. images: its files, one with all channels or one a
    channel. masks: its files. Both are empty where cases come from no files. stamp: of what a case is made of beside
    its files, another one once that has changed.
    """

    name: str
    group: str
    split: str | None = None
    images: tuple[Path, ...] = ()
    masks: tuple[MaskFile, ...] = ()
    stamp: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.images, *(mask.path for mask in self.masks))


@dataclass(frozen=True)
class RawCase:
    """The pixels of a case as stored, before any preprocessing.

    image: float32 [C, *S]. mask: uint8 or int32 [*S], [K, *S] where classes overlap, or None.
    spacing: length D, the distance between pixel centres, in mm for volumes and in pixels for pictures.
    """

    image: np.ndarray
    mask: np.ndarray | None
    spacing: tuple[float, ...]


class Source(Protocol):
    """Where cases come from. Constructors take the options of the section `data`, and `labels`."""

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, sorted by name."""
        ...

    def read(self, case: Case) -> RawCase:
        """The pixels of one case, the mask's values checked. Raises DataError."""
        ...


def data_digest(cases: Sequence[Case]) -> str:
    """16 hexadecimal digits of the names of the cases, the sizes of their files, and the first and last 64 KiB of each.

    Compressed files end in a checksum of all their pixels; a change in the middle of a large one that is not is missed.
    """
    content = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.name):
        content.update(f"{case.name}{case.stamp}".encode())
        for path in _plain_files(case):
            content.update(_ends(path))
    return content.hexdigest()[:16]


def file_stamps(case: Case) -> list[str]:
    """For each file of a case, a text that is another one once the file has changed: its size, the time of its last
    change, and a digest of its first and last 64 KiB; and the stamp of the case."""
    files = _plain_files(case)
    return [case.stamp] * bool(case.stamp) + [
        f"{path.stat().st_mtime_ns}-{hashlib.sha256(_ends(path)).hexdigest()[:32]}" for path in files
    ]


def _plain_files(case: Case) -> list[Path]:
    """The files of a case, those in a folder that is one image and those that a header names too."""
    from segkit.data.formats.sitk import pixel_files  # which itself needs what is here

    files = [file for path in case.files for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    there = [file for file in files if file.is_file()]
    return there + [file for header in there for file in pixel_files(header) if file.is_file()]


def _ends(path: Path) -> bytes:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(ENDS)
        file.seek(max(ENDS, size - ENDS))
        return b"%d %b %b" % (size, start, file.read())


def mask_dtype(labels: Labels) -> np.dtype:
    """The numpy type that masks of these labels are kept in: uint8 or int32."""
    return np.dtype(str(labels.mask_dtype).removeprefix("torch."))


def check_finite(image: np.ndarray, where: str) -> None:
    """Raise DataError if an image holds NaN or infinite pixels; `where` names case and file."""
    bad = int(image.size - np.isfinite(image).sum())
    if bad:
        raise DataError(
            f"{where}: expected finite pixel values, got {bad} of {image.size} that are NaN or infinite; "
            "replace them in the file, for example with 0 or the smallest finite value"
        )


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, from all over the list."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int) if items else []
    return [items[place] for place in places]


def listed(names: list[str]) -> str:
    """Up to ten of the names, one a line, and how many more there are."""
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return "".join(f"\n  {name}" for name in [*names[:LISTED], *more])
