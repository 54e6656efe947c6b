"""The layouts of the Medical Segmentation Decathlon and nnU-Net: a dataset.json next to folders of volumes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from segkit.data.cases import Case, MaskFile
from segkit.data.documents import Entry, FileName, Text, read_document
from segkit.data.formats import EXTENSIONS, case_name, extension, is_image, is_raster
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.sources.base import (
    FileSource,
    existing_folder,
    files_like,
    group_reader,
    in_any_form,
    listed_file,
    refuse_unpaired,
    sorted_cases,
)
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed, one_line

RGB = 3
MAX_CLASS = 999_999_999
IMAGES, MASKS, TEST_IMAGES = "imagesTr", "labelsTr", "imagesTs"
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")  # the name of a file that holds one channel of a case


class DecathlonSource(FileSource):
    """The training cases of a dataset.json.

    These are the cases listed under `training` (Decathlon) or `dataset` (nnU-Net), or otherwise all cases in imagesTr
    and labelsTr (nnU-Net). In the layout of nnU-Net a case has one image file per channel, `case_0000.nii.gz`,
    `case_0001.nii.gz`, in the order of `channel_names`.

    root: the folder of dataset.json.
    group: a regular expression with one pair of brackets that extracts the group from the case name.
    value_map: maps stored mask values to class numbers.
    unpaired: `refuse` raises an error for files in imagesTr and labelsTr that belong to no case; `skip` skips them.

    Raises DataError if dataset.json cannot be read, lists files that are missing or outside `root`, or differs from
    `labels` in its classes, regions or ignore value, and for files that belong to no case.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        root: Path,
        group: str | None = None,
        value_map: dict[int, int] | None = None,
        unpaired: Literal["refuse", "skip"] = "refuse",
    ):
        super().__init__(labels, MaskEncoding(value_map))
        root = Path(root)
        file = root / "dataset.json"
        listing = read_listing(file)
        _check_classes(listing.labels or {}, labels, value_map or {}, file)
        group_of = group_reader(group)
        if listing.training is not None:
            cases = [_listed_case(entry, root, group_of) for entry in listing.training]
        else:
            cases = _nnunet_cases(listing, root, group_of)
        if unpaired == "refuse":
            refuse_unpaired(_unlisted(root, cases))
        self.cases = sorted_cases(cases, root)


ClassNumber = Annotated[int, Field(ge=0, le=MAX_CLASS)]


class _Pair(Entry):
    image: FileName
    label: FileName


class _Image(Entry):
    image: FileName


class _Files(Entry):
    images: Annotated[list[FileName], Field(min_length=1)]
    label: FileName


class Listing(Entry):
    """A dataset.json, with the fields of the Decathlon and of both versions of nnU-Net."""

    labels: dict[Text, ClassNumber | Text | list[ClassNumber]] | None = None
    training: list[_Pair] | None = None
    test: list[FileName | _Image] | None = None
    dataset: dict[FileName, _Files] | None = None
    channel_names: dict[str, str] | None = None
    modality: dict[str, str] | None = None
    file_ending: str | None = None

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, Any] | None) -> dict[str, Any] | None:
        """Numbers to names, as in the Decathlon, or names to numbers or to lists of numbers, as in nnU-Net."""
        for name, value in (labels or {}).items():
            is_number = isinstance(value, (int, list)) or _is_number(value)
            if not is_number and not all(map(_is_number, labels or {})):
                raise ValueError(
                    f"a number, or a list of numbers, for the class {one_line(name, 80)}, got {one_line(value, 80)!r}"
                )
        return labels

    @field_validator("file_ending")
    @classmethod
    def _check_ending(cls, ending: str | None) -> str | None:
        """An ending of a format, since files are searched by it."""
        if ending is not None and ending.lower() not in EXTENSIONS:
            raise ValueError(f"one of {', '.join(EXTENSIONS)}, got {one_line(ending, 80)}")
        return ending

    @property
    def channels(self) -> int:
        """The number of image files of a case."""
        return len(self.channel_names or self.modality or {})


