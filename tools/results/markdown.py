"""Tables and numbers in Markdown."""

from results.data import AGAIN, BASELINE


def markdown(headings: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table in Markdown, whose first columns are aligned to the left. Lines do not break beside ±."""
    rule = [":--"] * left + ["--:"] * (len(headings) - left)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])
    return table.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def signed(value: float, digits: int = 2) -> str:
    """A difference of scores in points (hundredths)."""
    return with_sign(100 * value, digits)


def with_sign(value: float, digits: int) -> str:
    """A number with its sign, which a number that is rounded to 0 has not."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def points(interval: list[float] | None) -> str:
    """Half of a confidence interval of a difference, in points; the intervals are symmetric."""
    return "" if interval is None else f" ± {50 * (interval[1] - interval[0]):.2f}"


def with_interval(value: float, interval: list[float] | None) -> str:
    """A difference with half of its confidence interval, in points."""
    return f"{signed(value)}{points(interval)}"


def shown(loss: str) -> str:
    return f"{BASELINE}, other seeds" if loss == AGAIN else loss


def share(count: int, total: int) -> str:
    return "-" if not total else f"{100 * count / total:.0f} %"


def span(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def interval(ends: list[float] | None, digits: int = 4) -> str:
    """Half of a confidence interval of a score."""
    return "" if ends is None else f" ± {(ends[1] - ends[0]) / 2:.{digits}f}"
