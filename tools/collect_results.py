"""Copy the tables of finished studies to docs/results, without what can be computed from the rest.

python tools/collect_results.py studies/hippocampus studies/chase_db1
python tools/collect_results.py studies/trainings

A comparison becomes NAME-cases.csv, which `segkit compare --from-table` reads, and NAME-runs.csv with what each run
took and how well its probabilities are calibrated. A folder of tools/study_trainings.py has such tables already.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from segkit.compare.table_checks import Rows
from segkit.training.checkpoint import load as load_checkpoint
from segkit.training.run_folder import Run

RESULTS = Path(__file__).parents[1] / "docs" / "results"
DROPPED = ["ignored", "pixels", "rules", "iou", "diagonal_mm"]  # the IoU follows from the counts
DIGITS = "%.6g"


def collect_comparison(folder: Path) -> None:
    """Write the tables of a comparison."""
    table = foreground_scores(folder)
    table.to_csv(RESULTS / f"{folder.name}-cases.csv", index=False, float_format=DIGITS)
    listed: Rows = pd.read_csv(folder / "runs.csv")
    rows = [{**row, **facts(folder / str(row["folder"]))} for row in listed.to_dict("records")]
    runs = pd.DataFrame(rows).drop(columns="folder")
    runs.to_csv(RESULTS / f"{folder.name}-runs.csv", index=False, float_format=DIGITS)
    sweep = sorted((folder / "sweep").glob("*/evaluation/validation/scores.json"))
    if sweep:
        labels = {loss_part(str(row["folder"])): row["loss"] for row in rows}
        trials = pd.DataFrame([trial(path, labels) for path in sweep])
        trials.to_csv(RESULTS / f"{folder.name}-trials.csv", index=False, float_format=DIGITS)


def foreground_scores(folder: Path) -> Rows:
    """The rows of cases.csv for the foreground classes, without the columns that nothing here needs."""
    table: Rows = pd.read_csv(folder / "cases.csv", dtype={"case": str, "group": str})
    return table[table["class"] != "background"].drop(columns=DROPPED, errors="ignore")


def loss_part(folder: str) -> str:
    """The part of the name of a run folder that stands for the loss."""
    return Path(folder).name.split("-seed")[0]


def facts(folder: Path) -> dict[str, Any]:
    """What a run took, how well its probabilities are calibrated, and what it was made with."""
    run = Run(folder)
    (path,) = run.folder.glob("evaluation/*/scores.json")
    scores, environment = json.loads(path.read_text()), json.loads((folder / "environment.json").read_text())
    checkpoint = load_checkpoint(run.last)
    calibration = scores["calibration"]["toplabel"]
    return {
        "steps": scores["steps"],
        "minutes": checkpoint["time"]["training_seconds"] / 60,
        "ece": calibration["all"]["ece"],
        "ece_boundary": calibration["boundary"]["ece"],
        "rate": checkpoint["resolved"]["optimizer"]["lr"],
        "precision": checkpoint["resolved"]["train"]["precision"],
        "threads": environment["threads"],
        "revision": environment["revision"],
        "started": environment["started"],
    }


def trial(path: Path, labels: Mapping[str, str]) -> dict[str, Any]:
    """The learning rate, time and validation score of a trial."""
    run = Run(path.parents[2])
    checkpoint = load_checkpoint(run.last)
    return {
        "loss": labels[loss_part(run.folder.name)],
        "rate": checkpoint["resolved"]["optimizer"]["lr"],
        "dice": json.loads(path.read_text())["mean"]["dice"],
        "minutes": checkpoint["time"]["training_seconds"] / 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of comparisons, or of trainings")
    RESULTS.mkdir(exist_ok=True)
    for folder in parser.parse_args().folders:
        if (folder / "cases.csv").exists():
            collect_comparison(folder)
            continue
        tables = sorted([*folder.glob("*-runs.csv"), *folder.glob("*-cases.csv")])
        if not tables:
            parser.error(f"{folder} has neither the cases.csv of a comparison nor tables of trainings")
        for table in tables:
            shutil.copy(table, RESULTS / f"trainings-{table.name}")


if __name__ == "__main__":
    main()
