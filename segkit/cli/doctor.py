"""The command `segkit doctor`."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Show versions, devices, memory and disks, and what to do about what is wrong. Exit code 1 if there is any."""
    from rich.console import Console

    from segkit.commands import doctor as command

    if command.doctor(Console()):
        raise typer.Exit(1)
