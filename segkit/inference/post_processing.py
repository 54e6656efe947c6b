"""Post-processing of a predicted class: its largest component, filled holes, and no small objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segkit.utils.morphology import bounding_box


@dataclass(frozen=True)
class PostProcess:
    """What is done to the mask of one class, in this order.

    smallest: components of fewer pixels are removed; 0 removes none.
    largest: whether only the largest component is kept, of equal ones the first.
    fill: whether holes are filled: background pixels from which no path of direct neighbours leads out of the image.

    Pixels that share a corner are of one component.
    """

    smallest: int = 0
    largest: bool = False
    fill: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.smallest, bool) or not isinstance(self.smallest, int) or self.smallest < 0:
            raise ValueError(f"expected smallest as a number of pixels, at least 0, got {self.smallest!r}")
        if not isinstance(self.largest, bool) or not isinstance(self.fill, bool):
            raise ValueError(f"expected largest and fill as true or false, got {self.largest!r} and {self.fill!r}")

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """The mask of one class, bool [*S], after post-processing.

        Only the box around the class is looked at, for which some 6 bytes per pixel are needed.
        """
        if not mask.any():
            return mask
        box = bounding_box(mask)
        part = mask[box]
        part = self._without_small(part) if self.smallest > 1 or self.largest else part
        result = np.zeros_like(mask)
        result[box] = filled(part) if self.fill else part
        return result

    def _without_small(self, mask: np.ndarray) -> np.ndarray:
        components, sizes = labelled(mask)
        kept = sizes >= self.smallest
        if self.largest:
            kept &= np.arange(len(sizes)) == sizes.argmax()
        return np.concatenate([[False], kept])[components]

    def __str__(self) -> str:
        parts = [f"objects of fewer than {self.smallest} pixels removed"] if self.smallest > 1 else []
        parts += ["largest object only"] if self.largest else []
        parts += ["holes filled"] if self.fill else []
        return ", ".join(parts) or "none"


NOTHING = PostProcess()


def labelled(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the component of each pixel, from 1, 0 outside [*S], and the pixels of each component [N]."""
    from scipy.ndimage import generate_binary_structure, label

    # unlike OpenCV, which `label_components` uses for images, SciPy numbers in the order of the first pixels
    components, number = label(mask, structure=generate_binary_structure(mask.ndim, mask.ndim))  # pyright: ignore
    # slice by slice: of the whole array, numpy would make a copy of twice the size
    sizes = np.sum([np.bincount(part.ravel(), minlength=number + 1) for part in components], 0)
    return components, sizes[1:]


def filled(mask: np.ndarray) -> np.ndarray:
    """A bool mask [*S] with its holes filled."""
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes(mask))


def processed(mask: np.ndarray, classes: Mapping[int, PostProcess], background: int) -> np.ndarray:
    """A mask of class numbers [*S] with each class post-processed.

    Removed pixels become background; only background pixels are filled.
    """
    result = mask.copy()
    for number, process in classes.items():
        before = mask == number
        after = process.apply(before)
        result[before & ~after] = background
        result[after & (mask == background)] = number
    return result
