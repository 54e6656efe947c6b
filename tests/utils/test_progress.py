"""The progress of long work, on a terminal and elsewhere."""

import io
import re

import pytest
from rich.console import Console

from segkit.utils import progress
from segkit.utils.progress import ProgressDisplay
from segkit.utils.text import readable_duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; a function moves it on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_plain_lines_where_the_output_is_no_terminal(clock):
    shown = io.StringIO()
    with ProgressDisplay("training", 200, Console(file=shown), completed=50) as display:
        clock(29)
        display.update(60, "loss 0.500")
        assert shown.getvalue() == ""  # less than half a minute
        clock(1)
        display.update(80)
        clock(30)
        display.update(110.25, "loss 0.400")
    assert shown.getvalue().splitlines() == [
        "training: 80 of 200, about 2 min left  loss 0.500",
        "training: 110.25 of 200, about 89 s left  loss 0.400",
    ]


def test_no_time_is_promised_before_anything_is_done(clock):
    shown = io.StringIO()
    with ProgressDisplay("predicting", 3, Console(file=shown)) as display:
        clock(30)
        display.update(0)
    assert shown.getvalue() == "predicting: 0 of 3\n"


def test_a_line_of_a_terminal_with_80_columns(clock):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, color_system=None, force_interactive=False)
    with ProgressDisplay("training", 2000, console) as display:
        clock(100)
        display.update(1000, "loss 0.231  dice 0.871  123 images/s")
    line = re.sub(r"\x1b\[\S*?[a-zA-Z]", "", shown.getvalue()).splitlines()[0].split("\r")[-1]
    assert len(line) <= 80
    assert line.startswith("training")
    assert line.endswith("left loss 0.231  dice 0.871  123 images/s")
    assert "1000/2000" in line


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")])
def test_durations_in_words(seconds, text):
    assert readable_duration(seconds) == text