def _is_number(text: object) -> bool:
    """Whether text is a class number that is not too large."""
    return isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 9


def read_listing(file: Path) -> Listing:
    """Read a dataset.json. Raises DataError if it cannot be read or does not describe cases in a known form."""
    if not file.is_file():
        raise DataError(f"expected {file}, but it does not exist; `root` is the folder that contains dataset.json")
    listing = read_document(file, Listing)
    if listing.training is None and not (listing.file_ending and listing.channels):
        raise DataError(
            f'{file}: expected "training" to be a list of {{"image": ..., "label": ...}}, or '
            'nnU-Net\'s "channel_names" and "file_ending"'
        )
    return listing


def _check_classes(classes: Mapping[str, Any], labels: Labels, value_map: Mapping[int, int], file: Path) -> None:
    """Raise DataError if dataset.json names classes and they differ from those of the labels."""
    if not classes:
        return
    # {"0": "background"} in the Decathlon, {"background": 0} or {"whole": [1, 2]} in nnU-Net
    value_of = {str(value): int(key) for key, value in classes.items()} if _all_digits(classes) else dict(classes)
    ignored = value_of.pop("ignore", None)
    if isinstance(ignored, int) and value_map.get(ignored, ignored) != labels.ignore_index:
        raise DataError(f"{file} ignores the value {ignored}; write `ignore_index: {ignored}` under `labels`")
    regions = {name: tuple(values) for name, values in value_of.items() if isinstance(values, list)}
    if regions:
        _check_regions({name: _values(values) for name, values in value_of.items()}, labels, file)
    elif not labels.has_mask_channels and labels.regions is None:
        values = {value_map.get(int(value), int(value)) for value in value_of.values()} - {labels.ignore_index}
        if len(values) != len(labels.values):
            raise DataError(
                f"{file} names {len(values)} classes, {', '.join(value_of)}, but `labels` has "
                f"{len(labels.values)}, {', '.join(labels.names)}; change the names, or merge classes with `value_map`"
            )
        given = {value_map.get(int(value), int(value)): name for name, value in value_of.items()}
        _check_order([given[value] for value in sorted(values)], labels.names, file)


def _check_order(names: Sequence[str], used: Sequence[str], file: Path) -> None:
    """Raise DataError if the classes of dataset.json have the names of the labels, but in another order."""
    if list(names) != list(used) and sorted(names) == sorted(used):
        raise DataError(
            f"{file} has the classes {', '.join(names)} in the order of their values, but `labels` has "
            f"{', '.join(used)}; write `names: [{', '.join(names)}]` under `labels`"
        )


def _all_digits(classes: Mapping[str, Any]) -> bool:
    return all(_is_number(key) for key in classes)


def _values(value: Any) -> tuple[int, ...]:
    return tuple(sorted(value)) if isinstance(value, list) else (int(value),)


def _check_regions(classes: Mapping[str, tuple[int, ...]], labels: Labels, file: Path) -> None:
    """Raise DataError if the regions of dataset.json differ from those of the labels."""
    expected = {name: values for name, values in classes.items() if values != (0,)}
    regions = {name: tuple(sorted(values)) for name, values in (labels.regions or {}).items()}
    swapped = regions.keys() == expected.keys() and regions != expected
    if sorted(regions.values()) != sorted(expected.values()) or swapped:
        shown = ", ".join(f"{name}: {list(values)}" for name, values in expected.items())
        raise DataError(
            f"{file} has regions; write `mode: multilabel`, `names: [{', '.join(expected)}]` and "
            f"`regions: {{{shown}}}` under `labels`"
        )


def _listed_case(entry: _Pair, root: Path, group_of: Callable[[str], str]) -> Case:
    image, mask = (listed_file(text, root, root / "dataset.json") for text in (entry.image, entry.label))
    name = case_name(image)
    return Case(name, group_of(name), images=(image,), masks=(MaskFile(mask),))


