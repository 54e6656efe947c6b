"""What terms ask of the shared pass, and the functions of a pixel that they ask it for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from segkit.losses.chunking import Activation, Batch

TP = ("tp",)  # the name of the sum of the overlaps


class PixelFunction(Protocol):
    """A function of the log-probability of what a pixel shows, 0 where it is certain; elementwise."""

    @property
    def soft(self) -> bool:
        """Whether it means something where a pixel shows several classes in shares."""
        ...

    @property
    def constant_slope(self) -> float | None:
        """The slope where it is the same everywhere, so that the probability need not be known for it."""
        ...

    def value(self, log_likelihood: Tensor) -> Tensor: ...

    def slope(self, likelihood: Tensor, other: Tensor | None) -> Tensor:
        """The slope with respect to the log-probability, from the probability itself.

        other: that of all else, where it is known to more digits than 1 - likelihood has.
        """
        ...


@dataclass(frozen=True)
class RegionSums:
    """What a region term asks of the pass: overlap and size of each class, `power` 2 for squared probabilities."""

    activation: Activation
    power: Literal[1, 2] = 1


@dataclass(frozen=True, eq=False)
class PixelSums:
    """What a pixel term asks of the pass: the weighted sum of a function of the log-probability of the truth.

    name: of the loss, for errors. class_weights: [K] for the activation softmax; [2, K] for sigmoid, of each channel's
    absence and presence; None for 1. smoothing: the share of the truth that is spread evenly over the classes.
    """

    name: str
    activation: Activation
    function: PixelFunction
    class_weights: Tensor | None = None
    smoothing: float = 0.0


@dataclass(frozen=True)
class Needs:
    """The distinct sums that were asked for. names: what `Kernel.sums` returns, in this order."""

    powers: tuple[int, ...]
    pixel: tuple[PixelSums, ...]

    @staticmethod
    def of(asked: Sequence[RegionSums | PixelSums]) -> Needs:
        powers = sorted({one.power for one in asked if isinstance(one, RegionSums)})
        return Needs(tuple(powers), tuple(one for one in asked if isinstance(one, PixelSums)))

    @property
    def names(self) -> list[tuple[Any, ...]]:
        region = [TP, *(("predicted", power) for power in self.powers)] if self.powers else []
        return [*region, *(("pixel", number) for number in range(len(self.pixel)))]

    @property
    def smaller(self) -> int:
        """How much smaller pieces have to be for what is made on the way to stay within the size of the logits."""
        plain = all(one.class_weights is None and not one.smoothing for one in self.pixel)
        lean = plain and self.powers in ((), (1,)) and len(self.pixel) + len(self.powers) < 2
        constant = all(one.function.constant_slope is not None for one in self.pixel)
        return 1 if lean or (plain and constant and self.powers == (1,) and len(self.pixel) == 1) else 2

    def channels(self, name: tuple[Any, ...], channels: int) -> int:
        """How many numbers an image has of a sum: a pixel function one, for all classes together."""
        return 1 if name[0] == "pixel" else channels

    def width(self, channels: int) -> int:
        """The numbers of an image in all."""
        return sum(self.channels(name, channels) for name in self.names)

    def named(self, sums: Tensor, channels: int) -> dict[tuple[Any, ...], Tensor]:
        """Sums that lie side by side, [b, width], by name, [b, K or 1] each."""
        parts = sums.split([self.channels(name, channels) for name in self.names], 1)
        return dict(zip(self.names, parts, strict=True))

    def check(self, batch: Batch) -> None:
        """Raise ValueError if a pixel function is not defined for the target."""
        for one in self.pixel:
            if batch.soft and not one.function.soft:
                raise ValueError(
                    f"{one.name} is defined for hard targets, got a floating one; use cross_entropy or dice there"
                )
            if batch.target.valid_per_class and batch.activation == "softmax":
                raise ValueError(
                    f"{one.name} under a softmax has one entry a pixel, so a pixel cannot count for some classes only; "
                    "give valid [B, *S], or use region terms, activation sigmoid or mode multilabel"
                )
