"""Tables of docs/results.md about comparisons: what they need, and how often they and others are wrong."""

from functools import partial

import numpy as np
import pandas as pd

from results.data import (
    AGAIN,
    BASELINE,
    DATASETS,
    MARGIN,
    SAME_SEEDS,
    TABLES,
    NotMeasured,
    case_samples,
    distinct,
    distinct_samples,
    fold_samples,
    losses_of,
    measured,
    model_of,
    pairs_of,
    runs_of,
    scores_of,
    seed_means,
)
from results.markdown import markdown, share, with_interval
from results.statistics import (
    Spread,
    cases_needed,
    found_by_chance,
    naive_self_rate,
    naive_verdicts,
    replication,
    runs_needed,
    self_comparisons,
    shared_by_seeds,
)
from segkit.compare.run_variances import RunVariances
from segkit.compare.statistics import pair_results
from segkit.compare.variance_models import Folds, TwoWay

DIFFERENCES = (0.005, 0.01, 0.02)


def needs_table() -> str:
    """Runs and cases that are needed to find a difference: the median over the pairs of competitive losses."""
    rows = []
    for name in measured():
        samples = distinct_samples(name)
        spreads = [Spread.of({a: samples[a], b: samples[b]}) for a, b in pairs_of(samples)]
        cases = next(iter(samples.values())).shape[1]
        new_cases = len(scores_of(name).groups) >= 10
        runs = [[runs_needed(d, spread, cases, new_cases=new_cases) for spread in spreads] for d in DIFFERENCES]
        many = [
            runs_needed(0.01, spread, cases, new_cases=new_cases, pairs=len(losses_of(name)) - 1) for spread in spreads
        ]
        more = [[cases_needed(d, spread, 5) for spread in spreads] for d in DIFFERENCES] if new_cases else []
        parts = [[100 * getattr(spread, part) for spread in spreads] for part in ("run", "interaction", "residual")]
        rows.append(
            [
                *(DATASETS[name], str(cases), *(f"{np.median(values):.2f}" for values in parts)),
                *(typical(numbers, 200) for numbers in [*runs, many]),
                *((typical(numbers, 5000) for numbers in more) if new_cases else ["-"] * 3),
            ]
        )
    headings = ["data set", "cases", "runs", "loss and case", "rest", *(f"runs for {d:g}" for d in (0.5, 1, 2))]
    headings.append("runs for 1, of 13 losses")
    return markdown([*headings, *(f"cases for {d:g}" for d in (0.5, 1, 2))], rows)


