"""Optional dependencies: imported where they are needed, with an error that names the extra to install."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from segkit.utils.errors import MissingExtra


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Name of the module, such as `nibabel` or `nibabel.orientations`.
        extra: Extra of segkit-trainer that installs it, such as `medical`.
        purpose: What needs the module, as the subject of the error message, such as `reading NIfTI files`.

    Raises MissingExtra if the module is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise MissingExtra(
            f"{purpose} requires the package {package}, which is not installed; "
            f"run: pip install 'segkit-trainer[{extra}]'"
        ) from error


def is_installed(*modules: str) -> bool:
    """Whether all of these top-level modules can be imported."""
    return all(find_spec(module) is not None for module in modules)
