"""Measure error rates and power of the comparison of losses on simulated scores.

python tools/simulate_comparisons.py --comparisons 1000
python tools/simulate_comparisons.py --comparisons 5000 --tables folds

A score is the sum of effects of the case, the run (standard deviation 0.004), the loss on the case (0.01) and a
residual (0.02). The first table shows, for each number of losses, seeds and cases, the share of comparisons of equal
losses with any false verdict: if all runs vary equally; if every second loss or only one loss varies four times as
much; and with a Wilcoxon test over the cases of one run per loss. The second table shows how often a true difference
is found.

The third table is about cross-validation. The score of a fold also depends on which cases a loss was trained with:
each case moves each loss by a number of its own, and training sets that share cases share these numbers. The table
shows the share of false verdicts on two equal losses, and how often a true difference is found, by the standard
deviation that independent training sets of the same size would have.

The fourth table is about cross-validations whose folds are trained with the same seeds, which add a half of the
variance of runs to a loss in all folds alike, with the standard deviations of the membranes of ISBI 2012. It shows
the share of false verdicts on two equal losses if folds have seeds of their own, if they have the same and the test
does not know it, and if it does.

The fifth table is about losses that are trained with the same seeds: a part of the variance of runs is then shared by
the runs of all losses with one seed. It shows the share of comparisons of equal losses with any false verdict, and the
half width of the adjusted intervals.

The sixth table is about a rare class, which 15 of 60 cases contain, beside a common one. Each run predicts it falsely
in a share of the other cases that is its own (Beta(1, 3)), and does not have a score in the rest. It shows the same
shares for both rules about such cases (the aggregations class_case and absent_perfect).
"""

import argparse
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from segkit.compare.score_table import read_scores
from segkit.compare.statistics import pair_results
from segkit.compare.variance_models import Folds, TwoWay, fit_variance_model

RUN, WIDE, NARROW, INTERACTION, RESIDUAL = 0.004, 0.008, 0.002, 0.01, 0.02
SHIFT = 0.01  # the true difference of the power of a cross-validation


@dataclass(frozen=True)
class Data:
    """The number of cases of a cross-validation and the standard deviations of its scores."""

    cases: int
    run: float
    interaction: float
    residual: float


USUAL = Data(100, RUN, INTERACTION, RESIDUAL)
MEMBRANES = Data(30, 0.0042, 0.0026, 0.0043)


def simulated(
    generator: np.random.Generator,
    spreads: Sequence[float],
    runs: int,
    cases: int,
    shift: float = 0.0,
    shared: float = 0.0,
) -> dict[str, np.ndarray]:
    """Scores {loss: [runs, cases]} of one loss for each standard deviation of runs; the first is better by `shift`.

    shared: the part of the variance of runs that the runs of all losses with one seed have in common.
    """
    case = generator.beta(8, 2, cases) * 0.8 + 0.05
    of_seeds = generator.normal(0, np.sqrt(shared), (runs, 1)) if shared else 0.0
    samples = {}
    for number, spread in enumerate(spreads):
        run = spread * of_seeds + generator.normal(0, spread * np.sqrt(1 - shared), (runs, 1))
        loss_scores = case + run + generator.normal(0, INTERACTION, cases)
        scores = loss_scores + generator.normal(0, RESIDUAL, (runs, cases)) + (shift if number == 0 else 0.0)
        samples[f"loss{number}"] = scores.clip(0, 1)
    return samples


