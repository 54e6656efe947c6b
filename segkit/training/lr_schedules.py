"""Learning-rate schedules by name.

A schedule is a function from the step to a factor on the learning rate. A resumed run therefore only needs the step;
`plateau` is the only schedule with a state. Configurations do not set `steps` and `steps_per_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from segkit.utils.durations import Duration, to_steps

Schedule = Callable[[int], float]


def constant(*, steps: int, steps_per_epoch: int = 1, warmup: Duration | None = None) -> Schedule:
    """A constant factor of 1, after a linear warm-up over `warmup`."""
    return _with_warmup(lambda _progress: 1.0, steps, steps_per_epoch, warmup)


def poly(*, steps: int, steps_per_epoch: int = 1, power: float = 0.9, warmup: Duration | None = None) -> Schedule:
    """Polynomial decay (1 - progress) ** power, after a linear warm-up over `warmup`."""
    return _with_warmup(lambda progress: (1 - progress) ** power, steps, steps_per_epoch, warmup)


def cosine(*, steps: int, steps_per_epoch: int = 1, floor: float = 0.0, warmup: Duration | None = None) -> Schedule:
    """Cosine annealing from 1 to `floor`, after a linear warm-up over `warmup`."""
    return _with_warmup(lambda progress: _cosine(1.0, floor, progress), steps, steps_per_epoch, warmup)


def one_cycle(
    *,
    steps: int,
    steps_per_epoch: int = 1,
    rise: Duration = {"fraction": 0.3},  # noqa: B006  (read-only; a mapping, as in YAML)
    start: float = 0.04,
    end: float = 4e-6,
) -> Schedule:
    """Half a cosine from `start` to 1 over `rise`, then half a cosine to `end` (Smith & Topin 2019).

    The defaults are those of PyTorch's OneCycleLR.
    """
    rise_steps = to_steps(rise, steps=steps, steps_per_epoch=steps_per_epoch)

    def schedule(step: int) -> float:
        if step < rise_steps:
            return _cosine(start, 1.0, step / rise_steps)
        return _cosine(1.0, end, min(1.0, (step - rise_steps) / max(1, steps - rise_steps)))

    return schedule


class Plateau:
    """Reduce the learning rate when the validation score stops improving.

    The factor starts at 1, after a linear warm-up over `warmup`. It is multiplied by `factor` whenever the validation
    score has not increased by more than `least` for `patience`, down to `floor`.

    `observe` must be called with the score of each validation. `state` is plain data for checkpoints.
    """

    def __init__(
        self,
        *,
        steps: int,
        steps_per_epoch: int = 1,
        patience: Duration = {"epochs": 10.0},  # noqa: B006  (read-only; a mapping, as in YAML)
        factor: float = 0.1,
        least: float = 1e-4,
        floor: float = 0.0,
        warmup: Duration | None = None,
    ):
        if not 0 < factor < 1:
            raise ValueError(f"expected a factor between 0 and 1, got {factor}")
        self.patience = to_steps(patience, steps=steps, steps_per_epoch=steps_per_epoch, minimum=1)
        self.factor, self.least, self.floor = factor, least, floor
        self.warmup = _with_warmup(lambda _progress: 1.0, steps, steps_per_epoch, warmup)
        self.state: dict[str, Any] = {"best": None, "since": 0, "current": 1.0}

    def __call__(self, step: int) -> float:
        return self.warmup(step) * self.state["current"]

    def observe(self, step: int, score: float | None) -> None:
        """Record the score of a validation. None, for a validation without a score, changes nothing."""
        best = self.state["best"]
        if score is None:
            return
        if best is None or score > best + self.least:
            self.state |= {"best": score, "since": step}
        elif step - self.state["since"] >= self.patience:
            self.state |= {"current": max(self.floor, self.state["current"] * self.factor), "since": step}


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _with_warmup(
    factor: Callable[[float], float], steps: int, steps_per_epoch: int, warmup: Duration | None
) -> Schedule:
    """A linear warm-up, then factor(progress), with progress from 0 to 1 over the remaining steps.

    Raises ValueError if the warm-up leaves no steps.
    """
    warmup_steps = 0 if warmup is None else to_steps(warmup, steps=steps, steps_per_epoch=steps_per_epoch)
    if warmup_steps >= steps:
        raise ValueError(f"expected a warmup shorter than the {steps} steps of the run, got {warmup_steps} steps")

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return factor(min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps)))

    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "poly": poly,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "plateau": Plateau,
}
