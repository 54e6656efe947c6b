"""Learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from segkit.utils.durations import Duration, to_steps

Schedule = Callable[[int], float]


def constant(*, steps: int, steps_per_epoch: int = 1, warmup: Duration | None = None) -> Schedule:
    """1 throughout, after a linear rise over `warmup`."""
    return _with_warmup(lambda _progress: 1.0, steps, steps_per_epoch, warmup)


def poly(*, steps: int, steps_per_epoch: int = 1, power: float = 0.9, warmup: Duration | None = None) -> Schedule:
    """(1 - progress) ** power, after a linear rise over `warmup`."""
    return _with_warmup(lambda progress: (1 - progress) ** power, steps, steps_per_epoch, warmup)


def cosine(*, steps: int, steps_per_epoch: int = 1, floor: float = 0.0, warmup: Duration | None = None) -> Schedule:
    """Half a cosine from 1 to `floor`, after a linear rise over `warmup`."""
    return _with_warmup(lambda progress: _cosine(1.0, floor, progress), steps, steps_per_epoch, warmup)


def one_cycle(
    *,
    steps: int,
    steps_per_epoch: int = 1,
    rise: Duration = {"fraction": 0.3},  # noqa: B006  (read only; a mapping is what YAML holds)
    start: float = 0.04,
    end: float = 4e-6,
) -> Schedule:
    """Half a cosine from `start` to 1 over `rise`, then half a cosine to `end` (Smith & Topin 2019, with the numbers of
    torch's OneCycleLR)."""
    rising = to_steps(rise, steps=steps, steps_per_epoch=steps_per_epoch)

    def schedule(step: int) -> float:
        if step < rising:
            return _cosine(start, 1.0, step / rising)
        return _cosine(1.0, end, min(1.0, (step - rising) / max(1, steps - rising)))

    return schedule


class Plateau:
    """1, multiplied with `factor` whenever the score of the validation has not risen by more than `least` for
    `patience`, down to `floor`; after a linear rise over `warmup`.

    Call with the step; `observe` with the step and score of each validation. What it has seen is in `state`.
    """

    def __init__(
        self,
        *,
        steps: int,
        steps_per_epoch: int = 1,
        patience: Duration = {"epochs": 10.0},  # noqa: B006  (read only; a mapping is what YAML holds)
        factor: float = 0.1,
        least: float = 1e-4,
        floor: float = 0.0,
        warmup: Duration | None = None,
    ):
        if not 0 < factor < 1:
            raise ValueError(f"expected a factor between 0 and 1, got {factor}")
        self.patience = to_steps(patience, steps=steps, steps_per_epoch=steps_per_epoch, minimum=1)
        self.factor, self.least, self.floor = factor, least, floor
        self.rise = _with_warmup(lambda _progress: 1.0, steps, steps_per_epoch, warmup)
        self.state: dict[str, Any] = {"best": None, "since": 0, "current": 1.0}

    def __call__(self, step: int) -> float:
        return self.rise(step) * self.state["current"]

    def observe(self, step: int, score: float | None) -> None:
        """Take in a validation, of which None has no score."""
        best = self.state["best"]
        if score is not None and (best is None or score > best + self.least):
            self.state |= {"best": score, "since": step}
        elif step - self.state["since"] >= self.patience:
            self.state |= {"current": max(self.floor, self.state["current"] * self.factor), "since": step}


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _with_warmup(
    factor: Callable[[float], float], steps: int, steps_per_epoch: int, warmup: Duration | None
) -> Schedule:
    """factor(progress) with progress from 0 to 1 over the steps that follow the warm-up. Raises ValueError for a
    warm-up that leaves none."""
    rising = 0 if warmup is None else to_steps(warmup, steps=steps, steps_per_epoch=steps_per_epoch)
    if rising >= steps:
        raise ValueError(f"expected a warmup shorter than the {steps} steps of the run, got {rising} steps")

    def schedule(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return factor(min(1.0, (step - rising) / max(1, steps - rising)))

    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "poly": poly,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "plateau": Plateau,
}
