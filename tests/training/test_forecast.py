"""What is told of the time of a training after its first steps."""

import pytest
import torch

from segkit.training.forecast import Forecast
from segkit.training.stopping import Limits


def told(limits, first_step=0, warm_up=10.0, pace=0.5):
    """The texts after each of 20 steps, the first of which takes longer, by the step."""
    forecast = Forecast(limits, first_step, torch.device("cpu"))
    texts = {
        step: forecast.step_done(first_step + step, warm_up if step == 1 else pace, warm_up + (step - 1) * pace)
        for step in range(1, min(20, limits.last_step - first_step) + 1)
    }
    return {step: text for step, text in texts.items() if text is not None}


def test_it_is_told_once_by_the_pace_after_the_first_step():
    ((step, text),) = told(Limits(steps=606)).items()
    assert step == 6
    assert text.startswith("about 5 min left, 0.5 s per step, plus validation; ")
    assert len(f"time     {text}") <= 80
    ((_, text),) = told(Limits(steps=606), first_step=500).items()
    assert text.startswith("about 50 s left")


def test_short_trainings_tell_after_their_last_step():
    ((step, text),) = told(Limits(steps=3)).items()
    assert step == 3
    assert text.startswith("about 0 s left, 0.5 s per step")
    assert told(Limits(steps=1)) == {}


def test_a_limit_in_minutes_is_told_in_steps():
    ((_, text),) = told(Limits(steps=100_000, max_minutes=10)).items()
    assert text.startswith("about 1,181 steps in 10 min, 0.5 s per step")  # 587.5 s are left after step 6
    ((_, text),) = told(Limits(steps=20, max_minutes=10)).items()
    assert text.startswith("about 7 s left")


def test_memory_is_that_of_the_process():
    import psutil

    ((_, text),) = told(Limits(steps=606)).items()
    gb = float(text.split("; ")[1].removesuffix(" GB of memory"))
    assert gb == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.5)
