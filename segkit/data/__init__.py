"""Data: sources of cases, file formats, splits, preprocessing, augmentation and data loading."""

from segkit.data.cases import Case, MaskFile, RawCase, Source
from segkit.data.sources import SOURCES
from segkit.data.sources.msd_nnunet import DecathlonSource
from segkit.data.sources.pairs import PairsSource
from segkit.data.sources.synthetic import SyntheticSource
from segkit.data.splits import SPLITS, Split
from segkit.utils.errors import DataError

__all__ = [
    "SOURCES",
    "SPLITS",
    "Case",
    "DataError",
    "DecathlonSource",
    "MaskFile",
    "PairsSource",
    "RawCase",
    "Source",
    "Split",
    "SyntheticSource",
]
