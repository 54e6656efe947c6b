"""Whether a header can be true, before the memory is taken that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segkit.utils.errors import DataError

MOST_COMPRESSED = 1100  # times that deflate can make a file smaller; RFC 1951 allows 1032


def check_claim(claimed: int, files: Sequence[Path], where: str, *, compressed: bool) -> None:
    """Raise DataError if files cannot hold so many bytes of pixels as their header says."""
    stored = sum(file.stat().st_size for file in files)
    if claimed > stored * (MOST_COMPRESSED if compressed else 1):
        raise DataError(
            f"{where}: its header asks for {claimed:,} bytes of pixels, and the file has {stored:,}; it is truncated "
            "or damaged, copy or export it again"
        )
