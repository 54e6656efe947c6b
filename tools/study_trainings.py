"""Train the single configurations that docs/results.md reports, one after another, and collect their scores.

python tools/study_trainings.py hippocampus --out studies/trainings
python tools/study_trainings.py hippocampus camvid --print

A study is a list of shipped configurations with overrides; each is one `segkit train`. A training that has finished is
not repeated, and one that was interrupted continues. Scores of all finished trainings of a study are written to
STUDY-runs.csv (one row per training and split) and STUDY-cases.csv (one row per training, split, case and foreground
class). The environment variable SEGKIT_DATA names the folder of the data sets.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pandas as pd
from collect_results import DIGITS, foreground_scores

from segkit.compare.design import seed_of_fold
from segkit.training.checkpoint import load as load_checkpoint
from segkit.training.run_folder import Run

CONFIGS = Path(__file__).parents[1] / "configs"
ONE_VALIDATION = "train.validate_every={fraction: 1.0}"
NO_PICTURES = "evaluation.overlays=false"


@dataclass(frozen=True)
class Training:
    """One training: a shipped configuration and what it changes.

    Args:
        group: What the training is a repetition of; trainings of one group become one row of a table.
        config: Name of the configuration.
        seed: The seed; further folds have others, as in a comparison.
        fold: The fold of a cross-validation; None keeps the split.
        overrides: Further overrides, `key=value`.
        splits: The parts of the data that are scored.
    """

    group: str
    config: str
    seed: int = 0
    fold: int | None = None
    overrides: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("validation",)

    @property
    def own_seed(self) -> int:
        """The seed that is used."""
        return seed_of_fold(self.seed, self.fold or 0)

    @property
    def name(self) -> str:
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.group.replace(' ', '_')}{fold}-seed{self.own_seed}"

    def commands(self, folder: Path) -> list[list[str]]:
        """The arguments of the commands `segkit`: the training, which scores the first split, and the other splits."""
        run = folder / self.name
        fold = [] if self.fold is None else [f"split.fold={self.fold}"]
        seed = f"seed={self.own_seed}"
        overrides = [*self.overrides, *fold, f"evaluation.split={self.splits[0]}", seed, NO_PICTURES]
        train = ["train", "--resume", "--config", str(CONFIGS / f"{self.config}.yaml"), *overrides, f"run.dir={run}"]
        return [train, *(["evaluate", "--checkpoint", str(run), "--split", split] for split in self.splits[1:])]


HIPPOCAMPUS_STEPS = {5: 1400, 10: 2800, 20: 5600, 60: 16800}  # in so many minutes on two cores with AVX512-BF16
CURVE_FOLD = 1  # fold 0 has chosen settings of the shipped configuration


def hippocampus() -> Iterator[Training]:
    """Five folds of 10 and of 60 minutes."""
    for minutes in (10, 60):
        for fold in range(5):
            yield Training(f"{minutes} minutes", "hippocampus", 0, fold, hippocampus_overrides(minutes))


def hippocampus_curve() -> Iterator[Training]:
    """Two more budgets for one of the folds, so that it has four."""
    for minutes in (5, 20):
        yield Training(f"{minutes} minutes", "hippocampus", 0, CURVE_FOLD, hippocampus_overrides(minutes))


def hippocampus_overrides(minutes: int) -> tuple[str, ...]:
    return (f"train.steps={HIPPOCAMPUS_STEPS[minutes]}", "evaluation.metrics=[hd95, nsd]", ONE_VALIDATION)


def camvid() -> Iterator[Training]:
    for config in ("camvid", "camvid_pretrained"):
        for seed in range(3):
            yield Training(config, config, seed, None, (ONE_VALIDATION,), ("validation", "test"))


def chase_db1() -> Iterator[Training]:
    for seed in range(3):
        for fold in range(5):
            yield Training("chase_db1", "chase_db1", seed, fold, ("evaluation.metrics=[cldice]", ONE_VALIDATION))


def isbi2012() -> Iterator[Training]:
    for seed in range(3):
        for fold in range(5):
            yield Training("isbi2012", "isbi2012", seed, fold, (ONE_VALIDATION,))


def transforms() -> Iterator[Training]:
    """Shipped configurations without their transforms, on cases that their published scores do not use.

    With their transforms, they are trained in the studies above, but for hippocampus.
    """
    for seed in range(3):
        yield Training("hippocampus", "hippocampus", seed, 1, (ONE_VALIDATION,))
    folds = {"hippocampus": 1, "isbi2012": 1, "chase_db1": 1, "camvid": None, "camvid_pretrained": None}
    for config, fold in folds.items():
        for seed in range(3):
            yield Training(f"{config} without", config, seed, fold, (ONE_VALIDATION, "augment.transforms=[]"))


STUDIES = {
    function.__name__: function
    for function in (hippocampus, hippocampus_curve, camvid, chase_db1, isbi2012, transforms)
}


def train(training: Training, folder: Path, threads: int) -> None:
    """Train and score what has not been scored; the output is appended to NAME.log."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    log = folder / f"{training.name}.log"
    for split, arguments in zip(training.splits, training.commands(folder), strict=True):
        if scored(training, folder, split):
            continue
        with log.open("a") as output:
            command = [sys.executable, "-m", "segkit.cli", *arguments]
            code = subprocess.run(command, stdout=output, stderr=output, env=environment).returncode
        if code:
            print(training.name, f"failed with exit code {code}, see {log}", flush=True)
            return
    print(training.name, "finished", flush=True)


