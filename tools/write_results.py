"""Write the tables and figures of docs/results.md from the tables in docs/results.

python tools/write_results.py

Each part of the page between `<!-- table: NAME -->` and `<!-- end -->` is replaced. A part whose data are not there yet
is left as it is.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from results_statistics import (
    Spread,
    cases_needed,
    fold_self_comparisons,
    naive_pairs,
    runs_needed,
    self_comparisons,
)
from scipy import stats

from segkit.compare.across_datasets import over_datasets
from segkit.compare.score_table import Scores, read_rows, read_scores
from segkit.compare.statistics import analyse_scores, pair_results
from segkit.compare.variance_models import Folds, TwoWay, fit_variance_model, group_values

DOCS = Path(__file__).parents[1] / "docs"
PAGE, TABLES, FIGURES = DOCS / "results.md", DOCS / "results", DOCS / "results"
MARGIN, BASELINE, AGAIN = 0.005, "dice_ce", "dice_ce (again)"
DATASETS = {
    "hippocampus": "Hippocampus",
    "isbi2012": "ISBI 2012",
    "chase_db1": "CHASE_DB1",
    "camvid": "CamVid",
    "phantoms": "phantoms",
}

# a is expected to be better than b, "better", or not to differ, "alike"
CONTRASTS = [
    ("cross-entropy with Lovász is above both alone", "ce_lovasz", "cross_entropy", "better"),
    ("", "ce_then_lovasz", "cross_entropy", "better"),
    ("", "ce_lovasz", "lovasz_softmax", "better"),
    ("", "ce_then_lovasz", "lovasz_softmax", "better"),
    ("Lovász alone is poor from scratch", "cross_entropy", "lovasz_softmax", "better"),
    ("surrogates of Dice cannot be told apart", "dice", "jaccard", "alike"),
    ("", "dice", "tversky", "alike"),
    ("", "dice", "generalized_dice", "alike"),
    ("", "jaccard", "tversky", "alike"),
    ("", "jaccard", "generalized_dice", "alike"),
    ("", "tversky", "generalized_dice", "alike"),
    ("compound losses are best", "dice_ce", "dice", "better"),
    ("", "dice_ce", "cross_entropy", "better"),
    ("", "dice_topk", "dice_ce", "better"),
    ("class weights and focal weights harm", "cross_entropy", "weighted_cross_entropy", "better"),
    ("", "cross_entropy", "focal", "better"),
]


class NotMeasured(Exception):
    """The data of a table are not there yet."""


# --- data ------------------------------------------------------------------------------------------------------------


def table_path(name: str) -> Path:
    path = TABLES / f"{name}.csv"
    if not path.exists():
        raise NotMeasured(name)
    return path


@cache
def scores_of(study: str, metric: str = "dice") -> Scores:
    """The scores of a comparison."""
    return read_scores(read_rows(table_path(f"{study}-cases")), metric)


@cache
def runs_of(study: str) -> pd.DataFrame:
    return pd.read_csv(table_path(f"{study}-runs"))


def measured() -> list[str]:
    """The data sets whose comparison has been made."""
    names = [name for name in DATASETS if (TABLES / f"{name}-cases.csv").exists()]
    if not names:
        raise NotMeasured("comparisons")
    return names


@cache
def model_of(study: str, metric: str = "dice") -> TwoWay | Folds:
    return fit_variance_model(scores_of(study, metric))


def case_samples(study: str) -> dict[str, np.ndarray]:
    """The scores {loss: [runs, cases]}, the mean over classes; with folds, a run is all folds with one seed."""
    scores = scores_of(study)
    values = pd.DataFrame(np.nanmean(scores.values, 2), index=pd.MultiIndex.from_frame(scores.runs[["loss", "seed"]]))
    runs = values.groupby(level=[0, 1], sort=False).first()  # each case belongs to one fold
    samples = {str(loss): runs.loc[loss].to_numpy() for loss in scores.losses}
    return {loss: table[:, ~np.isnan(table).any(0)] for loss, table in samples.items()}


def losses_of(study: str) -> dict[str, np.ndarray]:
    """As `case_samples`, without the second set of runs of the baseline."""
    return {loss: values for loss, values in case_samples(study).items() if loss != AGAIN}


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(headings: list[str], rows: list[list[str]], left: int = 1) -> str:
    rule = [":--"] * left + ["--:"] * (len(headings) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])


def signed(value: float, digits: int = 2) -> str:
    """A difference of scores in points (hundredths)."""
    return f"{100 * value:+.{digits}f}"


def points(interval: list[float] | None) -> str:
    return "" if interval is None else f" [{signed(interval[0])}, {signed(interval[1])}]"


def percent(count: int, total: int) -> str:
    """A share with its 95 % interval (Clopper and Pearson)."""
    interval = stats.binomtest(count, total).proportion_ci()
    return f"{count} of {total} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def shown(loss: str) -> str:
    return f"`{BASELINE}`, other seeds" if loss == AGAIN else f"`{loss}`"


# --- tables ----------------------------------------------------------------------------------------------------------


def losses_table(study: str) -> str:
    """Mean, spread and difference to the baseline of each loss, best first."""
    scores, runs = scores_of(study), runs_of(study)
    result = analyse_scores(scores, BASELINE, "vs_baseline", MARGIN, resamples=0)
    pairs = {pair["a"]: pair for pair in result["pairs"]}
    rows = []
    for loss in sorted(result["losses"], key=lambda loss: -loss["mean"]):
        name, pair = loss["name"], pairs.get(loss["name"])
        seeds = seed_means(loss["runs"])
        interval = "" if loss["ci95"] is None else f" [{loss['ci95'][0]:.3f}, {loss['ci95'][1]:.3f}]"
        rows.append(
            [
                shown(name),
                f"{loss['mean']:.4f}{interval}",
                f"{min(seeds):.3f} to {max(seeds):.3f}",
                "-" if pair is None else signed(pair["difference"]) + points(pair["ci95_adjusted"]),
                "-" if pair is None else pair["verdict"],
                f"{runs.loc[runs['loss'] == name, 'ece_boundary'].mean():.3f}",
            ]
        )
    headings = ["loss", "Dice [95 %]", "lowest and highest seed", f"points above `{BASELINE}`", "verdict", "ECE"]
    return markdown(headings, rows) + "\n\n" + circumstances(study)


def seed_means(runs: list[dict[str, Any]]) -> list[float]:
    """The score of each seed, the mean over its folds."""
    means = defaultdict(list)
    for run in runs:
        means[run["seed"]].append(run["mean"])
    return [float(np.mean(values)) for values in means.values()]


def circumstances(study: str) -> str:
    """Runs, cases, steps, time and commit."""
    scores, runs = scores_of(study), runs_of(study)
    commits, dates = sorted(set(runs["revision"])), sorted({started[:10] for started in runs["started"]})
    threads, precision = ("/".join(sorted({str(value) for value in runs[key]})) for key in ("threads", "precision"))
    return (
        f"{len(runs)} runs of {span(list(runs['steps']))} steps in {precision}, threads: {threads}, "
        f"{runs['minutes'].median():.1f} minutes each; {len(scores.cases)} cases, {len(scores.groups)} groups; "
        f"commit {', '.join(commits)}; {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}."
    )


def span(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def contrasts_table() -> str:
    """The planned contrasts on each data set."""
    names = measured()
    pairs = [(a, b) for _finding, a, b, _expected in CONTRASTS]
    columns = [pair_results(pairs, model_of(name), MARGIN, {}) for name in names]
    rows = []
    for (finding, a, b, _expected), results in zip(CONTRASTS, zip(*columns, strict=True), strict=True):
        cells = [f"{signed(r['difference'])}{points(r['ci95_adjusted'])} {r['verdict']}" for r in results]
        rows.append([finding, f"`{a}` to `{b}`", *cells])
    return markdown(["published finding", "contrast", *(DATASETS[name] for name in names)], rows, left=2)


def across_table() -> str:
    """Ranks over the data sets."""
    names = measured()
    results = {DATASETS[name]: analyse_scores(scores_of(name), margin=MARGIN, resamples=0) for name in names}
    across = over_datasets(results, "dice")
    ranks = {name: ranks_of(result) for name, result in results.items()}
    rows = [
        [shown(loss), f"{mean:.2f}", *(f"{of_losses[loss]:g}" for of_losses in ranks.values())]
        for loss, mean in sorted(across["mean_ranks"].items(), key=lambda item: item[1])
    ]
    if across["p"] is None:
        return markdown(["loss", "mean rank", *ranks], rows) + f"\n\nNo test: {across['reason']}."
    significant = [pair for pair in across["pairs"] if pair["p_adjusted"] < 0.05]
    found = ", ".join(f"{shown(pair['a'])} and {shown(pair['b'])}" for pair in significant) or "none"
    return markdown(["loss", "mean rank", *ranks], rows) + (
        f"\n\nFriedman's test (Iman and Davenport): p = {across['p']:.2g}. Critical difference of Nemenyi's test at "
        f"5 %: {across['critical_difference']:.2f} ranks. Pairs beyond it: {found}."
    )


def ranks_of(result: dict[str, Any]) -> dict[str, float]:
    means = {loss["name"]: loss["mean"] for loss in result["losses"]}
    return dict(zip(means, stats.rankdata([-mean for mean in means.values()]), strict=True))


def needs_table() -> str:
    """Runs and cases that are needed to find a difference."""
    rows = []
    for name in measured():
        samples = losses_of(name)
        spread, cases = Spread.of(samples), next(iter(samples.values())).shape[1]
        new_cases = len(scores_of(name).groups) >= 10
        runs = [runs_needed(d, spread, cases, new_cases=new_cases) for d in (0.005, 0.01, 0.02)]
        more = [cases_needed(d, spread, 5) if new_cases else None for d in (0.005, 0.01, 0.02)]
        sizes = [f"{100 * value:.2f}" for value in (spread.run, spread.interaction, spread.residual)]
        rows.append(
            [
                *(DATASETS[name], str(cases), *sizes),
                *(str(n) if n else "more than 200" for n in runs),
                *((str(n) if n else "more than 5000") if new_cases else "-" for n in more),
            ]
        )
    headings = ["data set", "cases", "sd of runs", "of loss and case", "rest", *("0.5", "1", "2"), *("0.5", "1", "2")]
    return markdown(headings, rows)


def naive_table() -> str:
    """What a test over the cases of single runs would have announced."""
    rows = []
    for name in measured():
        samples = losses_of(name)
        verdicts = {(r["a"], r["b"]): r["verdict"] for r in pair_results(pairs_of(samples), model_of(name), MARGIN, {})}
        pairs = naive_pairs(samples)
        decided = [pair for pair in pairs if verdicts[pair.a, pair.b] in ("better", "worse")]
        others = [pair for pair in pairs if pair not in decided]
        wrong = sum(pair.second if verdicts[pair.a, pair.b] == "better" else pair.first for pair in decided)
        right = sum(pair.first if verdicts[pair.a, pair.b] == "better" else pair.second for pair in decided)
        draws, open_draws = sum(pair.draws for pair in decided), sum(pair.draws for pair in others)
        announced = sum(pair.first + pair.second for pair in others)
        rows.append(
            [
                *(DATASETS[name], str(len(pairs)), str(len(decided))),
                *(share(right, draws), share(wrong, draws), share(announced, open_draws)),
                f"{sum(pair.contradictory for pair in pairs)}",
            ]
        )
    headings = [
        *("data set", "pairs", "decided by all runs", "one run each: the same", "the opposite"),
        *("one run each: a winner where all runs decide nothing", "pairs with winners of both kinds"),
    ]
    return markdown(headings, rows)


def share(count: int, total: int) -> str:
    return "-" if not total else f"{100 * count / total:.0f} %"


def pairs_of(samples: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    names = list(samples)
    return [(a, b) for position, a in enumerate(names) for b in names[position + 1 :]]


def self_table() -> str:
    """Verdicts on each loss against itself."""
    rows, wrong, total = [], 0, 0
    for name in measured():
        model = model_of(name)
        if isinstance(model, Folds):
            verdicts = fold_self_comparisons(fold_samples(name), model.test_train_ratio, MARGIN)
        else:
            verdicts = self_comparisons(model.samples, MARGIN)
        counts = Counter(verdicts.values())
        false = counts["better"] + counts["worse"]
        wrong, total = wrong + false, total + len(verdicts)
        rows.append([DATASETS[name], *(str(counts[verdict]) for verdict in ("equivalent", "undecided")), str(false)])
    rows.append(["all", "", "", percent(wrong, total)])
    return markdown(["data set", "equivalent", "undecided", "better or worse, which is false"], rows)


def fold_samples(study: str) -> dict[str, list[np.ndarray]]:
    """The scores {loss: [[runs] for each fold]}."""
    scores = scores_of(study)
    loss_of_run, samples = scores.runs["loss"].to_numpy(), {loss: [] for loss in scores.losses}
    for runs, cases in scores.blocks:
        means = group_values(scores, runs, cases).mean(1)
        for loss in scores.losses:
            samples[loss].append(means[loss_of_run[runs] == loss])
    return samples


def page_tables() -> dict[str, Callable[[], str]]:
    tables: dict[str, Callable[[], str]] = {f"losses {name}": lambda name=name: losses_table(name) for name in DATASETS}
    return tables | {
        "contrasts": contrasts_table,
        "across": across_table,
        "needs": needs_table,
        "naive": naive_table,
        "self": self_table,
    }


def filled(page: str) -> str:
    """The page with all tables whose data are there."""
    for name, make in page_tables().items():
        begin = f"<!-- table: {name} -->"
        if begin not in page:
            continue
        try:
            table = make()
        except NotMeasured:
            continue
        pattern = re.compile(re.escape(begin) + r".*?<!-- end -->", re.DOTALL)
        page = pattern.sub(lambda _match, text=f"{begin}\n\n{table}\n\n<!-- end -->": text, page)
    return page


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