def typical(numbers: list[int | None], most: int) -> str:
    """The median and the middle half; numbers that were not found are larger than `most`."""
    values = np.array([most + 1 if number is None else number for number in numbers])
    low, middle, high = (int(value) for value in np.quantile(values, [0.25, 0.5, 0.75], method="nearest"))
    shown = [f"> {most}" if value > most else str(value) for value in (middle, low, high)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def naive_table() -> str:
    """What a test over the cases of single runs of competitive losses reports, and what other runs then say."""
    rows = []
    for name in measured():
        samples = distinct_samples(name)
        found = replication([naive_verdicts(samples[a], samples[b]) for a, b in pairs_of(samples)])
        own = [naive_self_rate(values) for values in samples.values()]
        rows.append(
            [
                *(DATASETS[name], share(found.announced, found.draws)),
                *(f"{100 * part:.0f} %" for part in (found.confirmed, found.silent, found.reversed_)),
                f"{found.contradictory} of {len(pairs_of(samples))}",
                share(sum(wrong for wrong, _pairs in own), sum(pairs for _wrong, pairs in own)),
            ]
        )
    headings = [
        *("data set", "significant", "other runs: the same winner", "not significant", "the other winner"),
        *("pairs with winners of both kinds", "significant between two runs of one loss"),
    ]
    return markdown(headings, rows)


def self_table() -> str:
    """Verdicts on each loss against itself, in all divisions of its runs."""
    rows = []
    same_seeds = [SAME_SEEDS] if (TABLES / f"{SAME_SEEDS}-cases.csv").exists() else []
    data_sets = {(name, True): DATASETS[name] for name in measured()}
    data_sets |= {(name, False): f"{DATASETS['isbi2012']}, the same seeds in all folds" for name in same_seeds}
    data_sets |= {
        (name, True): f"{DATASETS['isbi2012']}, the same seeds, their variance in the test" for name in same_seeds
    }
    for (name, with_seeds), label in data_sets.items():
        model = model_of(name)
        losses = distinct(name)
        if isinstance(model, Folds):
            samples, seeds = fold_samples(name)
            make = partial(Folds, test_train_ratio=model.test_train_ratio, groups=model.groups)
            of_runs = {"seeds": seeds} if with_seeds else {}
            table = self_comparisons(losses, MARGIN, make, samples, **of_runs)
        else:
            table = self_comparisons(losses, MARGIN, TwoWay, model.samples)
        false = table.assign(false=table["verdict"].isin(["better", "worse"])).groupby("loss")["false"].mean()
        runs = RunVariances({loss: np.array(seed_means(scores_of(name), loss)) for loss in losses})
        wide = pd.Series(runs.of_loss) > runs.pooled
        rows.append(
            [
                *(label, str(len(false)), str(len(table))),
                share(int((table["verdict"] == "equivalent").sum()), len(table)),
                *(f"{100 * rates.mean():.1f} %" for rates in (false, false[wide], false[~wide])),
                f"{runs.equal_spread_p:.2g}",
                baseline_again(name) if with_seeds else "-",
            ]
        )
    headings = [
        "data set",
        "losses",
        "divisions",
        "equivalent",
        "false positives",
        "of losses with wide runs",
        "of others",
    ]
    return markdown([*headings, "p of Bartlett's test", f"{BASELINE} to itself, all runs"], rows)


def baseline_again(name: str) -> str:
    if AGAIN not in case_samples(name):
        return "-"
    (result,) = pair_results([(AGAIN, BASELINE)], model_of(name), MARGIN, {})
    return f"{with_interval(result['difference'], result['ci95'])} {result['verdict']}"


def seeds_table() -> str:
    """How much of the spread of runs is that of their seeds, which all losses share."""
    rows = []
    for name in measured():
        samples, _seeds = fold_samples(name)
        losses = distinct(name)
        shared = shared_by_seeds(np.array([samples[loss] for loss in losses]).swapaxes(0, 1))
        spreads = [f"{100 * value:.2f}" for value in (shared.seed, shared.rest)]
        rows.append([DATASETS[name], str(len(losses)), *spreads, f"{shared.correlation:.2f}", f"{shared.p:.1g}"])
        rows[-1] += [f"{shared.paired_variance:.2f}", f"{shared.wider} of {len(pairs_of(losses))}"]
    headings = ["data set", "losses", "shared by a seed", "rest", "correlation of two losses", "p of the F test"]
    return markdown([*headings, "variance of paired differences", "pairs above 1"], rows)


HANDICAPS = {
    "hippocampus_wrong_2": "2 % wrong labels",
    "hippocampus_wrong_5": "5 % wrong labels",
    "hippocampus_wrong_10": "10 % wrong labels",
    "hippocampus_half": "half of the steps",
}


def handicaps_table() -> str:
    """A known handicap: what all runs say, and how often fewer runs find it."""
    clean = cross_entropy_runs("hippocampus", "hippocampus_more")
    rows = []
    for study, title in HANDICAPS.items():
        try:
            worse = cross_entropy_runs(study)
        except NotMeasured:
            continue
        (result,) = pair_results([("worse", "clean")], TwoWay({"worse": worse, "clean": clean}), MARGIN, {})
        rates = [found_by_chance(worse, clean, count, MARGIN) for count in (3, 5)]
        cells = [", ".join(f"{100 * rate:.0f} % {name}" for name, rate in found.items()) for found in rates]
        number = f"{len(worse)} and {len(clean)}"
        difference = with_interval(result["difference"], result["ci95"])
        rows.append([title, number, difference, result["verdict"], *cells, *harm(study)])
    rows.append(["none", str(len(clean)), *["-"] * 4, *harm("hippocampus", "hippocampus_more")])
    if len(rows) == 1:
        raise NotMeasured("handicaps")
    headings = ["handicap", "runs", "points, all runs", "verdict", "3 runs of each", "5 runs of each"]
    return markdown([*headings, "Dice of the runs", "ECE, boundaries", "HD95 of the runs, mm"], rows)


def harm(*studies: str) -> list[str]:
    """Dice, calibration and HD95 of the runs of the cross-entropy: the median, the lowest and the highest."""
    dice, distances = (
        np.concatenate([seed_means(scores_of(study, metric), "cross_entropy") for study in studies])
        for metric in ("dice", "hd95")
    )
    runs = pd.concat([runs_of(study) for study in studies])
    errors = runs.loc[runs["loss"] == "cross_entropy", "ece_boundary"]
    return [
        f"{np.median(dice):.3f} ({dice.min():.3f} to {dice.max():.3f})",
        f"{errors.mean():.3f}",
        f"{np.median(distances):.2f} ({distances.min():.2f} to {distances.max():.2f})",
    ]


def cross_entropy_runs(*studies: str) -> np.ndarray:
    """The scores of the cross-entropy, [runs, cases], of some studies with the same cases."""
    return np.concatenate([case_samples(study)["cross_entropy"] for study in studies])
