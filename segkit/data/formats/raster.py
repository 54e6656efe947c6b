"""PNG, JPEG, GIF and BMP: colours by OpenCV, which keeps 16 bits, and index and palette pictures by Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from segkit.utils.errors import DataError

# how a complete file ends: OpenCV fills the rest of a truncated one with grey and says nothing
LAST_BYTES = {b"\x89PNG": (b"IEND", "PNG"), b"\xff\xd8\xff": (b"\xff\xd9", "JPEG")}
PNG_SIZE = slice(16, 24)  # bytes of a PNG file: width and height
PNG_DEPTH = 24  # byte of a PNG file: bits a channel
PNG_KIND, PNG_COLOURS, PNG_GREY_WITH_ALPHA = 25, (2, 6), 4  # byte of a PNG file, and what it says
TAIL = 4096  # some programs append a little to a complete file
MOST_PIXELS = 1 << 28  # of a file; 16384 x 16384


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """A picture [C, H, W]; integers scaled to 0..1 by the range of their type.

    Grey has one channel, colours are red, green, blue, transparency is dropped.
    """
    content = _content(path, where)
    array = _decoded(content, where)
    if content.startswith(b"\x89PNG") and content[PNG_KIND] == PNG_GREY_WITH_ALPHA:
        array = array[..., 0]  # OpenCV repeats the grey three times
    image = array[None] if array.ndim == 2 else np.moveaxis(array[..., :3][..., ::-1], -1, 0)
    return scaled(image), (1.0, 1.0)


def read_first_frame(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """A GIF as `read_image` gives other pictures."""
    with _pillow(_content(path, where)) as picture:
        array = np.array(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    return scaled(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)), (1.0, 1.0)


def scaled(image: np.ndarray) -> np.ndarray:
    """Integers as float32 from 0 to 1, by the range of their type; other numbers as they are."""
    if not np.issubdtype(image.dtype, np.integer):
        return image
    limits = np.iinfo(image.dtype.name)
    image = np.ascontiguousarray(image)  # in bytes, and not once it is four times as large
    shifted = image if limits.min == 0 else image.astype(np.float32) - limits.min
    return np.divide(shifted, np.float32(limits.max - limits.min), dtype=np.float32)


def _decoded(content: bytes, where: str) -> np.ndarray:
    """[H, W], or [H, W, C] in OpenCV's order of colours."""
    import cv2

    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"{where}: it cannot be read as a picture ({error.err})") from error
    if array is None:
        raise DataError(f"{where}: it cannot be read as a picture, it may be truncated or of another format")
    return array


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """What is stored, [H, W]: palette indices, and 0 and 1 of 1-bit pictures. Colours are [3, H, W] of uint8."""
    content = _content(path, where)
    if content.startswith(b"\x89PNG") and content[PNG_DEPTH] == 16 and content[PNG_KIND] in PNG_COLOURS:
        colours = _decoded(content, where)  # Pillow cuts them to 8 bits and does not say so
        return np.moveaxis(colours[..., :3][..., ::-1], -1, 0), (1.0, 1.0)
    with _pillow(content) as picture:
        array = np.array(picture)
    if array.ndim == 2:
        return array, (1.0, 1.0)
    if array.shape[-1] not in (2, 3, 4):
        raise DataError(f"{where}: expected grey, palette or colours, got {array.shape[-1]} channels")
    if array.shape[-1] == 2:  # grey with transparency
        return array[..., 0], (1.0, 1.0)
    return np.moveaxis(array[..., :3], -1, 0), (1.0, 1.0)


def number_type(path: Path) -> str:
    """Of a channel."""
    with path.open("rb") as file:
        start = file.read(PNG_DEPTH + 1)
    return f"uint{start[PNG_DEPTH]}" if start.startswith(b"\x89PNG") else "uint8"


def _content(path: Path, where: str) -> bytes:
    content = path.read_bytes()
    for first, (last, kind) in LAST_BYTES.items():
        if content.startswith(first) and last not in content[-TAIL:]:
            raise DataError(f"{where}: the {kind} file is truncated; copy or export it again")
    if content.startswith(b"\x89PNG"):
        check_size(struct.unpack(">II", content[PNG_SIZE]), where)
        _check_sums(content, where)
    else:
        with _pillow(content) as picture:
            check_size(picture.size, where)
    return content


def _check_sums(content: bytes, where: str) -> None:
    """Of the pixels of a PNG: decoders pass over bytes that have changed, and show other pixels."""
    at, view = 8, memoryview(content)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + length
        if kind == b"IDAT" and view[end : end + 4] != struct.pack(">I", zlib.crc32(view[at + 4 : end])):
            raise DataError(f"{where}: the PNG file is damaged, its checksum is another; copy or export it again")
        at = end + 4


def check_size(size: tuple[int, ...], where: str) -> None:
    """Before anything is decoded: a small file may claim to be a picture that fills the memory."""
    width, height = size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{where}: expected at most {MOST_PIXELS} pixels, got {width} x {height}; cut it into tiles, or if it is "
            "not meant to be so large, export it again"
        )


@contextmanager
def _pillow(content: bytes) -> Iterator[Any]:
    """The picture, its pixels unread; its size is looked at here, and not by Pillow, which stops earlier."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(BytesIO(content)) as picture:
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = limit
