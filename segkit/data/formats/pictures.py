"""PNG, JPEG, BMP and TIFF: colours by OpenCV, which keeps 16 bits, and index and palette pictures by Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import DataError

TIFF = (".tif", ".tiff")
# how a complete file ends: OpenCV fills the rest of a truncated one with grey and says nothing
LAST_BYTES = {b"\x89PNG": (b"IEND", "PNG"), b"\xff\xd8\xff": (b"\xff\xd9", "JPEG")}
PNG_SIZE = slice(16, 24)  # bytes of a PNG file: width and height
PNG_DEPTH = 24  # byte of a PNG file: bits a channel
PNG_KIND, PNG_COLOURS, PNG_GREY_WITH_ALPHA = 25, (2, 6), 4  # byte of a PNG file, and what it says
BITS, KIND_OF_NUMBER = 258, 339  # tags of TIFF
KINDS = {1: "uint", 2: "int", 3: "float"}
KIND_OF_PAGE, REDUCED = 254, 1  # a tag of TIFF, and its bit for a smaller version of another page
TAIL = 4096  # some programs append a little to a complete file
MOST_PIXELS = 1 << 28  # of a file; 16384 x 16384


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """A picture [C, H, W], or a TIFF of several pages [C, D, H, W]; integers scaled to 0..1 by the range of their type.

    Grey has one channel, colours are red, green, blue, transparency is dropped.
    """
    content = _content(path, where)
    pages = _pages(content, where) if path.suffix.lower() in TIFF else [0]
    array = _decoded(path, content, pages, where)
    if content.startswith(b"\x89PNG") and content[PNG_KIND] == PNG_GREY_WITH_ALPHA:
        array = array[..., 0]  # OpenCV repeats the grey three times
    axes = array.ndim if len(pages) == 1 else array.ndim - 1
    image = array[None] if axes == 2 else np.moveaxis(array[..., :3][..., ::-1], -1, 0)
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype.name)
        image = np.ascontiguousarray(image)  # in bytes, and not once it is four times as large
        shifted = image if limits.min == 0 else image.astype(np.float32) - limits.min
        image = np.divide(shifted, np.float32(limits.max - limits.min), dtype=np.float32)
    return image, (1.0,) * (image.ndim - 1)


def _decoded(path: Path, content: bytes, pages: list[int], where: str) -> np.ndarray:
    """[H, W], [H, W, C] in OpenCV's order of colours, or with pages in front."""
    import cv2

    try:
        if pages == [0]:
            array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        else:
            found, stack = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
            stack = [page for number, page in enumerate(stack) if number in pages] if found else []
            _check_alike([page.shape for page in stack], where)
            array = (np.stack(stack) if len(pages) > 1 else stack[0]) if stack else None
    except cv2.error as error:
        raise DataError(f"{where}: it cannot be read as a picture ({error.err})") from error
    if array is None:
        raise DataError(f"{where}: it cannot be read as a picture, it may be truncated or of another format")
    return array


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """What is stored, [H, W], of several pages [D, H, W]: palette indices, and 0 and 1 of 1-bit pictures. Colours are
    [3, H, W] of uint8."""
    content = _content(path, where)
    pages = _pages(content, where) if path.suffix.lower() in TIFF else [0]
    if content.startswith(b"\x89PNG") and content[PNG_DEPTH] == 16 and content[PNG_KIND] in PNG_COLOURS:
        colours = _decoded(path, content, [0], where)  # Pillow cuts them to 8 bits and does not say so
        return np.moveaxis(colours[..., :3][..., ::-1], -1, 0), (1.0, 1.0)
    with _pillow(content) as picture:
        found = []
        for page in pages:
            picture.seek(page)
            found.append(np.array(picture))
    _check_alike([page.shape for page in found], where)
    array = found[0] if len(found) == 1 else np.stack(found)
    if array.ndim == 2 + (len(found) > 1):
        return array, (1.0,) * array.ndim
    if array.shape[-1] not in (2, 3, 4):
        raise DataError(f"{where}: expected grey, palette or colours, got {array.shape[-1]} channels")
    if array.shape[-1] == 2:  # grey with transparency
        return array[..., 0], (1.0,) * (array.ndim - 1)
    return np.moveaxis(array[..., :3], -1, 0), (1.0,) * (array.ndim - 1)


def number_type(path: Path) -> str:
    """Of a channel."""
    with path.open("rb") as file:
        start = file.read(PNG_DEPTH + 1)
    if start.startswith(b"\x89PNG"):
        return f"uint{start[PNG_DEPTH]}"
    if path.suffix.lower() not in TIFF:
        return "uint8"
    with _pillow(path.read_bytes()) as picture:
        tags = picture.tag_v2
        return f"{KINDS.get(tags.get(KIND_OF_NUMBER, (1,))[0], 'uint')}{tags.get(BITS, (1,))[0]}"


def _content(path: Path, where: str) -> bytes:
    content = path.read_bytes()
    for first, (last, kind) in LAST_BYTES.items():
        if content.startswith(first) and last not in content[-TAIL:]:
            raise DataError(f"{where}: the {kind} file is truncated; copy or export it again")
    if content.startswith(b"\x89PNG"):
        _check_size(struct.unpack(">II", content[PNG_SIZE]), where)
        _check_sums(content, where)
    else:
        with _pillow(content) as picture:
            _check_size(picture.size, where)
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


def _check_size(size: tuple[int, ...], where: str) -> None:
    """Before anything is decoded: a small file may claim to be a picture that fills the memory."""
    width, height = size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{where}: expected at most {MOST_PIXELS} pixels, got {width} x {height}; cut it into tiles, or if it is "
            "not meant to be so large, export it again"
        )


def _pages(content: bytes, where: str) -> list[int]:
    """The pages of a TIFF, without thumbnails and the levels of a pyramid."""
    with _pillow(content) as picture:
        pages = []
        for page in range(getattr(picture, "n_frames", 1)):
            picture.seek(page)
            if not getattr(picture, "tag_v2", {}).get(KIND_OF_PAGE, 0) & REDUCED:
                _check_size(picture.size, where)
                pages.append(page)
    return pages or [0]


def page_count(path: Path) -> int:
    """How many pictures a TIFF holds."""
    return len(_pages(path.read_bytes(), f"file {path}"))


def _check_alike(shapes: list[tuple[int, ...]], where: str) -> None:
    if len(set(shapes)) > 1:
        raise DataError(f"{where}: expected pages of one size, got {', '.join(map(str, sorted(set(shapes))))}")


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
