"""Measure error rates and power of the comparison of losses on simulated scores.

python tools/simulate_comparisons.py --comparisons 1000

A score is the sum of effects of the case, the run (standard deviation 0.004), the loss on the case (0.01) and a
residual (0.02). The first table shows, for each number of losses, seeds and cases, the share of comparisons of equal
losses with any false verdict: if all runs vary equally; if every second loss or only one loss varies four times as
much; and with a Wilcoxon test over the cases of one run per loss. The second table shows how often a true difference
is found.
"""

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from segkit.compare.statistics import pair_results
from segkit.compare.variance_models import TwoWay

RUN, WIDE, NARROW, INTERACTION, RESIDUAL = 0.004, 0.008, 0.002, 0.01, 0.02


def simulated(
    generator: np.random.Generator, spreads: Sequence[float], runs: int, cases: int, shift: float = 0.0
) -> dict[str, np.ndarray]:
    """Scores {loss: [runs, cases]} of one loss for each standard deviation of runs; the first is better by `shift`."""
    case = generator.beta(8, 2, cases) * 0.8 + 0.05
    samples = {}
    for number, spread in enumerate(spreads):
        loss_scores = case + generator.normal(0, spread, (runs, 1)) + generator.normal(0, INTERACTION, cases)
        scores = loss_scores + generator.normal(0, RESIDUAL, (runs, cases)) + (shift if number == 0 else 0.0)
        samples[f"loss{number}"] = scores.clip(0, 1)
    return samples


def wrong(samples: dict[str, np.ndarray]) -> bool:
    """Whether any pair of equal losses gets the verdict better or worse."""
    pairs = list(itertools.combinations(samples, 2))
    return any(pair["verdict"] in ("better", "worse") for pair in pair_results(pairs, TwoWay(samples), 0.005, {}))


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
        rates[kind] = np.mean([wrong(simulated(generator, spreads, runs, cases)) for _ in range(comparisons)])
    naive = max(1, comparisons // 5)
    rates["Wilcoxon"] = np.mean([wrong_naively(simulated(generator, kinds["equal"], 1, cases)) for _ in range(naive)])
    return {kind: float(rate) for kind, rate in rates.items()}


def power(losses: int, runs: int, cases: int, shift: float, comparisons: int, seed: int = 1) -> float:
    """The share of pairs with the first, better loss that get the verdict better."""
    generator = np.random.default_rng([seed, losses, runs, cases])
    detected = []
    for _ in range(comparisons):
        samples = simulated(generator, [RUN] * losses, runs, cases, shift)
        pairs = pair_results(list(itertools.combinations(samples, 2)), TwoWay(samples), 0.005, {})
        detected += [pair["verdict"] == "better" for pair in pairs if pair["a"] == "loss0"]
    return float(np.mean(detected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    arguments = parser.parse_args()
    print("| losses | seeds | cases | equal | every second wide | one wide | Wilcoxon, one run |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for losses, runs, cases in itertools.product((2, 8), (3, 5), (30, 100, 300)):
        rates = error_rates(losses, runs, cases, arguments.comparisons)
        row = [losses, runs, cases, *(f"{rate:.3f}" for rate in rates.values())]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    print("\n| losses | true difference | seeds | found |\n|--:|--:|--:|--:|")
    for losses, shift, seeds in ((2, 0.006, (3, 5, 10)), (8, 0.015, (2, 3, 5))):
        for runs in seeds:
            rate = power(losses, runs, 100, shift, max(1, arguments.comparisons // 3))
            print(f"| {losses} | {shift} | {runs} | {rate:.2f} |", flush=True)


if __name__ == "__main__":
    main()
