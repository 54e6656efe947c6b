"""Downloads of public data sets by name.

The dataset classes of MONAI and torchvision fetch and unpack them. These classes know the addresses and checksums of
the archives.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from segkit.utils.errors import DataError, MissingExtra
from segkit.utils.optional import require

DECATHLON = (
    *("Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate"),
    *("Task06_Lung", "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon"),
)
VOC_YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")


def _decathlon(task: str, folder: Path) -> Path:
    """Medical Segmentation Decathlon (Antonelli et al. 2022)."""
    require("requests", "medical", "downloading a Decathlon task")
    require("nibabel", "medical", "downloading a Decathlon task")
    from monai.apps.datasets import DecathlonDataset

    DecathlonDataset(folder, task, "training", download=True, cache_num=0)
    return folder / task


def _voc(year: str, folder: Path) -> Path:
    """PASCAL VOC (Everingham et al. 2010)."""
    from torchvision.datasets import VOCSegmentation

    dataset = VOCSegmentation(folder, year=year, image_set="trainval", download=True)
    return Path(dataset.images[0]).parents[1]


def _pets(folder: Path) -> Path:
    """Oxford-IIIT Pet (Parkhi et al. 2012): mask values are 1 animal, 2 background and 3 border."""
    from torchvision.datasets import OxfordIIITPet

    OxfordIIITPet(folder, target_types="segmentation", download=True)
    return folder / "oxford-iiit-pet"


DOWNLOADS: dict[str, Callable[[Path], Path]] = {  # folder to download into -> folder of the data set
    **{task: partial(_decathlon, task) for task in DECATHLON},
    **{f"voc{year}": partial(_voc, year) for year in VOC_YEARS},
    "oxford_pets": _pets,
}


def download(name: str, folder: Path) -> Path:
    """Download and unpack a public data set to `folder/name` and return that path.

    The path appears only when the data set is complete. If it exists already, nothing is downloaded.

    Raises DataError for an unknown name, a failed download, and an archive whose checksum is wrong.
    """
    if name not in DOWNLOADS:
        raise DataError(f"expected one of {', '.join(DOWNLOADS)}, got {name}")
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder) as unfinished:
        try:
            unpacked = DOWNLOADS[name](Path(unfinished))
        except MissingExtra:
            raise
        except Exception as error:  # network, archive and parser errors of any type
            raise DataError(
                f"{name} could not be downloaded: {error}; try again, or unpack its archive manually to {target}"
            ) from error
        unpacked.rename(target)
    return target
