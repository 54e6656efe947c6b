"""PNG, JPEG, WebP, GIF and BMP: images by OpenCV, which keeps 16 bits per channel, and masks by Pillow, which keeps
palette indices. Both are turned as viewers show them, by the EXIF orientation in the file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats.header_checks import ANY_CODEC, DEFLATE, check_file_bytes, check_pixel_bytes
from segkit.utils.errors import DataError

# how a complete file begins and ends: OpenCV fills the rest of a truncated file with grey without an error
LAST_BYTES = {b"\x89PNG": (b"IEND", "PNG"), b"\xff\xd8\xff": (b"\xff\xd9", "JPEG")}
PNG_SIZE = slice(16, 24)  # bytes of a PNG file: width and height
PNG_DEPTH = 24  # byte of a PNG file: bits per channel
PNG_COLOUR_TYPE, PNG_COLOURS, PNG_GREY_WITH_ALPHA = 25, (2, 6), 4  # byte of a PNG file, and values that it takes
ANIMATION = (b"acTL", b"fcTL", b"fdAT")  # chunks of an animated PNG file
TAIL = 4096  # bytes searched for the end, since some programs append a few to a complete file
ORIENTATION = 0x0112  # EXIF tag
ORIENTATION_MARKS = (
    b"Exif",
    b"eXIf",
    b"EXIF",
    b"Raw profile type",
    b"tiff:Orientation",
)  # one of them is in a file with a tag
# for each value of the tag, how the stored pixels [..., H, W] become the picture that viewers show
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda array: array[..., ::-1],
    3: lambda array: array[..., ::-1, ::-1],
    4: lambda array: array[..., ::-1, :],
    5: lambda array: array.swapaxes(-1, -2),
    6: lambda array: array.swapaxes(-1, -2)[..., ::-1],
    7: lambda array: array.swapaxes(-1, -2)[..., ::-1, ::-1],
    8: lambda array: array.swapaxes(-1, -2)[..., ::-1, :],
}
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, PNG_GREY_WITH_ALPHA: 2, 6: 4}  # by colour type
MAX_PIXELS = 1 << 28  # per file; 16384 x 16384
# what Pillow may open, whatever the name says: other formats start programs, such as Ghostscript for EPS
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "TIFF")


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image [C, H, W], integers scaled to 0..1 by the range of their type, and a spacing of 1 pixel.

    Greyscale images have one channel, colour images red, green and blue; transparency is dropped. The picture is the
    one that viewers show, see `upright`.
    """
    content = _content(path, where)
    array = _decoded(content, where)
    if content.startswith(b"\x89PNG") and content[PNG_COLOUR_TYPE] == PNG_GREY_WITH_ALPHA:
        array = array[..., 0]  # OpenCV repeats the grey channel three times
    image = array[None] if array.ndim == 2 else np.moveaxis(array[..., :3][..., ::-1], -1, 0)
    return scaled(upright(image, _orientation(content))), (1.0, 1.0)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels [..., H, W] into the picture that viewers show, by the EXIF tag Orientation (1 to 8)."""
    return UPRIGHT[orientation](array) if orientation in UPRIGHT else array


def orientation(path: Path) -> int:
    """The EXIF tag Orientation of a picture, 1 if it is shown as it is stored."""
    return _orientation(path.read_bytes())


def _orientation(content: bytes) -> int:
    if not any(mark in content for mark in ORIENTATION_MARKS):  # Pillow decodes a PNG file before it answers
        return 1
    with _pillow(content) as picture:
        found = picture.getexif().get(ORIENTATION, 1)
    return found if found in UPRIGHT else 1  # viewers ignore other values


def read_first_frame(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the first frame of a GIF, with the result of `read_image`."""
    with _pillow(_content(path, where)) as picture:
        array = np.array(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    return scaled(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)), (1.0, 1.0)


def scaled(image: np.ndarray) -> np.ndarray:
    """Scale integers to float32 in 0..1 by the range of their type. Other numbers are returned unchanged."""
    if not np.issubdtype(image.dtype, np.integer):
        return image
    limits = np.iinfo(image.dtype.name)
    image = np.ascontiguousarray(image)  # copied before the conversion, which takes four times the memory
    shifted = image if limits.min == 0 else image.astype(np.float32) - limits.min
    return np.divide(shifted, np.float32(limits.max - limits.min), dtype=np.float32)


def _decoded(content: bytes, where: str) -> np.ndarray:
    """Decode an image to [H, W], or to [H, W, C] in OpenCV's channel order BGR."""
    import cv2

    content = _without_animation(content) if content.startswith(b"\x89PNG") else content
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"{where}: cannot be read as an image ({error.err.strip()})") from error
    if array is None:
        raise DataError(f"{where}: cannot be read as an image; it may be truncated or of another format")
    return array


