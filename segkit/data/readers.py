"""Reading images and masks of the formats in `segkit.data.formats`, and checking what the numbers in a mask mean.

Volumes of medical formats are turned to the orientation closest to RAS, image and mask alike, with lengths in mm;
pictures have pixels for a unit; arrays are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from segkit.data.cases import Case, MaskFile, RawCase, check_finite, mask_dtype
from segkit.data.formats import EXTENSIONS, FORMATS, Format, case_name, format_name, format_of, is_image, is_raster
from segkit.data.formats.geometry import Geometry, check_same_geometry, ras_affine, ras_orientation
from segkit.data.mask_encoding import PLAIN, MaskCode
from segkit.data.mask_validation import WayOut, check_mask, likely_cause
from segkit.labels import Labels
from segkit.utils.errors import DataError, DataErrors, MissingExtra


def image_files(source: Path) -> list[Path]:
    """The images of a folder, sorted, or the one file or series given. Raises DataError if there are none."""
    if source.is_file() or (source.is_dir() and is_image(source)):
        return [source]
    if not source.is_dir():
        raise DataError(f"expected an image or a folder of images, found nothing at {source}")
    files = sorted(file for file in source.iterdir() if is_image(file))
    if not files:
        raise DataError(f"expected images in {source}, found no file that ends in {', '.join(EXTENSIONS)}")
    by_name: dict[str, Path] = {}
    for file in files:
        other = by_name.setdefault(case_name(file), file)
        if other != file:
            raise DataError(f"{other} and {file} have the same name but for the ending; rename one of them")
    return files


def read_image(paths: Path | Sequence[Path], case: str | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image as (float32 [C, *S], spacing of length D); several files are its channels, one after another.

    Pictures: integers are scaled to 0..1 by the range of their type, grey has C = 1, colours are red, green, blue,
    transparency is dropped, pages of a TIFF are a volume, spacing is 1 pixel. Volumes: values as stored, turned to RAS,
    a fourth axis is the channels, spacing in mm. Arrays: values as stored, [H, W] or [C, *S], spacing 1.

    Raises DataError for a file that is missing, empty, truncated, of another format, or holds NaN, and for files of one
    image that differ in size or spacing.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    images, spacings = zip(*(_read_image_file(path, case) for path in files), strict=True)
    for file, image, spacing in zip(files, images, spacings, strict=True):
        if image.shape[1:] != images[0].shape[1:] or not np.allclose(spacing, spacings[0], rtol=1e-3):
            raise DataError(
                f"{_where(case, file)}: expected the size {list(images[0].shape[1:])} and spacing {spacings[0]} of "
                f"{files[0]}, got {list(image.shape[1:])} and {spacing}; save all channels on the same grid"
            )
    return (images[0] if len(images) == 1 else np.concatenate(images)), spacings[0]


def _read_image_file(path: Path, case: str | None) -> tuple[np.ndarray, tuple[float, ...]]:
    place = _where(case, path)
    with _reading(path, place) as kind:
        array, spacing = kind.read_image(path, place)
    image = array[None] if array.ndim == len(spacing) else array
    if image.ndim not in (3, 4) or not image.size:
        raise DataError(f"{place}: expected an image [C, H, W] or [C, D, H, W], got the shape {list(image.shape)}")
    image = np.ascontiguousarray(image, dtype=np.float32)
    check_finite(image, place)
    return image, spacing


def read_mask(
    path: Path,
    labels: Labels,
    code: MaskCode = PLAIN,
    case: str | None = None,
    way_out: WayOut = likely_cause,
) -> np.ndarray:
    """Read a mask as class numbers [*S], or as [K, *S] of 0 and 1 for overlapping classes: uint8 or int32.

    Palette pictures give palette indices, 1-bit pictures 0 and 1; floating values are accepted if all are whole. code:
    how the numbers of the file are to be understood. way_out: says what to do about values that are no class.

    Raises DataError for an unreadable file, a colour picture without `colors`, a wrong number of axes, and values that
    are neither a class nor `ignore_index`.
    """
    path = Path(path)
    stored, colours = stored_mask(path, case)
    mask = code.decoded(stored, labels, _where(case, path), colours=colours)
    check_mask(mask, labels, case if case is not None else case_name(path), path, way_out)
    return np.ascontiguousarray(mask, dtype=mask_dtype(labels))


def read_masks(
    masks: Sequence[MaskFile], labels: Labels, code: MaskCode = PLAIN, case: str | None = None
) -> np.ndarray:
    """The mask that one or several files make: see `MaskFile`. Files of one class are united.

    Raises DataError for what `read_mask` does, files that differ in size, and, where classes exclude each other, pixels
    that files of several classes claim.
    """
    if len(masks) == 1 and masks[0].stands_for is None:
        return read_mask(masks[0].path, labels, code, case)
    planes = _planes(masks, labels, code, case)
    if labels.has_mask_channels:
        mask = np.stack([planes[name] for name in labels.names])
        return np.ascontiguousarray(mask, dtype=mask_dtype(labels))
    claimed = np.sum(list(planes.values()), axis=0, dtype=np.int64)
    if (claimed > 1).any():
        named = ", ".join(name for name, plane in planes.items() if (plane & (claimed > 1)).any())
        raise DataError(
            f"{_where(case, masks[0].path)}: expected one class a pixel, got {int((claimed > 1).sum())} pixels that "
            f"the masks of several claim ({named}); write `mode: multilabel` under `labels` for classes that overlap"
        )
    mask = np.full(claimed.shape, number_of_background(labels, _where(case, masks[0].path)), dtype=mask_dtype(labels))
    for name, plane in planes.items():
        mask[plane] = labels.names.index(name)
    return mask


def number_of_background(labels: Labels, where: str) -> int:
    """What pixels are that belong to no object. Raises DataError where no class is meant for them."""
    if labels.mode == "multiclass" and labels.background_channel is None:
        raise DataError(
            f"{where}: its objects leave pixels that are of none of {', '.join(labels.names)}; add a class for them, "
            f"`names: [background, {', '.join(labels.names)}]` under `labels`"
        )
    return labels.background_channel or 0


def _planes(masks: Sequence[MaskFile], labels: Labels, code: MaskCode, case: str | None) -> dict[str, np.ndarray]:
    """Where each class is, by what its files hold that is not 0."""
    planes: dict[str, np.ndarray] = {}
    for file in masks:
        place = _where(case, file.path)
        if file.stands_for not in labels.names or labels.regions is not None:
            raise DataError(f"{place}: expected the mask of one of {', '.join(labels.names)}, got {file.stands_for}")
        stored, colours = stored_mask(file.path, case)
        plane = stored.max(0) if colours else stored
        plane = plane[0] if plane.ndim == 4 and plane.shape[0] == 1 else plane
        found = plane >= code.threshold if code.threshold is not None else plane != 0
        other = planes.setdefault(str(file.stands_for), found)
        first = next(iter(planes.values()))
        if found.shape != first.shape or found.ndim not in (2, 3):
            raise DataError(
                f"{place}: expected a mask of the size {list(first.shape)} of {masks[0].path}, got {list(found.shape)}"
            )
        planes[str(file.stands_for)] = other | found
    empty = np.zeros(next(iter(planes.values())).shape, bool)
    return {name: planes.get(name, empty) for name in labels.names} if labels.has_mask_channels else planes


def read_files(case: Case, labels: Labels, code: MaskCode = PLAIN) -> RawCase:
    """Read the image of a case and its mask, if it has one. Raises DataError if they do not lie on the same grid, and
    DataErrors if there is something wrong with both."""
    try:
        pixels, spacing = read_image(case.images, case.name)
    except DataError as error:
        _read_masks_too(case, labels, code, error)
        raise
    if not case.masks:
        return RawCase(pixels, None, spacing)
    numbers = read_masks(case.masks, labels, code, case.name)
    image, mask = case.images[0], case.masks[0].path
    sides = numbers.shape[1:] if labels.has_mask_channels else numbers.shape
    mask_format = format_of(mask)
    if sides != pixels.shape[1:] and mask_format is not None and mask_format.is_sliced:
        numbers = _among_slices(numbers, image, mask, _where(case.name, mask))
        sides = numbers.shape[-len(spacing) :]
    if sides != pixels.shape[1:]:
        raise DataError(
            f"{_where(case.name, image)}: expected a mask of the image's size {list(pixels.shape[1:])}, "
            f"got {list(sides)} in {mask}; save both on the same grid"
        )
    check_geometry(image, mask, _where(case.name, image))
    return RawCase(pixels, numbers, spacing)


def _read_masks_too(case: Case, labels: Labels, code: MaskCode, error: DataError) -> None:
    """So that both are told at once."""
    try:
        if case.masks:
            read_masks(case.masks, labels, code, case.name)
    except DataError as other:
        raise DataErrors(error, other) from error


def number_type(path: Path) -> str:
    """How a file stores its numbers, such as uint8, from its header alone; an empty text where that is not told."""
    with _reading(path, f"file {path}") as kind:
        return "" if kind.number_type is None else kind.number_type(path)


def check_geometry(image: Path, mask: Path, where: str, *, exactly: bool = False) -> None:
    """See `check_same_geometry`, for files whose formats say where they lie; others are not compared."""
    first, second = geometry_of(image, where), geometry_of(mask, where)
    if first is not None and second is not None:
        check_same_geometry(first, second, str(mask), where, exactly=exactly)
    elif first is not None or second is not None:
        _check_unturned(image, mask, first, second, where)


def _check_unturned(image: Path, mask: Path, first: Geometry | None, second: Geometry | None, where: str) -> None:
    """Raise DataError where one of image and mask is turned to RAS and the other does not say how it lies."""
    turned, place = ("image", first) if first is not None else ("mask", second)
    other = mask if first is not None else image
    assert place is not None
    straight = np.array_equal(ras_orientation(place.affine, where), [[0, 1], [1, 1], [2, 1]])
    if is_raster(other) or not straight:
        raise DataError(
            f"{where}: the {turned} says how it lies and is turned to RAS, first axis from left to right, and {other} "
            "does not: they would not fit; save both in one format, or the other as NIfTI, NRRD, MetaImage or DICOM "
            "with the same header"
        )


def geometry_of(path: Path, where: str) -> Geometry | None:
    """Where the voxels of a file lie; None for formats that do not say."""
    with _reading(path, where) as kind:
        return None if kind.read_geometry is None else kind.read_geometry(path, where)


def _among_slices(numbers: np.ndarray, image: Path, mask: Path, where: str) -> np.ndarray:
    """The slices of a segmentation among those of its image, 0 in the others. Raises DataError if they are none."""
    wide, narrow = geometry_of(image, where), geometry_of(mask, where)
    if wide is None or narrow is None:
        return numbers
    to_voxels = np.linalg.inv(ras_affine(wide, where)) @ ras_affine(narrow, where)
    start = np.rint(to_voxels[:3, 3]).astype(int)
    full = np.array(wide.shape)[np.argsort(ras_orientation(wide.affine, where)[:, 0])]
    stop = start + np.array(numbers.shape[-3:])
    aligned = np.allclose(to_voxels[:3, :3], np.eye(3), atol=0.01) and np.allclose(to_voxels[:3, 3], start, atol=0.1)
    if not aligned or (start < 0).any() or (stop > full).any():
        raise DataError(f"{where}: expected its slices to be some of those of {image}; resample it to the image's grid")
    whole = np.zeros((*numbers.shape[:-3], *full), numbers.dtype)
    whole[(..., *(slice(first, last) for first, last in zip(start, stop, strict=True)))] = numbers
    return whole


def stored_mask(path: Path, case: str | None = None) -> tuple[np.ndarray, bool]:
    """What a file holds, and whether its first axis is red, green and blue."""
    with _reading(path, _where(case, path)) as kind:
        stored, spacing = kind.read_mask(path, _where(case, path))
    return stored, is_raster(path) and stored.ndim > len(spacing)


def _where(case: str | None, path: Path) -> str:
    return f"case {case if case is not None else case_name(Path(path))}, file {path}"


@contextmanager
def _reading(path: Path, where: str) -> Iterator[Format]:
    """How a path is read; what readers raise for a bad file is turned into a DataError that names it."""
    if not path.exists():
        raise DataError(f"{where}: the file does not exist")
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{where}: the file is empty (0 bytes); copy or export it again")
    name = format_name(path)
    if name is None:
        what = "a folder of DICOM files" if path.is_dir() else f"a file that ends in {', '.join(EXTENSIONS)}"
        raise DataError(f"{where}: expected {what}")
    try:
        yield FORMATS[name]
    except (DataError, MissingExtra):
        raise
    except Exception as error:  # a damaged file may make a library raise whatever there is
        raise DataError(
            f"{where}: it cannot be read as {name}, it may be truncated or of another format; "
            f"copy or export it again ({type(error).__name__}: {error})"
        ) from error
