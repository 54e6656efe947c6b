"""The sums that terms request from the shared pass, and the functions of a pixel that are summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from segkit.losses.chunking import Activation, Batch

# the sums of a group: of the probability, of the probability on the pixels of the class, and of these pixels
GROUP_SUMS = ("group predicted", "group tp", "group reference")


class PixelFunction(Protocol):
    """An elementwise function of the log-probability of a pixel's true class; it is 0 where that probability is 1."""

    @property
    def soft(self) -> bool:
        """Whether the function is defined for soft targets."""
        ...

    @property
    def constant_slope(self) -> float | None:
        """The slope if it is the same everywhere, so that it does not depend on the probability; otherwise None."""
        ...

    def value(self, log_likelihood: Tensor) -> Tensor: ...

    def slope(self, likelihood: Tensor, other: Tensor | None) -> Tensor:
        """The derivative with respect to the log-probability, as a function of the probability.

        other: 1 - likelihood, where it is known to more digits than the difference would have.
        """
        ...


@dataclass(frozen=True)
class RegionSums:
    """The request of a region term: overlap and size of each class.

    power: 2 sums the squared probabilities instead of the probabilities. The overlap is that of the same power, see
        `segkit.losses.kernels.region_sums`.
    """

    activation: Activation
    power: Literal[1, 2] = 1


@dataclass(frozen=True, eq=False)
class PixelSums:
    """The request of a pixel term: the weighted sum of a function of the log-probability of the true class.

    name: the name of the loss, for error messages.
    class_weights: [K] for the activation softmax; [2, K] for sigmoid, for absence and presence of each channel's class;
        None for 1.
    smoothing: the share of the target that is spread evenly over the classes.
    """

    name: str
    activation: Activation
    function: PixelFunction
    class_weights: Tensor | None = None
    smoothing: float = 0.0


@dataclass(frozen=True)
class MapSum:
    """The sum over pixels of |p - g|^power f(m, g) of each class: p is the probability, m the map, g the target.

    Sums of errors keep their digits when the prediction is nearly right, where differences of sums would not.

    map: the name of a map of the target, floating or integer [B, K, *S]. factor: f, an elementwise function that
        returns a new tensor; g is 1 on the pixels of the class and 0 elsewhere.
    """

    map: str
    power: Literal[0, 1, 2]
    factor: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MapSums:
    """The request of a term that weighs errors by maps of the target. name: of the loss, for error messages."""

    name: str
    activation: Activation
    sums: tuple[MapSum, ...]


@dataclass(frozen=True)
class GroupSums:
    """The request of a term that groups the pixels of each class, by component for example.

    name: the name of the loss, for error messages.
    map: the name of a map of the target with the group of each pixel, integer [B, K, *S], from 0.
    slots: the name of a map [B, J] whose length J is the number of groups.
    """

    name: str
    activation: Activation
    map: str
    slots: str


Request = RegionSums | PixelSums | MapSums | GroupSums


@dataclass(frozen=True)
class RequestedSums:
    """The distinct sums of all requests.

    powers: the distinct powers of the region requests. pixel: the pixel requests. maps: the distinct sums of the
    requests with maps. groups: the distinct requests with groups, each with the number of its groups.
    hard: names of losses that are not defined for soft targets, apart from the pixel requests.
    """

    powers: tuple[int, ...]
    pixel: tuple[PixelSums, ...]
    maps: tuple[MapSum, ...] = ()
    groups: tuple[tuple[GroupSums, int], ...] = ()
    hard: tuple[str, ...] = ()

    @staticmethod
    def of(requests: Sequence[Request], maps: Mapping[str, Tensor] | None = None) -> RequestedSums:
        """maps: those of the target, whose shapes tell the numbers of groups."""
        powers = sorted({request.power for request in requests if isinstance(request, RegionSums)})
        map_sums = dict.fromkeys(one for request in requests if isinstance(request, MapSums) for one in request.sums)
        groups = dict.fromkeys(request for request in requests if isinstance(request, GroupSums))
        return RequestedSums(
            tuple(powers),
            tuple(request for request in requests if isinstance(request, PixelSums)),
            tuple(map_sums),
            tuple((request, (maps or {})[request.slots].shape[-1]) for request in groups),
            tuple(request.name for request in requests if isinstance(request, (MapSums, GroupSums))),
        )

    @property
    def of_probabilities(self) -> bool:
        """Whether there are sums of probabilities, and not of log-probabilities alone."""
        return bool(self.powers or self.maps or self.groups)

    @property
    def names(self) -> list[tuple[Any, ...]]:
        """The names of the sums, in the order in which a kernel's `sums` returns them."""
        region = [(name, power) for name in ("tp", "predicted") for power in self.powers]
        maps = [("map", one) for one in self.maps]
        groups = [(name, request) for request, _ in self.groups for name in GROUP_SUMS]
        return [*region, *maps, *groups, *(("pixel", number) for number in range(len(self.pixel)))]

    @property
    def shrink(self) -> int:
        """The factor by which chunks are smaller, to keep intermediate results within the size of the logits."""
        if self.maps or self.groups:
            return 8 if self.groups else 4
        is_unweighted = all(request.class_weights is None and not request.smoothing for request in self.pixel)
        has_one_sum = is_unweighted and self.powers in ((), (1,)) and len(self.pixel) + len(self.powers) < 2
        constant = all(request.function.constant_slope is not None for request in self.pixel)
        return 1 if has_one_sum or (is_unweighted and constant and self.powers == (1,) and len(self.pixel) == 1) else 2

    def channels(self, name: tuple[Any, ...], channels: int) -> int:
        """The length of a sum per image: 1 for a pixel function, which is summed over the classes, otherwise K, or K
        times the number of groups."""
        if name[0] == "pixel":
            return 1
        return channels * dict(self.groups)[name[1]] if name[0] in GROUP_SUMS else channels

    def width(self, channels: int) -> int:
        """The total length of all sums per image."""
        return sum(self.channels(name, channels) for name in self.names)

    def named(self, sums: Tensor, channels: int) -> dict[tuple[Any, ...], Tensor]:
        """Concatenated sums [b, width] by name, [b, K or 1] each, [b, K J] for J groups."""
        columns = sums.split([self.channels(name, channels) for name in self.names], 1)
        return dict(zip(self.names, columns, strict=True))

    def check(self, batch: Batch) -> None:
        """Raise ValueError if a sum is not defined for the target."""
        if batch.soft and self.hard:
            raise ValueError(
                f"{', '.join(self.hard)}: defined for hard targets, got a floating one; use dice or jaccard instead"
            )
        for request in self.pixel:
            if batch.soft and not request.function.soft:
                raise ValueError(
                    f"{request.name} is defined for hard targets, got a floating one; use cross_entropy or dice instead"
                )
            if batch.target.valid_per_class and batch.activation == "softmax":
                raise ValueError(
                    f"{request.name} under a softmax has one value per pixel, so a pixel cannot be valid for some "
                    "classes only; pass valid as [B, *S], or use region terms, activation sigmoid or mode multilabel"
                )
