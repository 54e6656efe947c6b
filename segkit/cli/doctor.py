"""The command `segkit doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from segkit.cli.output import JsonOption, QuietOption, command_output


def doctor(quiet: QuietOption = False, written: JsonOption = None) -> None:
    """Show versions, devices, memory and disks, and what to do about what is wrong. Exit code 1 if there is any."""
    from segkit.commands import doctor as command

    with command_output(quiet, written) as out:
        found = command.doctor(out.console)
        out.results = [asdict(finding) for finding in found]
    if any(finding.advice is not None for finding in found):
        raise typer.Exit(1)
