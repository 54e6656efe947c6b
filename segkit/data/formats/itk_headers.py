"""The headers of NRRD and MetaImage, which are text: the files of pixels that they name, and what these can hold."""

from __future__ import annotations

import os
import re
from pathlib import Path

from segkit.data.formats.header_checks import DEFLATE, UNCOMPRESSED, check_pixel_bytes, check_regular
from segkit.utils.errors import DataError

HEADER, DETACHED_HEADER = 1 << 16, 1 << 24  # largest size of a header before pixels, and of one in a file of its own
DETACHED = (".mhd", ".nhdr")
# the line that names the files of pixels, how a header ends, and which reader of ITK reads the format
METAIMAGE = (r"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(.*)$", r"^[ \t]*ElementDataFile.*$", "MetaImageIO")
NRRD = (r"^data ?file:[ \t]*(.*)$", r"^\r?$", "NrrdImageIO")
HEADERS = {".mhd": METAIMAGE, ".mha": METAIMAGE, ".nhdr": NRRD, ".nrrd": NRRD}
RAW = r"^encoding:[ \t]*raw|^[ \t]*CompressedData[ \t]*[=:][ \t]*False"
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
    for file in pixel_files(path):
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(path.parent)):
            raise DataError(f"{where}: it names the pixel file {file}, which is outside the folder of its header")
        if file.exists():
            check_regular(file, where)
        if not file.is_file():
            raise DataError(f"{where}: it names the pixel file {file}, which does not exist; copy both files")


def check_size(declared: int, path: Path, where: str) -> None:
    """Raise DataError if a header declares more bytes of pixels than its files can hold."""
    head, flags = _header_text(path), re.MULTILINE | re.IGNORECASE
    is_raw = re.search(RAW, head, flags) or not re.search(COMPRESSED, head, flags)
    files = [path, *pixel_files(path)]
    check_pixel_bytes(declared, files, where, ratio=UNCOMPRESSED if is_raw else DEFLATE)
