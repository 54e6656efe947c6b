"""Reading images and masks of the common formats, and checking what the numbers in a mask mean.

Pictures (PNG, JPEG, BMP, TIFF) have two axes and pixels for a unit. NIfTI volumes are turned to the orientation
closest to RAS, image and mask alike, with lengths in mm. NPY arrays are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

import numpy as np

from segkit.data.cases import DataError, RawCase, check_finite, mask_dtype
from segkit.data.mask_values import WayOut, check_mask, likely_cause
from segkit.data.nifti import check_same_place, load_nifti
from segkit.labels import Labels

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TIFF = (".tif", ".tiff")
VOLUMES = (".nii.gz", ".nii")
EXTENSIONS = (*VOLUMES, *PICTURES, ".npy")

# how a complete file ends: OpenCV fills the rest of a truncated one with grey and says nothing
LAST_BYTES = {b"\x89PNG": (b"IEND", "PNG"), b"\xff\xd8\xff": (b"\xff\xd9", "JPEG")}
PNG_GREY_WITH_ALPHA = 4  # byte 25 of a PNG file
TIFF_KIND_OF_PAGE, TIFF_REDUCED = 254, 1  # a tag, and its bit for a smaller version of another page
TAIL = 4096  # some programs append a little to a complete file


def extension(path: Path) -> str:
    """The extension as one of EXTENSIONS, in lower case, or an empty text."""
    name = path.name.lower()
    return next((known for known in EXTENSIONS if name.endswith(known)), "")


def case_name(path: Path) -> str:
    """The name of a file without its known extension: `a.b.nii.gz` -> `a.b`."""
    return path.name.removesuffix(path.name[len(path.name) - len(extension(path)) :])


def image_files(source: Path) -> list[Path]:
    """The image files of a folder, sorted, or the one file given. Raises DataError if there are none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"expected an image or a folder of images, found nothing at {source}")
    files = sorted(file for file in source.iterdir() if is_image_file(file))
    if not files:
        raise DataError(f"expected images in {source}, found no file that ends in {', '.join(EXTENSIONS)}")
    by_name: dict[str, Path] = {}
    for file in files:
        other = by_name.setdefault(case_name(file), file)
        if other != file:
            raise DataError(f"{other} and {file} have the same name but for the ending; rename one of them")
    return files


def is_image_file(path: Path) -> bool:
    """Whether a file is of a known format by its ending; files that begin with a dot are not."""
    return bool(extension(path)) and not path.name.startswith(".") and path.is_file()


