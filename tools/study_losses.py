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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segkit.cli import main as segkit

CONFIGS = Path(__file__).parents[1] / "configs"

# The losses as they are meant. `comparison.noise_floor` trains the baseline again, under another name.
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
    # `ce_then_lovasz` keeps the cross-entropy in its second half, this does not
    "lovasz_softmax after cross_entropy": [
        {"name": "cross_entropy", "weight": {"name": "after", "fraction": 0.5, "value": 0, "before": 1}},
        {"name": "lovasz_softmax", "weight": {"name": "after", "fraction": 0.5}},
    ],
}

# Artefacts of published code, and milder forms. Weights of absent classes matter only where patches lack classes.
LOGITS: dict[str, Any] = {"lovasz on raw logits": "lovasz_on_logits"}
WEIGHTS: dict[str, Any] = {
    "raw inverse class weights": {"name": "cross_entropy", "class_weights": "inverse", "normalize": "valid"},
    "square roots of inverse class weights": {"name": "cross_entropy", "class_weights": "sqrt_inverse"},
}
ABSENT: dict[str, Any] = {
    "generalized dice, absent classes weigh 1e20": "exploding_generalized_dice",
    "generalized dice per image, absent classes weigh 0": {"name": "generalized_dice", "per": "image"},
    "generalized dice per image, absent classes weigh most": {
        "name": "generalized_dice",
        "per": "image",
        "absent": "max",
    },
}
FULL = ("dice_ce", "cross_entropy", "dice", "lovasz_softmax", "ce_lovasz")  # at the whole budget, as a control

ONE_VALIDATION = "train.validate_every={fraction: 1.0}"  # nothing is selected by it
TEST_FOLD = "split={name: kfold, folds: 5, fold: 0, seed: 0, test_fold: 1}"  # fold 0 has chosen settings before
SPLIT_AND_METRICS = (TEST_FOLD, "evaluation.metrics=[hd95, nsd]", ONE_VALIDATION)
HIPPOCAMPUS = ("train.steps=300", *SPLIT_AND_METRICS)
# with one channel, generalised Dice is Dice: the membranes get a softmax, as the other data sets have
ISBI2012 = ("train.steps=120", "loader.batch=2", "labels.mode=multiclass", ONE_VALIDATION, "comparison.folds=5")
CHASE_DB1 = ("train.steps=300", TEST_FOLD, "evaluation.metrics=[cldice]", ONE_VALIDATION)
PHANTOMS = (ONE_VALIDATION,)
CAMVID = ("train.steps=300", "loader.batch=4", "train.precision=auto", ONE_VALIDATION)


@dataclass(frozen=True)
class Study:
    """A comparison: a shipped configuration, overrides, losses and the number of seeds.

    Args:
        config: Name of the configuration.
        overrides: Overrides of the configuration, `key=value`.
        losses: The losses by label.
        seeds: The seeds of the runs of each loss (and fold).
        baseline: The loss that is trained twice and that the others are compared with; None compares all pairs.
        plugin: Whether a loss is in study_plugin.py.
    """

    config: str
    overrides: tuple[str, ...]
    losses: dict[str, Any] = field(default_factory=lambda: LOSSES)
    seeds: Sequence[int] = range(5)
    baseline: str | None = "dice_ce"
    plugin: bool = False

    def arguments(self, out: Path, parallel: int) -> list[str]:
        """The arguments of the command `segkit`."""
        overrides = [f"comparison.losses={json.dumps(self.losses)}", f"comparison.seeds={list(self.seeds)}"]
        overrides += [*self.overrides, "evaluation.overlays=false"]
        if self.baseline:
            overrides += [f"comparison.baseline={self.baseline}", "comparison.noise_floor=true"]
        if self.plugin:
            overrides.append("plugins=[study_plugin]")
        options = ["--parallel", str(parallel), "--out", str(out)]
        return ["compare", "--config", str(CONFIGS / f"{self.config}.yaml"), *options, *overrides]


def wrong_labels(percent: int) -> Study:
    """A known handicap: training masks in which a share of the pixels has another class (tools/study_noise.py)."""
    root = f"data.root=${{SEGKIT_WRONG_LABELS}}/hippocampus_{percent}"
    return Study("hippocampus", (*HIPPOCAMPUS, root), {"cross_entropy": "cross_entropy"}, range(10), None)


CROSS_ENTROPY: dict[str, Any] = {"cross_entropy": "cross_entropy"}
STUDIES = {
    "hippocampus": Study("hippocampus", HIPPOCAMPUS),
    "hippocampus_rates": Study("hippocampus", (*HIPPOCAMPUS, "comparison.sweep=[1e-3, 3e-3, 1e-2]"), baseline=None),
    "hippocampus_artefacts": Study("hippocampus", HIPPOCAMPUS, LOGITS | WEIGHTS, baseline=None, plugin=True),
    "hippocampus_full": Study(
        "hippocampus", ("train.steps=2000", *SPLIT_AND_METRICS), {name: name for name in FULL}, range(3), None
    ),
    "hippocampus_more": Study("hippocampus", HIPPOCAMPUS, CROSS_ENTROPY, range(5, 10), None),
    "hippocampus_half": Study("hippocampus", ("train.steps=150", *SPLIT_AND_METRICS), CROSS_ENTROPY, range(10), None),
    "hippocampus_wrong_2": wrong_labels(2),
    "hippocampus_wrong_5": wrong_labels(5),
    "hippocampus_wrong_10": wrong_labels(10),
    "isbi2012": Study("isbi2012", ISBI2012),
    "chase_db1": Study("chase_db1", CHASE_DB1),
    "phantoms": Study("quickstart", PHANTOMS),
    "camvid": Study("camvid", CAMVID),
    "camvid_artefacts": Study("camvid", CAMVID, LOGITS | WEIGHTS | ABSENT, baseline=None, plugin=True),
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
