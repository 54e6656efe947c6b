"""Tables of benchmarks, for the console and as markdown, and the circumstances that their numbers hold for."""

import datetime
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

PACKAGES = {
    "torch": "torch",
    "MONAI": "monai",
    "smp": "segmentation-models-pytorch",
    "kornia": "kornia",
    "torchmetrics": "torchmetrics",
}


@dataclass
class Sheet:
    """A table, to be printed or written. The first column is text, the others numbers."""

    title: str
    headings: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


def circumstances(threads: int) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(package)}" for name, package in PACKAGES.items())
    return f"{versions}; {processor()}, threads: {threads}; {datetime.date.today().isoformat()}"


def processor() -> str:
    """The model name of the CPU, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def asked(largest: float | None) -> str:
    return "-" if largest is None else f"≤ {largest:g}"


def as_rich(sheet: Sheet) -> Table:
    table = Table()
    for number, heading in enumerate(sheet.headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*row)
    return table


def as_markdown(sheet: Sheet) -> str:
    lines = [sheet.headings, [":--", *["--:"] * (len(sheet.headings) - 1)], *sheet.rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{sheet.title}**\n\n{table}\n\n{sheet.note}".rstrip()
