"""The elements of a DICOM file: checking that each lies within the file, since GDCM allocates what an element declares
before it reads the file."""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path

from segkit.data.formats.header_checks import DEFLATE
from segkit.utils.errors import DataError

PREAMBLE, UNDEFINED = 132, 0xFFFFFFFF  # bytes before the first element; the length of elements that end with a mark
META, ITEMS, PIXELS = 0x0002, 0xFFFE, (0x7FE0, 0x0010)  # groups, and the tag of the pixels
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")  # length of 4 bytes
SHORT = (
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"),
    *(b"ST", b"TM", b"UI", b"UL", b"US"),
)


def check_elements(path: Path, where: str, *, implicit: bool, big_endian: bool, deflated: bool) -> None:
    """Raise DataError if an element of a DICOM file declares more bytes than follow in the file, or if elements are not
    stored as the file declares.

    implicit, big_endian, deflated: how the elements after the first group are stored, according to the header.
    """
    if path.stat().st_size <= PREAMBLE:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = _check(content, PREAMBLE, where, big_endian=False, only_meta=True)
        if implicit and bytes(content[start + 4 : start + 6]) in (*SHORT, *LONG):
            raise DataError(
                f"{where}: its header says that types of values are left out, but they are not; save it again, for "
                "example with `gdcmconv --raw IN OUT`"
            )
        if not deflated:
            _check(content, start, where, big_endian=big_endian)
            return
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], DEFLATE * len(content))
        _check(unpacked, 0, where, big_endian=big_endian)


def _check(content: mmap.mmap | bytes, position: int, where: str, *, big_endian: bool, only_meta: bool = False) -> int:
    """Check the elements from a position on, and those of sequences. Returns where the first group after META starts.

    Sequences and their items are entered, not skipped, so that no element is deeper than others.
    """
    order, size, in_pixels = ">" if big_endian else "<", len(content), False
    while position + 8 <= size:
        group, element = struct.unpack_from(f"{order}HH", content, position)
        if only_meta and group != META:
            break
        length, header, is_sequence = _header(content, position, order, group)
        start = position + header
        if length == UNDEFINED:
            in_pixels, length = (group, element) == PIXELS, 0
        elif length > size - start:
            raise DataError(
                f"{where}: its element at byte {position:,} declares {length:,} bytes, but only "
                f"{max(0, size - start):,} follow; the file is truncated or damaged, copy or export it again"
            )
        is_container = is_sequence or (group == ITEMS and not in_pixels)
        position = start if is_container else start + length
        in_pixels = in_pixels and not (group == ITEMS and element == 0xE0DD)
    return position


def _header(content: mmap.mmap | bytes, position: int, order: str, group: int) -> tuple[int, int, bool]:
    """The length that an element declares, the bytes of its header, and whether it is a sequence.

    Without a known code for the type of the value, the length follows the tag, as with implicit types.
    """
    kind = bytes(content[position + 4 : position + 6])
    if group != ITEMS and kind in SHORT:
        return struct.unpack_from(f"{order}H", content, position + 6)[0], 8, False
    if group != ITEMS and kind in LONG and position + 12 <= len(content):
        return struct.unpack_from(f"{order}I", content, position + 8)[0], 12, kind == b"SQ"
    return struct.unpack_from(f"{order}I", content, position + 4)[0], 8, False
