"""Deep supervision: one wrapper around any loss, for networks that answer at several resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segkit.losses.weighted_sum import Normaliser, WeightedSum


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
        normaliser: Sequence[Normaliser] | None = None,
    ) -> Tensor:
        """The loss, a scalar. logits: [B, K, *S_h] of each head, finest first, or one tensor; the rest as for it."""
        return self.loss.combine(self.terms(logits, mask, pixel_weight, valid, normaliser))

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from what `terms` returned."""
        return self.loss.combine(terms)

    def terms(
        self,
        logits: Tensor | Sequence[Tensor],
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        normaliser: Sequence[Normaliser] | None = None,
    ) -> dict[str, Tensor]:
        """Each term by name, summed over the heads with their weights.

        Raises ValueError for no head, for sides that do not divide those of the finest, and for normalisers of another
        number of heads.
        """
        heads = [logits] if isinstance(logits, Tensor) else list(logits)
        if not heads:
            raise ValueError("expected the logits of at least one head, got none")
        weights = self.head_weights(len(heads))
        if normaliser is not None and len(normaliser) != len(heads):
            raise ValueError(f"expected a normaliser for each of {len(heads)} heads, got {len(normaliser)}")
        size = heads[0].shape[2:]
        totals: dict[str, Tensor] = {}
        for place, (head, weight) in enumerate(zip(heads, weights, strict=True)):
            if weight == 0:
                continue
            of_head = self.loss.terms(
                head,
                _at_size(mask, size, head.shape[2:]),
                None if pixel_weight is None else _at_size(pixel_weight, size, head.shape[2:]),
                None if valid is None else _at_size(valid, size, head.shape[2:]),
                None if normaliser is None else normaliser[place],
            )
            for name, value in of_head.items():
                totals[name] = totals.get(name, 0) + weight * value
        idle = [head for head, weight in zip(heads, weights, strict=True) if weight == 0]
        if idle:
            # selected out, not multiplied: NaN times 0 is NaN
            nothing = torch.stack(
                [torch.where(torch.zeros_like(head, dtype=torch.bool), head, 0).sum() for head in idle]
            )
            first = next(iter(totals))
            totals[first] = totals[first] + nothing.sum()
        return totals

    def normaliser(
        self,
        masks: Sequence[Tensor],
        pixel_weights: Sequence[Tensor] | None = None,
        valids: Sequence[Tensor] | None = None,
        *,
        sizes: Sequence[Sequence[int]],
    ) -> list[Normaliser]:
        """For each head what `WeightedSum.normaliser` gives.

        sizes: the spatial sides of the logits of each head, finest first; the masks have those of the first.
        """

        def at(head: Sequence[int], given: Sequence[Tensor]) -> list[Tensor]:
            return [_at_size(one, sizes[0], head) for one in given]

        return [
            self.loss.normaliser(
                at(head, masks),
                None if pixel_weights is None else at(head, pixel_weights),
                None if valids is None else at(head, valids),
                len(head),
            )
            for head in sizes
        ]


def _at_size(mask: Tensor, size: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Every n-th pixel of a mask whose last axes are `size`, from the middle of each block; one that has 1 pixel for
    the whole image, as `valid` may, is for every size."""
    if tuple(size) == tuple(wanted) or all(side == 1 for side in mask.shape[-len(size) :]):
        return mask
    if any(full % part for full, part in zip(size, wanted, strict=True)):
        raise ValueError(f"expected heads whose sides divide those of the finest, {list(size)}, got {list(wanted)}")
    steps = [full // part for full, part in zip(size, wanted, strict=True)]
    return mask[(..., *(slice(step // 2, None, step) for step in steps))]
