"""The folder layout of PASCAL VOC."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from segkit.data.cases import Case, MaskFile
from segkit.data.documents import read_text
from segkit.data.formats import case_name, is_image
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.sources.base import (
    FileSource,
    existing_folder,
    files_like,
    group_reader,
    refuse_unpaired,
    sorted_cases,
)
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import one_line


class VOCSource(FileSource):
    """Pictures of any format in JPEGImages, palette masks, and lists of case names in ImageSets/Segmentation.

    root: the folder that contains them, such as `VOC2012`.
    masks: the name of the mask folder.
    sets: the name of the list for each of `train`, `validation` and `test`. None uses all masks and assigns no parts.
    group: see `PairsSource`.
    value_map: maps stored mask values to class numbers.

    The value 255 marks the borders of objects and requires `ignore_index: 255`. Raises DataError for missing folders,
    lists and files.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        root: Path,
        masks: str = "SegmentationClass",
        sets: dict[str, str] | None = None,
        group: str | None = None,
        value_map: dict[int, int] | None = None,
    ):
        super().__init__(labels, MaskEncoding(value_map))
        root, group_of = Path(root), group_reader(group)
        images, folder = existing_folder(root / "JPEGImages"), existing_folder(root / masks)
        mask_of = {case_name(file): file for file in files_like(folder, "*.png")}
        image_of = {case_name(file): file for file in files_like(images, "*") if is_image(file)}
        names = [(None, name) for name in mask_of] if sets is None else _read_sets(root, sets)
        pairs = [
            (part, name, image_of.get(name, images / f"{name}.jpg"), mask_of.get(name, folder / f"{name}.png"))
            for part, name in names
        ]
        missing = [f"missing: {file}" for *_, image, mask in pairs for file in (image, mask) if not file.is_file()]
        refuse_unpaired(missing, can_skip=False)
        self.cases = sorted_cases(
            [Case(name, group_of(name), part, (image,), (MaskFile(mask),)) for part, name, image, mask in pairs], root
        )


def _read_sets(root: Path, sets: Mapping[str, str]) -> list[tuple[str | None, str]]:
    """The part and name of every case in the lists."""
    part_of: dict[str, str] = {}
    for part, name in sets.items():
        file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        if not file.is_file():
            raise DataError(
                f"expected a list of case names in {file}, but it does not exist; change `sets` under `data`"
            )
        for case in read_text(file).split():
            if Path(case).name != case:
                raise DataError(
                    f"{file} lists {one_line(case)}, which is a path; list file names without folder and ending"
                )
            case = unicodedata.normalize("NFC", case)
            other = part_of.setdefault(case, part)
            if other != part:
                raise DataError(f"{case} is in the lists {sets[other]}.txt and {name}.txt; remove it from one of them")
    return [(part, case) for case, part in part_of.items()]
