"""The layout of the Medical Segmentation Decathlon: a dataset.json that lists images and masks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from segkit.data.cases import Case, DataError, RawCase
from segkit.data.pairs import group_reader, refuse_unpaired, sorted_cases
from segkit.data.readers import case_name, is_image_file, read_pair
from segkit.labels import Labels

FOLDERS = {"image": "imagesTr", "label": "labelsTr"}


class MSDSource:
    """The training cases that `dataset.json` lists, in NIfTI.

    root: the folder of dataset.json. group: a regular expression with one pair of brackets, which picks the group
    out of the case name. value_map: mask values by the class numbers that they mean. unpaired: `refuse` files of
    imagesTr and labelsTr that are not listed, or `skip` them.

    Raises DataError for a dataset.json that cannot be read, lists files that are missing or outside `root`, or has
    another number of classes than `labels`, and for files that are not listed.
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
        self.labels, self.value_map = labels, value_map
        root = Path(root)
        listing = _read_listing(root / "dataset.json")
        _check_classes(listing.get("labels"), labels, value_map or {}, root / "dataset.json")
        group_of = group_reader(group)
        cases = [_case(entry, root, group_of) for entry in listing["training"]]
        if unpaired == "refuse":
            refuse_unpaired(_unlisted(root, cases))
        self.cases = sorted_cases(cases, root)

    def read(self, case: Case) -> RawCase:
        """The pixels of one case, the mask's values checked. Raises DataError."""
        assert case.image is not None
        return read_pair(case.image, case.mask, self.labels, self.value_map, case.name)


def _read_listing(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(f"expected {file}, found nothing there; `root` is the folder that holds dataset.json")
    try:
        listing = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    training = listing.get("training") if isinstance(listing, dict) else None
    if not isinstance(training, list) or not all(_is_entry(entry) for entry in training):
        raise DataError(f'{file}: expected "training" to be a list of {{"image": ..., "label": ...}}')
    return listing


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in FOLDERS)


def _check_classes(named: Any, labels: Labels, value_map: Mapping[int, int], file: Path) -> None:
    """Raise DataError if dataset.json knows another number of classes; masks with channels are not compared."""
    if not isinstance(named, dict) or labels.has_mask_channels:
        return
    # {"0": "background"} in the Decathlon, {"background": 0} in nnU-Net's later form
    numbers = [key if str(key).isdigit() else value for key, value in named.items()]
    if not all(str(number).isdigit() for number in numbers):
        return
    values = {value_map.get(int(number), int(number)) for number in numbers} - {labels.ignore_index}
    if len(values) != len(labels.values):
        raise DataError(
            f"{file} names {len(values)} classes, {', '.join(map(str, named.values()))}, but `labels` has "
            f"{len(labels.values)}, {', '.join(labels.names)}; change the names, or join classes with `value_map`"
        )


def _case(entry: Mapping[str, str], root: Path, group_of: Any) -> Case:
    image, mask = (_listed_file(entry[key], root) for key in FOLDERS)
    name = case_name(image)
    return Case(name, group_of(name), image=image, mask=mask)


def _listed_file(text: str, root: Path) -> Path:
    """The path of a listed file. Raises DataError if it is missing or leaves the folder."""
    # by text and not by what links point to: data are often linked in from elsewhere
    relative = os.path.normpath(text)
    if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise DataError(f"{root / 'dataset.json'} lists {text}, which lies outside the folder {root}")
    path = root / relative
    if not path.is_file():
        raise DataError(f"{root / 'dataset.json'} lists {text}, but there is no such file in {root}")
    return path


def _unlisted(root: Path, cases: list[Case]) -> list[str]:
    """The files of imagesTr and labelsTr that no case has."""
    known = {path for case in cases for path in (case.image, case.mask)}
    return [
        f"{kind} that dataset.json does not list: {file}"
        for kind, folder in FOLDERS.items()
        if (root / folder).is_dir()
        for file in sorted((root / folder).iterdir())
        if is_image_file(file) and file not in known
    ]
