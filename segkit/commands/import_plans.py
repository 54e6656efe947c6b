"""The command `import nnunet`: write a configuration from the plans of nnU-Net."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from segkit.commands.data import check_new, relative_paths
from segkit.experiment.build import load_config
from segkit.experiment.nnunet_plans import import_plans
from segkit.experiment.schema_file import write_config


def import_nnunet(
    folder: Path,
    out: Path,
    *,
    images: Path | None,
    configuration: str | None,
    plans: str | None,
    fold: int,
    console: Console,
) -> None:
    """Write a configuration that trains as nnU-Net would by its plans, and print what became of each setting.

    Arguments as for `import_plans`. out: the configuration to write.

    Raises ConfigError if the file exists, and as `import_plans`.
    """
    check_new(out)
    imported = import_plans(folder, images, configuration, plans, fold)
    data = relative_paths(imported.sections["data"], out.parent)
    sections = {"name": out.stem, **imported.sections, "data": data}
    top = [f"written by `segkit import nnunet` from {folder}"]
    notes = ["", "What differs from nnU-Net:", *(f"- {difference}" for difference in imported.differences)]
    load_config({**sections, "data": imported.sections["data"]})  # before anything is written
    write_config(out, sections, imported.reasons, top, notes)
    table = Table("nnU-Net", "value", "segkit", title="settings", title_justify="left")
    for row in imported.settings:
        table.add_row(*row)
    console.print(table)
    for difference in imported.differences:
        console.print(f"- {difference}", markup=False, highlight=False)
    console.print(f"written to {out}", markup=False, highlight=False)
