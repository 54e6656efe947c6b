"""What all pages have in common: they come as HTML that holds everything and loads nothing, and as Markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """name: of its file. words: what is to be seen. png: the file."""

    name: str
    title: str
    words: str
    png: bytes

    @property
    def embedded(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def write_both(template: str, shown: Mapping[str, Any], out: Path, name: str) -> None:
    """Write name.html and name.md from the templates of a page, and the pictures of the latter into `figures`."""
    environment = Environment(
        loader=PackageLoader("segkit.report"),
        autoescape=lambda name: name is not None and "html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "p": p_value, "cell": markdown_cell}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for picture in shown["pictures"]:
        (out / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    for kind in ("html", "md"):
        (out / f"{name}.{kind}").write_text(environment.get_template(f"{template}.{kind}.j2").render(shown))


def png_of(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def interval(ends: list[float] | None, sign: str = "") -> str:
    return "-" if ends is None else f"{ends[0]:{sign}.4f} to {ends[1]:{sign}.4f}"


def p_value(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown_cell(value: Any) -> str:
    """Text that ends no cell, starts no tag and calls for no picture."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    for letter in "\\`*_[]<>|!":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
