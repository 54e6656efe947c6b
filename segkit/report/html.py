"""Pages as self-contained HTML, which loads nothing, and as Markdown with figures as files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, Template

from segkit.report.figure_text import printable, without_glyph_warnings
from segkit.report.score_notes import number
from segkit.utils.files import replace_bytes, replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Widths = tuple[float, float]  # inches, on a desk and on a phone
MAX_SVG = 500_000  # bytes

# beside Markdown's characters: entities, plain addresses that become links, mentions, mathematics, and what begins a
# heading, a list or a quotation at the start of a line
MARKUP = re.compile(
    r"[\\`*_\[\]<>|!$~]|&(?=#?\w+;)|:(?=//)|(?<=www)\.|@(?=\w)|^[-+#=](?=\s|$)|(?<=^\d)[.)](?=\s)", re.IGNORECASE
)


@dataclass(frozen=True)
class Picture:
    """A figure of a page: the name of its file, its title and caption, and its contents as PNG.

    wide, narrow: the figure for a desk and for a phone, as data URLs that stay sharp at any size; empty to show `png`.
    """

    name: str
    title: str
    caption: str
    png: bytes
    wide: str = ""
    narrow: str = ""

    @property
    def embedded(self) -> str:
        """The picture for a desk."""
        return self.wide or data_url(self.png, "png")


def figure_picture(name: str, title: str, caption: str, make: Callable[[float], Figure], widths: Widths) -> Picture:
    """A figure that is drawn for a desk and for a phone. make: width in inches -> figure."""
    wide, narrow = (make(width) for width in widths)
    png, *drawn = png_of(wide), svg_of(wide), svg_of(narrow)
    if max(map(len, drawn)) > MAX_SVG:  # as of thousands of dots, which take less room as pixels
        return Picture(name, title, caption, png)
    return Picture(name, title, caption, png, *(data_url(content, "svg+xml") for content in drawn))


def data_url(content: bytes, kind: str) -> str:
    """A picture that a page holds itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def svg_of(figure: Figure) -> bytes:
    """A figure as SVG, the same bytes for the same figure."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with without_glyph_warnings(), rc_context({"svg.hashsalt": "segkit"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def write_both(template: str, values: Mapping[str, Any], out: Path, name: str) -> None:
    """Write name.html and name.md from the templates of a page, and the pictures of name.md to the folder `figures`.

    Args:
        template: The name of the templates, without `.html.j2` and `.md.j2`.
        values: The variables of the templates; `pictures` is a list of `Picture`.
        out: The output folder.
        name: The name of both files.
    """
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for picture in values["pictures"]:
        replace_bytes(out / "figures" / f"{picture.name}.png", picture.png)
    for kind in ("html", "md"):
        replace_text(out / f"{name}.{kind}", _template(f"{template}.{kind}").render(values))


def write_html(template: str, values: Mapping[str, Any], path: Path) -> None:
    """Write a page to a file from its template, given without `.html.j2`, and the variables of the template."""
    replace_text(path, _template(f"{template}.html").render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("segkit.report"),
        autoescape=lambda name: name is not None and "html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "p": p_value, "cell": markdown_cell}
    return environment


def _template(name: str) -> Template:
    return _environment().get_template(f"{name}.j2")


def png_of(figure: Figure) -> bytes:
    """A figure as PNG."""
    file = io.BytesIO()
    with without_glyph_warnings():
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def interval(ends: list[float] | None, sign: str = "") -> str:
    """An interval with four digits, or a dash for None."""
    return "-" if ends is None else f"{ends[0]:{sign}.4f} to {ends[1]:{sign}.4f}"


def p_value(value: float | None) -> str:
    """A p-value with three digits, or a dash for None."""
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown_cell(value: Any) -> str:
    """A value as text of a Markdown table cell, with all markup escaped."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))
