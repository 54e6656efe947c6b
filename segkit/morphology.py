"""Shapes in masks: what census, metrics and post-processing share."""

from __future__ import annotations

import numpy as np


def count_components(mask: np.ndarray) -> int:
    """The number of connected components of a bool mask [*S]; pixels that touch at a corner are connected."""
    from scipy.ndimage import generate_binary_structure, label

    _, number = label(mask, structure=generate_binary_structure(mask.ndim, mask.ndim))  # pyright: ignore
    return int(number)
