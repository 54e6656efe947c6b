"""What a format gives for an image that is read in pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# the image as an array [C, *S] that reads what is indexed, how its numbers become float32, and its spacing
Mapped = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], tuple[float, ...]]
