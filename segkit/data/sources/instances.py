"""A folder an image, with a mask file an object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from segkit.data.cases import Case, MaskFile, RawCase, mask_dtype
from segkit.data.formats import is_image
from segkit.data.mask_encoding import MaskCode
from segkit.data.readers import number_of_background
from segkit.data.sources.base import FileSource, existing_folder, group_reader, sorted_cases
from segkit.labels import Labels
from segkit.utils.errors import DataError


class InstancesSource(FileSource):
    """Every folder of `root` is a case, in which the objects of a class have a mask file each.

    root: the folder of the folders. image: the image in each, as a pattern; several files are its channels, by name.
    masks: for each class that has objects, the pattern of their masks. group: see `pairs`. threshold: from which value
    on a pixel is of the object; None: from all values but 0.

    A case without an object is all background. Raises DataError for folders without image, and classes that labels do
    not have.
    """

    def __init__(
        self,
        *,
        labels: Labels,
        root: Path,
        masks: dict[str, str],
        image: str = "images/*",
        group: str | None = None,
        threshold: float | None = None,
    ):
        super().__init__(labels, MaskCode(threshold=threshold), files_of_classes=True)
        unknown = [name for name in masks if name not in labels.names]
        if unknown or not masks or labels.regions is not None:
            raise ValueError(
                f"expected masks of {', '.join(labels.names)}, got {', '.join(unknown or masks) or 'none'}"
            )
        group_of = group_reader(group)
        cases, without = [], []
        for folder in sorted(path for path in existing_folder(Path(root)).iterdir() if path.is_dir()):
            images = tuple(path for path in sorted(folder.glob(image)) if is_image(path))
            files = tuple(
                MaskFile(path, name)
                for name, pattern in masks.items()
                for path in sorted(folder.glob(pattern))
                if is_image(path)
            )
            without += [] if images else [str(folder)]
            cases.append(Case(folder.name, group_of(folder.name), images=images, masks=files))
        if without:
            raise DataError(
                f"expected an image {image!r} in every folder of {root}, found none in {', '.join(without[:5])}"
            )
        self.cases = sorted_cases(cases, Path(root))

    def read(self, case: Case) -> RawCase:
        """The pixels of one case, and its objects united. Raises DataError."""
        raw = super().read(case)
        if raw.mask is not None:
            return raw
        sides, labels = raw.image.shape[1:], self.labels
        shape = (len(labels.names), *sides) if labels.has_mask_channels else sides
        empty = 0 if labels.has_mask_channels else number_of_background(labels, f"case {case.name}")
        return replace(raw, mask=np.full(shape, empty, mask_dtype(labels)))
