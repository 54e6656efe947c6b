"""Lengths of time in a run, which say their unit: `{steps: 100}`, `{epochs: 2}` or `{fraction: 0.1}` of the run."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict
from typing_extensions import TypedDict


class Units(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportGeneralTypeIssues]
    steps: int
    epochs: float
    fraction: float


def _one_unit(duration: Any) -> Any:
    if len(duration) != 1:
        raise ValueError(f"expected one unit, got {', '.join(duration) or 'none'}")
    ((unit, number),) = duration.items()
    if not (math.isfinite(number) and number >= 0) or (unit == "fraction" and number > 1):
        raise ValueError(f"expected {'a fraction from 0 to 1' if unit == 'fraction' else 'a number of 0 or more'}")
    return duration


Duration = Annotated[Units, AfterValidator(_one_unit)]


def to_steps(duration: Any, *, steps: int, steps_per_epoch: int, least: int = 0) -> int:
    """A duration in a run of `steps` as whole steps, rounded, and no fewer than `least`."""
    ((unit, number),) = duration.items()
    whole = {"steps": 1, "epochs": steps_per_epoch, "fraction": steps}[unit]
    return max(least, round(number * whole))
