"""One folder per image, with one mask file per object."""

from __future__ import annotations

from pathlib import Path

from segkit.data.cases import Case, MaskFile, RawCase
from segkit.data.formats import is_image
from segkit.data.mask_encoding import MaskEncoding
from segkit.data.sources.base import FileSource, existing_folder, group_reader, sorted_cases, with_empty_mask
from segkit.labels import Labels
from segkit.utils.errors import DataError
from segkit.utils.text import listed


class InstancesSource(FileSource):
    """Each subfolder of `root` is a case with one mask file per object.

    root: the folder of the case folders.
    masks: for each class with objects, the pattern of its mask files in a case folder.
    image: the pattern of the image file in a case folder. Several files are the channels, sorted by name.
    group: see `PairsSource`.
    threshold: pixels with at least this value belong to the object; None means all non-zero pixels.

    A case without objects is background only. Raises DataError for folders without an image, ValueError for classes
    that are not in the labels.
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
        super().__init__(labels, MaskEncoding(threshold=threshold), class_files=True)
        unknown = [name for name in masks if name not in labels.names]
        if unknown or not masks or labels.regions is not None:
            raise ValueError(
                f"expected masks of {', '.join(labels.names)}, got {', '.join(unknown or masks) or 'none'}"
            )
        group_of = group_reader(group)
        cases, without_image = [], []
        for folder in sorted(path for path in existing_folder(Path(root)).iterdir() if path.is_dir()):
            images = tuple(path for path in sorted(folder.glob(image)) if is_image(path))
            files = tuple(
                MaskFile(path, name)
                for name, pattern in masks.items()
                for path in sorted(folder.glob(pattern))
                if is_image(path)
            )
            without_image += [] if images else [str(folder)]
            cases.append(Case(folder.name, group_of(folder.name), images=images, masks=files))
        if without_image:
            raise DataError(
                f"expected an image {image!r} in every folder of {root}, found none in {listed(without_image, limit=5)}"
            )
        self.cases = sorted_cases(cases, Path(root))

    def read(self, case: Case) -> RawCase:
        """Read the pixels of one case, with the union of its objects as the mask. Raises DataError."""
        return with_empty_mask(super().read(case), case, self.labels)
