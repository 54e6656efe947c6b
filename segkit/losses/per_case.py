"""The loss of each case of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from segkit.labels import as_tensor
from segkit.losses.target_maps import Maps
from segkit.losses.weighted_sum import Normaliser, WeightedSum


class PerCase(nn.Module):
    """A loss whose result has one entry per case, [B]: that of the batch which consists of the case alone.

    So each entry is exact for every loss, also where the loss of a batch is not the mean of those of its cases. The
    cases are computed one after the other.

    loss: the loss of a batch, not built for a group of processes.
    """

    def __init__(self, loss: WeightedSum) -> None:
        super().__init__()
        if loss.reduce.processes > 1:
            raise ValueError("the loss of each case needs no other process; build the loss without group")
        self.loss = loss

    @property
    def weights(self) -> Tensor:
        """The current weight of each term."""
        return self.loss.weights

    def set_progress(self, progress: float) -> None:
        """Set the term weights for a step; see `WeightedSum.set_progress`."""
        self.loss.set_progress(progress)

    def forward(
        self,
        logits: Tensor,
        mask: Tensor | np.ndarray,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        normaliser: Normaliser | None = None,
        maps: Maps | None = None,
        spacing: Sequence[Sequence[float]] | None = None,
    ) -> Tensor:
        """The loss of each case, [B]; 0 with gradient 0 for a case whose pixels are all ignored.

        Arguments: see `WeightedSum.forward`. Raises ValueError for a normaliser, which belongs to the loss of a batch.
        """
        return self.combine(self.terms(logits, mask, pixel_weight, valid, normaliser, maps, spacing))

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss of each case from the result of `terms`."""
        cases = zip(*(values.unbind() for values in terms.values()), strict=True)
        return torch.stack([self.loss.combine(dict(zip(terms, values, strict=True))) for values in cases])

    def terms(
        self,
        logits: Tensor,
        mask: Tensor | np.ndarray,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        normaliser: Normaliser | None = None,
        maps: Maps | None = None,
        spacing: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, Tensor]:
        """The value of each term for each case, [B] by name, without term weights. Arguments: see `forward`."""
        if normaliser is not None:
            raise ValueError(
                "a normaliser adds up the losses of micro-batches to that of one large batch, but with reduction none "
                "each case has a loss of its own; leave the normaliser out, or build the loss without reduction"
            )
        mask = as_tensor(mask, logits.device)
        images = {len(tensor) for tensor in (logits, mask, pixel_weight, valid) if tensor is not None}
        if len(images) != 1 or images == {0}:
            raise ValueError(f"expected logits, mask, pixel_weight and valid of the same cases, got {sorted(images)}")
        rows = []
        for number in range(len(logits)):
            case = slice(number, number + 1)  # keeps the batch axis
            weight, ok = (None if tensor is None else tensor[case] for tensor in (pixel_weight, valid))
            of_case = None if maps is None else {name: values[case] for name, values in maps.items()}
            steps = None if spacing is None else spacing[case]
            rows.append(self.loss.terms(logits[case], mask[case], weight, ok, maps=of_case, spacing=steps))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
