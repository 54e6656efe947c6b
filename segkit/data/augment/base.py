"""What the engines of augmentation have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Half = Annotated[float, Field(ge=0, le=0.5)]
Zoom = Annotated[float, Field(gt=0, le=1)]


class AugmentError(ValueError):
    """A transform that does not fit the images."""

    exit_code = 2


class Augment(Protocol):
    """image [C, *S] and mask [*S] or [K, *S] -> the same, transformed by the draws that belong to `seed`.

    before_normalisation: whether it takes images in [0, 1], with outliers outside, or else normalised ones.
    """

    before_normalisation: bool

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]: ...


class NoAugment:
    """Image and mask as they are."""

    before_normalisation = True

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        return image, mask


@dataclass(frozen=True)
class Swap:
    """Classes that a mirror of left and right exchanges. pairs: of numbers in the mask, or of its channels."""

    pairs: tuple[tuple[int, int], ...]
    channels: bool

    def __call__(self, mask: Any, *, channel_axis: int = 0, shift: int = 0) -> Any:
        """A mask, array or tensor, with the pairs exchanged. shift: what was added to its numbers."""
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
    """Raises ValueError for a range that has no middle."""
    if low > high:
        raise ValueError(f"gamma: expected low of at most high, got {low:g} and {high:g}")


Transforms = Sequence[Any]
