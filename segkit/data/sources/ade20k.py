"""The folder layout of ADE20K."""

from __future__ import annotations

from pathlib import Path

from segkit.data.cases import Case, MaskFile
from segkit.data.formats import case_name, is_image
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.sources.base import FileSource, existing_folder, refuse_unpaired, sorted_cases, with_unique_names
from segkit.labels import Labels


class ADESource(FileSource):
    """Images in `images` and masks in `annotations`, with or without the subfolders `training` and `validation`.

    root: the folder that contains both.
    sets: the subfolder for each part; None if there are no subfolders.

    In the masks, 0 marks ignored pixels and classes are numbered from 1; they are mapped to numbers from 0. The labels
    must list all classes in their order and have an `ignore_index`. Raises ValueError without `ignore_index`, DataError
    for missing folders, images without mask and masks without image.
    """

    def __init__(self, *, labels: Labels, root: Path, sets: dict[str, str] | None = None):
        if labels.ignore_index is None:
            raise ValueError("ADE20K contains ignored pixels: write `ignore_index: 255` under `labels`")
        numbers = {0: labels.ignore_index, **{number + 1: number for number in range(len(labels.names))}}
        super().__init__(labels, MaskEncoding(numbers))
        cases, unpaired_files = [], []
        for part, name in (sets or {None: ""}).items():
            images, masks = (_by_case(existing_folder(Path(root) / kind / name)) for kind in ("images", "annotations"))
            unpaired_files += [f"image without mask: {images[case]}" for case in images if case not in masks]
            unpaired_files += [f"mask without image: {masks[case]}" for case in masks if case not in images]
            cases += [
                Case(case, case, part, (images[case],), (MaskFile(masks[case]),)) for case in images if case in masks
            ]
        refuse_unpaired(unpaired_files, can_skip=False)
        self.cases = sorted_cases(with_unique_names(cases), Path(root))


def _by_case(folder: Path) -> dict[str, Path]:
    """The images in a folder by case name."""
    return {case_name(file): file for file in sorted(folder.iterdir()) if is_image(file)}
