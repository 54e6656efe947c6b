"""The weighted sum of terms: builds the target once, runs each shared pass once, and combines the terms."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target, as_tensor
from segkit.losses.all_reduce import Reduce, single_process
from segkit.losses.chunking import Activation, Batch
from segkit.losses.shared_pass import MaskSums, mask_sums, run_pass
from segkit.losses.target_maps import Maps, TargetMap, maps_needed, maps_of_target
from segkit.losses.weight_schedules import Constant, WeightSchedule


@dataclass(frozen=True)
class Scale:
    """A factor and an offset that turn the value of a term into that of another library."""

    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Normaliser:
    """The divisors with which the losses of several micro-batches add up to the loss of one large batch.

    counts: the divisor of each term by name; None for a term that is defined on the micro-batch, which is averaged over
        the micro-batches instead. batches: the number of micro-batches.
    """

    counts: Mapping[str, Tensor | None]
    batches: int


class WeightedSum(nn.Module):
    """The sum of weight * term over the terms of a loss.

    terms: modules by name. A term has either an attribute `sums`, its request to the shared pass or a tuple of them,
        with the methods `score(result or results, count)` and `count(mask sums)`, or the method `forward(logits,
        target)`. A term whose `forward` takes a divisor as well has an `activation` and the method `count(mask sums)`.
        A term that needs maps of the target names them in its attribute `maps`; one that needs maps of the prediction
        has the method `predicted_maps(logits, target)`.
    schedules: the weight of each term as a function of the progress of the run. `set_progress` writes the current
        weights to the buffer `weights`.
    scales: factor and offset of each term.
    reduce: sums over processes.
    """

    def __init__(
        self,
        labels: Labels,
        terms: Mapping[str, nn.Module],
        schedules: Sequence[WeightSchedule],
        scales: Sequence[Scale],
        reduce: Reduce = single_process,
    ) -> None:
        super().__init__()
        self.labels, self.reduce = labels, reduce
        self.names = list(terms)
        self.members = nn.ModuleList(terms.values())
        self.schedules, self.scales = list(schedules), list(scales)
        self.maps: list[TargetMap] = maps_needed(terms.values())  # of the target, which the terms need
        self._map_names = [target_map.name for target_map in self.maps]
        self._watches_progress = any(not isinstance(schedule, Constant) for schedule in schedules)
        self._calls_without_progress = 0
        self.weights: Tensor
        self.register_buffer("weights", torch.tensor([schedule(0.0) for schedule in schedules], dtype=torch.float64))

    def _apply(self, fn: Any, recurse: bool = True) -> WeightedSum:
        """Move or convert the buffers, as `to` and `cuda` do; in float32 on devices without float64, such as MPS."""
        try:
            return super()._apply(fn, recurse)
        except TypeError:
            self.float()
            return super()._apply(fn, recurse)

    def set_progress(self, progress: float) -> None:
        """Set the term weights for a step. There is no host synchronisation.

        progress: the number of the step divided by the number of all steps.
        """
        self._watches_progress = False
        for index, schedule in enumerate(self.schedules):
            self.weights[index].fill_(schedule(progress))

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
        """The loss, a scalar of at least float32; 0 with gradient 0 if every pixel is ignored.

        logits: floating [B, K, *S]; values at ignored pixels have no effect, even NaN. At other pixels, every finite
            logit gives a finite loss and gradient. -inf is probability 0, and under a sigmoid inf is probability 1;
            NaN, and under a softmax inf, makes loss or gradient NaN, and training skips such a step.
        mask: class numbers [B, *S], or one-hot or soft [B, K, *S], a tensor or numpy array; see `Labels.target`.
        pixel_weight: [B, *S], 0 or more.
        valid: bool [B, *S] or [B, K, *S]: false for further pixels to ignore, for all classes or for some.
        normaliser: the divisors for several micro-batches; see the method `normaliser`.
        maps: the maps of the masks that the terms need, as the training loader provides them. Without them, terms that
            need maps make them from the masks on the host, which waits for the device and cannot be compiled.
        spacing: mm along each axis for each image, used for these maps; None for 1.

        Raises ValueError if the shapes do not match, or if a term is not defined for the target or the weights. A
        second derivative raises RuntimeError.
        """
        return self.combine(self.terms(logits, mask, pixel_weight, valid, normaliser, maps, spacing))

    def combine(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from the result of `terms`."""
        values = torch.stack(list(terms.values()))
        if not torch.compiler.is_compiling() and self._watches_progress and values.requires_grad:
            self._warn_without_progress()
        return (values * self.weights.to(values.dtype)).sum()

    def _warn_without_progress(self) -> None:
        """Warn once, on the second call with gradients, that `set_progress` was never called for scheduled weights."""
        self._calls_without_progress += 1
        if self._calls_without_progress < 2:
            return
        self._watches_progress = False
        scheduled = zip(self.names, self.schedules, strict=True)
        names = ", ".join(name for name, schedule in scheduled if not isinstance(schedule, Constant))
        warnings.warn(
            f"the weight of {names} follows a schedule, but set_progress was never called, so the weight stays at its "
            "initial value; call loss.set_progress(step / steps) before each training step",
            stacklevel=2,
        )

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
        """The value of each term by name, scalars without term weights. Arguments: see `forward`."""
        mask = as_tensor(mask, logits.device)
        self._check_shapes(logits, mask, pixel_weight)
        # The shared pass counts the pixels of each class and so detects values that are not a class; other terms do
        # not.
        counted = pixel_weight is None and valid is None and any(hasattr(term, "sums") for term in self._terms)
        target = self.labels.target(mask, logits.ndim - 2, pixel_weight, valid, check=not counted)
        target = self._with_maps(target, logits, maps, spacing)
        counts = {} if normaliser is None else normaliser.counts
        results = self._results(logits, target)
        values = {}
        for name, term, scale in zip(self.names, self._terms, self.scales, strict=True):
            if name in results:
                value = term.score(results[name], counts.get(name))
            else:
                value = term(logits, target, counts.get(name)) if _has_count(term) else term(logits, target)
            value = value if scale == Scale() else scale.factor * value
            if normaliser is not None and counts.get(name) is None:
                value = value / normaliser.batches
            values[name] = value + scale.offset / (1 if normaliser is None else normaliser.batches)
        return values

    @property
    def _terms(self) -> Iterable[Any]:
        return cast("Iterable[Any]", self.members)  # the class docstring lists the attributes of a term

    def _with_maps(
        self, target: Target, logits: Tensor, maps: Maps | None, spacing: Sequence[Sequence[float]] | None
    ) -> Target:
        """The target with the maps that the terms need."""
        if not self.maps:
            return target
        if maps is None:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            maps = maps_of_target(self.maps, self.labels, target, spacing, dtype)
        missing = [name for name in self._map_names if name not in maps]
        if missing:
            raise ValueError(
                f"expected maps with {', '.join(missing)}, which the loss needs, got {', '.join(maps) or 'none'}; "
                "leave maps out to have them made from the mask"
            )
        self._check_maps(maps, logits)
        target = replace(target, maps=dict(maps))
        for term in self._terms:
            if hasattr(term, "predicted_maps"):
                target = replace(target, maps={**target.maps, **term.predicted_maps(logits, target)})
        return target

    def _check_maps(self, maps: Maps, logits: Tensor) -> None:
        """Raise ValueError for a map whose shape does not fit the logits."""
        images, channels, *space = logits.shape
        for name, values in maps.items():
            shape = list(values.shape)
            fits = values.ndim == 2 or (values.ndim == logits.ndim and shape[1] in (1, channels) and shape[2:] == space)
            if not fits or shape[0] != images:
                raise ValueError(
                    f"expected the map {name} of shape {[images, channels, *space]}, or with one channel, for logits "
                    f"{list(logits.shape)}, got {shape}; a batch stacks the maps of its images"
                )

    def _results(self, logits: Tensor, target: Target) -> dict[str, Any]:
        """The results of the shared passes, one pass for each activation, by the name of the term."""
        requests = {
            name: _requests(term) for name, term in zip(self.names, self._terms, strict=True) if hasattr(term, "sums")
        }
        single = {name for name, term in zip(self.names, self._terms, strict=True) if not _is_compound(term)}
        activations: list[Activation] = ["softmax", "sigmoid"]
        results: dict[str, Any] = {}
        for activation in activations:
            names = [name for name, sums in requests.items() if sums[0].activation == activation]
            if names:
                batch = Batch(logits, target, self.labels, activation)
                pass_results = iter(run_pass(batch, [request for name in names for request in requests[name]]))
                for name in names:
                    own = tuple(next(pass_results) for _request in requests[name])
                    results[name] = own[0] if name in single else own
        return results

    @property
    def defined_on_micro_batches(self) -> list[str]:
        """The terms that do not add up over micro-batches to the term of one large batch; see `normaliser`."""
        mask = torch.zeros(1, 1, 1, dtype=torch.uint8, device=self.weights.device)
        mask = mask.unsqueeze(1).expand(1, self.labels.channels, 1, 1) if self.labels.has_mask_channels else mask
        return [
            name
            for name, term in zip(self.names, self._terms, strict=True)
            if not _has_count(term) or term.count(self._mask_sums(mask, _activation(term), None, None, 2)) is None
        ]

    @torch.no_grad()
    def normaliser(
        self,
        masks: Sequence[Tensor],
        pixel_weights: Sequence[Tensor] | None = None,
        valids: Sequence[Tensor] | None = None,
        spatial: int | None = None,
    ) -> Normaliser:
        """The normaliser to pass to the call for each micro-batch, when gradients are accumulated over micro-batches.

        Pixel terms, and region terms with `per: image`, then add up to the loss of one large batch. The other terms are
        defined on the micro-batch and are averaged.

        masks, pixel_weights, valids: those of all micro-batches of this process; see `forward`.
        spatial: the number of spatial axes. Without it, integer masks are read as class numbers [B, *S]; raises
            ValueError if they might also be one-hot.
        """
        counts: dict[str, Tensor | None] = {}
        for name, term in zip(self.names, self._terms, strict=True):
            batch_counts = []
            for index, mask in enumerate(masks) if _has_count(term) else ():
                weight = None if pixel_weights is None else pixel_weights[index]
                valid = None if valids is None else valids[index]
                batch_counts.append(term.count(self._mask_sums(mask, _activation(term), weight, valid, spatial)))
            if not batch_counts or batch_counts[0] is None:
                counts[name] = None
            else:
                (counts[name],) = self.reduce(torch.stack(batch_counts).sum(0))
        return Normaliser(counts, len(masks))

    def _mask_sums(
        self, mask: Tensor, activation: Activation, weight: Tensor | None, valid: Tensor | None, spatial: int | None
    ) -> MaskSums:
        spatial = self._spatial_axes(mask) if spatial is None else spatial
        target = self.labels.target(mask, spatial, weight, valid)
        shape = (mask.shape[0], self.labels.channels, *mask.shape[mask.ndim - spatial :])
        # the sums depend on the mask alone; these logits have a shape but almost no memory
        logits = torch.zeros((), device=mask.device).expand(shape)
        return mask_sums(Batch(logits, target, self.labels, activation))

    def _spatial_axes(self, mask: Tensor) -> int:
        """The number of spatial axes of a mask without logits."""
        if mask.is_floating_point() or self.labels.has_mask_channels:
            return mask.ndim - 2
        if mask.ndim > 3 and mask.shape[1] == self.labels.channels:
            if self.labels.mode == "binary":
                return mask.ndim - 2
            raise ValueError(
                f"a mask {list(mask.shape)} of {mask.dtype} may hold class numbers of 3D volumes or the one-hot form "
                "of 2D images; specify spatial=3 or spatial=2"
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
        for name, tensor in (("mask", mask), ("pixel_weight", pixel_weight)):
            if tensor is None:
                continue
            has_channels = name == "mask" and tensor.ndim == logits.ndim
            shape = [tensor.shape[0], *tensor.shape[2 if has_channels else 1 :]]
            if shape != expected:
                raise ValueError(
                    f"expected {name} of shape {expected}{' or with channels' if name == 'mask' else ''} for logits "
                    f"{list(logits.shape)}, got {list(tensor.shape)}"
                )


def _is_compound(term: Any) -> bool:
    return isinstance(getattr(term, "sums", None), tuple)


def _requests(term: Any) -> tuple[Any, ...]:
    """The requests of a term to the shared pass."""
    return term.sums if _is_compound(term) else (term.sums,)


def _has_count(term: Any) -> bool:
    """Whether the divisor of a term may be computed from the masks alone, with its method `count`."""
    return hasattr(term, "sums") or (hasattr(term, "count") and hasattr(term, "activation"))


def _activation(term: Any) -> Activation:
    return _requests(term)[0].activation if hasattr(term, "sums") else term.activation
