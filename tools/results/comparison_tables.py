"""Tables of docs/results.md about losses: each data set, the planned contrasts, ranks, learning rates and artefacts."""

import re
from typing import Any

import pandas as pd
from scipy import stats

from results.data import (
    BASELINE,
    DATASETS,
    MARGIN,
    TABLES,
    NotMeasured,
    measured,
    model_of,
    ranks_of,
    rows_of,
    runs_of,
    scores_of,
    seed_means,
    table_path,
)
from results.markdown import interval, markdown, points, shown, signed, span
from segkit.compare.across_datasets import over_datasets
from segkit.compare.score_table import read_scores
from segkit.compare.statistics import analyse_scores, pair_results
from segkit.compare.variance_models import fit_variance_model

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


def losses_table(study: str) -> str:
    """Mean, spread and difference to the baseline of each loss, best first."""
    scores, runs = scores_of(study), runs_of(study)
    result = analyse_scores(scores, BASELINE, "vs_baseline", MARGIN, resamples=0)
    pairs = {pair["a"]: pair for pair in result["pairs"]}
    rows = []
    for loss in sorted(result["losses"], key=lambda loss: -loss["mean"]):
        name, pair = loss["name"], pairs.get(loss["name"])
        seeds = seed_means(loss["runs"])
        rows.append(
            [
                shown(name),
                f"{loss['mean']:.4f}{interval(loss['ci95'])}",
                f"{min(seeds):.3f} to {max(seeds):.3f}",
                "-" if pair is None else signed(pair["difference"]) + points(pair["ci95_adjusted"]),
                "-" if pair is None else pair["verdict"],
                f"{runs.loc[runs['loss'] == name, 'ece_boundary'].mean():.3f}",
            ]
        )
    headings = ["loss", "Dice [95 %]", "lowest and highest seed", f"points above `{BASELINE}`", "verdict", "ECE"]
    return markdown(headings, rows) + "\n\n" + circumstances(study)


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


def rates_table() -> str:
    """For each loss, the learning rates that were tried, and the scores with the shipped and the chosen rate."""
    study = "hippocampus_rates"
    trials = pd.read_csv(table_path(f"{study}-trials"))
    swept = analyse_scores(scores_of(study), margin=MARGIN, resamples=0)
    shipped = analyse_scores(scores_of("hippocampus"), margin=MARGIN, resamples=0)
    rates = sorted(set(trials["rate"]))
    tried = trials.pivot(index="loss", columns="rate", values="dice")
    before, after = ({loss["name"]: loss["mean"] for loss in result["losses"]} for result in (shipped, swept))
    ranks_before, ranks_after = ranks_of(shipped), ranks_of(swept)
    rows = []
    for loss in sorted(after, key=lambda loss: -after[loss]):
        cells = [f"{tried.loc[file_name(loss), rate]:.4f}" for rate in rates]
        means = [f"{before[loss]:.4f}", f"{after[loss]:.4f}"]
        chosen = f"{tried.loc[file_name(loss)].idxmax():g}"
        rows.append([shown(loss), *cells, chosen, *means, f"{ranks_before[loss]:g}", f"{ranks_after[loss]:g}"])
    tau: Any = stats.kendalltau([ranks_before[loss] for loss in after], [ranks_after[loss] for loss in after])
    headings = [
        "loss",
        *(f"rate {rate:g}" for rate in rates),
        "chosen",
        "Dice, rate 0.003",
        "chosen rate",
        "rank",
        "then",
    ]
    return markdown(headings, rows) + f"\n\nKendall's tau of the two orders: {tau.statistic:.2f}."


def file_name(loss: str) -> str:
    """The name of a loss in the names of its run folders."""
    return re.sub(r"[^A-Za-z0-9]+", "_", loss).strip("_")


# the correct form of each artefact
ARTEFACTS = {
    "lovasz on raw logits": "lovasz_softmax",
    "generalized dice with exploding weights": "generalized_dice",
    "raw inverse class weights": "cross_entropy",
}


def artefacts_table() -> str:
    """Each artefact beside the correct loss, with its rank in place of it."""
    rows = []
    for name in DATASETS:
        if not (TABLES / f"{name}_artefacts-cases.csv").exists():
            continue
        table = pd.concat([rows_of(name), rows_of(f"{name}_artefacts")], ignore_index=True)
        scores = read_scores(table, "dice")
        means = {loss["name"]: loss["mean"] for loss in analyse_scores(scores, resamples=0)["losses"]}
        pairs = pair_results(list(ARTEFACTS.items()), fit_variance_model(scores), MARGIN, {})
        for artefact, pair in zip(ARTEFACTS, pairs, strict=True):
            correct = ARTEFACTS[artefact]
            others = [mean for loss, mean in means.items() if loss not in (correct, *ARTEFACTS)]
            ranks = [1 + sum(other > means[loss] for other in others) for loss in (correct, artefact)]
            difference = f"{signed(pair['difference'])}{points(pair['ci95_adjusted'])}"
            rows.append(
                [
                    *(DATASETS[name], artefact, shown(correct), f"{means[artefact]:.4f}", f"{means[correct]:.4f}"),
                    *(difference, pair["verdict"], f"{ranks[0]} to {ranks[1]} of {len(others) + 1}"),
                ]
            )
    if not rows:
        raise NotMeasured("artefacts")
    headings = ["data set", "artefact", "instead of", "Dice", "instead of", "points", "verdict", "rank"]
    return markdown(headings, rows, left=3)
