"""Copy the hippocampus data with wrong labels in the training cases, a known handicap for tools/study_losses.py.

python tools/study_noise.py --percent 2 5 10

A share of the pixels of each training mask gets another class, drawn once for each case. Masks of validation and test
cases stay right. The environment variable SEGKIT_WRONG_LABELS names the folder for the copies.
"""

import argparse
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from study_losses import CONFIGS, HIPPOCAMPUS

from segkit.experiment.build import build_labels, build_source, load_config, split_cases

CLASSES = 3


def with_wrong_labels(mask: np.ndarray, share: float, case: str) -> np.ndarray:
    """The mask with a share of its pixels in one of the other classes, each as likely."""
    generator = np.random.default_rng(zlib.crc32(case.encode()))
    wrong = generator.random(mask.shape) < share
    shift = generator.integers(1, CLASSES, mask.shape)
    return np.where(wrong, (mask + shift) % CLASSES, mask).astype(np.uint8)


def copy_with_wrong_labels(data: Path, out: Path, share: float, training: set[str]) -> None:
    """Copy a data set of the Decathlon."""
    shutil.copytree(data, out, ignore=shutil.ignore_patterns("stray"))
    for file in sorted((out / "labelsTr").glob("*.nii.gz")):
        case = file.name.removesuffix(".nii.gz")
        if case not in training:
            continue
        volume: Any = nibabel.load(file)
        mask = with_wrong_labels(np.asarray(volume.dataobj).round().astype(np.int64), share, case)
        nibabel.save(nibabel.Nifti1Image(mask, volume.affine), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--percent", type=int, nargs="+", default=[2, 5, 10], help="shares of the pixels")
    arguments = parser.parse_args()
    data = Path(os.environ["SEGKIT_DATA"]) / "hippocampus"
    config = load_config(CONFIGS / "hippocampus.yaml", list(HIPPOCAMPUS))
    training = set(split_cases(config, build_source(config, build_labels(config))).train)
    for percent in arguments.percent:
        out = Path(os.environ["SEGKIT_WRONG_LABELS"]) / f"hippocampus_{percent}"
        copy_with_wrong_labels(data, out, percent / 100, training)
        print(f"{out}: {len(training)} masks with {percent} % wrong labels")


if __name__ == "__main__":
    main()
