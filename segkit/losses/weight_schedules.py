"""Schedules of term weights: functions of the progress of a run, which goes from 0 at the first step to 1 at the end.

A schedule has no state, so a resumed run needs only the step. Weights are finite and at least 0; a schedule with other
weights raises ValueError when it is created.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from segkit.losses.limits import LARGEST_OPTION
from segkit.utils.text import shown

WeightSchedule = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """`value` during the whole run."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(value=self.value)

    def __call__(self, progress: float) -> float:  # noqa: ARG002
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """`start` up to the fraction `begin` of the run, `end` from the fraction `until` on, linear in between."""

    start: float = 0.0
    end: float = 1.0
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(start=self.start, end=self.end)
        if not 0 <= self.begin < self.until <= 1:
            raise ValueError(f"expected 0 <= begin < until <= 1, got begin {self.begin} and until {self.until}")

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * self._shape(self._relative(progress))

    def _relative(self, progress: float) -> float:
        """The position between `begin` and `until`, from 0 to 1."""
        return min(1.0, max(0.0, (progress - self.begin) / (self.until - self.begin)))

    def _shape(self, relative: float) -> float:
        """The share of the way from `start` to `end`."""
        return relative


@dataclass(frozen=True, kw_only=True)
class Cosine(Linear):
    """Like `linear`, with half a cosine wave in between."""

    def _shape(self, relative: float) -> float:
        return (1 - math.cos(math.pi * relative)) / 2


@dataclass(frozen=True, kw_only=True)
class After:
    """`before` up to the fraction `fraction` of the run, `value` from there on."""

    fraction: float = 0.5
    value: float = 1.0
    before: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(value=self.value, before=self.before)
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"expected fraction between 0 and 1, got {self.fraction}")

    def __call__(self, progress: float) -> float:
        return self.value if progress >= self.fraction else self.before


def _check_weights(**weights: float) -> None:
    invalid = [f"{name} {shown(weight)}" for name, weight in weights.items() if not 0 <= weight <= LARGEST_OPTION]
    if invalid:
        raise ValueError(f"expected weights of 0 or more, at most {LARGEST_OPTION:g}, got {', '.join(invalid)}")


WEIGHT_SCHEDULES: dict[str, Callable[..., WeightSchedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "after": After,
}
