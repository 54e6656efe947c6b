"""Tables of docs/results.md about single trainings, and about the time that everything took."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from results.data import MARGIN, TABLES, NotMeasured, design_seeds, table_path
from results.markdown import markdown, signed, span, with_interval
from segkit.compare.score_table import read_scores
from segkit.compare.statistics import pair_results
from segkit.compare.table_checks import Rows
from segkit.compare.variance_models import MIN_GROUPS, fit_variance_model


def trainings(study: str) -> tuple[Rows, Rows]:
    """What each training of a study took, and its scores for each case and class."""
    runs, cases = (pd.read_csv(table_path(f"trainings-{study}-{part}")) for part in ("runs", "cases"))
    return runs, cases


def over_groups(cases: Rows, metric: str, digits: int) -> str:
    """The mean over cases, classes and runs, in this order, with a 95 % t interval over groups of cases.

    A run is all folds with one seed. For the interval, the runs of a case are averaged first. There is no interval with
    fewer than ten groups.
    """
    of_run: Rows = cases.assign(run=design_seeds(cases)).groupby(["run", "class"])[metric].mean()
    mean = of_run.groupby("run").mean().mean()
    classes: Rows = cases.groupby(["class", "group", "case"])[metric].mean()
    groups = classes.groupby(["class", "group"]).mean().groupby("group").mean()
    if len(groups) < MIN_GROUPS:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {half_width(groups):.{digits}f}"


def half_width(values: Any) -> float:
    """Half of the 95 % t interval of a mean."""
    return float(stats.t.isf(0.025, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))


def hippocampus_table() -> str:
    """Cross-validation of hippocampus at two budgets."""
    runs, cases = trainings("hippocampus")
    rows = []
    for group in ("10 minutes", "60 minutes"):
        of_group, chosen = runs[runs["group"] == group], cases[cases["training"] == group]
        if len(of_group) < 5:
            continue
        by_class = [f"{chosen.loc[chosen['class'] == name, 'dice'].mean():.4f}" for name in ("anterior", "posterior")]
        folds = ", ".join(f"{value:.4f}" for value in of_group.sort_values("fold")["mean_dice"])
        minutes = f"{of_group['minutes'].mean():.1f}"
        scores = [
            over_groups(chosen, "dice", 4),
            *by_class,
            over_groups(chosen, "hd95", 2),
            over_groups(chosen, "nsd", 4),
        ]
        rows.append([group, span(list(of_group["steps"])), minutes, *scores, folds])
    headings = ["budget", "steps", "minutes", "Dice ± 95 %", "anterior", "posterior", "HD95, mm", "NSD, 1 mm", "folds"]
    return markdown(headings, rows)


def curve_table() -> str:
    """Hippocampus by the time of training, on one fold, beside a MONAI script with the same cases."""
    curve = trainings("hippocampus_curve")
    fold = curve[0]["fold"].iloc[0]
    tables: list[Rows] = [
        pd.concat([table, folds[folds["fold"] == fold]])
        for table, folds in zip(curve, trainings("hippocampus"), strict=True)
    ]
    runs, cases = tables
    monai_runs, monai_cases = trainings("hippocampus_monai")
    rows = []
    for run in runs.sort_values("steps").to_dict("records"):
        (other,) = monai_runs[monai_runs["group"] == run["group"]].to_dict("records")
        chosen, others = (table[table["training"] == run["group"]] for table in (cases, monai_cases))
        gain = chosen.groupby("case")["dice"].mean() - others.groupby("case")["dice"].mean()
        cells = [text for each, table in ((run, chosen), (other, others)) for text in run_cells(each, table)]
        rows.append([run["group"], *cells, f"{signed(gain.mean())} ± {100 * half_width(gain):.2f}"])
    columns = ["minutes", "steps", "Dice ± 95 %"]
    return markdown(["budget", *columns, *(f"MONAI: {name}" for name in columns), "points above MONAI ± 95 %"], rows)


def run_cells(run: dict[str, Any], cases: Rows) -> list[str]:
    return [f"{run['minutes']:.1f}", str(run["steps"]), over_groups(cases, "dice", 4)]


def datasets_table() -> str:
    """The other shipped configurations, with folds or seeds."""
    rows = []
    for study in ("camvid", "chase_db1", "isbi2012"):
        if not (TABLES / f"trainings-{study}-runs.csv").exists():
            continue
        runs, cases = trainings(study)
        for group, of_group in runs.groupby("group", sort=False):
            chosen = cases[cases["training"] == group]
            if study == "camvid":  # the validation frames have chosen settings
                of_group, chosen = of_group[of_group["split"] == "test"], chosen[chosen["split"] == "test"]
            metrics = [name for name in ("dice", "cldice") if name in chosen and chosen[name].notna().any()]
            pooled = "" if study != "camvid" else f", mIoU of all pixels {listed(of_group['global_iou'])}"
            scores = ", ".join(f"{name} {over_groups(chosen, name, 3)}" for name in metrics)
            minutes = f"{of_group['minutes'].mean():.1f}"
            folds = span([int(of_group["fold"].nunique()) or 1])
            rows.append([f"`{group}`", folds, str(design_seeds(of_group).nunique()), minutes, scores + pooled])
    if not rows:
        raise NotMeasured("trainings")
    return markdown(["configuration", "folds", "seeds", "minutes", "score ± 95 % over groups of cases"], rows)


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


# where the shipped configurations were trained with their transforms
SHIPPED = {
    "hippocampus": "transforms",
    "isbi2012": "isbi2012",
    "chase_db1": "chase_db1",
    "camvid": "camvid",
    "camvid_pretrained": "camvid",
}


def transforms_table() -> str:
    """Shipped configurations with and without their transforms, on validation cases."""
    runs_without, cases_without = trainings("transforms")
    rows = []
    for config, study in SHIPPED.items():
        without = f"{config} without"
        runs = runs_without[runs_without["group"] == without]
        if runs.empty or not (TABLES / f"trainings-{study}-runs.csv").exists():
            continue
        fold = runs["fold"].iloc[0]  # NaN without folds
        runs_with, cases_with = trainings(study)
        runs: Rows = pd.concat([of(runs_with, "group", config, fold), runs])
        cases = pd.concat([of(cases_with, "training", config, fold), of(cases_without, "training", without, fold)])
        scores = read_scores(cases.rename(columns={"training": "loss"}).assign(fold=0), "dice")
        (pair,) = pair_results([(without, config)], fit_variance_model(scores), MARGIN, {})
        seeds = [
            ", ".join(f"{value:.4f}" for value in runs[runs["group"] == group].sort_values("seed")["mean_dice"])
            for group in (config, without)
        ]
        difference = with_interval(pair["difference"], pair["ci95"])
        rows.append([f"`{config}`", *seeds, difference, pair["verdict"]])
    if not rows:
        raise NotMeasured("transforms")
    headings = ["configuration", "Dice with its transforms", "without", "points without", "verdict on without"]
    return markdown(headings, rows)


def of(table: Rows, column: str, training: str, fold: float) -> Rows:
    """The validation rows of a training, of one fold; NaN takes all rows."""
    chosen = (table[column] == training) & (table["split"] == "validation")
    return table[chosen & ((table["fold"] == fold) | math.isnan(fold))]


def spent_table() -> str:
    """Hours of training. A run in one thread of two cores counts half."""
    rows, total = [], 0.0
    for path in sorted(TABLES.glob("*-runs.csv")):
        runs: Rows = pd.read_csv(path)
        if "group" in runs:  # a training has a row for each part of the data that was scored
            runs = runs.drop_duplicates(["group", "seed", "fold"])
        hours = float((runs["minutes"] * np.minimum(runs["threads"], 2) / 2).sum() / 60)
        trials = TABLES / path.name.replace("-runs", "-trials")
        if trials.exists():
            tried: Rows = pd.read_csv(trials)
            hours += float(tried["minutes"].sum() / 2 / 60)
        total += hours
        rows.append([path.name.removesuffix("-runs.csv"), str(len(runs)), f"{hours:.1f}"])
    if not rows:
        raise NotMeasured("runs")
    return markdown(["study", "runs", "hours of the machine"], [*rows, ["all", "", f"{total:.1f}"]])
