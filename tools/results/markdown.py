"""Tables and numbers in Markdown."""

from scipy import stats

from results.data import AGAIN, BASELINE


def markdown(headings: list[str], rows: list[list[str]], left: int = 1) -> str:
    rule = [":--"] * left + ["--:"] * (len(headings) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])


def signed(value: float, digits: int = 2) -> str:
    """A difference of scores in points (hundredths)."""
    return f"{100 * value:+.{digits}f}"


def points(interval: list[float] | None) -> str:
    return "" if interval is None else f" [{signed(interval[0])}, {signed(interval[1])}]"


def percent(count: int, total: int) -> str:
    """A share with its 95 % interval (Clopper and Pearson)."""
    interval = stats.binomtest(count, total).proportion_ci()
    return f"{count} of {total} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def shown(loss: str) -> str:
    return f"`{BASELINE}`, other seeds" if loss == AGAIN else f"`{loss}`"


def share(count: int, total: int) -> str:
    return "-" if not total else f"{100 * count / total:.0f} %"


def span(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def interval(ends: list[float] | None, digits: int = 3) -> str:
    """A confidence interval of a score."""
    return "" if ends is None else f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
