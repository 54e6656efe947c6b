"""The headers of NRRD and MetaImage, which are text: the files of pixels that they name, and what these can hold."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from segkit.data.formats.header_checks import DEFLATE, UNCOMPRESSED, check_pixel_bytes, is_file
from segkit.utils.errors import DataError
from segkit.utils.text import one_line

HEADER, DETACHED_HEADER = 1 << 16, 1 << 24  # largest size of a header before pixels, and of one in a file of its own
DETACHED = (".mhd", ".nhdr")
# the line that names the files of pixels, how a header ends, and which reader of ITK reads the format
METAIMAGE = (r"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(.*)$", r"^[ \t]*ElementDataFile.*$", "MetaImageIO")
NRRD = (r"^data ?file:[ \t]*(.*)$", r"^\r?$", "NrrdImageIO")
HEADERS = {".mhd": METAIMAGE, ".mha": METAIMAGE, ".nhdr": NRRD, ".nrrd": NRRD}
RAW = r"^encoding:[ \t]*raw|^[ \t]*CompressedData[ \t]*[=:][ \t]*False"
MAX_LINE, MAX_AXES = 4096, 10  # of a MetaImage: ITK reads into fixed arrays, and writes beyond them
# how many numbers follow a key of a MetaImage with a number of axes; keys of the same meaning have the same length
LENGTHS: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(("NDims", "ElementNumberOfChannels", "HeaderSize", "CompressedDataSize"), lambda _axes: 1),
    **dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "CenterOfRotation"), lambda axes: axes),
    **dict.fromkeys(("Offset", "Position", "Origin"), lambda axes: axes),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), lambda axes: axes * axes),
}
COMPRESSED = r"^encoding:|^[ \t]*CompressedData[ \t]*[=:]|^[ \t]*BinaryData[ \t]*[=:][ \t]*False"


def pixel_files(path: Path) -> list[Path]:
    """The files of pixels that a header names; empty if the pixels are in the same file as the header."""
    if path.suffix.lower() not in HEADERS:
        return []
    line, _end, _reader = HEADERS[path.suffix.lower()]
    head = _header_text(path)
    match = re.search(line, head, re.MULTILINE | re.IGNORECASE)
    if match is None:
        return []
    name = match.group(1).strip()
    if name.upper() == "LOCAL":
        return []
    if name.upper().startswith("LIST"):
        return [path.parent / line.strip() for line in head[match.end() :].splitlines() if line.strip()]
    return [path.parent / name]


def _header_text(path: Path) -> str:
    """The text of a header, without the pixels; of a header that is too long, its beginning."""
    is_detached = path.suffix.lower() in DETACHED
    with open(path, "rb") as file:
        text = file.read(DETACHED_HEADER if is_detached else HEADER).decode("latin-1")
    end = re.search(HEADERS[path.suffix.lower()][1], text, re.MULTILINE | re.IGNORECASE)
    return text if is_detached or end is None else text[: end.end()]


def check_files(path: Path, where: str) -> None:
    """Raise DataError for a header that is too long, or that names files that are missing or outside its folder."""
    head, limit = _header_text(path), DETACHED_HEADER if path.suffix.lower() in DETACHED else HEADER
    if len(head) >= limit:
        raise DataError(f"{where}: expected a header of at most {limit:,} bytes; the file is damaged, export it again")
    if HEADERS[path.suffix.lower()] is METAIMAGE:
        _check_metaimage(head, where)
    for file in pixel_files(path):
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(path.parent)):
            raise DataError(
                f"{where}: it names the pixel file {one_line(file)}, which is outside the folder of its header"
            )
        if not is_file(file):
            raise DataError(f"{where}: it names the pixel file {one_line(file)}, which does not exist; copy both files")


def _check_metaimage(head: str, where: str) -> None:
    """Raise DataError for a header of MetaImage with too many axes, or with another number of values than axes."""
    pairs = [re.split("[=:]", line, maxsplit=1) for line in head.splitlines() if len(line) <= MAX_LINE]
    if len(pairs) < len(head.splitlines()):
        raise DataError(f"{where}: expected header lines of at most {MAX_LINE} characters; export the file again")
    fields = [(pair[0].strip(), pair[1].split()) for pair in pairs if len(pair) == 2]
    twice = [key for key, count in Counter(key for key, _value in fields).items() if count > 1 and key in LENGTHS]
    axes = dict(fields).get("NDims", [""])
    is_valid = len(axes) == 1 and axes[0].isascii() and axes[0].isdigit() and 1 <= int(axes[0][:9]) <= MAX_AXES
    if twice or not is_valid:
        problem = f"{twice[0]} occurs twice" if twice else f"expected NDims of 1 to {MAX_AXES}, got {axes[:3]!r:.60}"
        raise DataError(f"{where}: its header is damaged ({problem}); export the file again")
    for key, values in fields:
        if key in LENGTHS and len(values) != LENGTHS[key](int(axes[0])):
            raise DataError(
                f"{where}: expected {LENGTHS[key](int(axes[0]))} numbers as {key} in its header, got {len(values)}; "
                "export the file again"
            )


def check_size(declared: int, path: Path, where: str) -> None:
    """Raise DataError if a header declares more bytes of pixels than its files can hold."""
    head, flags = _header_text(path), re.MULTILINE | re.IGNORECASE
    is_raw = re.search(RAW, head, flags) or not re.search(COMPRESSED, head, flags)
    files = [path, *pixel_files(path)]
    check_pixel_bytes(declared, files, where, ratio=UNCOMPRESSED if is_raw else DEFLATE)
