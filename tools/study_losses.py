"""Train the comparisons of losses that docs/results.md reports.

python tools/study_losses.py hippocampus --out studies/hippocampus
python tools/study_losses.py hippocampus --print

A study is a shipped configuration with a shorter budget and a list of losses, so that this script only calls `segkit
compare` with the options in `STUDIES`. Stop it at any time; the same command continues. The environment variable
SEGKIT_DATA names the folder of the data sets.
"""

import argparse
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segkit.cli import main as segkit

CONFIGS = Path(__file__).parents[1] / "configs"

# Twelve losses as they are meant. `comparison.noise_floor` trains the baseline again, as a thirteenth.
LOSSES: dict[str, Any] = {
    "dice_ce": "dice_ce",
    "cross_entropy": "cross_entropy",
    "weighted_cross_entropy": "weighted_cross_entropy",
    "dice": "dice",
    "jaccard": "jaccard",
    "lovasz_softmax": "lovasz_softmax",
    "ce_then_lovasz": "ce_then_lovasz",
    "focal": "focal",
    "tversky": {"name": "tversky", "alpha": 0.3, "beta": 0.7},
    "generalized_dice": "generalized_dice",
    "dice_topk": "dice_topk",
    "ce_lovasz": "ce_lovasz",
}

# Three artefacts of published code. The first two losses are in study_plugin.py.
ARTEFACTS: dict[str, Any] = {
    "lovasz on raw logits": "lovasz_on_logits",
    "generalized dice with exploding weights": "exploding_generalized_dice",
    "raw inverse class weights": {"name": "cross_entropy", "class_weights": "inverse"},
}

# A known handicap: a share of the pixels of each training mask gets another class.
HANDICAPS: dict[str, Any] = {
    "cross_entropy": "cross_entropy",
    "2 % wrong labels": {"name": "noisy_cross_entropy", "share": 0.02},
    "5 % wrong labels": {"name": "noisy_cross_entropy", "share": 0.05},
    "10 % wrong labels": {"name": "noisy_cross_entropy", "share": 0.1},
}

ONE_VALIDATION = "train.validate_every={fraction: 1.0}"  # nothing is selected by it
HIPPOCAMPUS = (
    "train.steps=300",
    "split={name: kfold, folds: 5, fold: 0, seed: 0, test_fold: 1}",
    "evaluation.metrics=[hd95, nsd]",
    ONE_VALIDATION,
)
ISBI2012 = ("train.steps=100", ONE_VALIDATION, "comparison.folds=5")
CHASE_DB1 = ("train.steps=300", "evaluation.metrics=[cldice]", ONE_VALIDATION)
PHANTOMS = (ONE_VALIDATION,)
CAMVID = ("train.steps=250", "train.precision=auto", ONE_VALIDATION)


@dataclass(frozen=True)
class Study:
    """A comparison: a shipped configuration, overrides, losses and the number of seeds.

    Args:
        config: Name of the configuration.
        overrides: Overrides of the configuration, `key=value`.
        losses: The losses by label.
        seeds: Runs for each loss (and fold).
        baseline: The loss that is trained twice and that the others are compared with; None compares all pairs.
    """

    config: str
    overrides: tuple[str, ...]
    losses: dict[str, Any] = field(default_factory=lambda: LOSSES)
    seeds: int = 5
    baseline: str | None = "dice_ce"

    def arguments(self, out: Path, parallel: int) -> list[str]:
        """The arguments of the command `segkit`."""
        overrides = [f"comparison.losses={json.dumps(self.losses)}", *self.overrides, "evaluation.overlays=false"]
        if self.baseline:
            overrides += [f"comparison.baseline={self.baseline}", "comparison.noise_floor=true"]
        options = ["--seeds", str(self.seeds), "--parallel", str(parallel), "--out", str(out)]
        return ["compare", "--config", str(CONFIGS / f"{self.config}.yaml"), *options, *overrides]


def with_plugin(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return (*overrides, "plugins=[study_plugin]")


STUDIES = {
    "hippocampus": Study("hippocampus", HIPPOCAMPUS),
    "hippocampus_rates": Study("hippocampus", (*HIPPOCAMPUS, "comparison.sweep=[1e-3, 3e-3, 1e-2]")),
    "hippocampus_artefacts": Study("hippocampus", with_plugin(HIPPOCAMPUS), ARTEFACTS, baseline=None),
    "hippocampus_handicaps": Study("hippocampus", with_plugin(HIPPOCAMPUS), HANDICAPS, seeds=10, baseline=None),
    "isbi2012": Study("isbi2012", ISBI2012),
    "chase_db1": Study("chase_db1", CHASE_DB1),
    "phantoms": Study("quickstart", PHANTOMS),
    "camvid": Study("camvid", CAMVID),
    "camvid_artefacts": Study("camvid", with_plugin(CAMVID), ARTEFACTS, baseline=None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, help="output folder (default: studies/STUDY)")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    parser.add_argument("--print", action="store_true", help="print the command only")
    arguments = parser.parse_args()
    out = arguments.out or Path("studies") / arguments.study
    command = STUDIES[arguments.study].arguments(out, arguments.parallel)
    if arguments.print:
        print("segkit", shlex.join(command))
        return
    # plugins are imported by name, in worker processes too
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, here)
    segkit(command)


if __name__ == "__main__":
    main()
