"""Tables of docs/results.md about losses: each data set, the planned contrasts, ranks, learning rates and artefacts."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from scipy import stats

from results.data import (
    AGAIN,
    BASELINE,
    DATASETS,
    TABLES,
    NotMeasured,
    competitive,
    means_of,
    measured,
    model_of,
    ranks_of,
    rows_of,
    runs_of,
    scores_of,
    seed_means,
    table_path,
    verdicts,
)
from results.markdown import interval, markdown, points, shown, signed, span
from segkit.compare.across_datasets import over_datasets
from segkit.compare.statistics import analyse_scores
from segkit.compare.table_checks import Rows

# the planned contrasts: a is expected to be better than b, or not to differ
CONTRASTS = [
    ("cross-entropy with Lovász is above both alone", "ce_lovasz", "cross_entropy", "better"),
    ("", "ce_lovasz", "lovasz_softmax", "better"),
    ("", "lovasz_softmax after cross_entropy", "cross_entropy", "better"),
    ("", "lovasz_softmax after cross_entropy", "lovasz_softmax", "better"),
    ("Lovász alone is poor from scratch", "cross_entropy", "lovasz_softmax", "better"),
    ("the surrogates of Dice cannot be told apart", "dice", "jaccard", "equivalent"),
    ("", "dice", "generalized_dice", "equivalent"),
    ("", "jaccard", "generalized_dice", "equivalent"),
    ("unequal Tversky weights are a worse surrogate", "dice", "tversky", "better"),
    ("compound losses are best", "dice_ce", "dice", "better"),
    ("", "dice_ce", "cross_entropy", "better"),
    ("", "dice_topk", "dice_ce", "better"),
    ("class weights and focal weights harm", "cross_entropy", "weighted_cross_entropy", "better"),
    ("", "cross_entropy", "focal", "better"),
]
SECOND_SCORES = {  # heading, metric, aggregation and number of digits
    "hippocampus": ("HD95, mm", "hd95", "class_case", 2),
    "chase_db1": ("clDice", "cldice", "class_case", 3),
    "camvid": ("mIoU of all pixels", "iou", "global", 3),
}
CALIBRATION = [("dice", "cross_entropy"), ("dice", "dice_ce")]


def losses_table(study: str) -> str:
    """Mean, spread and difference to the baseline of each loss, best first."""
    scores, runs, means = scores_of(study), runs_of(study), means_of(study)
    pairs = {pair["a"]: pair for pair in verdicts(study, [(loss, BASELINE) for loss in means if loss != BASELINE])}
    usual, rows = competitive(study), []
    heading, metric, aggregation, digits = SECOND_SCORES.get(study, ("", "dice", "class_case", 3))
    second = means_of(study, metric, aggregation)
    for loss in sorted(means, key=lambda loss: -means[loss]):
        pair, model = pairs.get(loss), model_of(study, None if loss in usual else (loss, BASELINE))
        seeds = seed_means(scores, loss)
        rows.append(
            [
                shown(loss),
                f"{means[loss]:.4f}{interval(model.estimate({loss: 1}).interval())}",
                f"{min(seeds):.3f} to {max(seeds):.3f}",
                "-" if pair is None else signed(pair["difference"]) + points(pair["ci95_adjusted"]),
                "-" if pair is None else pair["verdict"],
                f"{runs.loc[runs['loss'] == loss, 'ece_boundary'].mean():.3f}",
                *([f"{second[loss]:.{digits}f}"] if heading else []),
            ]
        )
    headings = ["loss", "Dice ± 95 %", "runs from, to", f"points above {BASELINE}", "verdict", "ECE"]
    headings += [heading] if heading else []
    return markdown(headings, rows) + "\n\n" + circumstances(study)


def circumstances(study: str) -> str:
    """Runs, cases, steps, time and commit."""
    scores, runs = scores_of(study), runs_of(study)
    commits, dates = sorted(set(runs["revision"])), sorted({started[:10] for started in runs["started"]})
    threads, precision = ("/".join(sorted({str(value) for value in runs[key]})) for key in ("threads", "precision"))
    return (
        f"{len(runs)} runs of {span(list(runs['steps']))} steps in {precision}, threads: {threads}, "
        f"{runs['minutes'].median():.1f} minutes each; {len(scores.cases)} cases, {len(scores.groups)} groups; "
        f"commit {', '.join(commits)}; {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}. "
        f"Intervals and verdicts apply to {model_of(study).inference.applies_to}."
    )


def annotator_table() -> str:
    """The second annotator of CHASE_DB1 against the first, beside the loss with the best mean, on the same eyes."""
    annotator: Rows = pd.read_csv(table_path("annotator-cases"))
    study = rows_of("chase_db1")
    means = means_of("chase_db1")
    best = max(means, key=lambda loss: means[loss])
    scored = annotator["case"].isin(study["case"])
    parts = {
        f"second annotator, {len(annotator)} eyes": annotator,
        f"second annotator, the {scored.sum()} eyes of the comparison": annotator[scored],
        f"{shown(best)}, these eyes": study[study["loss"] == best],
    }
    rows = []
    for name, part in parts.items():
        by_eye = part.groupby("case")[["dice", "cldice"]].mean()  # over the runs
        numbers = (by_eye["dice"].mean(), by_eye["dice"].min(), by_eye["dice"].max(), by_eye["cldice"].mean())
        rows.append([name, *(f"{number:.3f}" for number in numbers)])
    return markdown(["against the first annotator", "Dice", "lowest eye", "highest eye", "clDice"], rows)


def contrasts_table() -> str:
    """The planned contrasts on each data set, and what they say together."""
    names = measured()
    pairs = [(a, b) for _finding, a, b, _expected in CONTRASTS]
    rows = []
    columns = [verdicts(name, pairs) for name in names]
    for (finding, a, b, expected), results in zip(CONTRASTS, zip(*columns, strict=True), strict=True):
        cells = [f"{signed(r['difference'])}{points(r['ci95_adjusted'])} {r['verdict']}" for r in results]
        sign = "and" if expected == "equivalent" else "above"
        together = [outcome([r["verdict"] for r in results], expected)] if len(names) > 1 else []
        rows.append([finding, f"{a} {sign} {b}", *cells, *together])
    for a, b in CALIBRATION:
        results = [calibration_difference(name, a, b) for name in names]
        cells = [f"{d:+.3f} ± {(high - low) / 2:.3f}" for d, low, high in results]
        found = ["better" if low > 0 else "worse" if high < 0 else "undecided" for _d, low, high in results]
        finding = "Dice is miscalibrated: ECE at boundaries" if (a, b) == CALIBRATION[0] else ""
        rows.append([finding, f"{a} above {b}", *cells, *([outcome(found, "better")] if len(names) > 1 else [])])
    headings = ["published finding", "contrast", *(DATASETS[name] for name in names)]
    return markdown(headings + (["together"] if len(names) > 1 else []), rows, left=2)


def outcome(found: list[str], expected: str) -> str:
    """What the verdicts on one contrast say together, by the rule that was planned."""
    against = ("worse",) if expected == "better" else ("better", "worse")
    ayes, noes = found.count(expected), sum(verdict in against for verdict in found)
    if ayes and noes:
        return "mixed"
    return "came out again" if ayes >= 2 else "contradicted" if noes >= 2 else "open"


def calibration_difference(study: str, a: str, b: str) -> tuple[float, float, float]:
    """The difference of ECE at boundaries over runs with its interval (Welch, Bonferroni over the planned pairs)."""
    runs = runs_of(study)
    first, second = (runs.loc[runs["loss"] == loss].groupby("seed")["ece_boundary"].mean() for loss in (a, b))
    test: Any = stats.ttest_ind(first, second, equal_var=False)
    ends = test.confidence_interval(1 - 0.05 / len(CALIBRATION))
    return float(first.mean() - second.mean()), float(ends.low), float(ends.high)


def across_table() -> str:
    """Ranks over the data sets."""
    if len(measured()) < 2:
        raise NotMeasured("several data sets")
    across = over_all_datasets()
    ranks = {DATASETS[name]: ranks_of(losses_only(means_of(name))) for name in measured()}
    rows = [
        [shown(loss), f"{mean:.2f}", *(f"{of_losses[loss]:g}" for of_losses in ranks.values())]
        for loss, mean in sorted(across["mean_ranks"].items(), key=lambda item: item[1])
    ]
    table = markdown(["loss", "mean rank", *ranks], rows)
    if across["p"] is None:
        return f"{table}\n\nNo test: {across['reason']}."
    significant = [pair for pair in across["pairs"] if pair["p_adjusted"] < 0.05]
    found = ", ".join(f"{shown(pair['a'])} and {shown(pair['b'])}" for pair in significant) or "none"
    return (
        f"{table}\n\nFriedman's test (Iman and Davenport): p = {across['p']:.2g}. Critical difference of Nemenyi's "
        f"test at 5 %: {across['critical_difference']:.2f} ranks. Pairs beyond it: {found}."
    )


def over_all_datasets() -> dict[str, Any]:
    """The contents of datasets.json, without the second set of runs of the baseline."""
    return over_datasets(
        {DATASETS[name]: analyse_scores(scores_of(name).without([AGAIN]), resamples=0) for name in measured()}, "dice"
    )


def losses_only(means: Mapping[str, float]) -> dict[str, float]:
    return {loss: mean for loss, mean in means.items() if loss != AGAIN}


def rates_table() -> str:
    """For each loss, the learning rates that were tried, and the scores with the shipped and the chosen rate."""
    study = "hippocampus_rates"
    trials: Rows = pd.read_csv(table_path(f"{study}-trials"))
    rates, tried = sorted(set(trials["rate"])), trials.pivot(index="loss", columns="rate", values="dice")
    chosen = runs_of(study).groupby("loss")["rate"].first()
    after = losses_only(means_of(study))
    before = {loss: mean for loss, mean in means_of("hippocampus").items() if loss in after}
    ranks_before, ranks_after = ranks_of(before), ranks_of(after)
    rows = []
    for loss in sorted(after, key=lambda loss: -after[loss]):
        cells = [f"{tried.loc[loss, rate]:.4f}" for rate in rates]
        means = [f"{before[loss]:.4f}", f"{after[loss]:.4f}"]
        rows.append(
            [shown(loss), *cells, f"{chosen[loss]:g}", *means, f"{ranks_before[loss]:g}", f"{ranks_after[loss]:g}"]
        )
    tau: Any = stats.kendalltau([ranks_before[loss] for loss in after], [ranks_after[loss] for loss in after])
    validated = [f"rate {rate:g}" for rate in rates]
    headings = ["loss", *validated, "chosen", "Dice, rate 0.003", "chosen rate", "rank", "then"]
    return markdown(headings, rows) + f"\n\nKendall's tau of the two orders: {tau.statistic:.2f}."


# what each artefact, or its milder form, is compared with
ARTEFACTS = {
    "lovasz on raw logits": "lovasz_softmax",
    "raw inverse class weights": "cross_entropy",
    "square roots of inverse class weights": "cross_entropy",
    "generalized dice, absent classes weigh 1e20": "generalized_dice",
    "generalized dice per image, absent classes weigh 0": "generalized_dice",
    "generalized dice per image, absent classes weigh most": "generalized_dice",
}


def artefacts_table() -> str:
    """Each artefact beside the correct loss, with its rank in place of it."""
    rows = []
    for name in DATASETS:
        if not (TABLES / f"{name}_artefacts-cases.csv").exists():
            continue
        both = (name, f"{name}_artefacts")
        means, artefacts = losses_only(means_of("+".join(both))), means_of(both[1])
        pairs = [(artefact, ARTEFACTS[artefact]) for artefact in artefacts]
        for (artefact, correct), pair in zip(pairs, verdicts("+".join(both), pairs), strict=True):
            others = [mean for loss, mean in means.items() if loss not in (correct, *artefacts)]
            ranks = [1 + sum(other > means[loss] for other in others) for loss in (correct, artefact)]
            difference = f"{signed(pair['difference'])}{points(pair['ci95_adjusted'])}"
            rows.append(
                [
                    *(DATASETS[name], artefact, f"{means[artefact]:.4f}", f"{correct} {means[correct]:.4f}"),
                    *(difference, pair["verdict"], f"{ranks[0]} to {ranks[1]} of {len(others) + 1}"),
                ]
            )
    if not rows:
        raise NotMeasured("artefacts")
    return markdown(["data set", "artefact", "Dice", "instead of", "points", "verdict", "rank"], rows, left=2)
