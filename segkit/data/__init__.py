"""Cases: finding them, reading them, splitting them, preparing them, and bringing them to the network."""

from collections.abc import Callable

from segkit.data.cases import Case, DataError, RawCase, Source
from segkit.data.msd import MSDSource
from segkit.data.pairs import PairsSource
from segkit.data.splits import SPLITS, Split
from segkit.data.synthetic import SyntheticSource

SOURCES: dict[str, Callable[..., Source]] = {"pairs": PairsSource, "msd": MSDSource, "synthetic": SyntheticSource}

__all__ = [
    "SOURCES",
    "SPLITS",
    "Case",
    "DataError",
    "MSDSource",
    "PairsSource",
    "RawCase",
    "Source",
    "Split",
    "SyntheticSource",
]
