"""A case: its name, group and files, and its pixels once they are read."""

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
ENDS = 1 << 16  # bytes at the start and end of a file that enter its digest


@dataclass(frozen=True)
class MaskFile:
    """One file of a mask.

    class_name: the class whose pixels are the non-zero values of the file. None if the values are class numbers.
    """

    path: Path
    class_name: str | None = None


@dataclass(frozen=True)
class Case:
    """One image with its mask.

    name: unique within a source.
    group: cases of one group, such as a patient or a drive, must not be divided between training and test.
    split: `train`, `validation` or `test` if the source defines the part; otherwise None.
    images: the image files, either one with all channels or one per channel. Empty if the case is not read from files.
    masks: the mask files. Empty if there is no mask or the case is not read from mask files.
    annotated: the classes that were looked for; all others are ignored in this case. None if all were.
    weight: the file with the weight of each pixel in the loss; None for a weight of 1 everywhere.
    stamp: identifies content that is not in these files, such as annotations. It changes whenever that content changes.
    """

    name: str
    group: str
    split: str | None = None
    images: tuple[Path, ...] = ()
    masks: tuple[MaskFile, ...] = ()
    stamp: str = ""
    annotated: tuple[str, ...] | None = None
    weight: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files, followed by the mask files and the file of weights."""
        return (*self.images, *(mask.path for mask in self.masks), *([] if self.weight is None else [self.weight]))


@dataclass(frozen=True)
class RawCase:
    """The pixels of a case as stored, before any preprocessing.

    image: float32 [C, *S]. mask: uint8 or int32 [*S], [K, *S] where classes overlap, or None.
    spacing: length D, the distance between pixel centres, in mm for volumes and in pixels for 2D raster images.
    weight: float32 [*S], 0 or more, the weight of each pixel in the loss; None for 1 everywhere.
    """

    image: np.ndarray
    mask: np.ndarray | None
    spacing: tuple[float, ...]
    weight: np.ndarray | None = None


class Source(Protocol):
    """A collection of cases. Constructors take the options of the section `data`, and `labels`."""

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, sorted by name."""
        ...

    def read(self, case: Case) -> RawCase:
        """Read the pixels of one case and check the values of its mask. Raises DataError."""
        ...


def data_digest(cases: Sequence[Case]) -> str:
    """A digest of the data: 16 hexadecimal digits.

    It covers the names of the cases, their stamps, and the size and the first and last 64 KiB of each file. Compressed
    files end in a checksum of all their pixels. In a large uncompressed file, a change in the middle is not detected.
    """
    content = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.name):
        content.update(f"{case.name}{case.stamp}".encode())
        for path in _plain_files(case):
            content.update(_ends(path))
    return content.hexdigest()[:16]


def file_stamps(case: Case) -> list[str]:
    """The stamp of a case, if it has one, and one text per file that changes whenever the file changes.

    The text holds the time of the last modification and a digest of the size and the first and last 64 KiB.
    """
    files = _plain_files(case)
    return [case.stamp] * bool(case.stamp) + [
        f"{path.stat().st_mtime_ns}-{hashlib.sha256(_ends(path)).hexdigest()[:32]}" for path in files
    ]


def _plain_files(case: Case) -> list[Path]:
    """The files of a case, including those of a DICOM folder and the pixel files that a header refers to."""
    from segkit.data.formats import itk_headers, nifti  # import this module themselves
    from segkit.data.formats.header_checks import is_file

    files = [file for path in case.files for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    existing = [file for file in files if file.is_file()]
    detached = [file for header in existing for file in (*itk_headers.pixel_files(header), *nifti.pixel_files(header))]
    return existing + [file for file in detached if is_file(file)]


def _ends(path: Path) -> bytes:
    """The size of a file with the bytes at its start and end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(ENDS)
        file.seek(max(ENDS, size - ENDS))
        return b"%d %b %b" % (size, start, file.read())


def mask_dtype(labels: Labels) -> np.dtype:
    """The numpy type of stored masks of these labels: uint8 or int32."""
    return np.dtype(str(labels.mask_dtype).removeprefix("torch."))


def check_finite(image: np.ndarray, where: str) -> None:
    """Raise DataError if an image holds NaN or infinite pixels. where: names case and file in the message."""
    count = int(image.size - np.isfinite(image).sum())
    if count:
        raise DataError(
            f"{where}: expected finite pixel values, got {count} of {image.size} that are NaN or infinite; "
            "replace them in the file, for example with 0 or the smallest finite value"
        )


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items, evenly spaced over the whole sequence."""
    positions = np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int) if items else []
    return [items[position] for position in positions]
