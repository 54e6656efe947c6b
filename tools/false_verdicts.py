"""How often the comparison calls a loss better than itself, on real trainings.

python tools/compare.py --config configs/quickstart.yaml --losses dice_ce --seeds 40 --out noise
python tools/false_verdicts.py noise/cases.csv --splits 500

Draws disjoint sets of runs of the one loss, gives them two names, and counts how often the verdict is `better` or
`worse`; beside it, how often a Wilcoxon test over cases finds a difference between one run and another. The interval is
that of Clopper and Pearson; splits share runs, so that it is somewhat too narrow.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from segkit.compare.score_table import read_rows, read_scores
from segkit.compare.statistics import pair_results
from segkit.compare.variance_models import TwoWay, group_values


def rate(values: np.ndarray, runs: int, splits: int, margin: float, seed: int) -> tuple[int, int]:
    """How many of the splits of the runs [R, groups] get a false verdict, and how many pairs of runs a small p of the
    naive test."""
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


def in_words(count: int, splits: int) -> str:
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
        got = f"{', '.join(scores.losses)} with {len(scores.runs)}"
        parser.error(f"expected one loss with at least {2 * arguments.runs} runs, got {got}")
    values = group_values(scores)
    wrong, naive = rate(values, arguments.runs, arguments.splits, arguments.margin, arguments.seed)
    spread = values.mean(1)
    print(f"{len(values)} runs of {scores.losses[0]}: {spread.mean():.4f}, standard deviation {spread.std(ddof=1):.4f}")
    print(f"{arguments.runs} against {arguments.runs} of them, false verdicts: {in_words(wrong, arguments.splits)}")
    print(f"one against one, Wilcoxon over cases below 0.05: {in_words(naive, arguments.splits)}")


if __name__ == "__main__":
    main()
