"""Deep supervision: a wrapper around any loss for networks with outputs at several resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segkit.losses.target_maps import Maps, middle_pixels
from segkit.losses.weighted_sum import Normaliser, WeightedSum


class DeepSupervision(nn.Module):
    """sum_h v_h loss(logits_h, mask_h) over the heads of a network, finest first; the weights v halve from head to head
    and sum to 1 (Lee et al. 2015; weights of Isensee et al. 2021).

    loss: the loss of each head; its term weights and schedules apply to all heads.
    drop_last: give the coarsest of several heads the weight 0. The loss of a head with weight 0 is not computed. Its
        logits stay in the graph with gradient 0, so that every parameter of the network has a gradient.

    For a single tensor, or a list of one, the result is that of the loss itself. The mask of a coarser head consists of
    every n-th pixel of the mask (nearest neighbour), ignored pixels included. The same holds for pixel weights,
    `valid` and maps, except for skeletons, which are thin: there, any pixel of a block counts.
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
        """Set the term weights for a step; see `WeightedSum.set_progress`."""
        self.loss.set_progress(progress)

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        normaliser: Sequence[Normaliser] | None = None,
        maps: Maps | None = None,
        spacing: Sequence[Sequence[float]] | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        logits: [B, K, *S_h] of each head, finest first, or one tensor. Other arguments: see `WeightedSum.forward`;
        `normaliser` has one entry for each head.
        """
        return self.loss.combine(self.terms(logits, mask, pixel_weight, valid, normaliser, maps, spacing))

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from the result of `terms`."""
        return self.loss.combine(terms)

    def terms(
        self,
        logits: Tensor | Sequence[Tensor],
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        normaliser: Sequence[Normaliser] | None = None,
        maps: Maps | None = None,
        spacing: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, Tensor]:
        """Each term by name, as the weighted sum over the heads.

        Raises ValueError if there is no head, if the sides of a head do not divide those of the finest head, and if the
        number of normalisers differs from the number of heads.
        """
        heads = [logits] if isinstance(logits, Tensor) else list(logits)
        if not heads:
            raise ValueError("expected the logits of at least one head, got none")
        weights = self.head_weights(len(heads))
        if normaliser is not None and len(normaliser) != len(heads):
            raise ValueError(f"expected one normaliser for each of {len(heads)} heads, got {len(normaliser)}")
        size = heads[0].shape[2:]
        totals: dict[str, Tensor] = {}
        for index, (head, weight) in enumerate(zip(heads, weights, strict=True)):
            if weight == 0:
                continue
            head_terms = self.loss.terms(
                head,
                _at_size(mask, size, head.shape[2:]),
                None if pixel_weight is None else _at_size(pixel_weight, size, head.shape[2:]),
                None if valid is None else _at_size(valid, size, head.shape[2:]),
                None if normaliser is None else normaliser[index],
                self._maps_at_size(maps, size, head.shape[2:]),
                _spacing_at_size(spacing, size, head.shape[2:]),
            )
            for name, value in head_terms.items():
                totals[name] = totals.get(name, 0) + weight * value
        idle = [head for head, weight in zip(heads, weights, strict=True) if weight == 0]
        if idle:
            # replaced by 0, not multiplied by 0, since NaN times 0 is NaN
            zeros = torch.stack([torch.where(torch.zeros_like(head, dtype=torch.bool), head, 0).sum() for head in idle])
            first = next(iter(totals))
            totals[first] = totals[first] + zeros.sum()
        return totals

    def _maps_at_size(self, maps: Maps | None, size: Sequence[int], head: Sequence[int]) -> Maps | None:
        """The maps at the size of a head; None without maps, which the loss then makes from the mask of the head."""
        if maps is None or tuple(size) == tuple(head):
            return maps
        steps = _steps(size, head)
        resized = {}
        for target_map in self.loss.maps:
            for name in maps:
                if name == target_map.name or name.startswith(f"{target_map.name}-"):
                    resized[name] = target_map.at_size(maps[name], steps)
        return resized

    def normaliser(
        self,
        masks: Sequence[Tensor],
        pixel_weights: Sequence[Tensor] | None = None,
        valids: Sequence[Tensor] | None = None,
        *,
        sizes: Sequence[Sequence[int]],
    ) -> list[Normaliser]:
        """The result of `WeightedSum.normaliser` for each head.

        sizes: the spatial size of the logits of each head, finest first; the masks have the size of the first.
        """

        def resized(head: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
            return [_at_size(tensor, sizes[0], head) for tensor in tensors]

        return [
            self.loss.normaliser(
                resized(head, masks),
                None if pixel_weights is None else resized(head, pixel_weights),
                None if valids is None else resized(head, valids),
                len(head),
            )
            for head in sizes
        ]


def _at_size(mask: Tensor, size: Sequence[int], head: Sequence[int]) -> Tensor:
    """A mask whose last axes have `size`, at the size of a head: the middle pixel of each block.

    A mask with one pixel for the whole image, as `valid` may be, fits every size and is returned unchanged.
    """
    if tuple(size) == tuple(head) or all(side == 1 for side in mask.shape[-len(size) :]):
        return mask
    return middle_pixels(mask, _steps(size, head))


def _steps(size: Sequence[int], head: Sequence[int]) -> list[int]:
    """How many pixels of the finest head a pixel of a head spans along each axis."""
    if any(full % coarse for full, coarse in zip(size, head, strict=True)):
        raise ValueError(f"expected heads whose sides divide those of the finest head {list(size)}, got {list(head)}")
    return [full // coarse for full, coarse in zip(size, head, strict=True)]


def _spacing_at_size(
    spacing: Sequence[Sequence[float]] | None, size: Sequence[int], head: Sequence[int]
) -> list[list[float]] | None:
    """The spacing of the pixels of a head, of each image; 1 in the finest head if it is not given."""
    if spacing is None:
        return None
    return [[step * factor for step, factor in zip(image, _steps(size, head), strict=True)] for image in spacing]
