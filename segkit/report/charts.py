"""Charts of a page: lines and dots as numbers that a template draws as SVG.

They take the colours, the width and the text size of the page, so that they are as wide as a phone and as dark as the
reader wishes. Places are in percent of the plot: x from left to right, y from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TICKS = 5  # about how many numbers are written along an axis
MOST_POINTS = 400  # of a line; of longer ones every n-th point is drawn
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    colour: its number in the palette of the page. points: x and y, in the order of x. has_dots: whether points are
    marked.
    """

    name: str
    colour: int
    points: Sequence[Point]
    has_dots: bool = False


@dataclass(frozen=True)
class Tick:
    """A number along an axis. at: its place in percent."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines over a plane.

    title, x_name, y_name: what is drawn, in words. lines: at least one. diagonal: whether y = x is drawn too.
    x_range, y_range: what the axes show; None for the range of the points, widened to round numbers.
    """

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    x_range: Point | None = None
    y_range: Point | None = None
    diagonal: bool = False

    @property
    def x_ticks(self) -> list[Tick]:
        low, high = self._x_limits
        return [Tick(100 * place, text) for place, text in ticks(low, high)]

    @property
    def y_ticks(self) -> list[Tick]:
        low, high = self._y_limits
        return [Tick(100 * (1 - place), text) for place, text in ticks(low, high)]

    def places(self, line: Line) -> list[Point]:
        """The points of a line in percent."""
        (left, right), (low, high) = self._x_limits, self._y_limits
        return [(100 * (x - left) / (right - left), 100 * (high - y) / (high - low)) for x, y in thinned(line.points)]

    @property
    def summary(self) -> str:
        """The chart in words, for those who do not see it."""
        parts = [
            f"{line.name} from {short(line.points[0][1])} at {short(line.points[0][0])} "
            f"to {short(line.points[-1][1])} at {short(line.points[-1][0])}"
            for line in self.lines
        ]
        return f"{self.title}: {self.y_name} over {self.x_name}; {'; '.join(parts)}"

    @property
    def _x_limits(self) -> Point:
        values = [x for line in self.lines for x, _y in line.points]
        return self.x_range or widened(min(values), max(values))

    @property
    def _y_limits(self) -> Point:
        values = [y for line in self.lines for _x, y in line.points]
        return self.y_range or widened(min(values), max(values))


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers along an axis: their place as a share of it, and their text with as many decimals as they need."""
    step = _round_step(low, high)
    small = step < 1e-4 or max(abs(low), abs(high)) >= 1e7
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    decimals += not math.isclose(round(step, decimals), step, rel_tol=1e-6)  # steps such as 0.25
    found = []
    for value in round_numbers(low, high):
        text = f"{value:.4g}" if small else f"{round(value, decimals) + 0.0:,.{decimals}f}"
        found.append(((value - low) / (high - low), text))
    return found


def round_numbers(low: float, high: float) -> list[float]:
    """About TICKS round numbers from `low` to `high`."""
    step = _round_step(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _round_step(low: float, high: float) -> float:
    rough = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in STEPS if factor * power >= rough * (1 - 1e-9))


def widened(low: float, high: float) -> Point:
    """A range that has some width and ends at round numbers."""
    if high <= low:
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    step = _round_step(low, high)
    return step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most MOST_POINTS points, always with the last one."""
    every = -(-len(points) // MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def short(value: float) -> str:
    """A number with three significant digits at most, without needless zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
