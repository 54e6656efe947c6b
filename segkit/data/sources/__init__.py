"""Sources of cases: one class per data layout, selected by `name` in the section `data` of the configuration.

A source is a class whose keyword arguments are its options in YAML, with the annotations as their types. It also
receives `labels`. The annotation `Path`, alone or within a union or dictionary, has consequences beyond the type:

- A relative path in the YAML file is resolved against the folder of that file.
- The path is not part of the experiment's hash, so an experiment keeps its identity on a copy of the data.
- `segkit evaluate --data DIR` replaces the common folder of all such paths by DIR, except for paths in dictionaries.

Annotate options that name files or folders with `Path`, and file name patterns and all other text with `str`.
"""

from __future__ import annotations

from collections.abc import Callable

from segkit.data.cases import Source
from segkit.data.sources.ade20k import ADESource
from segkit.data.sources.cityscapes import CityscapesSource
from segkit.data.sources.coco import CocoSource
from segkit.data.sources.instances import InstancesSource
from segkit.data.sources.manifest import ManifestSource
from segkit.data.sources.msd_nnunet import DecathlonSource
from segkit.data.sources.pairs import PairsSource
from segkit.data.sources.synthetic import SyntheticSource
from segkit.data.sources.voc import VOCSource

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
