"""The commands `segkit model ...`, which describe networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from segkit.experiment.build import ConfigSource, load_config
from segkit.experiment.model_summary import ModelSummary, summarise_model
from segkit.report.console_model import print_model
from segkit.utils.files import replace_text


def summary(
    described: ConfigSource, overrides: Sequence[str], *, channels: int | None, written: Path | None, console: Console
) -> ModelSummary:
    """Print the network of a configuration in numbers, and write them to a JSON file.

    Args:
        described: The configuration.
        overrides: Changes to it, `key=value`.
        channels: Channels of the images; read from the first case by default.
        written: The JSON file to write; None for no file.
        console: Where to print.
    """
    result = summarise_model(load_config(described, overrides), channels)
    content = result.to_json()
    if written is not None:
        written.parent.mkdir(parents=True, exist_ok=True)
        replace_text(written, json.dumps(content, indent=2) + "\n")
    print_model(content, console)
    return result
