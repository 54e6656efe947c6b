"""What was loaded from a file of weights and what was not, for the user and for the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from segkit.data.preprocess import Preprocess
from segkit.labels import Labels
from segkit.utils.text import listed

ROWS = 7  # of the table of modules
DEPTH = 3  # of modules in the table, at most
HALF = 0.5

Shapes = tuple[list[int], list[int]]  # in the file and in the network


@dataclass(frozen=True)
class Origin:
    """What a segkit checkpoint says of the training of its weights.

    classes: the names of the classes, empty if the configuration does not say. preprocess: the fitted preprocessing.
    is_average: whether the weights are the moving average of those in training, which evaluation uses.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    is_average: bool = False

    def differences(self, labels: Labels, preprocess: Preprocess) -> list[str]:
        """Differences from the training that starts from these weights, one line each."""
        known = self.preprocess
        pairs = {
            "the classes": (", ".join(self.classes), ", ".join(labels.names)),
            "intensity": (known.intensity, preprocess.intensity),
            "channels": (known.channels, preprocess.channels),
            "spatial axes": (known.dims, preprocess.dims),
        }
        return [
            f"these weights were trained with other data: {name} {before} there, {now} here"
            for name, (before, now) in pairs.items()
            if before != now and before != ""
        ]


@dataclass(frozen=True)
class ModuleRow:
    """A row of the table: the weights of one module.

    other_shape: The first weight of the module that has another shape in the file, with both shapes; empty if none has.
    """

    module: str
    taken: int
    total: int
    missing: int
    mismatched: int
    other_shape: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        counts = (str(count) if count else "" for count in (self.missing, self.mismatched))
        return self.module, f"{self.taken} of {self.total}", *counts, self.other_shape


@dataclass(frozen=True)
class Loaded:
    """Which parameters and buffers were loaded from a file of weights, by name.

    Args:
        taken: Loaded from the file.
        missing: In the network, but not in the file.
        unexpected: In the file, but not in the network.
        mismatched: In both with different shapes: the shape in the file and the shape in the network.
        adapted: Those of the taken that were adapted to another number of image channels, with both shapes.
        head: The number of output channels in the file and in the network, if only the last layer differs in it.
        place: Where the weights lie in the file, such as `state_dict, model.*`; empty if they are the whole file.
        names: From the name of a weight in the network to that in the file.
        notes: How the weights were found in the file, one line each.
        origin: How the weights were trained; None if the file is not a segkit checkpoint.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, Shapes]
    adapted: Mapping[str, Shapes] = field(default_factory=dict)
    head: tuple[int, int] | None = None
    place: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def total(self) -> int:
        """The number of weights of the network."""
        return len(self.taken) + len(self.missing) + len(self.mismatched)

    def describe(self, path: Path) -> list[str]:
        """Messages for the user, one line each. The table of `rows` belongs below them."""
        place = f" ({self.place})" if self.place else ""
        lines = [f"loaded {len(self.taken)} of {self.total} weights from {path}{place}", *self.notes]
        if self.origin is not None and self.origin.is_average:
            lines.append("these are the averaged weights (train.ema), which evaluation uses")
        if self.head is not None:
            in_file, here = self.head
            lines.append(f"the head is new: {in_file} classes in the file, {here} here (output channels)")
        if self.adapted:
            in_file, here = next(iter(self.adapted.values()))
            names = listed(list(self.adapted), limit=3)
            lines.append(f"adapted from {in_file[1]} to {here[1]} image channels: {names}")
        if self.unexpected:
            lines.append(f"only in the file: {_grouped(self.unexpected)}")
        return lines

    def warnings(self, path: Path) -> list[str]:
        """What may be a mistake, one line each."""
        if len(self.taken) >= HALF * self.total:
            return []
        return [
            f"only {len(self.taken)} of the {self.total} weights of the network were loaded from {path}; check that "
            "`model` describes the network of these weights"
        ]

    def rows(self) -> list[ModuleRow]:
        """The modules of which some weights were not taken, and all others in one row; empty if all were taken."""
        if not self.missing and not self.mismatched:
            return []
        names = [*self.taken, *self.missing, *self.mismatched]
        kept = set(self.taken)
        for depth in range(DEPTH, 0, -1):
            groups = modules(names, depth)
            partial = {module: group for module, group in groups.items() if not kept.issuperset(group)}
            if len(partial) < ROWS:
                break
        shown = dict(list(partial.items())[: ROWS - 1])
        rest = [name for module, group in groups.items() if module not in shown for name in group]
        rows = [self._row(module, group) for module, group in shown.items()]
        return [*rows, self._row("all others", rest)] if rest else rows

    def _row(self, module: str, names: Sequence[str]) -> ModuleRow:
        taken, missing = set(self.taken), set(self.missing)
        mismatched = [name for name in names if name in self.mismatched]
        shapes = ""
        if mismatched:
            in_file, here = self.mismatched[mismatched[0]]
            shapes = f"{mismatched[0].rpartition('.')[2]} {in_file}, here {here}"
        counts = sum(name in taken for name in names), sum(name in missing for name in names)
        return ModuleRow(module, counts[0], len(names), counts[1], len(mismatched), shapes)

    def to_json(self, path: Path) -> dict[str, Any]:
        """The contents of initial_weights.json: what became of every weight of the network and of the file."""
        changed = {**self.mismatched, **self.adapted}
        results = {
            **dict.fromkeys(self.taken, "taken"),
            **dict.fromkeys(self.adapted, "adapted"),
            **dict.fromkeys(self.missing, "not in the file"),
            **dict.fromkeys(self.mismatched, "different shape"),
        }
        weights = [
            {"name": name, "result": result, "in_file": self.names.get(name)}
            | (dict(zip(("shape_in_file", "shape"), changed[name], strict=True)) if name in changed else {})
            for name, result in results.items()
        ]
        only_in_file = [{"name": None, "result": "only in the file", "in_file": name} for name in self.unexpected]
        summary = {"taken": len(self.taken), "total": self.total, "notes": self.describe(path)[1:]}
        return {"file": str(path), "place": self.place, **summary, "weights": [*weights, *only_in_file]}


def modules(names: Sequence[str], depth: int) -> dict[str, list[str]]:
    """The names by module, down to a depth below the module that all of them share."""
    paths = [name.split(".")[:-1] for name in names]
    levels = zip(*paths, strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    groups: dict[str, list[str]] = {}
    for name, path in zip(names, paths, strict=True):
        groups.setdefault(".".join(path[: shared + depth]) or name, []).append(name)
    return groups


def _grouped(names: Sequence[str]) -> str:
    """The number of names, and the modules they belong to."""
    return f"{len(names)} weights ({listed(list(modules(names, 1)), limit=4)})"
