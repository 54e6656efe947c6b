"""The cases of folders of masks that are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkit.data.formats import FORMATS, case_name, format_name
from segkit.data.readers import image_files, read_image
from segkit.evaluation.mask_folders import Encodings, paired_files, predicted_channels, read_case
from segkit.evaluation.results import CaseScores
from segkit.experiment.evaluation_page import DrawnCase
from segkit.labels import Labels
from segkit.utils.errors import DataError

FIRST_CHANNEL = re.compile(r"_0000$")  # of the names of image files of nnU-Net


@dataclass(frozen=True)
class MaskFolders:
    """Folders of predicted and reference masks, and of images if there are any. encodings: see `score_folder`."""

    predictions: Path
    references: Path
    labels: Labels
    encodings: Encodings
    images: Path | None

    def drawn_cases(self, scored: CaseScores, excluded: Sequence[str]) -> list[DrawnCase]:
        """The worst, median and best case by mean foreground Dice. Without images, masks are drawn on black.

        excluded: classes that do not count. Raises DataError for a case without an image, and for one whose size is not
        that of its masks.
        """
        from segkit.report.overlays import choose_cases

        table: Any = scored.cases
        pairs = paired_files(self.predictions, self.references)
        images = {} if self.images is None else self._images(self.images)
        drawn = []
        for rank, name, dice in choose_cases(table[~table["class"].isin(excluded)], self.labels):
            predicted, reference, spacing = read_case(name, *pairs[name], self.labels, self.encodings)
            predicted = predicted_channels(torch.from_numpy(predicted)[None], self.labels)[0].numpy()
            size = predicted.shape[-len(spacing) :]
            if self.images is not None and name not in images:
                raise DataError(
                    f"{self.images} has no image of the case {name}; the names have to be those of the masks"
                )
            image = np.zeros((1, *size), np.float32) if self.images is None else read_image(images[name])[0]
            if image.shape[1:] != size:
                raise DataError(f"{images[name]}: expected the size {list(size)} of its masks, got {image.shape[1:]}")
            has_geometry = FORMATS[str(format_name(pairs[name][1]))].has_geometry
            drawn.append(DrawnCase(rank, name, dice, image, reference, predicted, spacing, is_anatomical=has_geometry))
        return drawn

    def _images(self, folder: Path) -> dict[str, Path]:
        """The images by the names of their cases."""
        return {FIRST_CHANNEL.sub("", case_name(file)): file for file in image_files(folder)}
