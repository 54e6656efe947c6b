"""Deep supervision: one wrapper around any loss, for networks that answer at several resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segkit.losses.weighted_sum import WeightedSum


class DeepSupervision(nn.Module):
    """sum_h v_h loss(logits_h, mask_h) over the heads of a network, finest first, with weights v that halve from head
    to head and sum to 1 (Lee et al. 2015; weights of Isensee et al. 2021).

    loss: of each head; its term weights and schedules are those of the whole.
    drop_last: give the coarsest head the weight 0 where there are several. Heads of weight 0 are not computed; what
        they gave stays in the graph with gradient 0, so that every parameter of the network has a gradient.

    A single tensor, or a list of one, is the loss itself. The mask of a coarser head is every n-th pixel of the mask
    (its nearest neighbour), ignored pixels included; pixel weights and `valid` likewise.
    """

    def __init__(self, loss: WeightedSum, *, drop_last: bool = False) -> None:
        super().__init__()
        self.loss, self.drop_last = loss, drop_last

    def head_weights(self, heads: int) -> list[float]:
        """The weight of each head, finest first; they sum to 1."""
        counted = heads - 1 if self.drop_last and heads > 1 else heads
        halves = [2.0**-head for head in range(counted)]
        return [half / sum(halves) for half in halves] + [0.0] * (heads - counted)

    def set_progress(self, progress: float) -> None:
        """As for the loss itself."""
        self.loss.set_progress(progress)

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar. logits: [B, K, *S_h] of each head, finest first, or one tensor; the rest as for it."""
        return self.loss.combine(self.terms(logits, mask, pixel_weight, valid))

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from what `terms` returned."""
        return self.loss.combine(terms)

    def terms(
        self,
        logits: Tensor | Sequence[Tensor],
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Each term by name, summed over the heads with their weights."""
        heads = [logits] if isinstance(logits, Tensor) else list(logits)
        if not heads:
            raise ValueError("expected the logits of at least one head, got none")
        size = heads[0].shape[2:]
        totals: dict[str, Tensor] = {}
        for head, weight in zip(heads, self.head_weights(len(heads)), strict=True):
            if weight == 0:
                continue
            given = [_at_size(one, size, head.shape[2:]) for one in (mask, pixel_weight, valid)]
            for name, value in self.loss.terms(head, *given).items():  # pyright: ignore[reportArgumentType]
                totals[name] = totals.get(name, 0) + weight * value
        idle = [head for head, weight in zip(heads, self.head_weights(len(heads)), strict=True) if weight == 0]
        if idle:
            # selected out, not multiplied: NaN times 0 is NaN
            nothing = torch.stack(
                [torch.where(torch.zeros_like(head, dtype=torch.bool), head, 0).sum() for head in idle]
            )
            first = next(iter(totals))
            totals[first] = totals[first] + nothing.sum()
        return totals


def _at_size(mask: Tensor | None, size: Sequence[int], wanted: Sequence[int]) -> Tensor | None:
    """Every n-th pixel of a mask whose last axes are `size`, from the middle of each block; one that has 1 pixel for
    the whole image, as `valid` may, is for every size."""
    if mask is None or tuple(size) == tuple(wanted) or all(side == 1 for side in mask.shape[-len(size) :]):
        return mask
    if any(full % part for full, part in zip(size, wanted, strict=True)):
        raise ValueError(f"expected heads whose sides divide those of the finest, {list(size)}, got {list(wanted)}")
    steps = [full // part for full, part in zip(size, wanted, strict=True)]
    return mask[(..., *(slice(step // 2, None, step) for step in steps))]
