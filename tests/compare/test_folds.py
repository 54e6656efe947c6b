"""Comparisons over the folds of a cross-validation: the variance over folds and over seeds that folds share."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from segkit.compare.analysis import Analysis, ReportContext, no_material, write_comparison
from segkit.compare.shared_seeds import shared_seeds
from segkit.compare.statistics import analyse
from segkit.compare.variance_models import Folds

from support.simulated_tables import folded, long_table, simulated

pytestmark = pytest.mark.usefixtures("without_figures")

QUIET = Console(quiet=True)


def test_folds_have_the_variance_of_nadeau_and_bengio():
    """Example of the paper: five folds, mean 0.016, variance 1.3e-4, t 2.092 with 4 degrees of freedom."""
    differences = np.array([0.01, 0.02, 0.03, 0.00, 0.02])
    a, b = ([np.array([value]) for value in values] for values in (0.5 + differences, np.full(5, 0.5)))
    estimate = Folds({"a": a, "b": b}, test_train_ratio=0.25, groups=100).estimate({"a": 1, "b": -1})
    assert estimate.value == pytest.approx(0.016)
    assert estimate.standard_error == pytest.approx(np.sqrt(0.45 * 1.3e-4))
    assert estimate.df == 4
    assert estimate.p == pytest.approx(0.105, abs=5e-4)


@pytest.mark.parametrize(("repeats", "seeds"), [(1, 1), (1, 3), (3, 1)])
def test_k_fold_tables_are_tested_over_folds(repeats, seeds):
    table = folded(np.random.default_rng(0), repeats=repeats, seeds=seeds, shift=0.05)
    result = analyse(table)
    means = table.groupby(["loss", "fold", "seed"])["dice"].mean().groupby(["loss", "fold"]).mean()
    differences = (means["a"] - means["b"]).to_numpy()
    (pair,) = result["pairs"]
    error = np.sqrt((1 / len(differences) + 0.25) * differences.var(ddof=1))
    assert pair["difference"] == pytest.approx(differences.mean())
    assert pair["p"] == pytest.approx(2 * stats.t.sf(differences.mean() / error, len(differences) - 1))
    assert pair["verdict"] == "better"
    assert "new training sets" in result["method"]["speaks_of"]
    assert any("share their training cases" in words for words in result["warnings"])
    assert {run["fold"] for run in result["losses"][0]["runs"]} == set(range(5 * repeats))


def test_the_part_of_shared_seeds_is_that_of_an_analysis_of_variance():
    """Mean squares of seeds and residual by statsmodels, for three seeds in each of four folds."""
    table = np.random.default_rng(1).normal(0, 1, (3, 4)) + np.array([[0.0], [2.0], [3.0]])
    found = shared_seeds(list(table.T), [np.array(["x", "y", "z"])] * 4)
    rows = pd.DataFrame([(value, *key) for key, value in np.ndenumerate(table)], columns=list("ysf"))
    squares = anova_lm(ols("y ~ C(s) + C(f)", rows).fit())["mean_sq"]
    assert found.variance == pytest.approx(squares["C(s)"] / 12)
    assert found.residual == pytest.approx(squares["Residual"] / 12)
    assert found.df == pytest.approx(2)


def crossed(generator, lacking=()):
    """Runs of a loss in six folds with the same four seeds, without those that are lacking: runs and seeds by fold."""
    of_seed = generator.normal(0, 0.004, 4)
    runs, seeds = [], []
    for fold in range(6):
        own = np.array([seed for seed in range(4) if (seed, fold) not in lacking])
        runs.append(of_seed[own] + generator.normal(0, 0.008, len(own)) + generator.normal(0, 0.002))
        seeds.append(own)
    return runs, seeds


# which seed is lacking in which fold: none, another in each fold, most of one
LACKING = [(), [(fold % 4, fold) for fold in range(6)], [(0, fold) for fold in range(1, 5)]]


@pytest.mark.parametrize("lacking", LACKING)
def test_the_variance_with_shared_seeds_is_that_of_simulated_differences(lacking):
    """The variance over seeds and folds is on average that of 3000 differences of two equal losses.

    Without cases that folds share, so without the correction for it. Without the larger of three variances, which
    makes the standard error conservative.
    """
    generator, values, variances, false = np.random.default_rng(0), [], [], []
    for _ in range(3000):
        drawn = {loss: crossed(generator, lacking) for loss in "ab"}
        samples, seeds = ({loss: both[number] for loss, both in drawn.items()} for number in (0, 1))
        model = Folds(samples, test_train_ratio=0.0, groups=60, seeds=seeds)
        estimate = model.estimate({"a": 1, "b": -1})
        parts = [shared_seeds(*both) for both in drawn.values()]
        over_folds = np.var(model.scores["a"] - model.scores["b"], ddof=1) / 6
        values.append(estimate.value)
        variances.append(over_folds + sum(part.variance - part.residual for part in parts))
        assert estimate.standard_error**2 >= max(variances[-1], over_folds) - 1e-12
        false.append(estimate.p < 0.05)
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.08)  # of which 3 % are chance
    assert 0 < np.mean(false) < 0.06


def test_seeds_that_all_folds_share_widen_the_interval():
    """Seeds decide most of the scores, and folds little: only a model of seeds sees how uncertain the mean is."""
    generator = np.random.default_rng(3)
    table = folded(generator, seeds=3, same_seeds=True)
    of_seed = dict(zip(range(3), (0.0, 0.02, 0.04), strict=True))
    table["dice"] += table["seed"].map(of_seed) * (table["loss"] == "a")
    result = analyse(table)
    assert "over seeds that several folds have" in result["method"]["test"]
    assert any("several folds have the same seeds" in text for text in result["warnings"])
    own = analyse(table.assign(seed=100 * table["fold"] + table["seed"]))
    assert not any("same seeds" in text for text in own["warnings"])
    widths = [np.ptp(found["pairs"][0]["ci95"]) for found in (result, own)]
    over_seeds = 2 * stats.t.ppf(0.975, 2) * np.std(list(of_seed.values()), ddof=1) / np.sqrt(3)
    assert widths[0] == pytest.approx(over_seeds, rel=0.25)  # runs add to it
    assert widths[1] < widths[0] / 3
    drawn = [np.ptp(found["ranks"]["pairs"][0]["ci95_bootstrap"]) for found in (result, own)]
    assert drawn[0] > 1.5 * drawn[1]


@pytest.mark.parametrize("repeats", [1, 2])
def test_one_seed_in_all_folds_gives_no_verdict(tmp_path, repeats):
    """One seed in all folds, or in all folds of a repetition: what it adds to a loss is unknown."""
    table = folded(np.random.default_rng(0), repeats=repeats, shift=0.05)
    alike = table.assign(seed=table["fold"] // 5)
    result = write_comparison(alike, tmp_path, Analysis(), ReportContext(), no_material, QUIET)
    (pair,) = result["pairs"]
    assert (pair["verdict"], pair["p"]) == (None, None)
    assert "all folds of a and b have one and the same seed" in pair["reason"]
    assert "cannot say which loss to take: all folds of a and b" in (tmp_path / "report.md").read_text()
    only_a = analyse(table.assign(seed=np.where(table["loss"] == "a", alike["seed"], table["seed"])))
    assert "all folds of a have one and the same seed" in only_a["pairs"][0]["reason"]
    assert analyse(table)["pairs"][0]["verdict"] == "better"


def test_folds_on_the_same_cases_with_the_same_seed_are_a_caveat():
    """A test set of its own, scored by the models of all folds."""
    table = long_table(simulated(np.random.default_rng(4), 2, 3, 60))
    alike = pd.concat([table.assign(fold=fold) for fold in range(2)])
    assert any("with the same seed count as independent runs" in text for text in analyse(alike)["warnings"])
    own = pd.concat([table.assign(fold=fold, seed=table["seed"] + 10 * fold) for fold in range(2)])
    assert not any("same seed" in text for text in analyse(own)["warnings"])


def test_every_loss_needs_every_fold():
    table = folded(np.random.default_rng(1))
    lacking = table[~((table["loss"] == "b") & (table["fold"] == 3))]
    with pytest.raises(ValueError, match="b has no run in fold 3"):
        analyse(lacking)
