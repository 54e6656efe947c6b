"""The folder layouts of PASCAL VOC, Cityscapes and ADE20K."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from segkit.data.cases import Case, MaskFile
from segkit.data.formats import case_name, is_image
from segkit.data.mask_encoding import MaskCode
from segkit.data.sources.base import (
    FileSource,
    distinguished,
    existing_folder,
    group_reader,
    refuse_unpaired,
    sorted_cases,
)
from segkit.labels import Labels
from segkit.utils.errors import DataError

# numbers in `_labelIds` of the 19 classes that Cityscapes judges, in the order of its training numbers
# (Cordts et al. 2016, and the table `labels` of the data set's own scripts); all others are to be ignored
CITYSCAPES_CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_NUMBERS = range(-1, 34)


class VOCSource(FileSource):
    """JPEGImages, masks as palette pictures, and lists of names in ImageSets/Segmentation.

    root: the folder that holds them, `VOC2012` for instance. masks: the folder of the masks. sets: the list for
    `train`, `validation` and `test`; None takes every mask there is, without a split. group: see `pairs`.

    255 marks the edges of objects: the labels need `ignore_index: 255`. Raises DataError for folders, lists and files
    that are missing.
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
        super().__init__(labels, MaskCode(value_map))
        root, group_of = Path(root), group_reader(group)
        images, folder = existing_folder(root / "JPEGImages"), existing_folder(root / masks)
        names = _read_sets(root, sets) if sets is not None else [(None, file.stem) for file in folder.glob("*.png")]
        pairs = [(part, name, images / f"{name}.jpg", folder / f"{name}.png") for part, name in names]
        refuse_unpaired(
            [f"missing: {file}" for *_, image, mask in pairs for file in (image, mask) if not file.is_file()]
        )
        self.cases = sorted_cases(
            [Case(name, group_of(name), part, (image,), (MaskFile(mask),)) for part, name, image, mask in pairs], root
        )


def _read_sets(root: Path, sets: Mapping[str, str]) -> list[tuple[str | None, str]]:
    """The part and the name of every case."""
    found: list[tuple[str | None, str]] = []
    for part, name in sets.items():
        file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        if not file.is_file():
            raise DataError(f"expected the list of names {file}, found nothing there; change `sets` under `data`")
        for case in file.read_text().split():
            if Path(case).name != case:
                raise DataError(
                    f"{file} lists {case}, which is no name but a path; list the names of files without ending"
                )
            found.append((part, case))
    return found


class CityscapesSource(FileSource):
    """leftImg8bit and gtFine, each with train, val and test, each with a folder a city.

    root: the folder that holds both. masks: `labelIds`, of which the 19 judged classes become 0 to 18 and all others
    are ignored, or `labelTrainIds`, in which that is done already. sets: the folder for each part of the split. The
    group of a case is its city.

    The labels need the 19 classes and an `ignore_index`. Raises DataError for folders that are missing and images
    without mask.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        root: Path,
        masks: Literal["labelIds", "labelTrainIds"] = "labelIds",
        sets: dict[str, str] = {"train": "train", "validation": "val"},  # noqa: B006  (part of the schema, not changed)
    ):
        if labels.ignore_index is None:
            raise ValueError("Cityscapes has pixels to ignore: write `ignore_index: 255` under `labels`")
        numbers = None
        if masks == "labelIds":
            classes = {value: number for number, value in enumerate(CITYSCAPES_CLASSES)}
            numbers = {value: classes.get(value, labels.ignore_index) for value in CITYSCAPES_NUMBERS}
        super().__init__(labels, MaskCode(numbers))
        cases, strays = [], []
        for part, name in sets.items():
            images, truths = (
                {(path.parent.name, path.name.removesuffix(ending)): path for path in folder.glob(f"*/*{ending}")}
                for folder, ending in (
                    (existing_folder(Path(root) / "leftImg8bit" / name), "_leftImg8bit.png"),
                    (existing_folder(Path(root) / "gtFine" / name), f"_gtFine_{masks}.png"),
                )
            )
            strays += [f"image without mask: {images[key]}" for key in sorted(images.keys() - truths.keys())]
            strays += [f"mask without image: {truths[key]}" for key in sorted(truths.keys() - images.keys())]
            cases += [
                Case(key[1], key[0], part, (images[key],), (MaskFile(truths[key]),))
                for key in images.keys() & truths.keys()
            ]
        refuse_unpaired(strays)
        self.cases = sorted_cases(cases, Path(root) / "leftImg8bit")


class ADESource(FileSource):
    """`images` and `annotations`, each with `training` and `validation` or with the files themselves.

    root: the folder that holds both. sets: the folder for each part of the split; None, if there are none. In the masks
    0 is to be ignored and classes count from 1, here from 0.

    The labels need all classes in their order and an `ignore_index`. Raises DataError for folders that are missing and
    files without partner.
    """

    def __init__(self, *, labels: Labels, root: Path, sets: dict[str, str] | None = None):
        if labels.ignore_index is None:
            raise ValueError("ADE20K has pixels to ignore: write `ignore_index: 255` under `labels`")
        numbers = {0: labels.ignore_index, **{number + 1: number for number in range(len(labels.names))}}
        super().__init__(labels, MaskCode(numbers))
        cases, strays = [], []
        for part, name in (sets or {None: ""}).items():
            images, masks = (_by_case(existing_folder(Path(root) / kind / name)) for kind in ("images", "annotations"))
            strays += [f"image without mask: {images[case]}" for case in images if case not in masks]
            strays += [f"mask without image: {masks[case]}" for case in masks if case not in images]
            cases += [
                Case(case, case, part, (images[case],), (MaskFile(masks[case]),)) for case in images if case in masks
            ]
        refuse_unpaired(strays)
        self.cases = sorted_cases(distinguished(cases), Path(root))


def _by_case(folder: Path) -> dict[str, Path]:
    return {case_name(file): file for file in sorted(folder.iterdir()) if is_image(file)}
