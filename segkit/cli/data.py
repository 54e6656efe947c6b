"""The verbs `segkit data ...` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import ConfigOption, Overrides

data_app = typer.Typer(help="Look at data before training on them.", no_args_is_help=True)
OptionalConfig = Annotated[Path | None, typer.Option("--config", "-c", help="The YAML file of the experiment.")]
FolderOrOverrides = Annotated[
    list[str] | None, typer.Argument(help="A folder of data, or with --config changes to it: key=value.")
]


def _one_folder(given: list[str] | None) -> Path:
    """What is given in place of --config."""
    if given is None or len(given) != 1 or not Path(given[0]).is_dir():
        raise typer.BadParameter("give --config, or a folder of data")
    return Path(given[0])


@data_app.command("check")
def data_check(
    overrides: FolderOrOverrides = None,
    config: OptionalConfig = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read; default: one for each core.")] = None,
    written: Annotated[Path | None, typer.Option("--json", help="A file for all that is found.")] = None,
) -> None:
    """Read every case once: what cannot be read, is mislabelled, leaks between parts, or lacks."""
    from rich.console import Console

    from segkit.commands import data as commands

    options = {"workers": workers, "written": written, "console": Console()}
    if config is None:
        commands.check_folder(_one_folder(overrides), **options)
    else:
        commands.check(config, overrides or [], **options)


MemoryOption = Annotated[float, typer.Option(min=0.1, help="GB that a training step may take.")]


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="Where the data lie.")],
    out: Annotated[Path, typer.Option(help="The configuration to write.")] = Path("segkit.yaml"),
    memory: MemoryOption = 4.0,
) -> None:
    """Say which layout, formats and classes a folder has, and write a configuration that trains on it."""
    from rich.console import Console

    from segkit.commands import data as commands

    commands.inspect(folder, out, memory=memory, console=Console())


@data_app.command("plan")
def data_plan(
    overrides: FolderOrOverrides = None,
    config: OptionalConfig = None,
    out: Annotated[Path, typer.Option(help="The configuration to write.")] = Path("plan.yaml"),
    memory: MemoryOption = 4.0,
) -> None:
    """Propose patch, spacing, batch, depth and loss for the data of a configuration, with the arithmetic."""
    from rich.console import Console

    from segkit.commands import data as commands

    if config is None:
        commands.inspect(_one_folder(overrides), out, memory=memory, console=Console())
    else:
        commands.plan(config, overrides or [], out, memory=memory, console=Console())


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="Task01_BrainTumour to Task10_Colon, voc2007 to voc2012, oxford_pets.")],
    folder: Annotated[Path, typer.Argument(help="Where to put it.")] = Path("data"),
) -> None:
    """Fetch a public data set, by the dataset classes of MONAI and torchvision."""
    from segkit.data.downloads import download

    found = download(name, folder)
    typer.echo(f"{name} lies in {found}; segkit data inspect {found} writes a configuration for it")


@data_app.command("preview")
def data_preview(
    config: ConfigOption,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("preview.png"),
    cases: Annotated[int, typer.Option(min=1, help="Training cases, from all over the data.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Augmented samples of each.")] = 5,
) -> None:
    """Draw what the network is shown: augmented patches with their masks."""
    from rich.console import Console

    from segkit.commands import data as commands

    commands.preview(config, overrides or [], out, cases=cases, samples=samples, console=Console())
