"""The weighted sum of terms: builds the target once, runs each pass once, combines what the terms make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.all_reduce import Reduce, keep
from segkit.losses.chunking import Activation, Batch
from segkit.losses.shared_pass import MaskSums, mask_sums, run_pass
from segkit.losses.weight_schedules import WeightSchedule


@dataclass(frozen=True)
class Scale:
    """What a term's value is multiplied with and what is added, to be that of another library."""

    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Normaliser:
    """What the terms of several micro-batches are divided by, so that their sum is the loss of all in one batch.

    counts: by term; None for a term that is defined on the micro-batch, of which the mean over `batches` is taken.
    """

    counts: Mapping[str, Tensor | None]
    batches: int


class WeightedSum(nn.Module):
    """The sum of weight * term over the terms of a loss.

    terms: modules by name. Each says in `sums` what it needs of the shared pass and has `score(result, count)` and
        `count(mask sums)`, or else it has `forward(logits, target)`.
    schedules: the weight of each term as a function of the progress of the run; the current ones are the buffer
        `weights`, set by `set_progress`.
    scales: factor and offset of each term.
    reduce: sums over processes.
    """

    def __init__(
        self,
        labels: Labels,
        terms: Mapping[str, nn.Module],
        schedules: Sequence[WeightSchedule],
        scales: Sequence[Scale],
        reduce: Reduce = keep,
    ) -> None:
        super().__init__()
        self.labels, self.reduce = labels, reduce
        self.names = list(terms)
        self.members = nn.ModuleList(terms.values())
        self.schedules, self.scales = list(schedules), list(scales)
        self.weights: Tensor
        self.register_buffer("weights", torch.tensor([schedule(0.0) for schedule in schedules], dtype=torch.float64))

    def _apply(self, fn: Any, recurse: bool = True) -> WeightedSum:
        """What `to`, `cuda` and the like do to the buffers. A device without float64, as MPS, gets them in float32."""
        try:
            return super()._apply(fn, recurse)
        except TypeError:
            self.float()
            return super()._apply(fn, recurse)

    def set_progress(self, progress: float) -> None:
        """Set the weights for a step; progress is its number over that of all steps. Waits for no device."""
        for place, schedule in enumerate(self.schedules):
            self.weights[place].fill_(schedule(progress))

    def forward(
        self,
        logits: Tensor,
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        normaliser: Normaliser | None = None,
    ) -> Tensor:
        """The loss, a scalar of at least float32; 0 with gradient 0 if every pixel is ignored.

        logits: floating [B, K, *S]; values under ignored pixels do not matter, be they NaN.
        mask: class numbers [B, *S], or one-hot or soft [B, K, *S], as in `Labels.target`.
        pixel_weight: [B, *S], 0 or more.
        valid: bool [B, *S] or [B, K, *S]: further pixels that do not count, or not for every class.
        normaliser: of several micro-batches, see `normaliser`.

        Raises ValueError if the shapes do not fit, and where a term is not defined for what is given; a second
        derivative raises RuntimeError.
        """
        return self.combine(self.terms(logits, mask, pixel_weight, valid, normaliser))

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from what `terms` returned."""
        values = torch.stack(list(terms.values()))
        return (values * self.weights.to(values.dtype)).sum()

    def terms(
        self,
        logits: Tensor,
        mask: Tensor,
        pixel_weight: Tensor | None = None,
        valid: Tensor | None = None,
        normaliser: Normaliser | None = None,
    ) -> dict[str, Tensor]:
        """Each term's value by name, scalars, without their weights; arguments as for the call."""
        self._check_shapes(logits, mask, pixel_weight)
        # the shared passes count the classes, and so find values that are none of them; other terms have no such count
        counted = pixel_weight is None and valid is None and any(hasattr(term, "sums") for term in self._terms)
        target = self.labels.target(mask, logits.ndim - 2, pixel_weight, valid, check=not counted)
        counts = {} if normaliser is None else normaliser.counts
        results = self._results(logits, target)
        values = {}
        for name, term, scale in zip(self.names, self._terms, self.scales, strict=True):
            value = term.score(results[name], counts.get(name)) if name in results else term(logits, target)
            value = value if scale == Scale() else scale.factor * value
            if normaliser is not None and counts.get(name) is None:
                value = value / normaliser.batches
            values[name] = value + scale.offset / (1 if normaliser is None else normaliser.batches)
        return values

    @property
    def _terms(self) -> Iterable[Any]:
        return cast("Iterable[Any]", self.members)  # what a term has is in the class docstring

    def _results(self, logits: Tensor, target: Target) -> dict[str, Any]:
        """What the shared passes give each term that needs one: a pass for each activation, and one over the mask."""
        asked = {name: term.sums for name, term in zip(self.names, self._terms, strict=True) if hasattr(term, "sums")}
        activations: list[Activation] = ["softmax", "sigmoid"]
        results: dict[str, Any] = {}
        for activation in activations:
            names = [name for name, sums in asked.items() if sums.activation == activation]
            if names:
                batch = Batch(logits, target, self.labels, activation)
                found = run_pass(batch, [asked[name] for name in names])
                results |= dict(zip(names, found, strict=True))
        return results

    @property
    def defined_on_micro_batches(self) -> list[str]:
        """The terms that do not add up over micro-batches to those of one large batch; see `normaliser`."""
        mask = torch.zeros(1, 1, 1, dtype=torch.uint8, device=self.weights.device)
        mask = mask.unsqueeze(1).expand(1, self.labels.channels, 1, 1) if self.labels.has_mask_channels else mask
        sums = {name: term for name, term in zip(self.names, self._terms, strict=True) if hasattr(term, "sums")}
        return [
            name
            for name in self.names
            if name not in sums
            or sums[name].count(self._mask_sums(mask, sums[name].sums.activation, None, None, 2)) is None
        ]

    @torch.no_grad()
    def normaliser(
        self,
        masks: Sequence[Tensor],
        pixel_weights: Sequence[Tensor] | None = None,
        valids: Sequence[Tensor] | None = None,
        spatial: int | None = None,
    ) -> Normaliser:
        """For gradients that are accumulated over micro-batches, what to hand to the call of each.

        masks: of all micro-batches (and of this process alone, where there are several), as for the call; so are
        pixel_weights and valids. Pixel terms, and region terms with `per: image`, then add up to the loss of one large
        batch; the others are defined on the micro-batch, and their mean is taken.
        spatial: the number of spatial axes. Without it whole numbers are class numbers [B, *S]; raises ValueError where
        they may as well be one-hot.
        """
        counts: dict[str, Tensor | None] = {}
        for name, term in zip(self.names, self._terms, strict=True):
            parts = []
            for place, mask in enumerate(masks) if hasattr(term, "sums") else ():
                weight = None if pixel_weights is None else pixel_weights[place]
                valid = None if valids is None else valids[place]
                parts.append(term.count(self._mask_sums(mask, term.sums.activation, weight, valid, spatial)))
            if not parts or parts[0] is None:
                counts[name] = None
            else:
                (counts[name],) = self.reduce(torch.stack(parts).sum())
        return Normaliser(counts, len(masks))

    def _mask_sums(
        self, mask: Tensor, activation: Activation, weight: Tensor | None, valid: Tensor | None, spatial: int | None
    ) -> MaskSums:
        spatial = self._spatial_axes(mask) if spatial is None else spatial
        target = self.labels.target(mask, spatial, weight, valid)
        shape = (mask.shape[0], self.labels.channels, *mask.shape[mask.ndim - spatial :])
        # a mask alone tells the sums; the logits here are a shape without memory of its own
        logits = torch.zeros((), device=mask.device).expand(shape)
        return mask_sums(Batch(logits, target, self.labels, activation))

    def _spatial_axes(self, mask: Tensor) -> int:
        """The number of spatial axes of a mask that no logits stand beside."""
        if mask.is_floating_point() or self.labels.has_mask_channels:
            return mask.ndim - 2
        if mask.ndim > 3 and mask.shape[1] == self.labels.channels:
            if self.labels.mode == "binary":
                return mask.ndim - 2
            raise ValueError(
                f"a mask {list(mask.shape)} of {mask.dtype} may be class numbers of volumes or the one-hot form of "
                "pictures; say which with spatial=3 or spatial=2"
            )
        return mask.ndim - 1

    def _check_shapes(self, logits: Tensor, mask: Tensor, pixel_weight: Tensor | None) -> None:
        channels = self.labels.channels
        if not logits.is_floating_point() or logits.ndim < 3 or logits.shape[1] != channels:
            raise ValueError(
                f"expected floating logits [B, {channels}, *S], one channel for each of "
                f"{', '.join(self.labels.channel_names)}, got {list(logits.shape)} of {logits.dtype}"
            )
        if 0 in logits.shape:
            raise ValueError(f"expected logits of at least one pixel, got {list(logits.shape)}; drop an empty batch")
        expected = [logits.shape[0], *logits.shape[2:]]
        for name, given in (("mask", mask), ("pixel_weight", pixel_weight)):
            if given is None:
                continue
            has_channels = name == "mask" and given.ndim == logits.ndim
            shape = [given.shape[0], *given.shape[2 if has_channels else 1 :]]
            if shape != expected:
                raise ValueError(
                    f"expected a {name} to fit logits {list(logits.shape)}, {expected}"
                    f"{' or with channels' if name == 'mask' else ''}, got {list(given.shape)}"
                )
