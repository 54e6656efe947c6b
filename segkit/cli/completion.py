"""What the shell proposes for configurations and overrides."""

from __future__ import annotations

from pathlib import Path

import typer


def complete_config(incomplete: str) -> list[str]:
    """The shipped configurations, YAML files and folders that begin with what is typed."""
    from segkit.config.shipped import shipped_configs

    head, slash, _tail = incomplete.rpartition("/")
    prefix = head + slash
    try:
        paths = sorted(Path(prefix or ".").iterdir())
    except OSError:  # such as a folder that does not exist
        paths = []
    found = [f"{prefix}{path.name}/" for path in paths if path.is_dir() and not path.name.startswith(".")]
    found += [f"{prefix}{path.name}" for path in paths if path.suffix in (".yaml", ".yml")]
    return [text for text in (*shipped_configs(), *found) if text.startswith(incomplete)]


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """The keys of the configuration that is named by --config, and of the fixed sections, that begin with what is
    typed."""
    from segkit.config.sections import fixed_keys

    keys = fixed_keys()
    if (config := ctx.params.get("config")) is not None:
        keys = list(dict.fromkeys([*_keys_of(config), *keys]))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def _keys_of(config: Path) -> list[str]:
    """The keys of a resolved configuration; none if it has errors, which the command itself will report."""
    from segkit.config import ConfigError
    from segkit.config.schema import leaves
    from segkit.experiment.build import load_config

    try:
        return [key for key in leaves(load_config(config).to_dict()) if key != "format"]
    except (ConfigError, OSError):
        return []
