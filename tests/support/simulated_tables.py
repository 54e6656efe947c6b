"""Simulated long tables of scores with known differences between losses."""

import itertools

import numpy as np
import pandas as pd

from support.tool_modules import tool_module

SIMULATIONS = tool_module("simulate_comparisons")


def long_table(values, classes=("organ",), groups=None):
    """The long table of scores {loss: [runs, cases] or [runs, cases, classes]}.

    Runs are numbered by seed in fold 0. Without `groups`, every case is a group of its own.
    """
    rows = []
    for loss, array in values.items():
        array = np.asarray(array, dtype=float)
        array = array[..., None] if array.ndim == 2 else array
        for seed, case, number in itertools.product(*map(range, array.shape)):
            group = f"case{case}" if groups is None else groups[case]
            rows.append((loss, seed, 0, f"case{case}", group, classes[number], array[seed, case, number]))
    return pd.DataFrame(rows, columns=["loss", "seed", "fold", "case", "group", "class", "dice"])


def simulated(generator, losses, runs, cases, shift=0.0, run_sd=0.004):
    """Scores with the variance components case, run, loss x case and residual; the first loss is better by `shift`."""
    return SIMULATIONS.simulated(generator, [run_sd] * losses, runs, cases, shift)


def folded(generator, folds=5, repeats=1, seeds=1, cases=40, shift=0.0, same_seeds=False):
    """Two losses over a repeated k-fold; each repetition splits the same cases differently.

    Folds have seeds of their own or the same seeds.
    """
    rows, case = [], generator.uniform(0.5, 0.9, cases)
    for repeat in range(repeats):
        for fold, part in enumerate(np.array_split(generator.permutation(cases), folds)):
            for loss in "ab":
                for seed in range(seeds):
                    run = generator.normal(0, 0.004) + (shift if loss == "a" else 0)
                    number = repeat * folds + fold
                    keys = (loss, seed if same_seeds else 100 * number + seed, number)
                    rows += [(*keys, f"c{n}", "organ", case[n] + run + generator.normal(0, 0.01)) for n in part]
    return pd.DataFrame(rows, columns=["loss", "seed", "fold", "case", "class", "dice"])
