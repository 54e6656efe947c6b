"""Reading and checking images and masks in all formats of `segkit.data.formats`.

Volumes in medical formats, images and masks alike, are reoriented to the closest orientation to RAS, with lengths in
mm. Raster images have lengths in pixels. Arrays are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from segkit.data.cases import Case, MaskFile, RawCase, check_finite, mask_dtype
from segkit.data.formats import EXTENSIONS, FORMATS, Format, case_name, format_name, format_of, is_image, is_raster
from segkit.data.formats.geometry import Geometry, check_same_geometry, covers_less, ras_orientation, slices_in
from segkit.data.formats.header_checks import check_regular
from segkit.data.mask_encoding import AS_STORED, MaskEncoding
from segkit.data.mask_validation import Advice, check_mask, likely_cause, under_data
from segkit.data.pieces import ArrayPieces, Pieces, is_large
from segkit.labels import Labels
from segkit.utils.errors import DataError, DataErrors, MissingExtra, RunError, reason
from segkit.utils.files import temporary_folder
from segkit.utils.text import one_line


def image_files(source: Path) -> list[Path]:
    """The images in a folder, sorted by name, or the single file or DICOM series that `source` is.

    Raises DataError if there are none, or if two have the same name except for the ending.
    """
    if source.is_file() or (source.is_dir() and is_image(source)):
        return [source]
    if not source.is_dir():
        raise DataError(f"expected an image or a folder of images, found nothing at {source}")
    files = sorted(file for file in source.iterdir() if is_image(file))
    if not files:
        raise DataError(f"expected images in {source}, found no file with the ending {', '.join(EXTENSIONS)}")
    by_name: dict[str, Path] = {}
    for file in files:
        other = by_name.setdefault(case_name(file), file)
        if other != file:
            raise DataError(f"{other} and {file} have the same name except for the ending; rename one of them")
    return files


def read_image(paths: Path | Sequence[Path], case: str | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read an image as (float32 [C, *S], spacing of length D). The channels of several files are concatenated.

    Raster images: integers are scaled to 0..1 by the range of their type; greyscale has C = 1, colour is red, green,
        blue; transparency is dropped; the pages of a TIFF form a volume; the spacing is 1 pixel.
    Volumes: values as stored, reoriented to RAS; a fourth axis holds the channels; the spacing is in mm.
    Arrays: values as stored, [H, W] or [C, *S]; the spacing is 1.

    Raises DataError for a file that is missing, empty, truncated, of another format, or contains NaN or infinity, and
    if the files of one image differ in size or spacing.
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
    where = _where(case, path)
    with _reading(path, where) as file_format:
        array, spacing = file_format.read_image(path, where)
    image = array[None] if array.ndim == len(spacing) else array
    if image.ndim not in (3, 4) or not image.size:
        raise DataError(f"{where}: expected an image [C, H, W] or [C, D, H, W], got shape {list(image.shape)}")
    image = np.ascontiguousarray(image, dtype=np.float32)
    check_finite(image, where)
    return image, spacing


def is_read_in_pieces(paths: Sequence[Path], case: str | None = None) -> bool:
    """Whether an image is read in pieces: one large file of a format that can be mapped.

    Raises DataError for a header that cannot be read.
    """
    if len(paths) != 1:
        return False
    where = _where(case, paths[0])
    with _reading(paths[0], where) as file_format:
        declared = file_format.declared_numbers
        return declared is not None and is_large(declared(paths[0], where))


@contextmanager
def large_image(path: Path, folder: Path, case: str | None = None) -> Iterator[tuple[Pieces, tuple[float, ...]]]:
    """An image in pieces, and its spacing, for the length of the block: what `read_image` gives, read box by box.

    folder: where temporary files are made. Raises DataError as `read_image`; for pixels that are not finite, when they
    are read.
    """
    where = _where(case, path)
    with temporary_folder(folder) as temporary:
        with _reading(path, where) as file_format:
            assert file_format.map_image is not None
            array, convert, spacing = file_format.map_image(path, where, temporary)
        yield ArrayPieces(array, convert, where), spacing


def read_mask(
    path: Path,
    labels: Labels,
    encoding: MaskEncoding = AS_STORED,
    case: str | None = None,
    advice: Advice | None = None,
) -> np.ndarray:
    """Read a mask as class numbers [*S], or as [K, *S] of 0 and 1 for overlapping classes: uint8 or int32.

    Palette images yield palette indices, 1-bit images 0 and 1. Floating-point values are accepted if all are whole.

    encoding: how classes are encoded in the file.
    advice: describes how to fix values that are neither a class nor `ignore_index`; see `check_mask`.

    Raises DataError for an unreadable file, an RGB image without `colors`, a wrong number of axes, and values that are
    neither a class nor `ignore_index`.
    """
    path = Path(path)
    stored, colours = stored_mask(path, case)
    mask = encoding.decode(stored, labels, _where(case, path), colours=colours)
    advice = advice or partial(likely_cause, accepted=encoding.accepted)
    check_mask(mask, labels, case if case is not None else case_name(path), path, advice)
    return np.ascontiguousarray(mask, dtype=mask_dtype(labels))


def read_masks(
    masks: Sequence[MaskFile], labels: Labels, encoding: MaskEncoding = AS_STORED, case: str | None = None
) -> np.ndarray:
    """Read a mask from one or several files, see `MaskFile`. Several files, of one class or of all, form their union.

    Raises the errors of `read_mask`, and DataError if files differ in size or if files of several classes contain the
    same pixel although the classes are exclusive.
    """
    if all(file.class_name is None for file in masks):
        return _united([read_mask(file.path, labels, encoding, case) for file in masks], masks, labels, case)
    planes = _planes(masks, labels, encoding, case)
    if labels.has_mask_channels:
        mask = np.stack([planes[name] for name in labels.names])
        return np.ascontiguousarray(mask, dtype=mask_dtype(labels))
    classes_per_pixel = np.sum(list(planes.values()), axis=0, dtype=np.int64)
    overlap = classes_per_pixel > 1
    if overlap.any():
        overlapping = ", ".join(name for name, plane in planes.items() if (plane & overlap).any())
        raise DataError(
            f"{_where(case, masks[0].path)}: expected one class per pixel, got {int(overlap.sum())} pixels in the "
            f"masks of several classes ({overlapping}); for overlapping classes write `mode: multilabel` under `labels`"
        )
    mask = np.full(overlap.shape, background_value(labels, _where(case, masks[0].path)), dtype=mask_dtype(labels))
    for name, plane in planes.items():
        mask[plane] = labels.names.index(name)
    return mask


def _united(parts: Sequence[np.ndarray], masks: Sequence[MaskFile], labels: Labels, case: str | None) -> np.ndarray:
    """The union of masks of class numbers [*S], or of 0 and 1 [K, *S]."""
    united = parts[0]
    background = 0 if labels.has_mask_channels or len(parts) == 1 else background_value(labels, str(masks[0].path))
    for part, file in zip(parts[1:], masks[1:], strict=True):
        where = _where(case, file.path)
        if part.shape != united.shape:
            raise DataError(
                f"{where}: expected the size {list(united.shape)} of {masks[0].path}, got {list(part.shape)}; save all "
                "masks of a case on the same grid"
            )
        conflicts = int(((part != background) & (united != background) & (part != united)).sum())
        if conflicts:
            raise DataError(
                f"{where}: expected one class per pixel, but {conflicts} pixels have another class in a mask before "
                f"it, such as {masks[0].path}; correct the masks, or leave one of them out"
            )
        united = np.where(united == background, part, united)
    return united


def background_value(labels: Labels, where: str) -> int:
    """The class number of pixels that belong to no object. Raises DataError if there is no such class."""
    if labels.mode == "multiclass" and labels.background_channel is None:
        raise DataError(
            f"{where}: some pixels belong to no object of {', '.join(labels.names)}; add a class for them, such as "
            f"`names: [background, {', '.join(labels.names)}]` under `labels`"
        )
    return labels.background_channel or 0


def _planes(
    masks: Sequence[MaskFile], labels: Labels, encoding: MaskEncoding, case: str | None
) -> dict[str, np.ndarray]:
    """One bool array [*S] per class: the union of the non-zero pixels of its files."""
    planes: dict[str, np.ndarray] = {}
    for file in masks:
        where = _where(case, file.path)
        if file.class_name not in labels.names or labels.regions is not None:
            raise DataError(f"{where}: expected the mask of one of {', '.join(labels.names)}, got {file.class_name}")
        stored, colours = stored_mask(file.path, case)
        plane = stored.max(0) if colours else stored
        plane = plane[0] if plane.ndim == 4 and plane.shape[0] == 1 else plane
        present = plane >= encoding.threshold if encoding.threshold is not None else plane != 0
        previous = planes.setdefault(str(file.class_name), present)
        first = next(iter(planes.values()))
        if present.shape != first.shape or present.ndim not in (2, 3):
            raise DataError(
                f"{where}: expected the size {list(first.shape)} of {masks[0].path}, got {list(present.shape)}; "
                "save all masks of a case on the same grid"
            )
        planes[str(file.class_name)] = previous | present
    empty = np.zeros(next(iter(planes.values())).shape, bool)
    return {name: planes.get(name, empty) for name in labels.names} if labels.has_mask_channels else planes


def read_files(case: Case, labels: Labels, encoding: MaskEncoding = AS_STORED) -> RawCase:
    """Read the image of a case and its mask, if it has one.

    Raises DataError if one of them is invalid or if they are not on the same grid, and DataErrors if both are invalid.
    """
    try:
        image, spacing = read_image(case.images, case.name)
    except DataError as error:
        _check_masks_too(case, labels, encoding, error)
        raise
    if not case.masks:
        return RawCase(image, None, spacing)
    mask = read_masks(case.masks, labels, encoding, case.name)
    image_file, mask_file = case.images[0], case.masks[0].path
    size = mask.shape[1:] if labels.has_mask_channels else mask.shape
    mask_format = format_of(mask_file)
    if size != image.shape[1:] and mask_format is not None and mask_format.is_sliced:
        mask = _fit_slices(mask, image.shape[1:], image_file, mask_file, _where(case.name, mask_file))
        size = mask.shape[-len(spacing) :]
    if size != image.shape[1:]:
        advice = _other_axes(size, image.shape[1:], encoding) or "save both on the same grid"
        raise DataError(
            f"{_where(case.name, image_file)}: expected a mask of the image's size {list(image.shape[1:])}, "
            f"got {list(size)} in {mask_file}; {advice}{_turned(image_file, mask_file)}"
        )
    check_geometry(image_file, mask_file, _where(case.name, image_file))
    return RawCase(image, only_annotated(mask, case, labels), spacing, _read_weight(case, image.shape[1:]))


def _read_weight(case: Case, size: tuple[int, ...]) -> np.ndarray | None:
    """The weight of each pixel, float32 [*S]; None if the case has none. Raises DataError."""
    if case.weight is None:
        return None
    where = _where(case.name, case.weight)
    weight, _spacing = read_image(case.weight, case.name)
    if weight.shape != (1, *size):
        raise DataError(
            f"{where}: expected one weight per pixel of the image, {list(size)}, got {list(weight.shape)}; save the "
            "weights as a greyscale picture, a volume or an array on the grid of the image"
        )
    if weight.min() < 0:
        raise DataError(f"{where}: expected weights of 0 or more, got {weight.min():g}")
    return weight[0]


def only_annotated(mask: np.ndarray, case: Case, labels: Labels) -> np.ndarray:
    """A mask [K, *S] of overlapping classes in which the planes of classes that were not annotated are ignored."""
    if case.annotated is None:
        return mask
    ignored = [number for number, name in enumerate(labels.names) if name not in case.annotated]
    mask = mask.copy()
    mask[ignored] = labels.padding_value
    return mask


def _check_masks_too(case: Case, labels: Labels, encoding: MaskEncoding, error: DataError) -> None:
    """After an error in the image, read the masks as well. Raises DataErrors if they are also invalid."""
    try:
        if case.masks:
            read_masks(case.masks, labels, encoding, case.name)
    except DataError as other:
        raise DataErrors(error, other) from error


def number_type(path: Path) -> str:
    """The stored number type, such as uint8, read from the header; an empty string if the header does not state it."""
    with _reading(path, f"file {path}") as file_format:
        return "" if file_format.number_type is None else file_format.number_type(path)


def mask_ending(path: Path) -> str:
    """The file name ending of masks predicted for an image. Raises DataError if the image has to be read and cannot."""
    with _reading(path, f"file {path}") as file_format:
        return file_format.mask_ending(path)


def header_notes(case: Case) -> list[str]:
    """What the headers of a volume and its mask say differently about the directions of the axes.

    Volumes are reoriented by their headers, so the voxels fit together only if the headers are right.
    """
    notes = []
    for path in case.files:
        where = _where(case.name, path)
        with _reading(path, where) as file_format:
            conflict = None if file_format.header_conflict is None else file_format.header_conflict(path, where)
        notes += [] if conflict is None else [f"{where}: {conflict}"]
    if case.images and case.masks:
        image, mask = case.images[0], case.masks[0].path
        geometries = [geometry_of(path, _where(case.name, path)) for path in (image, mask)]
        orientations = [ras_orientation(one.affine, case.name) for one in geometries if one is not None]
        if len(orientations) == 2 and not np.array_equal(orientations[0], orientations[1]):
            notes.append(
                f"{_where(case.name, mask)}: it is stored in another orientation than {image}; both were reoriented by "
                "their headers. Compare them with `segkit data preview`"
            )
    return notes


def _other_axes(mask: tuple[int, ...], image: tuple[int, ...], encoding: MaskEncoding) -> str:
    """What to do about a mask that has one axis more than its image, which holds classes; empty for other masks."""
    if mask[1:] == image:
        advice = under_data("one_hot: true", "save numpy.argmax(mask, 0)", encoding.accepted)
        return f"if its first axis holds one channel per class, {advice}"
    if mask[:-1] == image:
        return "if its last axis holds one channel per class, save numpy.argmax(mask, -1)"
    return ""


def orientation(path: Path) -> int:
    """The EXIF orientation by which viewers turn a picture, 1 if it is shown as it is stored."""
    with _reading(path, f"file {path}") as file_format:
        return 1 if file_format.orientation is None else file_format.orientation(path)


def _turned(image: Path, mask: Path) -> str:
    """What to say about an image and a mask of different sizes if one of them is turned by its EXIF orientation."""
    turned = [(path, number) for path, number in ((path, orientation(path)) for path in (image, mask)) if number != 1]
    texts = [f"{path} is turned by its EXIF orientation {number}" for path, number in turned]
    return f" ({' and '.join(texts)}: the mask must show the picture as viewers show it)" if texts else ""


def check_geometry(image: Path, mask: Path, where: str, *, exactly: bool = False) -> None:
    """Check that image and mask have the same geometry, see `check_same_geometry`.

    Nothing is compared if neither format stores a geometry. If only one does, reading must not reorient it, and the
    other file must not be a raster image. Raises DataError otherwise.
    """
    image_geometry, mask_geometry = geometry_of(image, where), geometry_of(mask, where)
    mask_format = format_of(mask)
    if image_geometry is not None and mask_geometry is not None:
        if mask_format is not None and mask_format.is_sliced and covers_less(mask_geometry, image_geometry, where):
            slices_in(image_geometry, mask_geometry, image, where)
            return
        check_same_geometry(image_geometry, mask_geometry, str(mask), where, exactly=exactly)
    elif image_geometry is not None:
        _check_not_reoriented("image", image_geometry, mask, where)
    elif mask_geometry is not None:
        _check_not_reoriented("mask", mask_geometry, image, where)


def _check_not_reoriented(kind: str, geometry: Geometry, other: Path, where: str) -> None:
    """Check a pair of files if only one of them stores a geometry, see `check_geometry`.

    kind: the file with the geometry, `image` or `mask`. other: the file without one.
    """
    is_ras = np.array_equal(ras_orientation(geometry.affine, where), [[0, 1], [1, 1], [2, 1]])
    if is_raster(other) or not is_ras:
        raise DataError(
            f"{where}: the {kind} stores its orientation and is reoriented to RAS, but {other} stores none, so the two "
            "would not match; save both in one format, or the other as NIfTI, NRRD, MetaImage or DICOM with the same "
            "header"
        )


def geometry_of(path: Path, where: str) -> Geometry | None:
    """The geometry of a file, which says where its voxels lie in space; None for formats that do not store one."""
    with _reading(path, where) as file_format:
        return None if file_format.read_geometry is None else file_format.read_geometry(path, where)


def _fit_slices(mask: np.ndarray, size: tuple[int, ...], image_file: Path, mask_file: Path, where: str) -> np.ndarray:
    """Fit a mask of single slices to its image: without its axis of slices for a plane, or with 0 in the slices of a
    volume that it does not cover.

    Raises DataError if its slices are not slices of the image.
    """
    if len(size) == 2:
        axes = [axis for axis in range(mask.ndim - 3, mask.ndim) if mask.shape[axis] == 1]
        planes = [plane for plane in (mask.squeeze(axis) for axis in axes) if plane.shape[-2:] == size]
        return planes[0] if planes else mask
    image_geometry, mask_geometry = geometry_of(image_file, where), geometry_of(mask_file, where)
    if image_geometry is None or mask_geometry is None:
        return mask
    slices = slices_in(image_geometry, mask_geometry, image_file, where)
    full_mask = np.zeros((*mask.shape[: mask.ndim - 3], *size), mask.dtype)
    full_mask[(..., *slices)] = mask
    return full_mask


def stored_mask(path: Path, case: str | None = None) -> tuple[np.ndarray, bool]:
    """Read a mask as stored. Returns the array and whether its first axis is red, green and blue."""
    with _reading(path, _where(case, path)) as file_format:
        stored, spacing = file_format.read_mask(path, _where(case, path))
    return stored, is_raster(path) and stored.ndim > len(spacing)


def _where(case: str | None, path: Path) -> str:
    return f"case {case if case is not None else case_name(Path(path))}, file {path}"


@contextmanager
def _reading(path: Path, where: str) -> Iterator[Format]:
    """Yield the format of a path, and turn the exceptions of its reader into a DataError that names the file."""
    if not path.exists():
        raise DataError(f"{where}: the file does not exist")
    check_regular(path, where)
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{where}: the file is empty (0 bytes); copy or export it again")
    name = format_name(path)
    if name is None:
        series = "a folder with the slices of one DICOM series, at different positions"
        expected = series if path.is_dir() else f"a file with the ending {', '.join(EXTENSIONS)}"
        raise DataError(f"{where}: expected {expected}")
    try:
        yield FORMATS[name]
    except (DataError, RunError, MissingExtra, MemoryError):
        raise
    except Exception as error:  # libraries raise exceptions of any type for damaged files
        raise DataError(
            f"{where}: the file cannot be read as {name}; it may be truncated or of another format; "
            f"copy or export it again ({one_line(reason(error))})"
        ) from error
