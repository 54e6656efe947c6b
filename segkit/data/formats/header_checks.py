"""Checking what a header declares against the size of its file before allocating the memory that it asks for."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from segkit.utils.errors import DataError

# the most bytes of pixels that a byte of a file can hold, by compression
UNCOMPRESSED = 1
DEFLATE = 1100  # RFC 1951 allows 1032
ANY_CODEC = 40_000  # Zstandard, JPEG 2000 and others: 32768 for the runs of Zstandard (RFC 8878)
SMALL = 1 << 26  # declared bytes that are always allowed with ANY_CODEC, which may compress a single colour further
MAX_FILE_BYTES = 1 << 32  # of a file that is read into memory as a whole
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_pixel_bytes(declared: int, files: Sequence[Path], where: str, *, ratio: int) -> None:
    """Raise DataError if files are too small for the bytes of pixels that their header declares.

    Args:
        declared: Bytes of pixels according to the header.
        files: The files that hold the pixels.
        where: Prefix of the message.
        ratio: The most bytes of pixels per byte of the files: UNCOMPRESSED, DEFLATE or ANY_CODEC.
    """
    stored = sum(file.stat().st_size for file in files)
    limit = max(stored * ratio, SMALL if ratio == ANY_CODEC else 0)
    if declared > limit:
        raise DataError(
            f"{where}: its header declares {declared:,} bytes of pixels, but the file has only {stored:,} bytes, "
            f"which hold at most {limit:,}; it is truncated or damaged, copy or export it again"
        )


def check_regular(path: Path, where: str) -> None:
    """Raise DataError for a pipe, a socket or a device: opening one may wait for ever, and reading one never end."""
    kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
    if kind is not None:
        raise DataError(f"{where}: expected a regular file, got {kind}; save the data as a file")


def check_file_bytes(path: Path, where: str, limit: int = MAX_FILE_BYTES) -> None:
    """Raise DataError for a file that is no regular one, or too large to be read into memory as a whole."""
    check_regular(path, where)
    size = path.stat().st_size
    if size > limit:
        raise DataError(f"{where}: expected a file of at most {limit:,} bytes, got {size:,} bytes")


def is_file(path: Path) -> bool:
    """Whether a regular file exists at a path that other files name; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False
