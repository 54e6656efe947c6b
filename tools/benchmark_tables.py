"""The pages of the benchmarks: tables for the console and in Markdown, and where and how they were measured."""

import datetime
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from segkit.utils.environment import versions

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
    section: str = ""  # heading of the page above the table; the same heading is written once


def write_page(title: str, command: str, about: str, sheets: Iterable[Sheet], threads: int, page: Path | None) -> None:
    """Print each table when it is finished; write the page, which so far has the finished tables, after each.

    Args:
        title: The heading of the page.
        command: The arguments of tools/benchmark.py that make it.
        about: What the tables have in common.
        sheets: The tables.
        threads: The number of threads.
        page: The Markdown file; None only prints.
    """
    console = Console(width=120)
    made_by = f"Made by `python tools/benchmark.py {command}`; {circumstances(threads)}."
    written = [f"# {title}", *filter(None, [about]), made_by]
    console.print(*written, sep="\n\n", highlight=False, markup=False)
    section = ""
    for sheet in sheets:
        console.print("", sheet.title, as_rich(sheet), sheet.note, sep="\n", highlight=False)
        if sheet.section != section:
            section = sheet.section
            written.append(f"## {section}")
        written.append(as_markdown(sheet))
        if page is not None:
            page.write_text("\n\n".join(written) + "\n", encoding="utf-8")


def circumstances(threads: int) -> str:
    """The package versions, commit, processor, number of threads and date."""
    packages = ", ".join(f"{name} {importlib.metadata.version(package)}" for name, package in PACKAGES.items())
    revision = versions()["revision"] or "unknown"
    today = datetime.date.today().isoformat()
    return f"segkit at commit {revision}, {packages}; {processor()}, threads: {threads}; {today}"


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