def _without_animation(content: bytes) -> bytes:
    """A PNG file without the chunks of further frames, of which OpenCV would return one."""
    if b"acTL" not in content:
        return content
    kept, start = [content[:8]], 8
    while start + 8 <= len(content):
        length, chunk = struct.unpack_from(">I4s", content, start)
        if chunk not in ANIMATION:
            kept.append(content[start : start + length + 12])
        start += length + 12
    return b"".join(kept)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a mask as stored and a spacing of 1 pixel.

    Returns [H, W]: palette indices, 0 and 1 for 1-bit images, or grey values. Colour images are [3, H, W]. Like images,
    masks are turned as viewers show them.
    """
    content = _content(path, where)
    return upright(_stored_mask(content, where), _orientation(content)), (1.0, 1.0)


def _stored_mask(content: bytes, where: str) -> np.ndarray:
    if content.startswith(b"\x89PNG") and content[PNG_DEPTH] == 16 and content[PNG_COLOUR_TYPE] in PNG_COLOURS:
        colours = _decoded(content, where)  # Pillow would silently reduce them to 8 bits
        return np.moveaxis(colours[..., :3][..., ::-1], -1, 0)
    if content[:1] == b"P":  # PNM, which Pillow would scale to 0..255
        array = _decoded(content, where)
        if content[1:2] in b"14":  # black, which is 0 in the decoded picture, is stored as 1
            return (array == 0).astype(np.uint8)
        return array if array.ndim == 2 else np.moveaxis(array[..., ::-1], -1, 0)
    with _pillow(content) as picture:
        array = np.array(picture)
    if array.ndim == 2:
        return array
    if array.shape[-1] in (2, 4):
        refuse_transparency_alone(np.moveaxis(array[..., :-1], -1, 0), array[..., -1], where)
    if array.shape[-1] not in (2, 3, 4):
        raise DataError(f"{where}: expected a greyscale, palette or colour image, got {array.shape[-1]} channels")
    if array.shape[-1] == 2:  # grey and alpha
        return array[..., 0]
    return np.moveaxis(array[..., :3], -1, 0)


def refuse_transparency_alone(colours: np.ndarray, alpha: np.ndarray, where: str) -> None:
    """Raise DataError if a mask has the same colour everywhere, [C, *S], and only its transparency [*S] differs."""
    flat = colours.reshape(len(colours), -1)
    if alpha.min() < alpha.max() and (flat == flat[:, :1]).all():
        raise DataError(
            f"{where}: its colour is the same everywhere, and only the transparency differs; save the transparency as "
            "a greyscale mask, for example with `magick IN.png -alpha extract OUT.png`"
        )


def number_type(path: Path) -> str:
    """The number type of a channel, from the header alone."""
    with path.open("rb") as file:
        start = file.read(PNG_DEPTH + 1)
    return f"uint{start[PNG_DEPTH]}" if start.startswith(b"\x89PNG") else "uint8"


def _content(path: Path, where: str) -> bytes:
    """The bytes of a file. Raises DataError for a truncated, damaged or oversized image, before decoding it."""
    check_file_bytes(path, where)
    content = path.read_bytes()
    for magic, (end, kind) in LAST_BYTES.items():
        if content.startswith(magic) and end not in content[-TAIL:]:
            raise DataError(f"{where}: the {kind} file is truncated; copy or export it again")
    if content.startswith(b"\x89PNG"):
        width, height = struct.unpack(">II", content[PNG_SIZE])
        check_size((width, height), where)
        bits = content[PNG_DEPTH] * PNG_CHANNELS.get(content[PNG_COLOUR_TYPE], 1)
        check_pixel_bytes(width * height * bits // 8, [path], where, ratio=DEFLATE)
        _check_checksums(content, where)
    else:
        with _pillow(content) as picture:
            check_size(picture.size, where)
            channels = 3 if picture.mode == "P" else len(picture.getbands())  # the colours of a palette are RGB
            declared = picture.width * picture.height * channels
        check_pixel_bytes(declared, [path], where, ratio=ANY_CODEC)
    return content


def _check_checksums(content: bytes, where: str) -> None:
    """Raise DataError if pixels of a PNG do not match their checksum: decoders ignore it and return wrong pixels."""
    start, view = 8, memoryview(content)
    while start + 8 <= len(content):
        length, chunk = struct.unpack_from(">I4s", content, start)
        end = start + 8 + length
        if chunk == b"IDAT" and view[end : end + 4] != struct.pack(">I", zlib.crc32(view[start + 4 : end])):
            raise DataError(f"{where}: the PNG file is damaged (checksum mismatch); copy or export it again")
        start = end + 4


def check_size(size: tuple[int, ...], where: str) -> None:
    """Raise DataError for an image with too many pixels, before decoding it: a small file can declare a size that
    would fill the memory."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{where}: expected at most {MAX_PIXELS} pixels, got {width} x {height}; cut the image into tiles, or "
            "export it again if it should not be that large"
        )


@contextmanager
def _pillow(content: bytes) -> Iterator[Any]:
    """Open an image without decoding it. Pillow's own size limit is lifted, since `check_size` allows more."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(BytesIO(content), formats=PICTURES) as picture:
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = limit
