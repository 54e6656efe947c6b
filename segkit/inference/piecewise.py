"""An image in pieces, as the windows of a prediction see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segkit.data.pieces import Pieces


@dataclass(frozen=True)
class PiecewiseBatch:
    """An image in pieces with the part of a tensor's interface [1, C, *S] that windows need: its shape, its device, and
    crops, which are read when they are asked for.

    pieces: the image [C, *S], in pieces or on another device.
    before, after: pixels of 0 on both sides of each axis, [D] each.
    """

    pieces: Pieces | Tensor
    device: torch.device
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, pieces: Pieces | Tensor, device: torch.device) -> PiecewiseBatch:
        nothing = (0,) * (len(pieces.shape) - 1)
        return cls(pieces, device, nothing, nothing)

    @property
    def shape(self) -> tuple[int, ...]:
        channels, *sides = self.pieces.shape
        padded = (side + sum(ends) for side, ends in zip(sides, zip(self.before, self.after, strict=True), strict=True))
        return (1, channels, *padded)

    def padded(self, before: Sequence[int], after: Sequence[int]) -> PiecewiseBatch:
        """The same image with a border of zeros."""
        return replace(self, before=tuple(before), after=tuple(after))

    def __getitem__(self, places: tuple[object, ...]) -> Tensor:
        """A crop [1, C, *crop], float32 on the device. places: an ellipsis and a slice for each axis."""
        parts = [part.indices(side) for part, side in zip(places[1:], self.shape[2:], strict=True)]  # pyright: ignore
        crop = torch.zeros(self.shape[1], *(stop - start for start, stop, _step in parts), device=self.device)
        source, target = [], []
        for (start, stop, _step), before, side in zip(parts, self.before, self.pieces.shape[1:], strict=True):
            first, last = max(start - before, 0), min(stop - before, side)
            source.append(slice(first, max(first, last)))
            target.append(slice(first + before - start, max(first, last) + before - start))
        if all(part.stop > part.start for part in source):
            crop[(slice(None), *target)] = self._read(tuple(source))
        return crop[None]

    def _read(self, box: tuple[slice, ...]) -> Tensor:
        if isinstance(self.pieces, Tensor):
            return self.pieces[(slice(None), *box)].to(self.device)
        return torch.from_numpy(self.pieces.read(box)).to(self.device)
