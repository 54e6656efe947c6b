"""Where cases come from: a class a layout, by the name that the section `data` gives."""

from __future__ import annotations

from collections.abc import Callable

from segkit.data.cases import Source
from segkit.data.sources.coco import CocoSource
from segkit.data.sources.instances import InstancesSource
from segkit.data.sources.manifest import ManifestSource
from segkit.data.sources.msd_nnunet import DecathlonSource
from segkit.data.sources.pairs import PairsSource
from segkit.data.sources.public import ADESource, CityscapesSource, VOCSource
from segkit.data.sources.synthetic import SyntheticSource

SOURCES: dict[str, Callable[..., Source]] = {
    "pairs": PairsSource,
    "manifest": ManifestSource,
    "msd": DecathlonSource,
    "nnunet": DecathlonSource,
    "voc": VOCSource,
    "cityscapes": CityscapesSource,
    "ade": ADESource,
    "coco": CocoSource,
    "instances": InstancesSource,
    "synthetic": SyntheticSource,
}