def _nnunet_cases(listing: Listing, root: Path, group_of: Callable[[str], str]) -> list[Case]:
    ending, channels = str(listing.file_ending), listing.channels
    file = root / "dataset.json"
    if listing.dataset is not None:
        return [
            Case(
                name,
                group_of(name),
                images=tuple(listed_file(image, root, file) for image in entry.images),
                masks=(MaskFile(listed_file(entry.label, root, file)),),
            )
            for name, entry in listing.dataset.items()
        ]
    masks = {path.name.removesuffix(ending): path for path in files_like(existing_folder(root / MASKS), f"*{ending}")}
    images = existing_folder(root / IMAGES)
    # nnU-Net reads colour pictures with three channels from one file
    is_colour = channels == RGB and is_raster(Path(f"x{ending}")) and not files_like(images, f"*_0001{ending}")
    channels = 1 if is_colour else channels
    cases, missing = [], []
    for name, mask in sorted(masks.items()):
        files = tuple(in_any_form(images / f"{name}_{channel:04d}{ending}") for channel in range(channels))
        missing += [f"{path.name}, a channel of {name}" for path in files if not path.is_file()]
        cases.append(Case(name, group_of(name), images=files, masks=(MaskFile(mask),)))
    if missing:
        shown = listed(missing, limit=5, separator="; ")
        raise DataError(f"files are missing in {images}: {shown}; {file} has {channels} channels")
    return cases


def unlabelled_listing(root: Path) -> list[Case]:
    """The training and test cases of a dataset.json without their masks, for prediction.

    These are the cases that it lists, or otherwise all files in imagesTr and imagesTs.
    """
    file = root / "dataset.json"
    listing = read_listing(file)
    if listing.training is not None:
        entries = [entry.image for entry in listing.training]
        entries += [entry if isinstance(entry, str) else entry.image for entry in listing.test or []]
        images = [listed_file(text, root, file) for text in entries]
        cases = [Case(case_name(image), "", images=(image,)) for image in images]
    elif listing.dataset is not None:
        files_of = {
            name: [listed_file(image, root, file) for image in entry.images] for name, entry in listing.dataset.items()
        }
        cases = [Case(name, "", images=tuple(files)) for name, files in files_of.items()]
    else:
        folders = [folder for folder in (root / IMAGES, root / TEST_IMAGES) if folder.is_dir()]
        cases = [case for folder in folders for case in channel_cases(folder)]
    if not cases:
        raise DataError(f"expected images to predict in {file}, found none")
    return list(sorted_cases(cases, root))


def channel_cases(folder: Path, channels: int | None = None) -> list[Case]:
    """The cases of a folder with one image file per channel, `case_0000`, `case_0001`; none if a file has another name.

    A case that lacks a channel of the others has a file that does not exist, and fails when it is read.

    channels: the number of channels that there must be; None for any.
    """
    files_of: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(path for path in folder.iterdir() if is_image(path)):
        match = CHANNEL.fullmatch(case_name(path))
        if match is None:
            return []
        files_of[match["case"]][int(match["channel"])] = path
    numbers = range(1 + max((number for files in files_of.values() for number in files), default=-1))
    if channels is not None and len(numbers) != channels:
        return []
    return [
        Case(name, "", images=tuple(files.get(number) or _missing(files, name, number) for number in numbers))
        for name, files in files_of.items()
    ]


def _missing(files: Mapping[int, Path], case: str, channel: int) -> Path:
    """Where the file of a channel would lie."""
    other = next(iter(files.values()))
    return other.with_name(f"{case}_{channel:04d}{extension(other)}")


def _unlisted(root: Path, cases: list[Case]) -> list[str]:
    """The files in imagesTr and labelsTr that belong to no case."""
    known = {path for case in cases for path in case.files}
    return [
        f"{kind} that belongs to no case: {file}"
        for kind, folder in (("image", IMAGES), ("mask", MASKS))
        if (root / folder).is_dir()
        for file in sorted((root / folder).iterdir())
        if is_image(file) and file not in known
    ]
