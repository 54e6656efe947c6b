"""Schedules of term weights: functions of the progress of a run, from 0 at its first step to 1 at its end.

Nothing but the step is needed to go on with one after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable

WeightSchedule = Callable[[float], float]


def constant(*, value: float = 1.0) -> WeightSchedule:
    """`value` throughout."""
    return lambda _progress: value


def linear(*, start: float = 0.0, end: float = 1.0, begin: float = 0.0, until: float = 1.0) -> WeightSchedule:
    """`start` up to the fraction `begin` of the run, `end` from the fraction `until` on, a straight line in between."""
    _check_span(begin, until)
    return lambda progress: start + (end - start) * _within(progress, begin, until)


def cosine(*, start: float = 0.0, end: float = 1.0, begin: float = 0.0, until: float = 1.0) -> WeightSchedule:
    """As `linear`, with half a cosine wave in between."""
    _check_span(begin, until)
    return lambda progress: start + (end - start) * (1 - math.cos(math.pi * _within(progress, begin, until))) / 2


def after(*, fraction: float = 0.5, value: float = 1.0, before: float = 0.0) -> WeightSchedule:
    """`before` up to the given fraction of the run, `value` from there on."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"expected fraction from 0 to 1, got {fraction}")
    return lambda progress: value if progress >= fraction else before


def _check_span(begin: float, until: float) -> None:
    if not 0 <= begin < until <= 1:
        raise ValueError(f"expected 0 <= begin < until <= 1, got begin {begin} and until {until}")


def _within(progress: float, begin: float, until: float) -> float:
    return min(1.0, max(0.0, (progress - begin) / (until - begin)))


WEIGHT_SCHEDULES: dict[str, Callable[..., WeightSchedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "after": after,
}
