"""The sums that terms request from the shared pass, and the functions of a pixel that are summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from segkit.losses.chunking import Activation, Batch


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
class RequestedSums:
    """The distinct sums of all requests.

    powers: the distinct powers of the region requests. pixel: the pixel requests.
    """

    powers: tuple[int, ...]
    pixel: tuple[PixelSums, ...]

    @staticmethod
    def of(requests: Sequence[RegionSums | PixelSums]) -> RequestedSums:
        powers = sorted({request.power for request in requests if isinstance(request, RegionSums)})
        return RequestedSums(tuple(powers), tuple(request for request in requests if isinstance(request, PixelSums)))

    @property
    def names(self) -> list[tuple[Any, ...]]:
        """The names of the sums, in the order in which a kernel's `sums` returns them."""
        region = [(name, power) for name in ("tp", "predicted") for power in self.powers]
        return [*region, *(("pixel", number) for number in range(len(self.pixel)))]

    @property
    def shrink(self) -> int:
        """The factor by which chunks are smaller, to keep intermediate results within the size of the logits."""
        is_unweighted = all(request.class_weights is None and not request.smoothing for request in self.pixel)
        has_one_sum = is_unweighted and self.powers in ((), (1,)) and len(self.pixel) + len(self.powers) < 2
        constant = all(request.function.constant_slope is not None for request in self.pixel)
        return 1 if has_one_sum or (is_unweighted and constant and self.powers == (1,) and len(self.pixel) == 1) else 2

    def channels(self, name: tuple[Any, ...], channels: int) -> int:
        """The length of a sum per image: 1 for a pixel function, which is summed over the classes, otherwise K."""
        return 1 if name[0] == "pixel" else channels

    def width(self, channels: int) -> int:
        """The total length of all sums per image."""
        return sum(self.channels(name, channels) for name in self.names)

    def named(self, sums: Tensor, channels: int) -> dict[tuple[Any, ...], Tensor]:
        """Concatenated sums [b, width] by name, [b, K or 1] each."""
        columns = sums.split([self.channels(name, channels) for name in self.names], 1)
        return dict(zip(self.names, columns, strict=True))

    def check(self, batch: Batch) -> None:
        """Raise ValueError if a pixel function is not defined for the target."""
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
