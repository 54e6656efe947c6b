"""Text for messages."""

from __future__ import annotations

import difflib
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 300  # characters of a value in a message
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the direction of writing


class _Repr(reprlib.Repr):
    """The representation of a value, cut where it is deep, long, or a number that Python does not print."""

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002
        bits = x.bit_length()
        return str(x) if bits < 200 else f"a whole number of {bits} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0 and x:
            return "{...}"
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in list(x)[: self.maxdict]]
        return "{" + ", ".join([*items, *(["..."] if len(x) > self.maxdict else [])]) + "}"


_REPR = _Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxtuple = 4, 12, 12, 12
_REPR.maxstring = _REPR.maxother = SHOWN


def shown(value: object) -> str:
    """A value for a message: its representation, cut to a readable length."""
    return shortened(_REPR.repr(value))


def one_line(text: object, limit: int = SHOWN) -> str:
    """The beginning of a text with line breaks and other control characters as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shortened(str(text), limit))


def shortened(text: str, limit: int = SHOWN) -> str:
    """The text, or its beginning and its length if it is longer than the limit."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def listed(names: Sequence[object], *, limit: int = 6, separator: str = ", ") -> str:
    """Join at most `limit` names and state how many were left out: `a, b and 3 more`."""
    text = separator.join(map(str, names[:limit]))
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text


def listed_lines(names: Sequence[object], *, limit: int = 10) -> str:
    """The same with one indented line per name. The text begins with a line break."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return "".join(f"\n  {line}" for line in [*names[:limit], *more])


def is_control(letter: str) -> bool:
    """Whether a character is no text: a control character, a line separator, a change of the direction of writing, or
    half of a character of UTF-16."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in DIRECTIONS


def nearest_name(name: object, known: Iterable[object], *, similarity: float = 0.65) -> str | None:
    """The known name that `name` probably means; None if none has at least this similarity (0 to 1)."""
    text = name if isinstance(name, str) else shown(name)
    names = [str(one) for one in known]
    for simplify in (str, _plain):
        spelled = {simplify(one): one for one in names}
        if close := difflib.get_close_matches(simplify(text[:SHOWN]), spelled, n=1, cutoff=similarity):
            return spelled[close[0]]
    return None


def _plain(name: str) -> str:
    """A name without what other libraries spell differently: DiceCE is dice_ce."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """A suggestion to append to a message that lists the known names; empty if none is close."""
    nearest = nearest_name(name, known, similarity=0.5)
    return f"; did you mean {nearest}?" if nearest else ""


def readable_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def readable_number(value: float) -> str:
    """A positive number with two or three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"
