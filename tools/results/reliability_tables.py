"""Tables of docs/results.md about comparisons: what they need, and how often they and others are wrong."""

from collections import Counter

from results.data import (
    DATASETS,
    MARGIN,
    fold_samples,
    losses_of,
    measured,
    model_of,
    pairs_of,
    scores_of,
)
from results.markdown import markdown, percent, points, share, signed
from results.statistics import (
    Spread,
    cases_needed,
    fold_self_comparisons,
    found_by_chance,
    naive_pairs,
    runs_needed,
    self_comparisons,
)
from segkit.compare.statistics import pair_results
from segkit.compare.variance_models import Folds, TwoWay


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


def handicaps_table() -> str:
    """A known handicap: what all runs say, and how often fewer runs find it."""
    samples = model_of("hippocampus_handicaps").samples
    baseline, runs = "cross_entropy", len(next(iter(samples.values())))
    rows = []
    for loss in samples:
        if loss == baseline:
            continue
        both = {baseline: samples[baseline], loss: samples[loss]}
        (result,) = pair_results([(loss, baseline)], TwoWay(both), MARGIN, {})
        rates = [found_by_chance(both[loss], both[baseline], count, MARGIN) for count in (3, 5)]
        cells = [", ".join(f"{100 * rate:.0f} % {name}" for name, rate in found.items()) for found in rates]
        rows.append([loss, f"{signed(result['difference'])}{points(result['ci95'])}", result["verdict"], *cells])
    return markdown(["handicap", f"points, {runs} runs", "verdict", "3 runs each", "5 runs each"], rows)
