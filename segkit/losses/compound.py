"""Losses that consist of several losses of the shared pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from segkit.losses.shared_pass import MaskSums, PixelSums, PixelTotals, RegionSums, Statistics


class CompoundLoss(nn.Module):
    """The weighted sum of losses that are computed from one shared pass.

    parts: region and pixel losses with the same activation. weights: one number for each part.
    """

    def __init__(self, parts: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.parts, self.part_weights = nn.ModuleList(parts), list(weights)

    @property
    def sums(self) -> tuple[RegionSums | PixelSums, ...]:
        """The requests of the parts to the shared pass."""
        return tuple(part.sums for part in cast("Sequence[Any]", self.parts))

    def score(self, results: Sequence[Statistics | PixelTotals], count: Tensor | None = None) -> Tensor:
        """The loss, a scalar. count: the divisors of the parts, see `count`."""
        counts = [None] * len(self.parts) if count is None else count.unbind()
        parts = cast("Sequence[Any]", self.parts)
        scored = zip(self.part_weights, parts, results, counts, strict=True)
        values = [weight * part.score(result, divisor) for weight, part, result, divisor in scored]
        return torch.stack(values).sum()

    def count(self, mask: MaskSums) -> Tensor | None:
        """The divisor of each part, [parts], from the masks alone; None if a part is defined on the batch."""
        counts = [part.count(mask) for part in cast("Sequence[Any]", self.parts)]
        return None if any(count is None for count in counts) else torch.stack(counts)