def compared(samples: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The results of all pairs of losses."""
    return pair_results(list(itertools.combinations(samples, 2)), TwoWay(samples), 0.005, {})


def wrong(results: list[dict[str, Any]]) -> bool:
    """Whether any pair of equal losses has the verdict better or worse."""
    return any(result["verdict"] in ("better", "worse") for result in results)


def wrong_naively(samples: dict[str, np.ndarray]) -> bool:
    """Whether a Wilcoxon test over the cases of single runs finds a difference between any pair of losses."""
    pairs = itertools.combinations(samples.values(), 2)
    results: list[Any] = [stats.wilcoxon(a[0], b[0]) for a, b in pairs]
    return any(result.pvalue < 0.05 for result in results)


def error_rates(losses: int, runs: int, cases: int, comparisons: int, seed: int = 0) -> dict[str, float]:
    """The share of comparisons with a false verdict, by the spread of runs, and for the Wilcoxon test."""
    generator = np.random.default_rng([seed, losses, runs, cases])
    kinds = {
        "equal": [RUN] * losses,
        "every second wide": [(NARROW, WIDE)[number % 2] for number in range(losses)],
        "one wide": [WIDE, *[NARROW] * (losses - 1)],
    }
    rates = {}
    for kind, spreads in kinds.items():
        rates[kind] = np.mean([wrong(compared(simulated(generator, spreads, runs, cases))) for _ in range(comparisons)])
    naive = max(1, comparisons // 5)
    rates["Wilcoxon"] = np.mean([wrong_naively(simulated(generator, kinds["equal"], 1, cases)) for _ in range(naive)])
    return {kind: float(rate) for kind, rate in rates.items()}


def power(losses: int, runs: int, cases: int, shift: float, comparisons: int, seed: int = 1) -> float:
    """The share of pairs with the first, better loss that get the verdict better."""
    generator = np.random.default_rng([seed, losses, runs, cases])
    detected = []
    for _ in range(comparisons):
        pairs = compared(simulated(generator, [RUN] * losses, runs, cases, shift))
        detected += [pair["verdict"] == "better" for pair in pairs if pair["a"] == "loss0"]
    return float(np.mean(detected))


def simulated_folds(
    generator: np.random.Generator,
    folds: int,
    repeats: int,
    runs: int,
    training_sd: float,
    shift: float = 0.0,
    data: Data = USUAL,
    of_seeds: float = 0.0,
) -> dict[str, list[np.ndarray]]:
    """Scores {loss: [[runs] for each fold]} of two losses in a repeated cross-validation; the first is better by
    `shift`.

    training_sd: standard deviation over independent training sets of the size of a fold's.
    of_seeds: the part of the variance of runs that a seed adds to a loss in all folds alike.
    """
    partitions = [np.array_split(generator.permutation(data.cases), folds) for _ in range(repeats)]
    samples: dict[str, list[np.ndarray]] = {}
    for loss, better in (("a", shift), ("b", 0.0)):
        interaction = generator.normal(0, data.interaction, data.cases)
        influence = generator.normal(0, 1, data.cases)  # of a training case on the scores of this loss
        in_all_folds = generator.normal(0, data.run * np.sqrt(of_seeds), runs) if of_seeds else 0.0
        samples[loss] = []
        for test in itertools.chain.from_iterable(partitions):
            training = np.setdiff1d(np.arange(data.cases), test)
            trained = training_sd * influence[training].sum() / np.sqrt(len(training))
            residual = generator.normal(0, data.residual, (runs, len(test))).mean(1)
            run_effects = generator.normal(0, data.run * np.sqrt(1 - of_seeds), runs) + residual
            samples[loss].append(better + interaction[test].mean() + trained + in_all_folds + run_effects)
    return samples


def fold_rates(
    folds: int, repeats: int, training_sd: float, comparisons: int, runs: int = 1, seed: int = 2
) -> dict[str, float]:
    """The share of verdicts better or worse on equal losses, with and without Nadeau and Bengio's correction, and of
    verdicts better if the first loss is."""
    generator = np.random.default_rng([seed, folds, repeats, runs, round(1e6 * training_sd)])
    ratio = 1 / (folds - 1)

    def verdict(shift: float, test_train_ratio: float) -> str:
        samples = simulated_folds(generator, folds, repeats, runs, training_sd, shift)
        model = Folds(samples, test_train_ratio=test_train_ratio, groups=USUAL.cases)
        return pair_results([("a", "b")], model, 0.0, {})[0]["verdict"]

    def share(shift: float, test_train_ratio: float, verdicts: set[str]) -> float:
        return float(np.mean([verdict(shift, test_train_ratio) in verdicts for _ in range(comparisons)]))

    false = {"better", "worse"}
    return {"corrected": share(0, ratio, false), "plain": share(0, 0, false), "found": share(SHIFT, ratio, {"better"})}


def fold_seed_rates(folds: int, runs: int, comparisons: int, seed: int = 4) -> dict[str, float]:
    """The share of false verdicts on equal losses, by the seeds of folds, and the median half width of an interval."""
    generator = np.random.default_rng([seed, folds, runs])
    same = {loss: [np.arange(runs)] * folds for loss in "ab"}
    kinds = {"own": (0.0, None), "same, unknown": (0.5, None), "same, known": (0.5, same)}
    found = {}
    for kind, (of_seeds, seeds) in kinds.items():
        results = []
        for _ in range(comparisons):
            samples = simulated_folds(generator, folds, 1, runs, 0.0, data=MEMBRANES, of_seeds=of_seeds)
            model = Folds(samples, test_train_ratio=1 / (folds - 1), groups=MEMBRANES.cases, seeds=seeds)
            results += pair_results([("a", "b")], model, 0.0, {})
        found[kind] = float(np.mean([wrong([result]) for result in results]))
        found[f"{kind}, width"] = float(np.median([np.ptp(result["ci95"]) / 2 for result in results]))
    return found


def shared_seed_rates(losses: int, runs: int, shared: float, comparisons: int, seed: int = 3) -> tuple[float, float]:
    """The share of comparisons of equal losses with a false verdict, and the median half width of an interval."""
    generator = np.random.default_rng([seed, losses, runs, round(100 * shared)])
    return rate_and_width(
        compared(simulated(generator, [RUN] * losses, runs, 100, shared=shared)) for _ in range(comparisons)
    )


def rate_and_width(comparisons: Iterable[list[dict[str, Any]]]) -> tuple[float, float]:
    """The share of comparisons with a false verdict, and the median half width of the adjusted intervals."""
    false, widths = [], []
    for results in comparisons:
        false.append(wrong(results))
        widths += [(result["ci95_adjusted"][1] - result["ci95_adjusted"][0]) / 2 for result in results]
    return float(np.mean(false)), float(np.median(widths))


def absence_rates(losses: int, runs: int, aggregation: str, comparisons: int, seed: int = 5) -> tuple[float, float]:
    """As `shared_seed_rates`, where a class is absent from most cases."""
    generator = np.random.default_rng([seed, losses, runs])

    def results() -> list[dict[str, Any]]:
        scores = read_scores(table_with_rare_class(generator, losses, runs), "dice", aggregation=aggregation)
        pairs = list(itertools.combinations(scores.losses, 2))
        return pair_results(pairs, fit_variance_model(scores), 0.0, {})

    return rate_and_width(results() for _ in range(comparisons))


def table_with_rare_class(generator: np.random.Generator, losses: int, runs: int, cases: int = 60) -> pd.DataFrame:
    """A long table of equal losses with a common class, and a rare one in a quarter of the cases."""
    common, rare = (simulated(generator, [RUN] * losses, runs, cases) for _ in range(2))
    parts = []
    for loss in common:
        eager = generator.beta(1, 3, (runs, 1))
        spurious = np.where(generator.uniform(size=(runs, cases)) < eager, 0.0, np.nan)
        in_case = np.arange(cases) < cases // 4
        of_class = {"common": 0.8 + common[loss], "rare": np.where(in_case, 0.5 + rare[loss], spurious)}
        for name, values in of_class.items():
            run, case = np.indices(values.shape)
            columns = {"seed": run.ravel(), "case": case.ravel(), "dice": values.ravel().clip(0, 1)}
            parts.append(pd.DataFrame({"loss": loss, "class": name, **columns}))
    return pd.concat(parts, ignore_index=True)


def print_errors(comparisons: int) -> None:
    print("| losses | seeds | cases | equal | every second wide | one wide | Wilcoxon, one run |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for losses, runs, cases in itertools.product((2, 8), (3, 5), (30, 100, 300)):
        rates = error_rates(losses, runs, cases, comparisons)
        row = [losses, runs, cases, *(f"{rate:.3f}" for rate in rates.values())]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def print_power(comparisons: int) -> None:
    print("| losses | true difference | seeds | found |\n|--:|--:|--:|--:|")
    for losses, shift, seeds in ((2, 0.006, (3, 5, 10)), (8, 0.015, (2, 3, 5))):
        for runs in seeds:
            rate = power(losses, runs, 100, shift, max(1, comparisons // 3))
            print(f"| {losses} | {shift} | {runs} | {rate:.2f} |", flush=True)


def print_folds(comparisons: int) -> None:
    print("| folds | repeats | runs in a fold | sd by training sets | corrected | plain t test | found |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    designs = [(5, 1, 1), (10, 1, 1), (5, 1, 3), (5, 3, 1), (10, 3, 1)]
    for (folds, repeats, runs), training_sd in itertools.product(designs, (0.0, 0.004, 0.008)):
        rates = fold_rates(folds, repeats, training_sd, comparisons, runs)
        row = [folds, repeats, runs, training_sd, *(f"{rate:.3f}" for rate in rates.values())]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def print_fold_seeds(comparisons: int) -> None:
    print("| folds | runs in a fold | own seeds | the same, unknown | the same, known | half widths, points |")
    print("|--:|--:|--:|--:|--:|--:|")
    for folds, runs in itertools.product((5, 10), (1, 3, 5)):
        found = fold_seed_rates(folds, runs, comparisons)
        kinds = ("own", "same, unknown", "same, known")
        widths = " ".join(f"{100 * found[f'{kind}, width']:.2f}" for kind in kinds)
        row = [folds, runs, *(f"{found[kind]:.3f}" for kind in kinds), widths]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def print_seeds(comparisons: int) -> None:
    print("| losses | seeds | shared by seeds | false verdicts | half width, points |")
    print("|--:|--:|--:|--:|--:|")
    for losses, runs, shared in itertools.product((2, 5, 13), (3, 5), (0.0, 0.5, 0.8)):
        rate, width = shared_seed_rates(losses, runs, shared, comparisons)
        print(f"| {losses} | {runs} | {100 * shared:.0f} % | {rate:.3f} | {100 * width:.2f} |", flush=True)


def print_absent(comparisons: int) -> None:
    print("| losses | seeds | class_case: false verdicts | half width, points | absent_perfect | half width |")
    print("|--:|--:|--:|--:|--:|--:|")
    for losses, runs in itertools.product((2, 8), (3, 5)):
        cells = []
        for aggregation in ("class_case", "absent_perfect"):
            rate, width = absence_rates(losses, runs, aggregation, comparisons)
            cells += [f"{rate:.3f}", f"{100 * width:.1f}"]
        print("| " + " | ".join([str(losses), str(runs), *cells]) + " |", flush=True)


TABLES = {
    "errors": print_errors,
    "power": print_power,
    "folds": print_folds,
    "fold-seeds": print_fold_seeds,
    "seeds": print_seeds,
    "absent": print_absent,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="tables (default: all)")
    arguments = parser.parse_args()
    for table in arguments.tables:
        TABLES[table](arguments.comparisons)
        print()


if __name__ == "__main__":
    main()
