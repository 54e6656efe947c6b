"""Text for messages."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def listed(names: Sequence[object], *, limit: int = 6, separator: str = ", ") -> str:
    """Join at most `limit` names and state how many were left out: `a, b and 3 more`."""
    text = separator.join(map(str, names[:limit]))
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text


def listed_lines(names: Sequence[object], *, limit: int = 10) -> str:
    """The same with one indented line per name. The text begins with a line break."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return "".join(f"\n  {line}" for line in [*names[:limit], *more])


def one_line(text: object, limit: int = 200) -> str:
    """Text from a file for a message: at most `limit` characters, with control characters as escapes.

    They could end the line, move the cursor of a terminal or, as lone surrogates, be impossible to print.
    """
    text = str(text)
    cut = text if len(text) <= limit else f"{text[:limit]} ... ({len(text)} characters)"
    return "".join(ascii(letter)[1:-1] if is_control(letter) else letter for letter in cut)


def is_control(letter: str) -> bool:
    """Whether a character is no text: a control character, a line separator, a change of the direction of writing, or
    half of a character of UTF-16."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in DIRECTIONS


def nearest_name(name: object, known: Iterable[object], *, similarity: float = 0.65) -> str | None:
    """The known name that `name` probably means; None if none has at least this similarity (0 to 1)."""
    return next(iter(difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=similarity)), None)


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """A suggestion to append to a message that lists the known names; empty if none is close."""
    nearest = nearest_name(name, known, similarity=0.5)
    return f"; did you mean {nearest}?" if nearest else ""
