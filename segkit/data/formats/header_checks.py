"""Checking that a header is plausible before allocating the memory that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segkit.utils.errors import DataError

MAX_COMPRESSION = 1100  # ratio that deflate can reach; RFC 1951 allows 1032


def check_pixel_bytes(declared: int, files: Sequence[Path], where: str, *, compressed: bool) -> None:
    """Raise DataError if files are too small for the bytes of pixels that their header declares.

    Args:
        declared: Bytes of pixels according to the header.
        files: The files that hold the pixels.
        where: Prefix of the message.
        compressed: Whether the pixels may be compressed.
    """
    stored = sum(file.stat().st_size for file in files)
    if declared > stored * (MAX_COMPRESSION if compressed else 1):
        raise DataError(
            f"{where}: its header declares {declared:,} bytes of pixels, but the file has only {stored:,} bytes; it is "
            "truncated or damaged, copy or export it again"
        )
