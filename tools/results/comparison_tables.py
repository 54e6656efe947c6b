"""Tables of docs/results.md about losses: each data set, the planned contrasts, ranks, learning rates and artefacts."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from results.data import (
    AGAIN,
    BASELINE,
    DATASETS,
    MARGIN,
    TABLES,
    NotMeasured,
    means_of,
    measured,
    model_of,
    pairs_of,
    ranks_of,
    rows_of,
    runs_of,
    scores_of,
    seed_means,
    table_path,
    verdicts,
)
from results.markdown import interval, markdown, shown, signed, span, with_interval, with_sign
from segkit.compare.across_datasets import over_datasets
from segkit.compare.score_table import DEFAULT_AGGREGATION
from segkit.compare.statistics import MAX_RUNS, analyse_scores
from segkit.compare.table_checks import Rows
from segkit.compare.variance_models import Folds

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


@dataclass(frozen=True)
class OtherScore:
    """A score beside Dice: how it is computed and written. Distances are better if they are smaller."""

    heading: str
    metric: str
    aggregation: str = DEFAULT_AGGREGATION
    digits: int = 3


OTHER_SCORES = {
    "hippocampus": [OtherScore("HD95, mm", "hd95", digits=2), OtherScore("NSD, 1 mm", "nsd", digits=4)],
    "chase_db1": [OtherScore("clDice", "cldice")],
    "camvid": [OtherScore("mIoU of all pixels", "iou", "global")],
}
OLD_RULE = {"camvid": "absent_perfect"}  # data sets whose comparison was planned with another aggregation
CALIBRATION = [("dice", "cross_entropy"), ("dice", "dice_ce")]


def losses_table(study: str) -> str:
    """Mean, spread and difference to the baseline of each loss, best first."""
    scores, model, means = scores_of(study), model_of(study), means_of(study)
    pairs, rows = against_baseline(study), []
    for loss in sorted(means, key=lambda loss: -means[loss]):
        seeds = seed_means(scores, loss)
        against = ["-"] * 3
        if loss in pairs:
            pair = pairs[loss]
            difference = with_interval(pair["difference"], pair["ci95_adjusted"])
            against = [difference, pair["verdict"], seeds_needed(pair)]
        mean = f"{means[loss]:.4f}{interval(model.estimate({loss: 1}).interval())}"
        rows.append([shown(loss), mean, f"{min(seeds):.3f} to {max(seeds):.3f}", *against])
    headings = ["loss", "Dice ± 95 %", "runs from, to", f"points above {BASELINE}", "verdict", "seeds needed"]
    return markdown(headings, rows) + "\n\n" + circumstances(study)


HEADLINE = ("lovasz_softmax", "ce_lovasz", "dice", AGAIN, BASELINE, "cross_entropy", "focal", "weighted_cross_entropy")


def headline_table() -> str:
    """Some losses on hippocampus, best first, for the README."""
    study = "hippocampus"
    scores, model, means, pairs = scores_of(study), model_of(study), means_of(study), against_baseline(study)
    rows = []
    for loss in sorted(HEADLINE, key=lambda loss: -means[loss]):
        seeds, name = seed_means(scores, loss), f"`{BASELINE}` with other seeds" if loss == AGAIN else f"`{loss}`"
        low, high = model.estimate({loss: 1}).interval() or (math.nan, math.nan)
        cells = [name, f"{means[loss]:.4f}", f"{low:.3f} to {high:.3f}", f"{min(seeds):.3f}, {max(seeds):.3f}"]
        if loss == BASELINE:
            rows.append([*cells, "", ""])
            continue
        pair = pairs[loss]
        low, high = (signed(end) for end in pair["ci95_adjusted"])
        verdict = f"**{pair['verdict']}**" if pair["verdict"] in ("better", "worse") else pair["verdict"]
        rows.append([*cells, f"{signed(pair['difference'])} ({low} to {high})", verdict])
    headings = ["loss", "mean Dice", "95 % CI", "lowest and highest of 5 runs"]
    return markdown([*headings, f"against `{BASELINE}`, points (adjusted CI)", "verdict"], rows)


def against_baseline(study: str, metric: str = "dice", aggregation: str = DEFAULT_AGGREGATION) -> dict[str, Any]:
    """The results of all losses against the baseline."""
    pairs = [(loss, BASELINE) for loss in scores_of(study).losses if loss != BASELINE]
    return {pair["a"]: pair for pair in verdicts(study, pairs, metric, aggregation)}


def seeds_needed(pair: Mapping[str, Any]) -> str:
    """The number of seeds that would give a verdict if difference and spread stay as they are."""
    if pair["verdict"] != "undecided" or "seeds_needed" not in pair:
        return "-"
    return f"> {MAX_RUNS}" if pair["seeds_needed"] is None else str(pair["seeds_needed"])


def other_scores_table(study: str) -> str:
    """Other scores of each loss, with the difference to the baseline, and the calibration; in the order of Dice."""
    means, runs = means_of(study), runs_of(study)
    order = sorted(means, key=lambda loss: -means[loss])
    columns, headings = [], []
    for score in OTHER_SCORES.get(study, []):
        values, sign = means_of(study, score.metric, score.aggregation), scores_of(study, score.metric).sign
        pairs = against_baseline(study, score.metric, score.aggregation)
        columns.append([f"{values[loss]:.{score.digits}f}" for loss in order])
        columns.append([natural_difference(pairs.get(loss), sign, score.digits) for loss in order])
        headings += [score.heading, f"minus {BASELINE}"]
    for column, heading in (("ece_boundary", "ECE, boundaries"), ("ece", "ECE, all pixels")):
        mean = runs.groupby("loss")[column].mean()
        columns.append([f"{mean[loss]:.3f}" for loss in order])
        headings.append(heading)
    rows = [[shown(loss), *cells] for loss, *cells in zip(order, *columns, strict=True)]
    return markdown(["loss", *headings], rows)


def natural_difference(pair: Mapping[str, Any] | None, sign: int, digits: int) -> str:
    """The difference of the scores themselves, with the adjusted interval; * where it excludes 0."""
    if pair is None:
        return "-"
    low, high = pair["ci95_adjusted"] or (math.nan, math.nan)
    star = " *" if low > 0 or high < 0 else ""
    return f"{with_sign(sign * pair['difference'], digits)} ± {(high - low) / 2:.{digits}f}{star}"


def rules_table() -> str:
    """CamVid by three rules for cases without a class, and whose pixels are added up."""
    study, rows = "camvid", []
    rules = ("class_case", "absent_perfect", "global")
    means = {rule: means_of(study, "dice", rule) for rule in rules}
    pairs = {rule: against_baseline(study, "dice", rule) for rule in rules}
    for loss in sorted(means["class_case"], key=lambda loss: -means["class_case"][loss]):
        cells = []
        for rule in rules:
            pair = pairs[rule].get(loss)
            against = f"{with_interval(pair['difference'], pair['ci95_adjusted'])} {pair['verdict']}" if pair else "-"
            cells += [f"{means[rule][loss]:.3f}", against]
        rows.append([shown(loss), *cells])
    words = ("new rule: does not count", "old rule: perfect if another run predicts it", "pixels of all cases added up")
    return markdown(["loss", *itertools.chain.from_iterable((text, "points, verdict") for text in words)], rows)


def decided_pairs_table() -> str:
    """The pairs of losses that several data sets decide: in one direction, or in opposite ones."""
    names = measured()
    results = {name: differences_of_all_pairs(name) for name in names}
    signs = {pair: [results[name][pair][0] for name in names] for pair in results[names[0]]}
    several = [pair for pair, each in signs.items() if each.count(1) >= 2 and -1 not in each]
    once = [pair for pair, each in signs.items() if each.count(1) == 1 and -1 not in each]
    mixed = [(a, b) for (a, b), each in signs.items() if 1 in each and -1 in each and a < b]

    def listed(pairs: Sequence[tuple[str, str]], word: str) -> str:
        rows = [[a, b, *(results[name][a, b][1] for name in names)] for a, b in pairs]
        return markdown(["loss", word, *(DATASETS[name] for name in names)], rows, left=2) if rows else "None."

    return "\n\n".join(
        [
            f"Decided in the same direction on two data sets or more (\\* the interval excludes 0), {len(several)}:",
            listed(several, "is above"),
            f"Decided in opposite directions, {len(mixed)}:",
            listed(mixed, "and"),
            f"Of {len(signs) // 2} pairs, {len(once)} are decided on one data set only.",
        ]
    )


def differences_of_all_pairs(study: str) -> dict[tuple[str, str], tuple[int, str]]:
    """For each ordered pair of losses, the sign of the difference if it is decided, otherwise 0, and its text."""
    differences = {}
    for pair in verdicts(study, pairs_of(losses_only(means_of(study)))):
        decided = {"better": 1, "worse": -1}.get(pair["verdict"], 0)
        for ordered, sign in (((pair["a"], pair["b"]), 1), ((pair["b"], pair["a"]), -1)):
            text = with_interval(sign * pair["difference"], pair["ci95_adjusted"])
            differences[ordered] = (sign * decided, text + (" *" if decided else ""))
    return differences


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
    """The second annotator of CHASE_DB1 against the first, beside the best losses on the same eyes."""
    annotator: Rows = pd.read_csv(table_path("annotator-cases"))
    study = rows_of("chase_db1")
    study = study.assign(group=study["group"].astype(int))
    children = sorted(set(study["group"]))
    scored = annotator["case"].isin(study["case"])
    parts = {
        f"second annotator, {len(annotator)} eyes": annotator,
        f"second annotator, the {scored.sum()} eyes of the comparison": annotator[scored],
    }
    for metric, title in (("dice", "Dice"), ("cldice", "clDice")):
        means = means_of("chase_db1", metric)
        best = max(means, key=lambda loss: means[loss])
        parts[f"{shown(best)}, the best loss by {title}, these eyes"] = study[study["loss"] == best]
    rows = []
    for name, part in parts.items():
        by_eye = part.groupby(["group", "case"])[["dice", "cldice"]].mean()  # over the runs
        by_child = by_eye["dice"].groupby("group").mean()
        shown_children = len(by_child) == len(children)
        cells = [f"{by_child[child]:.3f}" if shown_children else "" for child in children]
        rows.append([name, f"{by_eye['dice'].mean():.3f}", *cells, f"{by_eye['cldice'].mean():.3f}"])
    columns = ["Dice", *(f"child {child}" for child in children), "clDice"]
    return markdown(["against the first annotator", *columns], rows)


def contrasts_table() -> str:
    """The planned contrasts on each data set, and what they say together."""
    names = measured()
    pairs = [(a, b) for _finding, a, b, _expected in CONTRASTS]
    rows, changed = [], []
    columns = [verdicts(name, pairs) for name in names]
    by_old_rule = [verdicts(name, pairs, aggregation=OLD_RULE.get(name, DEFAULT_AGGREGATION)) for name in names]
    by_contrast = zip(CONTRASTS, zip(*columns, strict=True), zip(*by_old_rule, strict=True), strict=True)
    for (finding, a, b, expected), results, old_results in by_contrast:
        cells = [f"{with_interval(r['difference'], r['ci95_adjusted'])} {r['verdict']}" for r in results]
        contrast = f"{a} {'and' if expected == 'equivalent' else 'above'} {b}"
        together, before = (together_in_words(each, expected) for each in (results, old_results))
        rows.append([finding, contrast, *cells, *([together] if len(names) > 1 else [])])
        changed += [
            f"{contrast} on {DATASETS[name]} {with_interval(old['difference'], old['ci95_adjusted'])} {old['verdict']}"
            + (f" (together {before})" if before != together else "")
            for name, new, old in zip(names, results, old_results, strict=True)
            if new["verdict"] != old["verdict"]
        ]
    for a, b in CALIBRATION:
        results = [calibration_difference(name, a, b) for name in names]
        cells = [f"{d:+.3f} ± {(high - low) / 2:.3f}" for d, low, high in results]
        found = ["better" if low > 0 else "worse" if high < 0 else "undecided" for _d, low, high in results]
        finding = "Dice is miscalibrated: ECE at boundaries" if (a, b) == CALIBRATION[0] else ""
        rows.append([finding, f"{a} above {b}", *cells, *([outcome(found, "better")] if len(names) > 1 else [])])
    headings = ["published finding", "contrast", *(DATASETS[name] for name in names)]
    table = markdown(headings + (["together"] if len(names) > 1 else []), rows, left=2)
    return f"{table}\n\nBy the old rule for CamVid, other verdicts: {'; '.join(changed) or 'none'}."


def together_in_words(results: Sequence[Mapping[str, Any]], expected: str) -> str:
    """As `outcome`, with the reason if equivalence could not be shown."""
    found = [result["verdict"] for result in results]
    together, against = outcome(found, expected), {"better", "worse"} & set(found)
    if together == "open" and expected == "equivalent" and not against and sum(map(could_be_equivalent, results)) < 2:
        return "open, too few runs or folds for `equivalent`"
    return together


def could_be_equivalent(pair: Mapping[str, Any]) -> bool:
    """Whether the interval is narrow enough to lie inside the margin."""
    low, high = pair["ci95_adjusted"]
    return high - low < 2 * MARGIN


def outcome(found: list[str], expected: str) -> str:
    """What the verdicts on one contrast say together, by the rule that was planned."""
    against = ("worse",) if expected == "better" else ("better", "worse")
    supporting, contradicting = found.count(expected), sum(verdict in against for verdict in found)
    if supporting and contradicting:
        return "mixed"
    return "replicated" if supporting >= 2 else "contradicted" if contradicting >= 2 else "open"


def calibration_difference(study: str, a: str, b: str) -> tuple[float, float, float]:
    """The difference of ECE at boundaries with its interval, adjusted for the planned pairs (Bonferroni).

    The test is Welch's over runs, and with folds that of `segkit compare` over folds.
    """
    runs, alpha = runs_of(study), 0.05 / len(CALIBRATION)
    model = model_of(study)
    if isinstance(model, Folds):
        of_fold = {loss: [fold for _number, fold in runs[runs["loss"] == loss].groupby("fold")] for loss in (a, b)}
        samples, seeds = (
            {loss: [fold[column].to_numpy() for fold in parts] for loss, parts in of_fold.items()}
            for column in ("ece_boundary", "seed")
        )
        folds = Folds(samples, seeds=seeds, test_train_ratio=model.test_train_ratio, groups=model.groups)
        estimate = folds.estimate({a: 1, b: -1})
        low, high = estimate.interval(alpha) or (math.nan, math.nan)
        return estimate.value, low, high
    first, second = (runs.loc[runs["loss"] == loss, "ece_boundary"] for loss in (a, b))
    test: Any = stats.ttest_ind(first, second, equal_var=False)
    ends = test.confidence_interval(1 - alpha)
    return float(first.mean() - second.mean()), float(ends.low), float(ends.high)


def across_table() -> str:
    """Ranks over the data sets."""
    if len(measured()) < 2:
        raise NotMeasured("several data sets")
    across = over_all_datasets()
    ranks = {DATASETS[name]: ranks_of(losses_only(means_of(name))) for name in measured()}
    taus = [f"{a} and {b} {kendall(ranks[a], ranks[b]):.2f}" for a, b in itertools.combinations(ranks, 2)]
    agreement = f"Kendall's tau of the orders: {', '.join(taus)}."
    rows = [
        [shown(loss), f"{mean:.2f}", *(f"{of_losses[loss]:g}" for of_losses in ranks.values())]
        for loss, mean in sorted(across["mean_ranks"].items(), key=lambda item: item[1])
    ]
    table = markdown(["loss", "mean rank", *ranks], rows) + f"\n\n{old_rule_ranks()}"
    if across["p"] is None:
        return f"{table}\n\n{agreement} No test: {across['reason']}."
    significant = [pair for pair in across["pairs"] if pair["p_adjusted"] < 0.05]
    found = ", ".join(f"{shown(pair['a'])} and {shown(pair['b'])}" for pair in significant) or "none"
    return (
        f"{table}\n\n{agreement} Friedman's test (Iman and Davenport): p = {across['p']:.2g}. Critical difference of "
        f"Nemenyi's test at 5 %: {across['critical_difference']:.2f} ranks. Pairs beyond it: {found}."
    )


def old_rule_ranks() -> str:
    """The mean ranks with the rule for CamVid that the comparison was planned with."""
    of_sets = [
        ranks_of(losses_only(means_of(name, "dice", OLD_RULE.get(name, DEFAULT_AGGREGATION)))) for name in measured()
    ]
    means = {loss: sum(ranks[loss] for ranks in of_sets) / len(of_sets) for loss in of_sets[0]}
    listed = ", ".join(f"{shown(loss)} {means[loss]:.2f}" for loss in sorted(means, key=lambda loss: means[loss]))
    return f"Mean ranks by the old rule for CamVid: {listed}."


def kendall(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Kendall's tau of two rankings."""
    result: Any = stats.kendalltau([a[loss] for loss in a], [b[loss] for loss in a])
    return float(result.statistic)


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
    validated = [f"rate {rate:g}" for rate in rates]
    headings = ["loss", *validated, "chosen", "Dice, rate 0.003", "chosen rate", "rank", "then"]
    return markdown(headings, rows) + f"\n\nKendall's tau of the two orders: {kendall(ranks_before, ranks_after):.2f}."


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
        planned = [None] * len(pairs)
        if name in OLD_RULE:
            planned = verdicts("+".join(both), pairs, aggregation=OLD_RULE[name])
        for (artefact, correct), pair, before in zip(pairs, verdicts("+".join(both), pairs), planned, strict=True):
            others = [mean for loss, mean in means.items() if loss not in (correct, *artefacts)]
            ranks = [1 + sum(other > means[loss] for other in others) for loss in (correct, artefact)]
            difference = with_interval(pair["difference"], pair["ci95_adjusted"])
            by_old_rule = f"{signed(before['difference'])} {before['verdict']}" if before else "-"
            rows.append(
                [
                    *(DATASETS[name], artefact, f"{means[artefact]:.4f}", f"{correct} {means[correct]:.4f}"),
                    *(difference, pair["verdict"], f"{ranks[0]} to {ranks[1]} of {len(others) + 1}", by_old_rule),
                ]
            )
    if not rows:
        raise NotMeasured("artefacts")
    headings = ["data set", "artefact", "Dice", "instead of", "points", "verdict"]
    return markdown([*headings, "rank", "points by the old rule"], rows, left=2)
