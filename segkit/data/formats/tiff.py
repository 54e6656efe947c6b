"""TIFF files, read by tifffile: any number type, any number of channels, and volumes with one slice per page."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats.header_checks import ANY_CODEC, DEFLATE, UNCOMPRESSED, check_pixel_bytes
from segkit.data.formats.mapped import Mapped, temporary_array
from segkit.data.formats.raster import MAX_PIXELS, ORIENTATION, check_size, refuse_transparency_alone, scaled, upright
from segkit.utils.errors import DataError
from segkit.utils.optional import require

ENDINGS = (".tif", ".tiff")
WHITE_IS_ZERO, RGB, PALETTE = 0, 2, 3  # values of the tag PhotometricInterpretation
# colour models whose bands are no red, green and blue; JPEG decoders convert YCbCr themselves
OTHER_MODELS = {
    5: "CMYK",
    6: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32844: "LogL",
    32845: "LogLuv",
}
YCBCR, JPEG = 6, (6, 7)
PARTS_OF_A_BYTE = (2, 4)  # bits per pixel that tifffile unpacks to bytes
PLAIN, ZLIB = 1, (8, 32946)  # values of the tag Compression
ALPHA = (1, 2)  # values of the tag ExtraSamples
CHANNELS = "SC"  # axes of channels in tifffile's notation; all others but Y and X are depth


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image [C, H, W], or [C, D, H, W] from several pages, and a spacing of 1 pixel.

    Integers are scaled to 0..1 by the range of their type, palette images become RGB, transparency is dropped.
    """
    array, page = _read(path, where)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
    largest = 2**bits - 1 if bits in PARTS_OF_A_BYTE else np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    if page.photometric == WHITE_IS_ZERO and array.dtype.kind in "bu":
        array = ~array if array.dtype == bool else (largest - array).astype(array.dtype)
    if page.photometric == PALETTE:
        # programs write an 8-bit colour as 256 or 257 times its value
        image = scaled((page.colormap >> 8).astype(np.uint8)[:, array[0].astype(np.int64)])
    else:
        image = array.astype(np.float32) / largest if bits in PARTS_OF_A_BYTE else scaled(array)
    return image, (1.0,) * (image.ndim - 1)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a mask as stored, [H, W], or [D, H, W] from several pages, and a spacing of 1 pixel.

    Palette images give palette indices, 1-bit images 0 and 1, whether 0 means white or black. Colours are
    [3, H, W].
    """
    array, _page = _read(path, where, is_mask=True)
    spacing = (1.0,) * (array.ndim - 1)
    if len(array) not in (1, 3):
        raise DataError(f"{where}: expected a greyscale, palette or colour image, got {len(array)} channels")
    return (array[0] if len(array) == 1 else array), spacing


def number_type(path: Path) -> str:
    """The number type of a channel, from the header alone."""
    with _open(path, f"file {path}") as file:
        page: Any = file.pages[0]
        return "uint1" if page.dtype == bool else str(page.dtype)


def orientation(path: Path) -> int:
    """The tag Orientation, 1 if the picture is shown as it is stored."""
    with _open(path, f"file {path}") as file:
        return _orientation(file.pages[0])


def _orientation(page: Any) -> int:
    found = page.tags.valueof(ORIENTATION, 1)
    return int(found) if found in range(1, 9) else 1  # viewers ignore other values


def page_count(path: Path) -> int:
    """The number of full-resolution pages, without thumbnails and the levels of a pyramid."""
    with _open(path, f"file {path}") as file:
        return len(_pages(file))


def mask_ending(image: Path) -> str:
    """The ending of masks predicted for an image: `.tif` for volumes, tiles and what is too large for a PNG file that
    can be read back, `.png` otherwise."""
    if not image.is_file():
        return ".png"
    with _open(image, f"file {image}") as file:
        pages, series = _pages(file), file.series[0]
        spatial = [side for axis, side in zip(series.axes, series.shape, strict=True) if axis not in CHANNELS]
        is_volume = len(pages) > 1 or sum(side > 1 for side in spatial) > 2  # ImageJ writes large stacks as one page
        is_large = pages[0].imagewidth * pages[0].imagelength > MAX_PIXELS
        return ".tif" if is_volume or is_large or pages[0].is_tiled else ".png"


def declared_numbers(path: Path, where: str) -> int:
    """The numbers of the image, from the header alone; 0 for images that cannot be mapped."""
    with _open(path, where) as file:
        pages = _pages(file)
        is_plain = pages[0].photometric != PALETTE and pages[0].bitspersample not in (1, *PARTS_OF_A_BYTE)
        return file.series[0].size if is_plain else 0


def map_image(path: Path, where: str, folder: Path) -> Mapped:
    """The image of `read_image` as an array [C, *S] that reads what is indexed, how its numbers become float32, and
    the spacing.

    An array that is stored in one piece is mapped as it is; the tiles of all others are decoded into a file in the
    given folder, one after another.
    """
    with _open(path, where) as file:
        series, page = _checked(file, path, where, limit=False)
        if series.dataoffset is not None and page.compression == PLAIN:
            stored = np.memmap(
                path, series.keyframe.parent.byteorder + series.dtype.char, "r", series.dataoffset, series.shape
            )
        else:
            stored = temporary_array(folder / "pixels", series.dtype, series.shape, where)
            series.asarray(out=stored)
        array = _channels_first(stored, series.axes, where)
    array = array[: len(array) - _alpha_channels(page, len(array))]
    is_inverted, largest = (
        page.photometric == WHITE_IS_ZERO,
        np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1,
    )

    def convert(piece: np.ndarray) -> np.ndarray:
        return scaled((largest - piece).astype(piece.dtype) if is_inverted and piece.dtype.kind == "u" else piece)

    return upright(array, _orientation(page)), convert, (1.0,) * (array.ndim - 1)


@contextmanager
def _open(path: Path, where: str) -> Iterator[Any]:
    """The file. Raises DataError if it is damaged."""
    tifffile = require("tifffile", "tiff", "reading TIFF files")
    # other files that the metadata name are not read
    with _refuse_lost_pages(where), tifffile.TiffFile(path, _multifile=False) as file:
        yield file


def _pages(file: Any) -> list[Any]:
    return [page for page in map(file.pages.get, range(len(file.pages))) if not page.is_reduced] or [file.pages.get(0)]


def _read(path: Path, where: str, *, is_mask: bool = False) -> tuple[np.ndarray, Any]:
    """The pixels [C, *S] without transparency, and the first page, whose tags describe them."""
    with _open(path, where) as file:
        series, page = _checked(file, path, where, limit=not is_mask)  # predicted masks are as large as their images
        array = _channels_first(series.asarray(), series.axes, where)
    colours = len(array) - _alpha_channels(page, len(array))
    if is_mask and 0 < colours < len(array):
        refuse_transparency_alone(array[:colours], array[colours], where)
    array = array[:colours]
    return upright(array, _orientation(page)), page


def _checked(file: Any, path: Path, where: str, *, limit: bool = True) -> tuple[Any, Any]:
    """The series of full-resolution pages and the first page. Raises DataError for what cannot be read.

    limit: whether the number of pixels is limited, because all are read into memory.
    """
    pages = _pages(file)
    page_types = {f"{page.shape} of {page.dtype}" for page in pages}
    if len(page_types) > 1:
        raise DataError(f"{where}: expected pages of one size and type, got {', '.join(sorted(page_types))}")
    for page in pages:
        if limit:
            check_size((page.imagewidth, page.imagelength), where)
        _check_complete(page, path.stat().st_size, where)
    series, page = file.series[0], pages[0]
    if page.compression != PLAIN:
        require("imagecodecs", "tiff", "reading compressed TIFF files")
    if page.dtype is None or page.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected integers or floating-point numbers, got {page.dtype}")
    if page.photometric in OTHER_MODELS and not (page.photometric == YCBCR and page.compression in JPEG):
        raise DataError(
            f"{where}: expected grey values, a palette or red, green and blue, got {OTHER_MODELS[page.photometric]}"
            "; convert it, for example with `magick IN.tif -colorspace sRGB OUT.tif`"
        )
    _check_size(series, page, path, where)
    return series, page


@contextmanager
def _refuse_lost_pages(where: str) -> Iterator[None]:
    """Raise DataError if tifffile logs that a file is damaged; it would read only the pages before the damage."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
    damage = [message for message in messages if "offset" in message or "corrupt" in message]
    if damage:
        raise DataError(f"{where}: the TIFF file is damaged ({damage[0]}); copy or export it again")


