"""The file with the JSON Schema of configurations, and the comment by which YAML files name it."""

from __future__ import annotations

import json
from pathlib import Path

from segkit.config import schema
from segkit.experiment.build import TABLES
from segkit.utils.files import replace_text

NAME = "segkit.schema.json"
COMMENT = f"yaml-language-server: $schema={NAME}"  # read by the language server of YAML, on which editors rely


def schema_text() -> str:
    """The JSON Schema, with the entries of the plugins that are loaded."""
    return json.dumps(schema(TABLES), indent=1, ensure_ascii=False) + "\n"


def write_schema(folder: Path) -> None:
    """Write the schema beside the configurations of a folder."""
    replace_text(folder / NAME, schema_text())
