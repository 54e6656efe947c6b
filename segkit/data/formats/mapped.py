"""What a format gives for an image that is read in pieces, and the temporary files that this may take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from segkit.utils.errors import RunError
from segkit.utils.files import reserve

# the image as an array [C, *S] that reads what is indexed, how its numbers become float32, and its spacing
Mapped = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], tuple[float, ...]]


@contextmanager
def temporary_file(path: Path, size: int, where: str) -> Iterator[IO[bytes]]:
    """A new file of a size, whose room on the disk is taken. Raises RunError if there is none. where: names the image
    that needs it."""
    try:
        with path.open("xb") as file:
            reserve(file.fileno(), size)
            yield file
    except OSError as error:
        if error.filename not in (None, str(path)):
            raise
        raise RunError(
            f"{where}: reading it in pieces needs a temporary file of {size / 1e9:.2g} GB beside the output, which "
            f"cannot be written ({error.strerror or error}); make room, or choose another folder for the output"
        ) from error


def temporary_array(path: Path, dtype: np.dtype, shape: Sequence[int], where: str) -> np.ndarray:
    """An array in a new file, see `temporary_file`."""
    with temporary_file(path, math.prod(shape) * dtype.itemsize, where):
        return np.memmap(path, dtype, "r+", shape=tuple(shape))