def _check_complete(page: Any, size: int, where: str) -> None:
    """Raise DataError for a truncated file: decoders fill the missing end of a compressed strip without an error."""
    if any(start + length > size for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise DataError(f"{where}: the TIFF file is truncated; copy or export it again")


def _check_size(series: Any, page: Any, path: Path, where: str) -> None:
    """Raise DataError if the headers of all pages, or one tile, declare more pixels than the file can hold."""
    ratio = UNCOMPRESSED if page.compression == PLAIN else DEFLATE if page.compression in ZLIB else ANY_CODEC
    ratio = ANY_CODEC if 0 in page.databytecounts else ratio  # parts that are left out are 0
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    bits = max(8, bits) if ratio == ANY_CODEC else bits  # as they are decoded
    tile = math.prod(page.chunks) if page.is_tiled else 0
    for pixels in (series.size, page.size, tile):  # a description may declare another size than the page
        check_pixel_bytes(pixels * bits // 8, [path], where, ratio=ratio)


def _alpha_channels(page: Any, channels: int) -> int:
    """The number of last channels that are transparency: those that the header declares, or the fourth channel of an
    RGB image without a declaration, as OpenCV writes it."""
    extra_samples = page.extrasamples
    if not extra_samples:
        return int(page.photometric == RGB and channels == 4)
    return sum(sample in ALPHA for sample in extra_samples)


def _channels_first(array: np.ndarray, axes: str, where: str) -> np.ndarray:
    """The array as [C, *S], without axes of length 1 other than Y and X.

    Args:
        array: The pixels as tifffile reads them.
        axes: One letter per axis in tifffile's notation.
        where: Prefix of the error for more than one axis of channels or of depth.
    """
    remaining = [axis for axis, side in enumerate(array.shape) if side > 1 or axes[axis] in "YX"]
    array, axes = (
        array.squeeze(tuple(set(range(array.ndim)) - set(remaining))),
        "".join(axes[axis] for axis in remaining),
    )
    channels = [axis for axis, name in enumerate(axes) if name in CHANNELS]
    depth = [axis for axis, name in enumerate(axes) if name not in CHANNELS and name not in "YX"]
    if len(channels) > 1 or len(depth) > 1:
        raise DataError(
            f"{where}: expected an image or a volume, got the axes {axes} of {list(array.shape)}; save each time "
            "point and each series as a file of its own"
        )
    array = array.transpose(*channels, *depth, axes.index("Y"), axes.index("X"))
    return array if channels else array[None]
