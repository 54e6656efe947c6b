"""The folder layout of Cityscapes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from segkit.data.cases import Case, MaskFile
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.sources.base import FileSource, existing_folder, files_like, refuse_unpaired, sorted_cases
from segkit.labels import Labels

# values in `_labelIds` of the 19 evaluated classes, in the order of their training numbers (Cordts et al. 2016, and the
# table `labels` of the data set's own scripts); all other values are ignored
CITYSCAPES_CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_NUMBERS = range(-1, 34)
IMAGE_ENDING = "_leftImg8bit.png"


class CityscapesSource(FileSource):
    """Images in leftImg8bit and masks in gtFine, each with train, val and test, which contain one folder per city.

    root: the folder that contains both.
    masks: `labelIds` maps the 19 evaluated classes to 0 to 18 and ignores all others; in `labelTrainIds` this mapping
        is already done.
    sets: the folder name for each part.

    The group of a case is its city. The labels must have the 19 classes and an `ignore_index`. Raises ValueError
    without `ignore_index`, DataError for missing folders, images without mask and masks without image.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        root: Path,
        masks: Literal["labelIds", "labelTrainIds"] = "labelIds",
        sets: dict[str, str] = {"train": "train", "validation": "val"},  # noqa: B006  (part of the schema, never modified)
    ):
        if labels.ignore_index is None:
            raise ValueError("Cityscapes contains ignored pixels: write `ignore_index: 255` under `labels`")
        numbers = None
        if masks == "labelIds":
            classes = {value: number for number, value in enumerate(CITYSCAPES_CLASSES)}
            numbers = {value: classes.get(value, labels.ignore_index) for value in CITYSCAPES_NUMBERS}
        super().__init__(labels, MaskEncoding(numbers))
        cases, unpaired_files = [], []
        for part, name in sets.items():
            images = _by_city_and_frame(Path(root) / "leftImg8bit" / name, IMAGE_ENDING)
            mask_files = _by_city_and_frame(Path(root) / "gtFine" / name, f"_gtFine_{masks}.png")
            unpaired_files += [
                f"image without mask: {images[key]}" for key in sorted(images.keys() - mask_files.keys())
            ]
            unpaired_files += [
                f"mask without image: {mask_files[key]}" for key in sorted(mask_files.keys() - images.keys())
            ]
            cases += [
                Case(key[1], key[0], part, (images[key],), (MaskFile(mask_files[key]),))
                for key in images.keys() & mask_files.keys()
            ]
        refuse_unpaired(unpaired_files, can_skip=False)
        self.cases = sorted_cases(cases, Path(root) / "leftImg8bit")


def _by_city_and_frame(folder: Path, ending: str) -> dict[tuple[str, str], Path]:
    files = files_like(existing_folder(folder), f"*/*{ending}")
    return {(path.parent.name, path.name.removesuffix(ending)): path for path in files}
