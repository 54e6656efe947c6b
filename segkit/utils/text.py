"""Text for messages."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[object], *, limit: int = 6, separator: str = ", ") -> str:
    """Join at most `limit` names and state how many were left out: `a, b and 3 more`."""
    text = separator.join(map(str, names[:limit]))
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text


def listed_lines(names: Sequence[object], *, limit: int = 10) -> str:
    """The same with one indented line per name. The text begins with a line break."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return "".join(f"\n  {line}" for line in [*names[:limit], *more])
