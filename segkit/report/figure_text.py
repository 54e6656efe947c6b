"""Names in figures and on the console: readable, short, and without control characters."""

from __future__ import annotations

import unicodedata
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.legend import Legend

LONGEST = 80  # characters of a name


def printable(text: str, keep: str = "") -> str:
    """The text with control characters, which could steer a terminal, written as codes, except for those to keep."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter not in keep
        else letter
        for letter in text
    )


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name for a figure or a cell of a table; the middle of a long one is left out."""
    name = printable(name)
    if len(name) > longest:
        end = longest // 3
        name = f"{name[: longest - end - 3]}...{name[-end:]}"
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves such names out of legends


def without_glyph_warnings() -> warnings.catch_warnings[None]:
    """Draw names in any script without one warning per letter that the font lacks."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)  # "Glyph ... missing from font(s)"


def plain_texts(legend: Legend) -> None:
    """Show the names of a legend as they are, without mathematics between dollar signs."""
    for text in legend.get_texts():
        text.set_parse_math(False)
