"""Faults and hostile input, by kind: each kind is tried many times by tools/inject_faults.py, a few times by the tests.

Each module has a table FAULTS from the name of a kind to a function (an empty folder to work in, the number of tries, a
seed). It yields None for each try that the program survived, or a line that says what went wrong.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

Fault = Callable[[Path, int, int], Iterator[str | None]]
MODULES = tuple(
    sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "commands"))
)


def all_faults() -> dict[str, Fault]:
    """All kinds, as `module: kind`."""
    tables = {name: import_module(f"{__name__}.{name}").FAULTS for name in MODULES}
    return {f"{name}: {kind}": fault for name, table in tables.items() for kind, fault in table.items()}
