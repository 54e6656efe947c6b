"""The commands `segkit model ...`, which describe networks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from segkit.experiment.build import ConfigSource, load_config
from segkit.experiment.model_summary import ModelSummary, summarise_model
from segkit.report.console_model import print_model


def summary(
    described: ConfigSource, overrides: Sequence[str], *, channels: int | None, console: Console
) -> ModelSummary:
    """Print the network of a configuration in numbers.

    Args:
        described: The configuration.
        overrides: Changes to it, `key=value`.
        channels: Channels of the images; read from the first case by default.
        console: Where to print.
    """
    result = summarise_model(load_config(described, overrides), channels)
    print_model(result.to_json(), console)
    return result
