"""The configurations that segkit ships: `configs/` of a checkout, or of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

DISTRIBUTION = "segkit-trainer"
CHECKOUT = Path(__file__).parents[2] / "configs"


def shipped_configs() -> dict[str, Path]:
    """The file of each shipped configuration, by its name."""
    files = sorted(CHECKOUT.glob("*.yaml")) or _installed()
    return {file.stem: file for file in files}


def config_file(name: Path) -> Path:
    """A file as it is, or the shipped configuration with this name where there is no such file."""
    if name.suffix or len(name.parts) > 1 or _is_file(name):
        return name
    return shipped_configs().get(str(name), name)


def _is_file(name: Path) -> bool:
    try:
        return name.is_file()
    except OSError:  # for example a name that is too long; reading it gives the reason
        return False


def _installed() -> list[Path]:
    try:
        listed = files(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    paths = [Path(str(file.locate())).resolve() for file in listed if file.parent.name == "configs"]
    return sorted(path for path in paths if path.suffix == ".yaml")
