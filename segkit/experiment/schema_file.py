"""Configurations that segkit writes, and the file with their JSON Schema beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.config import schema
from segkit.config.commented_yaml import commented_yaml
from segkit.experiment.build import TABLES
from segkit.utils.files import replace_text

NAME = "segkit.schema.json"
COMMENT = f"yaml-language-server: $schema={NAME}"  # read by the language server of YAML, on which editors rely


def schema_text() -> str:
    """The JSON Schema, with the entries of the plugins that are loaded."""
    return json.dumps(schema(TABLES), indent=1, ensure_ascii=False) + "\n"


def write_config(
    file: Path,
    sections: Mapping[str, Any],
    reasons: Mapping[str, Sequence[str]],
    top: Sequence[str],
    notes: Sequence[str] = (),
) -> None:
    """Write a configuration with comments, and the schema beside it.

    Args:
        file: The configuration; its folder is made.
        sections: Its sections.
        reasons: Comment lines for its keys.
        top: Comment lines at its beginning, before the next commands.
        notes: Comment lines after them.
    """
    commands = [
        f"check the data: segkit data check --config {file.name}",
        f"train:          segkit train --config {file.name}",
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, commented_yaml(sections, reasons, [*top, *commands, COMMENT, *notes]))
    replace_text(file.parent / NAME, schema_text())
