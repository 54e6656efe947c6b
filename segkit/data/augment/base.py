"""Types and helpers shared by the augmentation engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from segkit.data.preprocess import Units

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Sigma = Annotated[float, Field(ge=0, le=1000)]  # pixels; a blur takes time and memory in proportion to it
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
UpToHalf = Annotated[float, Field(ge=0, le=0.5)]
Zoom = Annotated[float, Field(gt=0, le=1)]


Augmented = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # image, mask, weight


class AugmentError(ValueError):
    """A transform does not support the images."""

    exit_code = 2


class Augment(Protocol):
    """Transforms an image [C, *S] and its mask, [*S] or [K, *S], with random numbers that depend only on `seed`.

    units: the intensities that it expects, see `segkit.data.preprocess.Units`. Whatever they are, images may exceed the
    usual range, and no transform moves such pixels back into it.
    """

    units: Units

    def apply(self, image: np.ndarray, mask: np.ndarray, weight: np.ndarray | None, seed: int) -> Augmented:
        """Transform image, mask and, if there are any, weights of pixels, float32 [*S], which move with the mask.

        The arguments are not changed, but may be returned.
        """
        ...

    def arranged(self, image: np.ndarray) -> np.ndarray:
        """The image [C, *S] with its pixels in the order in memory that `apply` works in, where it has one."""
        return image

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Transform image and mask."""
        return self.apply(image, mask, None, seed)[:2]


class NoAugment(Augment):
    """Returns everything unchanged."""

    units: Units = "any"

    def apply(self, image: np.ndarray, mask: np.ndarray, weight: np.ndarray | None, seed: int) -> Augmented:  # noqa: ARG002
        return image, mask, weight


@dataclass(frozen=True)
class Swap:
    """Swaps pairs of classes, such as left and right kidney, when an image is flipped left to right.

    pairs: pairs of class numbers, or of channels.
    channels: whether `pairs` are channels of a mask [K, *S].
    """

    pairs: tuple[tuple[int, int], ...]
    channels: bool

    def __call__(self, mask: Any, *, channel_axis: int = 0, shift: int = 0) -> Any:
        """Return a mask, array or tensor, with the pairs swapped. shift: offset that was added to its class numbers."""
        if self.channels:
            order = list(range(mask.shape[channel_axis]))
            for first, second in self.pairs:
                order[first], order[second] = second, first
            return mask[(slice(None),) * (channel_axis % mask.ndim) + (order,)]
        out = mask.copy() if isinstance(mask, np.ndarray) else mask.clone()
        for first, second in self.pairs:
            out[mask == first + shift] = second + shift
            out[mask == second + shift] = first + shift
        return out


def check_order(low: float, high: float) -> None:
    """Raise ValueError if `low` exceeds `high`."""
    if low > high:
        raise ValueError(f"gamma: expected low to be at most high, got {low:g} and {high:g}")
