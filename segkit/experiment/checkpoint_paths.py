"""Which paths of the configuration in a checkpoint are followed.

A checkpoint may come from somebody else. Its configuration must not choose which files of this machine are read, and
end up in scores and pictures. Paths are followed if the user has given them: in the configuration of the run folder in
which the checkpoint lies, or on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.config import Config, ConfigError
from segkit.config.schema import leaves
from segkit.config.yaml_tree import parse_file

# a text that is put into a path and leads out of its folder: a part `..`, an absolute path, a home, a drive, a URL
LEADS_OUT = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\~]|^[A-Za-z]:[/\\]|^\w+://")


def unconfirmed_paths(
    content: Mapping[str, Any], config: Config, file: Path, overrides: Sequence[str]
) -> dict[str, str]:
    """The paths under `data`, by option, that only the checkpoint names.

    content: the configuration as it stands in the checkpoint. config: the same, checked, with the overrides. file: the
    checkpoint.
    """
    recorded, own = leaves(content.get("data"), "data"), _of_run_folder(file)
    given = [text.partition("=")[0] for text in overrides]
    return {
        key: str(recorded.get(key, value))
        for key, value in _paths(config.data.args, "data")
        if not any(key == option or key.startswith(f"{option}.") for option in given)
        and not (key in recorded and own.get(key) == recorded[key])
    }


def _of_run_folder(file: Path) -> dict[str, Any]:
    """The options under `data` in the configuration of the run folder of a checkpoint; empty if it lies in none."""
    configuration = file.absolute().parent.parent / "config.yaml"
    if file.absolute().parent.name != "checkpoints" or not configuration.is_file():
        return {}
    try:
        return leaves(parse_file(configuration)[0].get("data"), "data")
    except ConfigError:  # a damaged file confirms nothing
        return {}


def _paths(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The paths in options, and texts that would lead out of the folder they are put into, with their dotted keys."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _paths(item, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _paths(item, f"{key}.{number}")
    elif isinstance(value, Path) or (isinstance(value, str) and LEADS_OUT.search(value)):
        yield key, value


def refuse_unconfirmed(paths: Mapping[str, str], file: Path) -> None:
    """Raise ConfigError that shows the paths, and says how to use them or others."""
    if paths:
        shown = "".join(f"\n  {key}={path[:200]}" for key, path in paths.items())
        raise ConfigError(
            f"the data of {file} are not read, because only this file names them, which may come from somebody "
            f"else:{shown}\ngive your own data with --data FOLDER or with these options, or repeat the options to use "
            "these paths; in its run folder, whose config.yaml names the same paths, a checkpoint needs neither"
        )
