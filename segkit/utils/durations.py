"""Durations with a unit: `{steps: 100}`, `{epochs: 2}` or `{fraction: 0.1}` of the training."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict
from typing_extensions import TypedDict

from segkit.utils.field_errors import problem
from segkit.utils.text import shown

LONGEST = 10**9  # steps or epochs


class Units(TypedDict, total=False):
    """The units of a duration. Exactly one is given."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportGeneralTypeIssues]
    steps: int
    epochs: float
    fraction: float


def _check_duration(duration: Any) -> Any:
    if len(duration) != 1:
        raise ValueError(f"expected one unit, got {', '.join(duration) or 'none'}")
    ((unit, value),) = duration.items()
    if math.isfinite(value) and value > LONGEST:
        raise problem(f"expected at most {LONGEST} {unit}, got {shown(value)}")
    if not (math.isfinite(value) and value >= 0) or (unit == "fraction" and value > 1):
        raise ValueError(f"expected {'a fraction from 0 to 1' if unit == 'fraction' else 'a number of 0 or more'}")
    return duration


Duration = Annotated[Units, AfterValidator(_check_duration)]


def to_steps(duration: Any, *, steps: int, steps_per_epoch: int, minimum: int = 0) -> int:
    """Convert a duration to a number of steps, rounded, and at least `minimum`. `steps` is the length of the run."""
    ((unit, value),) = duration.items()
    steps_per_unit = {"steps": 1, "epochs": steps_per_epoch, "fraction": steps}[unit]
    return max(minimum, round(value * steps_per_unit))
