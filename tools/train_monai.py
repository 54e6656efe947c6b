"""Train a usual MONAI script on hippocampus for some minutes, to be read beside `study_trainings.py hippocampus`.

python tools/train_monai.py --minutes 5 10 20 60 --out studies/trainings

The network is a DynUNet of 12, 24, 48 and 96 channels, the patches have 40 x 56 x 40 voxels, two a step. Images are
cached; a patch is rotated and scaled with probability 0.5, and its intensities are scaled or get noise. AdamW minimises
Dice with cross-entropy; its learning rate falls from 0.002 to 0 with the power 0.9 of the time left. Prediction is by
overlapping windows, weighted by a Gaussian. All of it is MONAI's; the cases are those of one fold of that study. Scores
go to hippocampus_monai-runs.csv and hippocampus_monai-cases.csv.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from collect_results import DIGITS
from monai.data.dataloader import DataLoader
from monai.data.dataset import CacheDataset
from monai.inferers.inferer import SlidingWindowInferer
from monai.losses.dice import DiceCELoss
from monai.metrics.meandice import compute_dice
from monai.networks.nets.dynunet import DynUNet
from monai.networks.utils import one_hot
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandSpatialCropd, SpatialPadd
from monai.transforms.intensity.dictionary import NormalizeIntensityd, RandGaussianNoised, RandScaleIntensityd
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.spatial.dictionary import RandAffined
from monai.transforms.utility.dictionary import EnsureChannelFirstd, EnsureTyped
from monai.utils.misc import set_determinism
from study_trainings import CONFIGS, CURVE_FOLD

from segkit.experiment.build import build_split, load_config

BOTH = ["image", "label"]
CLASSES = ("anterior", "posterior")
PATCH = (40, 56, 40)
RATE, POWER, DECAY, CLIP = 2e-3, 0.9, 1e-4, 12.0
SEED = 0

LOADING = [
    LoadImaged(BOTH),
    EnsureChannelFirstd(BOTH),
    NormalizeIntensityd("image"),
    SpatialPadd(BOTH, PATCH),
    EnsureTyped(BOTH),
]
RANDOM = [
    RandSpatialCropd(BOTH, PATCH, random_size=False),
    RandAffined(
        BOTH,
        prob=0.5,
        rotate_range=(0.3, 0.3, 0.3),
        scale_range=(0.15, 0.15, 0.15),
        mode=("bilinear", "nearest"),
        padding_mode="border",
    ),
    RandScaleIntensityd("image", 0.25, prob=0.3),
    RandGaussianNoised("image", prob=0.2, std=0.1),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 20, 60], help="time of each training")
    parser.add_argument("--out", type=Path, default=Path("studies") / "trainings", help="output folder")
    arguments = parser.parse_args()
    trainings = arguments.out / "hippocampus_monai"
    for minutes in arguments.minutes:
        folder = trainings / f"{minutes:g}_minutes"
        if not (folder / "runs.csv").exists():  # written last
            train_and_score(minutes, folder)
    finished = sorted(file.parent for file in trainings.glob("*/runs.csv"))
    for kind in ("runs", "cases"):
        table = pd.concat([pd.read_csv(folder / f"{kind}.csv") for folder in finished])
        table.to_csv(arguments.out / f"hippocampus_monai-{kind}.csv", index=False, float_format=DIGITS)


def train_and_score(minutes: float, folder: Path) -> None:
    """Train for some minutes, score the validation cases, and write runs.csv and cases.csv to the folder."""
    set_determinism(SEED)
    split = build_split(load_config(CONFIGS / "hippocampus.yaml", [f"split.fold={CURVE_FOLD}"]))
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1 + len(CLASSES),
        kernel_size=[3, 3, 3, 3],
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2, 2, 2],
        filters=[12, 24, 48, 96],
    )
    cases = CacheDataset(files(split.train), Compose([*LOADING, *RANDOM]), progress=False)
    loader = DataLoader(cases, batch_size=2, shuffle=True)
    started = pd.Timestamp.now().isoformat(timespec="seconds")
    seconds, steps = train(network, loader, 60 * minutes)
    keys = {"training": f"{minutes:g} minutes", "seed": SEED}
    scores = pd.DataFrame([keys | row for row in score(network, split.validation)])
    run = {"group": keys["training"], "seed": SEED, "fold": CURVE_FOLD, "minutes": seconds / 60, "steps": steps}
    run |= {"threads": torch.get_num_threads(), "started": started, "mean_dice": scores["dice"].mean()}
    folder.mkdir(parents=True, exist_ok=True)
    scores.to_csv(folder / "cases.csv", index=False)
    pd.DataFrame([run]).to_csv(folder / "runs.csv", index=False)
    print(run, flush=True)


def files(cases: Sequence[str]) -> list[dict[str, str]]:
    """The files of each case."""
    root = Path(os.environ["SEGKIT_DATA"]) / "hippocampus"
    folders = {"image": "imagesTr", "label": "labelsTr"}
    return [{key: str(root / folder / f"{case}.nii.gz") for key, folder in folders.items()} for case in cases]


def train(network: torch.nn.Module, loader: Any, budget: float) -> tuple[float, int]:
    """Train for so many seconds; returns the seconds taken and the number of steps."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    loss = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)
    network.train()
    begin, steps = time.perf_counter(), 0
    while True:
        for batch in loader:
            passed = time.perf_counter() - begin
            if passed >= budget:
                return passed, steps
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - passed / budget) ** POWER
            optimizer.zero_grad()
            loss(network(batch["image"]), batch["label"]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            steps += 1


@torch.no_grad()
def score(network: torch.nn.Module, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The Dice of each case and class."""
    network.eval()
    windows = SlidingWindowInferer(PATCH, sw_batch_size=1, overlap=0.5, mode="gaussian")
    loading = Compose(LOADING)
    for case, paths in zip(cases, files(cases), strict=True):
        loaded: Any = loading(paths)
        predicted: Any = windows(loaded["image"][None], network)
        masks = [one_hot(mask, 1 + len(CLASSES)) for mask in (predicted.argmax(1, keepdim=True), loaded["label"][None])]
        dice = compute_dice(*masks, include_background=False)[0]
        for name, value in zip(CLASSES, dice.tolist(), strict=True):
            yield {"case": case, "group": case, "class": name, "dice": value}


if __name__ == "__main__":
    main()
