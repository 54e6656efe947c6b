"""Measure the rate of false verdicts on real trainings: how often a loss is called better than itself.

python tools/compare.py --config configs/quickstart.yaml --losses dice_ce --seeds 40 --out noise
python tools/false_verdicts.py noise/cases.csv --splits 500

The script repeatedly draws two disjoint sets of runs of one loss, compares them as if they were two losses, and counts
how often the verdict is `better` or `worse`. It also counts how often a Wilcoxon test over cases finds a difference
between two single runs. Intervals are those of Clopper and Pearson; they are somewhat too narrow, because splits share
runs.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from segkit.compare.score_table import read_rows, read_scores
from segkit.compare.statistics import pair_results
from segkit.compare.variance_models import TwoWay, group_values


def count_false_verdicts(values: np.ndarray, runs: int, splits: int, margin: float, seed: int) -> tuple[int, int]:
    """Count the splits of runs [R, groups] with a false verdict, and those with p < 0.05 in the Wilcoxon test."""
    generator = np.random.default_rng(seed)
    wrong, naive = 0, 0
    for _ in range(splits):
        drawn = generator.permutation(len(values))[: 2 * runs]
        samples = {"a": values[drawn[:runs]], "b": values[drawn[runs:]]}
        (pair,) = pair_results([("a", "b")], TwoWay(samples), margin, {})
        wrong += pair["verdict"] in ("better", "worse")
        result: Any = stats.wilcoxon(samples["a"][0], samples["b"][0])
        naive += result.pvalue < 0.05
    return wrong, naive


def with_interval(count: int, splits: int) -> str:
    """The rate as a percentage with its 95 % interval."""
    interval = stats.binomtest(count, splits).proportion_ci()
    return f"{count / splits:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="cases.csv of a comparison with one loss and many seeds")
    parser.add_argument("--metric", default="dice")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--margin", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scores = read_scores(read_rows(arguments.table), arguments.metric)
    if len(scores.losses) != 1 or len(scores.runs) < 2 * arguments.runs:
        got = f"{', '.join(scores.losses)} with {len(scores.runs)} runs"
        parser.error(f"expected one loss with at least {2 * arguments.runs} runs, got {got}")
    values = group_values(scores)
    wrong, naive = count_false_verdicts(values, arguments.runs, arguments.splits, arguments.margin, arguments.seed)
    means = values.mean(1)
    print(
        f"{len(values)} runs of {scores.losses[0]}: mean {means.mean():.4f}, standard deviation {means.std(ddof=1):.4f}"
    )
    print(f"false verdicts, {arguments.runs} against {arguments.runs} runs: {with_interval(wrong, arguments.splits)}")
    print(f"Wilcoxon test over cases, p < 0.05, one run against one: {with_interval(naive, arguments.splits)}")


if __name__ == "__main__":
    main()
