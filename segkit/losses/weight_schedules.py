"""Schedules of term weights: functions of the progress of a run, from 0 at its first step to 1 at its end.

Nothing but the step is needed to go on with one after an interruption. Every weight is a finite number of 0 or more;
other ones raise ValueError when the schedule is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

WeightSchedule = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """`value` throughout."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(value=self.value)

    def __call__(self, progress: float) -> float:  # noqa: ARG002
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """`start` up to the fraction `begin` of the run, `end` from the fraction `until` on, a straight line in between."""

    start: float = 0.0
    end: float = 1.0
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(start=self.start, end=self.end)
        if not 0 <= self.begin < self.until <= 1:
            raise ValueError(f"expected 0 <= begin < until <= 1, got begin {self.begin} and until {self.until}")

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * self._share(self._within(progress))

    def _within(self, progress: float) -> float:
        return min(1.0, max(0.0, (progress - self.begin) / (self.until - self.begin)))

    def _share(self, within: float) -> float:
        return within


@dataclass(frozen=True, kw_only=True)
class Cosine(Linear):
    """As `linear`, with half a cosine wave in between."""

    def _share(self, within: float) -> float:
        return (1 - math.cos(math.pi * within)) / 2


@dataclass(frozen=True, kw_only=True)
class After:
    """`before` up to the given fraction of the run, `value` from there on."""

    fraction: float = 0.5
    value: float = 1.0
    before: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(value=self.value, before=self.before)
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"expected fraction from 0 to 1, got {self.fraction}")

    def __call__(self, progress: float) -> float:
        return self.value if progress >= self.fraction else self.before


def _check_weights(**weights: float) -> None:
    wrong = [f"{name} {weight}" for name, weight in weights.items() if not 0 <= weight < math.inf]
    if wrong:
        raise ValueError(f"expected a weight of 0 or more, and finite, got {', '.join(wrong)}")


WEIGHT_SCHEDULES: dict[str, Callable[..., WeightSchedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "after": After,
}
