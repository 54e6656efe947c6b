"""TIFF by tifffile: any type of number, any number of bands, pages that are a volume."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.formats.raster import check_size, scaled
from segkit.utils.errors import DataError

ENDINGS = (".tif", ".tiff")
WHITE_IS_ZERO, RGB, PALETTE = 0, 2, 3  # values of its tags
ALPHA = (1, 2)  # of the tag ExtraSamples
CHANNELS = "SC"  # axes of bands, as tifffile names them; the others beside Y and X are depth


def read_image(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """[C, H, W], or of several pages [C, D, H, W]; integers scaled to 0..1 by the range of their type, palettes as
    their colours, transparency dropped."""
    array, page = _stored(path, where)
    if page.photometric == WHITE_IS_ZERO and array.dtype.kind in "bu":
        array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
    # programs write a colour of 8 bits as 256 or as 257 times its value
    image = (page.colormap >> 8).astype(np.uint8)[:, array[0]] if page.photometric == PALETTE else array
    return scaled(image), (1.0,) * (image.ndim - 1)


def read_mask(path: Path, where: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """What is stored, [H, W], of several pages [D, H, W], whether 0 is white or black: palette indices, and 0 and 1 of
    1-bit pictures. Colours are [3, H, W]."""
    array, _page = _stored(path, where)
    spacing = (1.0,) * (array.ndim - 1)
    if len(array) not in (1, 3):
        raise DataError(f"{where}: expected grey, palette or colours, got {len(array)} channels")
    return (array[0] if len(array) == 1 else array), spacing


def number_type(path: Path) -> str:
    """Of a channel."""
    from tifffile import TiffFile

    with TiffFile(path, _multifile=False) as file:
        page: Any = file.pages[0]
        return "uint1" if page.dtype == bool else str(page.dtype)


def page_count(path: Path) -> int:
    """How many pictures the file holds, without thumbnails and the levels of a pyramid."""
    from tifffile import TiffFile

    with TiffFile(path, _multifile=False) as file:
        return len(_pages(file))


def _pages(file: Any) -> list[Any]:
    return [page for page in map(file.pages.get, range(len(file.pages))) if not page.is_reduced] or [file.pages.get(0)]


def _stored(path: Path, where: str) -> tuple[np.ndarray, Any]:
    """[C, *S] and the first page, which says what the numbers mean."""
    from tifffile import TiffFile

    # other files that its metadata name are no part of it
    with _no_page_lost(where), TiffFile(path, _multifile=False) as file:
        pages = _pages(file)
        kinds = {f"{page.shape} of {page.dtype}" for page in pages}
        if len(kinds) > 1:
            raise DataError(f"{where}: expected pages of one size and type, got {', '.join(sorted(kinds))}")
        for page in pages:
            check_size((page.imagewidth, page.imagelength), where)
            _check_whole(page, path.stat().st_size, where)
        series, page = file.series[0], pages[0]
        if page.dtype is None or page.dtype.kind not in "biuf":
            raise DataError(f"{where}: expected whole or floating numbers, got {page.dtype}")
        array = _in_order(series.asarray(), series.axes, where)
    return array[: len(array) - _alphas(page, len(array))], page


@contextmanager
def _no_page_lost(where: str) -> Iterator[None]:
    """What the library finds wrong with a file it logs, and goes on with the pages before."""
    heard = logging.Handler(logging.WARNING)
    found: list[str] = []
    heard.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(heard)
    try:
        yield
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagates
    lost = [words for words in found if "offset" in words or "corrupt" in words]
    if lost:
        raise DataError(f"{where}: the TIFF file is damaged ({lost[0]}); copy or export it again")


def _check_whole(page: Any, size: int, where: str) -> None:
    """Decoders fill what lacks at the end of a compressed strip."""
    if any(start + length > size for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise DataError(f"{where}: the TIFF file is truncated; copy or export it again")


def _alphas(page: Any, channels: int) -> int:
    """How many of the last channels are transparency: those that are said to be, or a fourth of RGB of which nothing is
    said, as OpenCV writes it."""
    said = page.extrasamples
    if not said:
        return int(page.photometric == RGB and channels == 4)
    return sum(kind in ALPHA for kind in said)


def _in_order(array: np.ndarray, axes: str, where: str) -> np.ndarray:
    """[C, *S], without axes of length 1 beside Y and X."""
    kept = [axis for axis, side in enumerate(array.shape) if side > 1 or axes[axis] in "YX"]
    array, axes = array.squeeze(tuple(set(range(array.ndim)) - set(kept))), "".join(axes[axis] for axis in kept)
    channels = [axis for axis, name in enumerate(axes) if name in CHANNELS]
    depth = [axis for axis, name in enumerate(axes) if name not in CHANNELS and name not in "YX"]
    if len(channels) > 1 or len(depth) > 1:
        raise DataError(
            f"{where}: expected an image or a volume, got the axes {axes} of {list(array.shape)}; save times and "
            "series as files of their own"
        )
    array = array.transpose(*channels, *depth, axes.index("Y"), axes.index("X"))
    return array if channels else array[None]