def scored(training: Training, folder: Path, split: str) -> Path | None:
    """The folder with the scores of a training on a split; None if it has none yet."""
    evaluation = folder / training.name / "evaluation" / split
    return evaluation if (evaluation / "scores.json").exists() else None


def run_row(training: Training, folder: Path, evaluation: Path) -> dict[str, Any]:
    """What a training took and reached."""
    run = Run(folder / training.name)
    scores = json.loads((evaluation / "scores.json").read_text())
    environment = json.loads((run.folder / "environment.json").read_text())
    row = {"group": training.group, "config": training.config, "seed": training.own_seed, "fold": training.fold}
    row |= {name: scores[name] for name in ("split", "cases", "steps", "finished")}
    row |= {"minutes": load_checkpoint(run.last)["time"]["training_seconds"] / 60}
    row |= {name: environment[name] for name in ("threads", "revision", "started")}
    row |= {f"mean_{metric}": value for metric, value in scores["mean"].items()}
    return row | {f"global_{metric}": value for metric, value in scores["global"]["mean"].items()}


def train_all(study: str, folder: Path, parallel: int) -> None:
    """Train and score what has not been, some at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // parallel)
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(train, STUDIES[study](), repeat(folder), repeat(threads)))


def collect(study: str, folder: Path) -> None:
    """Write the tables of the finished trainings of a study."""
    rows, tables = [], []
    for training in STUDIES[study]():
        for evaluation in filter(None, (scored(training, folder, split) for split in training.splits)):
            rows.append(run_row(training, folder, evaluation))
            keys = {
                "training": training.group,
                "seed": training.own_seed,
                "fold": training.fold,
                "split": evaluation.name,
            }
            tables.append(foreground_scores(evaluation).assign(**keys))
    if rows:
        pd.DataFrame(rows).to_csv(folder.parent / f"{study}-runs.csv", index=False, float_format=DIGITS)
        pd.concat(tables).to_csv(folder.parent / f"{study}-cases.csv", index=False, float_format=DIGITS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("studies") / "trainings", help="output folder")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time, which share the cores")
    parser.add_argument("--print", action="store_true", help="print the commands only")
    arguments = parser.parse_args()
    for study in arguments.studies:
        folder = (arguments.out / study).absolute()
        if arguments.print:
            for training in STUDIES[study]():
                for command in training.commands(folder):
                    print("segkit", shlex.join(command))
            continue
        train_all(study, folder, arguments.parallel)
        collect(study, folder)


if __name__ == "__main__":
    main()
