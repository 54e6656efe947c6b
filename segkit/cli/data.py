"""The commands `segkit data ...`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.cli.completion import complete_config
from segkit.cli.options import ConfigOption, Overrides
from segkit.cli.output import JsonOption, QuietOption, command_output

data_app = typer.Typer(help="Inspect and check data before training.", no_args_is_help=True, rich_markup_mode=None)
OptionalConfig = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="YAML file, or the name of a shipped configuration.", autocompletion=complete_config
    ),
]
FolderOrOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="Data folder, or with --config: configuration overrides, such as train.steps=100."),
]


class Trainer(StrEnum):
    """What a configuration is planned for."""

    cpu = "cpu"
    cuda = "cuda"


class Network(StrEnum):
    """What a plan may be asked for."""

    unet = "unet"
    residual_encoder_unet = "residual_encoder_unet"
    encoder_unet = "encoder_unet"


NetworkOption = Annotated[Network | None, typer.Option(help="Network to plan [default: chosen by data and memory].")]
MemoryOption = Annotated[
    float | None,
    typer.Option(min=0.1, help="GB that a training step may use [default: what is free on the GPU; on a CPU 4]."),
]
DeviceOption = Annotated[
    Trainer | None,
    typer.Option(help="What trains [default: a CUDA device if there is one, or if --memory is 8 or more]."),
]


def _wanted(memory: float | None, device: Trainer | None, network: Network | None) -> dict[str, Any]:
    return {
        "memory": memory,
        "device": None if device is None else device.value,
        "network": None if network is None else network.value,
    }


def _data_folder(arguments: list[str] | None) -> Path:
    """The data folder that was passed instead of --config."""
    if arguments is None or len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise typer.BadParameter("give --config, or one data folder")
    return Path(arguments[0])


@data_app.command("check")
def data_check(
    overrides: FolderOrOverrides = None,
    config: OptionalConfig = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of reading processes [default: one per CPU core].")
    ] = None,
    quiet: QuietOption = False,
    written: JsonOption = None,
) -> None:
    """Read every case once and report unreadable files, wrong labels, split leakage and missing classes."""
    from segkit.commands import data as commands

    with command_output(quiet, written) as out:
        options = {"workers": workers, "console": out.console}
        if config is None:
            out.results = commands.check_folder(_data_folder(overrides), **options)
        else:
            out.results = commands.check(config, overrides or [], **options)


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="Data folder.")],
    out: Annotated[Path, typer.Option(help="Configuration to write.")] = Path("segkit.yaml"),
    memory: MemoryOption = None,
    device: DeviceOption = None,
    network: NetworkOption = None,
) -> None:
    """Detect the layout, formats and classes of a folder, and write a configuration that trains on it."""
    from rich.console import Console

    from segkit.commands import data as commands

    commands.inspect(folder, out, **_wanted(memory, device, network), console=Console())


@data_app.command("plan")
def data_plan(
    overrides: FolderOrOverrides = None,
    config: OptionalConfig = None,
    out: Annotated[Path, typer.Option(help="Configuration to write.")] = Path("plan.yaml"),
    memory: MemoryOption = None,
    device: DeviceOption = None,
    network: NetworkOption = None,
) -> None:
    """Propose network, patch, spacing, batch and loss for the data of a configuration, with the reasons."""
    from rich.console import Console

    from segkit.commands import data as commands

    if config is None:
        commands.inspect(_data_folder(overrides), out, **_wanted(memory, device, network), console=Console())
    else:
        commands.plan(config, overrides or [], out, **_wanted(memory, device, network), console=Console())


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="Task01_BrainTumour to Task10_Colon, voc2007 to voc2012, oxford_pets.")],
    folder: Annotated[Path, typer.Argument(help="Target folder.")] = Path("data"),
) -> None:
    """Download a public data set with the dataset classes of MONAI and torchvision."""
    from segkit.data.downloads import download

    path = download(name, folder)
    typer.echo(f"{name} was downloaded to {path}; segkit data inspect {path} writes a configuration for it")


@data_app.command("preview")
def data_preview(
    config: ConfigOption,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Image to write.")] = Path("preview.png"),
    cases: Annotated[int, typer.Option(min=1, help="Number of training cases, evenly spaced.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Number of augmented samples per case.")] = 5,
) -> None:
    """Draw the network's input: augmented patches with their masks."""
    from rich.console import Console

    from segkit.commands import data as commands

    commands.preview(config, overrides or [], out, cases=cases, samples=samples, console=Console())
