"""Modules in tools/, which are scripts and no package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[2] / "tools"


def tool_module(name: str) -> ModuleType:
    """The module tools/NAME.py. It may import its neighbours."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    return importlib.import_module(name)