def read_image(path: Path, case: str | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image as (float32 [C, *S], spacing of length D).

    Pictures: integers are scaled to 0..1 by the range of their type, grey has C = 1, colours are red, green, blue,
    transparency is dropped, spacing is 1 pixel. NIfTI: values as stored, turned to RAS, a fourth axis is the
    channels, spacing in mm. NPY: values as stored, [H, W] or [C, *S], spacing 1.

    Raises DataError for a file that is missing, empty, truncated, of another format, or holds NaN.
    """
    path = Path(path)
    where = _where(case, path)
    with _reading(path, where):
        if extension(path) in VOLUMES:
            array, spacing = load_nifti(path, where)
            image = array[None] if array.ndim == len(spacing) else array
        elif extension(path) == ".npy":
            array = _load_npy(path, where)
            image = array[None] if array.ndim == 2 else array
            spacing = (1.0,) * (image.ndim - 1)
        else:
            image, spacing = _load_picture(path, where), (1.0, 1.0)
    if image.ndim not in (3, 4) or not image.size:
        raise DataError(f"{where}: expected an image [C, H, W] or [C, D, H, W], got the shape {list(image.shape)}")
    image = np.ascontiguousarray(image, dtype=np.float32)
    check_finite(image, where)
    return image, spacing


def read_mask(
    path: Path,
    labels: Labels,
    value_map: Mapping[int, int] | None = None,
    case: str | None = None,
    way_out: WayOut = likely_cause,
) -> np.ndarray:
    """Read a mask as class numbers [*S], or as [K, *S] of 0 and 1 for overlapping classes: uint8 or int32.

    Palette pictures give palette indices, 1-bit pictures 0 and 1; floating values are accepted if all are whole.
    value_map: replaces values of the file by class numbers, all at once; values that it does not name stay. way_out:
    says what to do about values that are no class.

    Raises DataError for an unreadable file, a colour picture, a wrong number of axes, and values that are
    neither a class nor `ignore_index`.
    """
    path = Path(path)
    where = _where(case, path)
    with _reading(path, where):
        if extension(path) in VOLUMES:
            stored, _spacing = load_nifti(path, where)
        elif extension(path) == ".npy":
            stored = _load_npy(path, where)
        else:
            stored = _load_index_picture(path, where)
    raw = _whole_numbers(_mask_axes(stored, labels, where), where)
    mask = raw.copy() if value_map else raw
    for value, number in (value_map or {}).items():
        mask[raw == value] = number
    check_mask(mask, labels, case if case is not None else case_name(path), path, way_out)
    return np.ascontiguousarray(mask, dtype=mask_dtype(labels))


def read_pair(
    image: Path, mask: Path | None, labels: Labels, value_map: Mapping[int, int] | None = None, case: str | None = None
) -> RawCase:
    """Read an image and its mask. Raises DataError if they do not lie on the same grid."""
    pixels, spacing = read_image(image, case)
    if mask is None:
        return RawCase(pixels, None, spacing)
    numbers = read_mask(mask, labels, value_map, case)
    sides = numbers.shape[1:] if labels.has_mask_channels else numbers.shape
    if sides != pixels.shape[1:]:
        raise DataError(
            f"{_where(case, image)}: expected a mask of the image's size {list(pixels.shape[1:])}, "
            f"got {list(sides)} in {mask}; save both on the same grid"
        )
    if extension(Path(image)) in VOLUMES and extension(Path(mask)) in VOLUMES:
        check_same_place(Path(image), Path(mask), _where(case, image))
    return RawCase(pixels, numbers, spacing)


def _where(case: str | None, path: Path) -> str:
    return f"case {case if case is not None else case_name(Path(path))}, file {path}"


@contextmanager
def _reading(path: Path, where: str) -> Iterator[None]:
    """Turn what readers raise for a bad file into a DataError that names it."""
    if not path.is_file():
        raise DataError(f"{where}: the file does not exist")
    if not path.stat().st_size:
        raise DataError(f"{where}: the file is empty (0 bytes); copy or export it again")
    if not extension(path):
        raise DataError(f"{where}: expected a file that ends in {', '.join(EXTENSIONS)}")
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, SyntaxError, ZlibError, MemoryError) as error:
        kind = extension(path).removeprefix(".").upper()
        raise DataError(
            f"{where}: it cannot be read as {kind}, it may be truncated or of another format; "
            f"copy or export it again ({type(error).__name__}: {error})"
        ) from error


def _load_npy(path: Path, where: str) -> np.ndarray:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected an array of numbers, got {getattr(array, 'dtype', 'an archive')}")
    return array


def _load_picture(path: Path, where: str) -> np.ndarray:
    """A picture [C, H, W], floating; integers scaled to 0..1 by the range of their type."""
    import cv2

    content = path.read_bytes()
    _refuse_truncated(content, where)
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"{where}: it cannot be read as a picture ({error})") from error
    if array is None:
        raise DataError(f"{where}: it cannot be read as a picture, it may be truncated or of another format")
    if extension(path) in TIFF and cv2.imcount(str(path)) > 1:
        from PIL import Image

        with Image.open(BytesIO(content)) as picture:
            _refuse_stack(picture, where)
    if content.startswith(b"\x89PNG") and content[25] == PNG_GREY_WITH_ALPHA:
        array = array[..., 0]  # OpenCV repeats the grey three times
    image = array[None] if array.ndim == 2 else np.moveaxis(array[..., :3][..., ::-1], -1, 0)
    if not np.issubdtype(image.dtype, np.integer):
        return image
    limits = np.iinfo(image.dtype.name)
    return (image.astype(np.float32) - limits.min) / np.float32(limits.max - limits.min)


def _refuse_truncated(content: bytes, where: str) -> None:
    for first, (last, kind) in LAST_BYTES.items():
        if content.startswith(first) and last not in content[-TAIL:]:
            raise DataError(f"{where}: the {kind} file is truncated; copy or export it again")


def _refuse_stack(picture: Any, where: str) -> None:
    """Raise DataError for a file of several pictures; thumbnails and the levels of a pyramid are none."""
    pages = 0
    for page in range(getattr(picture, "n_frames", 1)):
        picture.seek(page)
        pages += not getattr(picture, "tag_v2", {}).get(TIFF_KIND_OF_PAGE, 0) & TIFF_REDUCED
    picture.seek(0)
    if pages > 1:
        raise DataError(f"{where}: expected one picture, got a stack of {pages}; save it as NIfTI or NPY")


def _load_index_picture(path: Path, where: str) -> np.ndarray:
    """The numbers [H, W] stored in a picture. Raises DataError for a picture that has colours."""
    from PIL import Image

    content = path.read_bytes()
    _refuse_truncated(content, where)
    with Image.open(BytesIO(content)) as picture:
        _refuse_stack(picture, where)
        if len(picture.getbands()) > 1:
            raise DataError(
                f"{where}: expected class numbers, got a colour coded mask (mode {picture.mode}); "
                "save it as an 8-bit grey or palette picture whose values are the class numbers"
            )
        return np.array(picture)


def _mask_axes(stored: np.ndarray, labels: Labels, where: str) -> np.ndarray:
    """The mask as [*S], or [K, *S] for overlapping classes, with a lone channel taken off."""
    if not labels.has_mask_channels:
        stored = stored[0] if stored.ndim == 4 and stored.shape[0] == 1 else stored
        if stored.ndim in (2, 3) and stored.size:
            return stored
        raise DataError(f"{where}: expected a mask [H, W] or [D, H, W], got the shape {list(stored.shape)}")
    channels = len(labels.names)
    if stored.ndim in (3, 4) and stored.shape[0] == channels and stored.size:
        return stored
    raise DataError(
        f"{where}: overlapping classes need a mask [{channels}, H, W] or [{channels}, D, H, W] of 0 and 1, as NPY or "
        f"NIfTI with the classes on the fourth axis, got the shape {list(stored.shape)}; "
        "to make them from class numbers, give `regions` under `labels`"
    )


def _whole_numbers(stored: np.ndarray, where: str) -> np.ndarray:
    """The mask as int64. Raises DataError if it holds fractions or NaN."""
    if stored.dtype.kind in "biu":
        return stored.astype(np.int64)
    fractions = stored[~(np.isfinite(stored) & (stored == np.rint(stored)))]
    if fractions.size:
        raise DataError(
            f"{where}: expected whole class numbers, got {fractions.size} pixels that are not, such as "
            f"{float(fractions[0]):g}; probabilities need a threshold first, a resampled mask nearest neighbours"
        )
    return stored.astype(np.int64)
