"""Benchmark tables for the console and in Markdown, and the environment in which they were measured."""

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
    """A table of results. The first column is text, the other columns are numbers."""

    title: str
    headings: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


def circumstances(threads: int) -> str:
    """The package versions, processor, number of threads and date."""
    versions = ", ".join(f"{name} {importlib.metadata.version(package)}" for name, package in PACKAGES.items())
    return f"{versions}; {processor()}, threads: {threads}; {datetime.date.today().isoformat()}"


def processor() -> str:
    """The model name of the CPU; the architecture if the system does not report the model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def target_text(largest: float | None) -> str:
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
