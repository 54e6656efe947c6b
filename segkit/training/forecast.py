"""How long a training takes, told after its first steps."""

from __future__ import annotations

import torch

from segkit.training.step_logger import memory_peak
from segkit.training.stopping import Limits
from segkit.utils.text import readable_duration, readable_number

FIRST = 1  # steps that are not timed: caches are cold, and kernels are chosen
TIMED = 5  # steps that are timed


class Forecast:
    """Tells once, after a few steps or the last one, how long they take, how long all will take, and their memory.

    Args:
        limits: The length of the training.
        first_step: The step from which it starts or is resumed.
        device: The device of the network.
    """

    def __init__(self, limits: Limits, first_step: int, device: torch.device):
        self.limits, self.device = limits, device
        self.timed = min(TIMED, limits.last_step - first_step - FIRST)
        self.durations: list[float] = []

    def step_done(self, step: int, duration: float, seconds: float) -> str | None:
        """What to tell after a step; None after most.

        duration: seconds that the step took with its batch, without a validation.
        seconds: training time up to now, including validations and the time before a resume.
        """
        self.durations.append(duration)
        if self.timed < 1 or len(self.durations) != FIRST + self.timed:
            return None
        pace = sum(self.durations[FIRST:]) / self.timed
        where = "of memory" if self.device.type == "cpu" else f"on {self.device}"
        return f"{self._time(step, seconds, pace)}; {memory_peak(self.device) / 1e9:.2f} GB {where}"

    def _time(self, step: int, seconds: float, pace: float) -> str:
        left = (self.limits.last_step - step) * pace
        each = f"{readable_number(pace)} s per step, plus validation"
        if self.limits.max_minutes is not None and seconds + left > 60 * self.limits.max_minutes:
            steps = step + max(0.0, 60 * self.limits.max_minutes - seconds) / pace
            return f"about {steps:,.0f} steps in {self.limits.max_minutes:g} min, {each}"
        return f"about {readable_duration(left)} left, {each}"
