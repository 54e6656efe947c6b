"""Comparisons beyond the statistical test: folds, ranks, sanity checks, the plan, executors and the report."""

import io
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import stats

from segkit import Labels
from segkit.compare import run_artifacts
from segkit.compare.across_datasets import over_datasets
from segkit.compare.aggregation import AGGREGATIONS, effective_groups, run_scores
from segkit.compare.analysis import (
    Analysis,
    ReportContext,
    TableError,
    compare_table,
    folder_names,
    no_material,
    write_comparison,
)
from segkit.compare.design import Unit
from segkit.compare.executors import LocalExecutor, RayExecutor
from segkit.compare.rankings import Draws, loss_means, rankings
from segkit.compare.run_variances import RunVariances, equal_spread_p
from segkit.compare.sanity_checks import (
    aggregation_warnings,
    boundary_rates,
    identical_runs,
    log_warnings,
    noise_warnings,
    operating_point_warnings,
    same_functions,
    stopped_by_max_steps,
    unequal_steps,
)
from segkit.compare.score_table import from_challenger, read_scores, to_challenger
from segkit.compare.statistics import analyse
from segkit.compare.variance_models import TwoWay, group_values
from segkit.config import Config
from segkit.data import SyntheticSource
from segkit.data.splits import Split
from segkit.models import MODELS
from segkit.report.comparison_figures import classes_figure, cliques
from segkit.report.comparison_page import best_first, sentences
from segkit.training import precision
from segkit.utils.leases import Leases

from support.browser import Visit, browser
from support.command_line import TINY, tool, write_pairs
from support.processes import FORKS, start_tool
from support.simulated_tables import folded, long_table, simulated

pytestmark = pytest.mark.usefixtures("without_figures")

QUIET = Console(quiet=True)


# --- other metrics, other spreads ------------------------------------------------------------------------------------


def test_a_smaller_distance_is_better():
    generator = np.random.default_rng(2)
    near, far = generator.uniform(1, 2, (2, 3, 60))
    table = long_table({"near": near, "far": far + 3}).rename(columns={"dice": "hd95"})
    result = analyse(table, metric="hd95", margin=0.5)
    (pair,) = result["pairs"]
    assert (pair["a"], pair["verdict"]) == ("near", "better")
    assert pair["difference"] == pytest.approx(far.mean() + 3 - near.mean())
    near_result, far_result = result["losses"]
    assert near_result["mean"] == pytest.approx(near.mean())
    assert near_result["ci95"][0] < near.mean() < near_result["ci95"][1]
    assert far_result["mean"] > near_result["mean"]
    assert result["ranks"]["rules"]["class_case"]["ranks"] == {"near": 1, "far": 2}


@pytest.mark.parametrize(("metric", "sign"), [("betti_error", -1), ("hd90_from_reference", -1), ("mcc", 1)])
def test_metrics_with_other_ranges(metric, sign):
    """Numbers of errors, which have no largest value, and a correlation, which may be negative."""
    generator = np.random.default_rng(3)
    values = generator.uniform(-0.6, -0.2, (2, 3, 60)) if metric == "mcc" else generator.integers(3, 9, (2, 3, 60))
    table = long_table({"a": values[0], "b": values[1] + sign * -0.3}).rename(columns={"dice": metric})
    result = analyse(table, metric=metric, margin=0.01)
    (pair,) = result["pairs"]
    assert pair["difference"] == pytest.approx(sign * (values[0].mean() - values[1].mean() + sign * 0.3))
    assert pair["difference"] > 0
    assert result["higher_is_better"] == (sign > 0)
    with pytest.raises(ValueError, match=f"expected {metric} from "):
        analyse(table.assign(**{metric: -1.5}), metric=metric, margin=0.01)


def test_with_unequal_spread_losses_have_mostly_their_own_variance():
    """Against the formula, with the typical variance of three losses."""
    case = np.linspace(0.3, 0.7, 40)
    runs = {
        "a": np.array([0.0, 0.006, -0.006, 0.003]),
        "b": np.array([0.1, 0.102, 0.099, 0.1004]),
        "c": np.array([0.05, 0.052, 0.049, 0.051]),
    }
    values = {loss: np.add.outer(means, case) for loss, means in runs.items()}
    study = TwoWay(values)
    assert study.equal_spread_p < 0.2
    assert study.equal_spread_p == pytest.approx(stats.bartlett(*runs.values()).pvalue)
    own = {loss: means.var(ddof=1) for loss, means in runs.items()}
    digamma = 2 - 2 * np.log(2) - np.euler_gamma  # of 3 / 2, for three degrees of freedom
    typical = stats.gmean(list(own.values())) * 1.5 / np.exp(digamma)
    parts = [(2 * typical + 3 * own[loss]) / 5 / 4 for loss in "ab"]
    estimate = study.estimate({"a": 1, "b": -1})
    assert estimate.standard_error**2 == pytest.approx(sum(parts))
    assert estimate.df == pytest.approx(sum(parts) ** 2 / sum(part**2 / 3 for part in parts))
    assert any("Bartlett" in words for words in analyse(long_table(values))["warnings"])


def test_the_typical_variance_is_not_biased_and_hardly_changed_by_wide_losses():
    generator = np.random.default_rng(0)
    runs = {str(number): generator.normal(0, 0.01, 4) for number in range(4000)}
    assert RunVariances(runs).typical == pytest.approx(1e-4, rel=0.05)
    wide = RunVariances({loss: scores * (10 if int(loss) % 10 == 0 else 1) for loss, scores in runs.items()})
    assert wide.pooled > 10 * 1e-4
    assert wide.typical == pytest.approx(1e-4 * 100**0.1, rel=0.05)
    assert RunVariances({"a": np.array([0.0, 1.0]), "b": np.array([0.0, 3.0])}).typical is None


@pytest.mark.parametrize("constant", [0.1, 0.5, 0.7])  # equal runs, whose variance is not 0 in floating point
def test_losses_whose_runs_hardly_vary_do_not_narrow_the_others(constant):
    generator = np.random.default_rng(3)
    runs = {name: constant + generator.normal(0, sd, 5) for name, sd in zip("abcde", (4, 6, 30, 5, 40), strict=True)}
    before = RunVariances(runs)
    assert before.equal_spread_p < 0.2
    for hardly in (np.full(5, constant), constant + 1e-9 * generator.normal(0, 1, 5)):
        after = RunVariances(runs | {"f": hardly})
        assert after.typical == pytest.approx(before.typical)
        assert after.of_sum({"a": 0.2, "b": 0.2})[0] == pytest.approx(before.of_sum({"a": 0.2, "b": 0.2})[0])
        assert after.of_sum({"f": 0.2})[0] > 0, "its next run may differ"
    few = RunVariances({"a": runs["a"], "b": np.full(5, constant), "c": np.full(5, constant)})
    assert few.of_sum({"b": 0.2, "c": 0.2})[0] > 0
    assert equal_spread_p([np.full(3, constant), np.full(3, constant)]) == 1.0


def test_two_losses_with_one_run_share_one_pooled_variance():
    generator = np.random.default_rng(4)
    variances = RunVariances({name: generator.normal(0, sd, 5) for name, sd in (("a", 1), ("b", 9))})
    assert variances.equal_spread_p < 0.2
    variance, df = variances.of_sum({"c": 1.0, "d": 1.0})
    assert variance == pytest.approx(2 * variances.pooled)
    parts = np.array(list(variances.of_loss.values()))
    assert df == pytest.approx(parts.sum() ** 2 / (parts**2 / 4).sum()), "of the sum of two variances, not of four"


def test_two_losses_with_unequal_spread_are_compared_as_by_welch():
    runs = {"a": np.array([0.5, 0.51, 0.49, 0.50]), "b": np.array([0.4, 0.6, 0.3, 0.7])}
    study = TwoWay({loss: np.add.outer(means, np.zeros(5)) for loss, means in runs.items()})
    assert study.equal_spread_p < 0.2
    estimate, expected = study.estimate({"a": 1, "b": -1}), stats.ttest_ind(*runs.values(), equal_var=False)
    assert (estimate.p, estimate.df) == (pytest.approx(expected.pvalue), pytest.approx(expected.df))


def test_narrow_losses_keep_their_intervals_beside_many_wide_ones():
    """As on phantoms, where the cross-entropy and its sums had not converged in all runs."""
    generator, case = np.random.default_rng(0), np.linspace(0.3, 0.7, 40)
    spreads = {f"narrow{number}": 0.005 for number in range(4)} | {f"wide{number}": 0.04 for number in range(4)}
    study = TwoWay({loss: case + generator.normal(0, sd, (5, 1)) for loss, sd in spreads.items()})
    assert not study.unstable
    narrow = study.estimate({"narrow0": 1, "narrow1": -1}).standard_error
    assert narrow < 0.4 * np.sqrt(2 / 5 * study.run_variances.pooled)
    assert study.estimate({"wide0": 1, "wide1": -1}).standard_error > 3 * narrow


def test_equal_variances_to_the_last_digit_are_equal():
    runs = np.array([-0.01, 0.0, 0.01])
    assert equal_spread_p([runs + shift for shift in (0.021, 0, 0, 0, 0)]) == 1.0


def test_an_unstable_loss_does_not_widen_the_intervals_of_the_others():
    """Two stable losses beside one whose runs vary forty times as much, and without it."""
    generator, case = np.random.default_rng(0), np.linspace(0.3, 0.7, 40)
    spreads = {"a": 0.002, "b": 0.002, "c": 0.002, "wild": 0.08}
    values = {loss: case + generator.normal(0, sd, (5, 1)) + 0.003 * (loss == "a") for loss, sd in spreads.items()}
    stable = {loss: values[loss] for loss in "abc"}
    study, alone = TwoWay(values), TwoWay(stable)
    assert study.unstable == {"wild"}
    assert alone.unstable == set()
    assert study.estimate({"a": 1, "b": -1}) == alone.estimate({"a": 1, "b": -1})
    assert study.estimate({"a": 1}, runs=9) == alone.estimate({"a": 1}, runs=9)
    wide = study.estimate({"a": 1, "wild": -1}).standard_error
    assert wide > 5 * study.estimate({"a": 1, "b": -1}).standard_error
    assert any("the runs of wild vary far more" in words for words in analyse(long_table(values))["warnings"])


def test_a_failed_run_leaves_its_loss_undecided():
    values = simulated(np.random.default_rng(3), 3, 3, 60, shift=0.1)
    before = analyse(long_table(values))["pairs"]
    after = analyse(long_table(values), failed={"loss0": ["loss0, seed 3"]})["pairs"]
    assert [pair["verdict"] for pair in before][:2] == ["better", "better"]
    assert [pair["verdict"] for pair in after][:2] == ["undecided", "undecided"]
    assert "runs of loss0 (1) failed" in after[0]["reason"]
    assert after[2] == before[2]


def one_run_folds(losses=3, folds=5, cases=60, classes=("organ",)):
    """A k-fold with one run per loss and fold."""
    rng = np.random.default_rng(21)
    rows = [
        (f"loss{k}", case % folds, case % folds, f"c{case:02}", name, 0.7 + 0.02 * k + rng.normal(0, 0.02))
        for k in range(losses) for case in range(cases) for name in classes
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["loss", "seed", "fold", "case", "class", "dice"])


def test_a_failed_fold_leaves_only_its_loss_undecided(tmp_path):
    table = one_run_folds()
    whole = analyse(table, resamples=0)
    left = table[~((table["loss"] == "loss1") & (table["fold"] == 2))]
    told = ReportContext(failed={"loss1": {"loss1, fold 2": "out of memory"}})
    result = write_comparison(left, tmp_path, Analysis(), told, no_material, QUIET)
    pairs = {frozenset((pair["a"], pair["b"])): pair for pair in result["pairs"]}
    assert (
        pairs[frozenset(("loss0", "loss1"))]["verdict"]
        == pairs[frozenset(("loss1", "loss2"))]["verdict"]
        == "undecided"
    )
    (others,) = [pair for pair in whole["pairs"] if (pair["a"], pair["b"]) == ("loss0", "loss2")]
    assert pairs[frozenset(("loss0", "loss2"))]["difference"] == pytest.approx(others["difference"])
    assert pairs[frozenset(("loss0", "loss2"))]["verdict"] == others["verdict"]
    assert "failed: loss1, fold 2 (out of memory)" in result["warnings"]
    assert (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="loss1 has no run in fold 2"):  # without a record of the failure
        analyse(left, resamples=0)


def test_caveats_about_few_folds_and_folds_without_a_class():
    warnings = analyse(one_run_folds(folds=3), resamples=0)["warnings"]
    assert any("3 folds, fewer than 5" in text for text in warnings)
    table = one_run_folds(classes=("organ", "lesion"))
    lacking = (table["class"] == "lesion") & (table["fold"] == 4)
    table.loc[lacking, "dice"] = np.nan
    warnings = analyse(table, resamples=0)["warnings"]
    assert any("lesion in fold 4" in text for text in warnings)
    assert not any("folds, fewer" in text for text in warnings)


def test_a_failed_noise_floor_belongs_to_no_family(tmp_path):
    rng = np.random.default_rng(22)
    names = ("loss0", "loss1", "loss0 (again)")
    table = long_table({name: rng.normal(0.8, 0.02, (3, 60)) for name in names})
    failed = {"loss0 (again)": {"loss0 (again), seed 9": "it broke"}}
    analysis = Analysis(repeated_baseline=("loss0 (again)", "loss0"))
    result = write_comparison(table, tmp_path, analysis, ReportContext(failed=failed), no_material, QUIET)
    assert [loss["name"] for loss in result["losses"]] == ["loss0", "loss1"]
    assert result["method"]["ci95_adjusted"].endswith("over 1 pair")
    assert result["noise_floor"]["verdict"] == "undecided"
    assert "failed: loss0 (again), seed 9 (it broke)" in result["warnings"]


def test_several_runs_of_one_loss_give_no_conclusion_about_losses(tmp_path):
    rng = np.random.default_rng(23)
    table = long_table({"a": rng.normal(0.8, 0.02, (3, 60)), "b": rng.normal(0.8, 0.02, (1, 60))})
    result = write_comparison(table, tmp_path, Analysis(), ReportContext(), no_material, QUIET)
    assert result["scope"] == "checkpoints"
    assert "not to the losses" in result["method"]["speaks_of"]
    page = (tmp_path / "report.html").read_text()
    assert "no losses are joined" in page
    assert "Bars join" not in page


def test_names_that_look_like_missing_values_stay_names(tmp_path):
    table = long_table({"None": np.full((3, 60), 0.8), "nan": np.full((3, 60), 0.9)}, classes=("NA",))
    table.to_csv(tmp_path / "table.csv", index=False)
    compare_table(tmp_path / "table.csv", tmp_path / "out", Analysis(), QUIET)
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {loss["name"] for loss in result["losses"]} == {"None", "nan"}
    assert result["classes"] == ["NA"]
    (tmp_path / "table.csv").write_text("")
    with pytest.raises(TableError, match="file is empty"):
        compare_table(tmp_path / "table.csv", tmp_path / "out", Analysis(), QUIET)


def test_heading_names_the_sign_of_a_difference_of_distances(tmp_path):
    near, far = np.random.default_rng(24).uniform(1, 2, (2, 3, 60))
    table = long_table({"far": far + 3, "near": near}).rename(columns={"dice": "hd95"})
    write_comparison(table, tmp_path, Analysis("hd95", margin=0.5), ReportContext(), no_material, QUIET)
    assert ">b - a</button></th>" in (tmp_path / "report.html").read_text()
    assert "| b - a |" in (tmp_path / "report.md").read_text()


def test_a_loss_without_runs_stays_in_the_report(tmp_path):
    values = simulated(np.random.default_rng(3), 2, 3, 60)
    told = ReportContext(failed={"lost": {"lost, seed 0": "loss is nan"}})
    write_comparison(long_table(values), tmp_path, Analysis(baseline="lost"), told, no_material, QUIET)
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert [(loss["name"], loss["mean"]) for loss in result["losses"]][2] == ("lost", None)
    assert [(pair["a"], pair["b"], pair["verdict"]) for pair in result["pairs"]] == [
        ("loss0", "lost", "undecided"),
        ("loss1", "lost", "undecided"),
    ]
    page = (tmp_path / "report.html").read_text()
    assert "comparison of the baseline lost with loss" in page
    assert "runs of lost (1) failed" in page


def test_missing_values_are_not_silently_perfect(tmp_path):
    table = long_table(simulated(np.random.default_rng(4), 2, 3, 60))
    table.loc[(table["loss"] == "loss0") & (table.index % 3 == 0), "dice"] = np.nan
    number = int(table["dice"].isna().sum())
    assert any(f"{number} values are missing" in words for words in analyse(table)["warnings"])
    table.to_csv(tmp_path / "table.csv", index=False)
    meanings = ".*".join(f"--missing {name}" for name in ("absent", "perfect", "worst"))
    with pytest.raises(TableError, match=rf"(?s){number} values are missing .*{meanings}"):
        compare_table(tmp_path / "table.csv", tmp_path / "out", Analysis(), QUIET)
    filled = analyse(table.fillna({"dice": 0.0}))
    assert analyse(table, missing="worst")["pairs"] == filled["pairs"]
    with pytest.raises(ValueError, match="hd95 has no worst value"):
        analyse(table.rename(columns={"dice": "hd95"}), "hd95", missing="worst")


def test_cases_held_out_for_learning_rates_are_not_training_cases():
    """With one of five folds for testing and one for validation, the ratio is 1/3 and not 1/4."""
    table = folded(np.random.default_rng(0))
    errors = []
    for ratio in (None, 1 / 3):
        low, high = analyse(table, test_train_ratio=ratio)["pairs"][0]["ci95"]
        errors.append(high - low)
    assert errors[1] / errors[0] == pytest.approx(np.sqrt((1 / 5 + 1 / 3) / (1 / 5 + 1 / 4)))


def test_seeds_needed_is_the_smallest_number_with_a_verdict():
    """With this number of runs the interval excludes 0, and with one less it does not."""
    study = TwoWay(simulated(np.random.default_rng(5), 2, 3, 100, shift=0.012, run_sd=0.008))
    (pair,) = analyse(long_table(study.samples))["pairs"]
    needed = pair["seeds_needed"]
    assert pair["verdict"] == "undecided"
    inside = [study.estimate({"loss0": 1, "loss1": -1}, runs).interval() for runs in (needed - 1, needed)]
    assert inside[0][0] <= 0 < inside[1][0]
    assert study.estimate({"loss0": 1, "loss1": -1}, 3) == study.estimate({"loss0": 1, "loss1": -1})


def test_components_match_the_simulation():
    """Many simulated cases and runs: runs 0.03, loss x case 0.01, residual 0.02."""
    generator = np.random.default_rng(6)
    values = simulated(generator, 6, 40, 400, run_sd=0.03)
    parts = TwoWay(values).components()
    assert parts["run"] == pytest.approx(0.03, rel=0.15)
    assert parts["residual"] == pytest.approx(0.02, rel=0.05)
    assert parts["loss x group"] == pytest.approx(0.01, rel=0.1)


# --- ranks -----------------------------------------------------------------------------------------------------------


def with_counts(generator, losses=2, runs=2, cases=9, classes=("x", "y")):
    rows = []
    for loss in range(losses):
        for seed in range(runs):
            for case in range(cases):
                for name in classes:
                    reference = 0 if (case + (name == "y")) % 4 == 0 else int(generator.integers(5, 50))
                    predicted = int(generator.integers(0, 50)) if reference or generator.random() < 0.4 else 0
                    hit = int(generator.integers(0, min(reference, predicted) + 1))
                    whole = predicted + reference
                    dice = 2 * hit / whole if whole else np.nan
                    key = (f"l{loss}", seed, 0, f"c{case}", f"g{case // 2}", name)
                    rows.append((*key, hit, predicted, reference, dice))
    columns = [*("loss", "seed", "fold", "case", "group", "class"), *("tp", "predicted", "reference", "dice")]
    return pd.DataFrame(rows, columns=columns)


def by_rule(table, rule, loss, seed):
    """The score of a run by an aggregation, with loops over the table."""
    own = table[(table["loss"] == loss) & (table["seed"] == seed)]
    value = {(row["case"], row["class"]): row["dice"] for row in own.to_dict("records") if row["dice"] == row["dice"]}
    if rule == "absent_perfect":
        anywhere = table[table["dice"].notna()]
        pairs = set(zip(anywhere["case"], anywhere["class"], strict=True))
        value = {**dict.fromkeys(pairs, 1.0), **value}
    names = sorted({name for _case, name in value})
    sums = own.groupby("class")[["tp", "predicted", "reference"]].sum()
    if rule == "global":
        return np.mean([2 * sums["tp"][n] / (sums["predicted"][n] + sums["reference"][n]) for n in names])
    if rule == "micro":
        return 2 * sums["tp"].sum() / (sums["predicted"].sum() + sums["reference"].sum())
    if rule == "case_class":
        cases = sorted({case for case, _name in value})
        return np.mean([np.mean([value[c, n] for n in names if (c, n) in value]) for c in cases])
    if rule == "groups":
        group = own.drop_duplicates("case").set_index("case")["group"]
        found = []
        for name in names:
            members = {}
            for (case, class_name), score in value.items():
                if class_name == name:
                    members.setdefault(group[case], []).append(score)
            found.append(np.mean([np.mean(ones) for ones in members.values()]))
        return np.mean(found)
    of_class = np.median if rule == "median" else np.mean
    return np.mean([of_class([one for (_case, of), one in value.items() if of == name]) for name in names])


@pytest.mark.parametrize("rule", list(AGGREGATIONS))
def test_aggregations_match_a_loop(rule):
    table = with_counts(np.random.default_rng(7))
    scores = read_scores(table, "dice")
    found = AGGREGATIONS[rule].score(scores, np.ones((1, len(scores.cases))))[0]
    expected = [by_rule(table, rule, run.loss, run.seed) for run in scores.runs.itertuples()]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("rule", list(AGGREGATIONS))
def test_weights_equal_copies_of_cases(rule):
    """A case with weight 2 counts like two copies of it."""
    table = with_counts(np.random.default_rng(8))
    scores = read_scores(table, "dice")
    weights = np.zeros((1, len(scores.cases)))
    chosen = {0: 2, 1: 2, 2: 1, 3: 1, 6: 3, 7: 3}  # whole groups, as they are drawn
    parts = []
    for place, times in chosen.items():
        weights[0, place] = times
        case = table[table["case"] == scores.cases[place]]
        parts += [
            case.assign(case=case["case"] + f"copy{copy}", group=case["group"] + f"copy{copy}") for copy in range(times)
        ]
    copied = read_scores(pd.concat(parts, ignore_index=True), "dice")
    expected = AGGREGATIONS[rule].score(copied, np.ones((1, len(copied.cases))))
    np.testing.assert_allclose(AGGREGATIONS[rule].score(scores, weights), expected)


@pytest.mark.parametrize("rule", [name for name, one in AGGREGATIONS.items() if one.smooth])
def test_every_smooth_aggregation_gives_verdicts(rule):
    """Means match a loop; intervals match the jackknife over groups up to terms of higher order."""
    table = with_counts(np.random.default_rng(12), cases=120)
    table = table[table["seed"] == 0]  # one run a loss: the interval is of groups alone
    result = analyse(table, aggregation=rule, resamples=0)
    scores = read_scores(table, "dice", aggregation=rule)
    assert [loss["mean"] for loss in result["losses"]] == pytest.approx(
        [by_rule(table, rule, f"l{n}", 0) for n in (0, 1)]
    )
    (pair,) = result["pairs"]
    left = []
    for group in range(60):
        rest = table[table["group"] != f"g{group}"]
        left.append(by_rule(rest, rule, "l0", 0) - by_rule(rest, rule, "l1", 0))
    error = np.sqrt(59 / 60 * ((np.array(left) - np.mean(left)) ** 2).sum())
    low, high = pair["ci95"]
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 59) * error, rel=0.06)
    assert next(iter(result["ranks"]["rules"])) == rule == result["aggregation"]
    assert result["ranks"]["rules"][rule]["words"].endswith("(used for the verdicts)")
    assert len(result["ranks"]["rules"]) == len(AGGREGATIONS)
    np.testing.assert_allclose(group_values(scores).mean(1), run_scores(scores))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "median"}, "median has no interval"),
        ({"aggregation": "mean"}, "class_case, case_class, groups, absent_perfect, global, micro, got mean"),
        ({"aggregation": "micro", "metric": "nsd"}, "expected dice or iou for the aggregation micro"),
    ],
)
def test_aggregations_without_verdicts_are_refused(options, message):
    table = with_counts(np.random.default_rng(13)).assign(nsd=0.5)
    with pytest.raises(ValueError, match=message):
        analyse(table, **options)
    with pytest.raises(ValueError, match="expected columns tp, predicted and reference"):
        analyse(table.drop(columns="tp"), aggregation="global")


def test_a_class_with_few_cases_has_no_interval_over_cases():
    """A class with few cases has the same weight as the others, so the score rests on these few cases."""
    values = simulated(np.random.default_rng(14), 2, 3, 60)
    table = long_table({loss: np.stack([one, one], -1) for loss, one in values.items()}, classes=("x", "y"))
    assert analyse(table)["method"]["speaks_of"].endswith("new runs and new cases")
    rare = table.assign(dice=table["dice"].where((table["class"] == "x") | (table["case"].isin(["case3", "case7"]))))
    result = analyse(rare)
    assert "on these cases only" in result["method"]["speaks_of"]
    assert any("the class y rests on effectively 2 groups" in words for words in result["warnings"])
    assert analyse(rare, aggregation="case_class")["method"]["speaks_of"].endswith("new runs and new cases")


def test_large_groups_dominate_pooled_scores():
    table = with_counts(np.random.default_rng(15), cases=80)
    large = np.where(table["case"].isin(["c1", "c2", "c3"]), 1000, 1)
    counts = {name: table[name] * large for name in ("tp", "predicted", "reference")}
    result = analyse(table.assign(**counts), aggregation="micro")
    assert "on these cases only" in result["method"]["speaks_of"]
    assert any("the score of all classes rests on effectively" in words for words in result["warnings"])
    scores = read_scores(table.assign(**counts), "dice", aggregation="micro")
    sizes = table.assign(**counts).assign(size=lambda rows: rows["predicted"] + rows["reference"])
    of_group = sizes.groupby("group")["size"].sum()
    number, name = effective_groups(scores, *scores.blocks[0])
    assert number == pytest.approx(of_group.sum() ** 2 / (of_group**2).sum())
    assert name is None


def test_missing_worst_counts_in_every_aggregation():
    """A loss without results on hard cases must not benefit from that."""
    generator = np.random.default_rng(16)
    good = generator.uniform(0.4, 0.9, (3, 40))
    easy = np.where(np.arange(40) < 20, np.nan, good + 0.02)
    table = long_table({"good": good, "gives up": easy})
    result = analyse(table, missing="worst")
    assert {rule["ranks"]["good"] for rule in result["ranks"]["rules"].values()} == {1}
    (pair,) = analyse(table, missing="worst", aggregation="absent_perfect")["pairs"]
    assert (pair["a"], pair["verdict"]) == ("good", "better")


@pytest.mark.parametrize("rule", ["groups", "class_case"])
def test_caveat_about_groups_in_several_folds(rule):
    table = folded(np.random.default_rng(17), cases=40)
    number = table["case"].str.removeprefix("c").astype(int)
    result = analyse(table.assign(group="g" + (number % 6).astype(str)), aggregation=rule)
    assert any("cases of one group are in several folds (g" in words for words in result["warnings"])
    own = table[(table["loss"] == "a") & (table["fold"] == 2)]
    groups = "g" + (own["case"].str.removeprefix("c").astype(int) % 6).astype(str)
    expected = own.groupby(groups)["dice"].mean().mean() if rule == "groups" else own["dice"].mean()
    run = next(run for run in result["losses"][0]["runs"] if run["fold"] == 2)
    assert run["mean"] == pytest.approx(expected)
    assert not any("several folds" in words for words in analyse(table)["warnings"])


def test_a_class_without_reference():
    table = with_counts(np.random.default_rng(18), cases=12)
    empty = table["class"] == "y"
    table.loc[empty, ["tp", "predicted", "reference"]] = 0
    table.loc[empty, "dice"] = np.nan
    spurious = empty & (table["loss"] == "l0") & (table["seed"] == 0) & (table["case"] == "c5")
    table.loc[spurious, ["predicted", "dice"]] = [3, 0.0]
    result = analyse(table, aggregation="global")
    assert any(words.startswith("y: absent from every reference") for words in result["warnings"])
    rows = table[(table["loss"] == "l1") & (table["seed"] == 1) & (table["class"] == "x")]
    dice = 2 * rows["tp"].sum() / (rows["predicted"].sum() + rows["reference"].sum())
    run = next(run for run in result["losses"][1]["runs"] if run["seed"] == 1)
    assert run["mean"] == pytest.approx(dice)


def test_warnings_about_boundary_rates_and_noise():
    (told,) = boundary_rates({"dice": 0.1, "jaccard": 0.01}, [0.001, 0.01, 0.1])
    assert told.startswith("the learning rate chosen for dice, 0.1, is the largest of those tried")
    assert boundary_rates({"dice": 0.1}, [0.01, 0.1]) == []
    pair = {"a": "x", "b": "y", "verdict": "better", "difference": 0.01}
    (told,) = noise_warnings({"noise_floor": {"b": "y", "difference": -0.03}, "pairs": [pair]})
    assert told.startswith("x and y differ by 0.0100, less than the noise floor")
    assert "(0.0300)" in told
    assert noise_warnings({"noise_floor": {"b": "y", "difference": 0.003}, "pairs": [pair]}) == []


def test_bootstrap_matches_the_two_way_estimate():
    """The bootstrap interval has the width of the two-way interval, and the same seed gives the same draws."""
    values = simulated(np.random.default_rng(9), 2, 30, 120, run_sd=0.02)
    scores = read_scores(long_table(values), "dice")
    found = rankings(scores, [("loss0", "loss1")], 2000, 1)
    estimate = TwoWay(values).estimate({"loss0": 1, "loss1": -1})
    low, high = found["pairs"][0]["ci95_bootstrap"]
    assert (high - low) / (2 * 1.96 * estimate.standard_error) == pytest.approx(1, abs=0.12)
    assert found == rankings(scores, [("loss0", "loss1")], 2000, 1)
    shares = found["rules"]["class_case"]["shares"]
    np.testing.assert_allclose([sum(share) for share in shares.values()], 1)


def test_loss_means_average_the_drawn_runs():
    scores = read_scores(with_counts(np.random.default_rng(10), runs=3), "dice")
    of_runs = AGGREGATIONS["class_case"].score(scores, np.ones((1, 9)))[0]
    drawn = Draws(np.array([[2.0, 0, 1, 1, 1, 1]]), np.ones((1, 9)))
    expected = [(2 * of_runs[0] + of_runs[2]) / 3, of_runs[3:].mean()]
    np.testing.assert_allclose(loss_means(scores, "class_case", drawn)[0], expected)


# --- challengeR ------------------------------------------------------------------------------------------------------


def test_challenger_tables_round_trip():
    given = pd.DataFrame(
        [("t", f"c{c}", f"a{a}", 0.5 + 0.01 * c + 0.1 * a) for c in range(12) for a in range(2)],
        columns=["task", "case", "algorithm", "value"],
    )
    result = analyse(from_challenger(given, "dice"))
    assert result["scope"] == "checkpoints"
    back = to_challenger(read_scores(from_challenger(given, "dice"), "dice"))
    merged = given.merge(back, on=["case", "algorithm"], suffixes=("", "_back"))
    assert len(merged) == len(given)
    np.testing.assert_allclose(merged["value"], merged["value_back"])


# --- sanity checks ----------------------------------------------------------------------------------------------------


def test_same_functions_are_detected():
    labels = Labels(["background", "a", "b"])
    term = {"name": "dice", "weight": 1.0}
    losses = {
        "dice": [term],
        "half a dice": [{**term, "weight": 0.5}],
        "jaccard": [{"name": "jaccard", "weight": 1.0}],
        "tversky": [{"name": "tversky", "weight": 1.0, "alpha": 0.5, "beta": 0.5}],
        "dice (again)": [term],
    }
    told = " ".join(same_functions(losses, labels))
    assert "dice and half a dice are the same function" in told
    assert "dice and tversky are the same function" in told
    assert "jaccard" not in told
    assert "again" not in told


def test_warnings_about_aggregations_operating_points_and_identical_runs():
    names = ("class_case", "micro", "median")
    rules = {name: {"ranks": {"x": 1, "y": 2} if name == "class_case" else {"x": 2, "y": 1}} for name in names}
    (told,) = aggregation_warnings({"ranks": {"rules": rules}, "pairs": [{"a": "y", "b": "x", "verdict": "worse"}]})
    assert "x ranks before y with the aggregation class_case, but after it with 2 of 2" in told
    rules = {name: {"ranks": {"x": 1 if name == "class_case" else 3}} for name in names}
    (told,) = aggregation_warnings({"ranks": {"rules": rules}, "pairs": []})
    assert "x ranks better with the aggregation class_case (1) than with most others (3)" in told
    table = pd.DataFrame({"loss": ["x", "y"], "class": ["a", "a"], "predicted": [150, 100], "reference": [100, 100]})
    (told,) = operating_point_warnings(table, ["a"])
    assert told.startswith("x predicts 50% more a than")
    table = table.assign(predicted=[180, 100], reference=[100, 180], loss="x", **{"class": ["a", "b"]})
    (told,) = operating_point_warnings(table, ["a", "b"])  # which is as much as there is of both together
    assert told.startswith("x predicts 80% more a, 44% less b than")
    never = table.assign(predicted=[0, 100], reference=[100, 100])
    (told,) = operating_point_warnings(never, ["a", "b"])
    assert told.startswith("no run of x ever predicts a: ")
    runs = np.random.default_rng(0).random((3, 4, 1))
    (told,) = identical_runs({"a": runs[:2], "b": runs[1::-1], "c": runs + 1})
    assert "runs of a and b have the same scores on every case" in told
    assert identical_runs({"a": runs, "b": np.stack([runs[0], *(runs[1:] + 1)])}) == []


def test_warnings_of_trainings_are_reported():
    dead = {"kind": "warning", "step": 5, "message": "the gradient of dice is 0"}
    steps = [{"kind": "step", "step": 10}, {"kind": "step", "step": 20, "skipped": {"steps": 3, "cases": ["c"]}}]
    assert log_warnings({"dice": [[dead, *steps], steps[:1]], "focal": [steps[:1]]}) == [
        "dice, 1 of 2 runs: the gradient of dice is 0",
        "dice: 3 of 30 steps were skipped because loss or gradient was not finite",
    ]


def test_warning_about_unequal_steps():
    def steps(number):
        return [{"kind": "step", "step": step} for step in range(10, number + 1, 10)]

    assert unequal_steps({"dice": [steps(20)], "focal": [steps(20), steps(20)]}) == []
    (told,) = unequal_steps({"dice": [steps(20)], "focal": [steps(20), steps(10)]})
    assert told.startswith("runs were trained for 10 to 20 steps (mean by loss: dice 20, focal 15)")


def test_warning_about_max_steps():
    whole = {"step": 20, "steps": 20, "finished": "steps"}
    assert stopped_by_max_steps([whole, {}]) == []
    (told,) = stopped_by_max_steps([whole, {"step": 2, "steps": 20, "finished": "max_steps"}])
    assert told.startswith("train.max_steps or train.max_epochs ended 1 of 2 runs after 2 of 20 planned steps")


# --- the command: design, plan, units --------------------------------------------------------------------------------


def compare(folder, *arguments, code=0):
    return tool("compare", "--config", "tiny.yaml", "--out", "out", *arguments, code=code, folder=folder)


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration of two steps; without overlays of units, which take longer than their training."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("steps: 8", "steps: 2") + "evaluation: {overlays: false}\n")
    return tmp_path


def test_a_design_in_yaml_with_folds_specs_and_the_noise_floor(folder):
    text = (folder / "tiny.yaml").read_text()
    section = """\
comparison:
  losses: {dice: dice, soft: [{name: dice, weight: 0.7}, {name: cross_entropy, weight: 0.3}]}
  seeds: [4]
  folds: 3
  metric: iou
  baseline: dice
  noise_floor: true
"""
    (folder / "tiny.yaml").write_text(text + section)
    listed = compare(folder, "--dry-run")
    assert "9 units, 9 to be trained" in listed
    assert all(f"dice, seed {10000 * fold + 4}, fold {fold}" in listed for fold in range(3))
    assert all(f"soft, seed {10000 * fold + 4}, fold {fold}" in listed for fold in range(3))
    assert all(f"dice (again), seed {10000 * fold + 1004}, fold {fold}" in listed for fold in range(3))
    assert "with fewer than 10 groups" not in listed
    assert not (folder / "out").exists()
    printed = compare(folder)
    result = json.loads((folder / "out" / "comparison.json").read_text())
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("soft", "dice")]
    assert result["noise_floor"]["a"] == "dice (again)"
    assert {(run["seed"], run["fold"]) for run in result["losses"][0]["runs"]} == {(4, 0), (10004, 1), (20004, 2)}
    assert result["cases"] == 24  # each case of the 24 judges one fold
    assert "t test over folds" in printed
    page = (folder / "out" / "report.html").read_text()
    assert re.search("soft (and dice are|is (better|worse) than dice)|of soft and dice is inconclusive", page)
    assert "Noise floor" in page
    report = (folder / "out" / "report.md").read_text()
    assert "- losses: dice, soft: " in report
    assert "- folds: 3\n" in report
    assert "- minutes" not in report, "it is not set"
    assert "- noise_floor: yes\n" in report
    assert "How often the predicted class is correct" in page
    assert "minutes of training" in compare(folder, "--dry-run", "comparison.seeds=[4, 5]")


def test_too_few_groups_are_told_before_the_training(folder):
    arguments = ("--losses", "dice,dice_ce", "--dry-run")
    listed = " ".join(compare(folder, *arguments, "data.test=9").split())
    assert "on 9 cases in 9 groups (test): with fewer than 10 groups" in listed
    assert "(--folds) evaluates all 21 cases" in listed
    assert "with fewer than 10 groups" not in " ".join(compare(folder, *arguments, "data.test=10").split())


def test_cases_are_prepared_once_for_all_units(folder, monkeypatch):
    """Counted in the source; without overlays, which would read cases again."""
    reads, read = Counter(), SyntheticSource.read

    def counted(source, case):
        reads[case.name] += 1
        return read(source, case)

    monkeypatch.setattr(SyntheticSource, "read", counted)
    compare(folder, "--losses", "dice,cross_entropy", "--seeds", "2", "evaluation.overlays=false")
    trained = {name: number for name, number in reads.items() if name.startswith("train")}
    assert trained == dict.fromkeys(trained, 1)
    assert len(trained) == 8
    before = pd.read_csv(folder / "out" / "cases.csv")
    compare(folder, "--losses", "dice,cross_entropy", "--seeds", "2", "--out", "uncached", "loader.cache=none")
    assert max(reads[name] for name in trained) > 4
    pd.testing.assert_frame_equal(pd.read_csv(folder / "uncached" / "cases.csv"), before)


def test_changes_of_the_plan_are_recorded(folder):
    compare(folder, "--losses", "dice", "--seeds", "1")
    plan = json.loads((folder / "out" / "plan.json").read_text())
    assert plan["changes"] == []
    printed = compare(folder, "--losses", "dice", "--seeds", "2", "--margin", "0.01")
    assert "the plan was changed after 1 finished units" in " ".join(printed.split())
    plan = json.loads((folder / "out" / "plan.json").read_text())
    (change,) = plan["changes"]
    assert "design.margin: 0.005 before, 0.01 after" in change["differences"]
    assert change["hash"] != plan["hash"]
    assert "changed after the plan was written: design.margin" in (folder / "out" / "report.html").read_text()


def test_the_report_shows_the_current_plan(folder):
    compare(folder, "--losses", "dice", "--seeds", "2")
    printed = compare(folder, "--losses", "dice", "--seeds", "2", "--margin", "0.25", "train.steps=3")
    assert "changed after 2 finished units" in " ".join(printed.split())
    page = (folder / "out" / "report.html").read_text()
    assert '<tr><td>margin</td><td class="text">0.25</td></tr>' in page


def test_changed_data_gives_new_units(folder):
    """Runs on masks that were corrected later are not reused."""
    write_pairs(folder, side=32)
    text = TINY.replace("[background, a, b]", "[background, a]").replace("steps: 8", "steps: 2")
    text = text.replace(TINY.splitlines()[1], "data: {name: pairs, images: images, masks: masks}")
    (folder / "tiny.yaml").write_text(text + "split: {name: kfold, folds: 3}\nevaluation: {overlays: false}\n")
    compare(folder, "--losses", "dice", "--seeds", "2")
    for file in (folder / "masks").iterdir():
        Image.fromarray(np.ones((32, 32), np.uint8)).save(file)
    printed = compare(folder, "--losses", "dice", "--seeds", "3")
    assert "already finished" not in printed
    assert "data: " in " ".join(printed.split())
    table = pd.read_csv(folder / "out" / "cases.csv")
    assert set(table[table["class"] == "a"]["reference"]) == {32 * 32}


def test_changed_initial_weights_give_new_units_and_a_change_of_the_plan(folder):
    """A file that is missing later is the one that the plan knows."""
    network = MODELS["unet"](in_channels=1, out_channels=3, dims=2, widths=[8, 16])
    arguments = ("--losses", "dice", "train.init=weights.pt")
    printed = compare(folder, *arguments, "--seeds", "1", code=2)
    assert "train.init: there is no file" in " ".join(printed.split())
    torch.save(network.state_dict(), folder / "weights.pt")
    compare(folder, *arguments, "--seeds", "1")
    torch.save({name: 2 * value for name, value in network.state_dict().items()}, folder / "weights.pt")
    printed = " ".join(compare(folder, *arguments, "--seeds", "2").split())
    assert "already finished" not in printed
    assert re.search(r"initial_weights\.train\.init: '\w{16}' before, '\w{16}' after", printed)
    (folder / "weights.pt").unlink()
    assert "already finished: 2 of 2 units" in compare(folder, *arguments, "--seeds", "2")
    plan = json.loads((folder / "out" / "plan.json").read_text())
    assert len(plan["changes"]) == 1  # the seeds and the weights


def test_automatic_precision_is_that_of_the_first_start(folder, monkeypatch):
    """Also on a machine that would choose another one, so that no comparison mixes them."""
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    arguments = ("--losses", "dice", "train.precision=auto")
    compare(folder, *arguments, "--seeds", "1")
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    assert "already finished: 1 of 2 units" in compare(folder, *arguments, "--seeds", "2")
    for file in (folder / "out" / "units").glob("*/checkpoints/last.pt"):
        assert torch.load(file, weights_only=True)["resolved"]["train"]["precision"] == "bf16"
    plan = json.loads((folder / "out" / "plan.json").read_text())
    assert plan["configuration"]["train"]["precision"] == "bf16"


def test_training_must_not_use_scores_of_evaluation_cases(folder):
    for following in ("train.patience.steps=4", "schedule.name=plateau"):
        printed = compare(folder, "--losses", "dice", "--folds", "3", following, code=2)
        assert "uses scores of the validation set" in " ".join(printed.split())


def test_minutes_need_one_unit_at_a_time(folder):
    arguments = ("--losses", "dice", "comparison.minutes=1", "--parallel", "2")
    assert "use --parallel 1" in " ".join(compare(folder, *arguments, code=2).split())


def test_minutes_are_for_one_process_at_a_time(folder):
    arguments = ("--losses", "dice", "--seeds", "1", "comparison.minutes=1", "train.steps=1")
    with Leases().acquire(folder / "out" / "minutes") as acquired:
        assert acquired
        assert "another process is training units" in " ".join(compare(folder, *arguments, code=2).split())
    compare(folder, *arguments)


def test_unknown_engines_and_invalid_options_are_refused(folder):
    printed = " ".join(compare(folder, "--losses", "dice", "--engine", "slurm", code=2).split())
    assert "expected --engine to be one of local, ray, got slurm" in printed
    (folder / "table.csv").write_text("loss,seed,case,class,dice\n")
    for option in ("--dry-run", "--no-wait", "--parallel=2", "--engine=ray"):
        tool("compare", "--from-table", "table.csv", option, code=2, folder=folder)


def test_the_report_names_the_rules_of_scoring(folder):
    """Distances use the settings of the units; overlaps use segkit's rules, whatever the units report by."""
    options = ("evaluation.tolerance_mm=20", "evaluation.rules=nnunet", "evaluation.overlays=false")
    compare(folder, "--losses", "dice,cross_entropy", "--seeds", "1", "--metric", "nsd", "--margin", "0.01", *options)
    result = json.loads((folder / "out" / "comparison.json").read_text())
    assert result["rules"]["name"] == "segkit"
    assert result["rules"]["surface"]["tolerance_mm"] == 20
    (unit, *_) = (folder / "out" / "units").glob("dice-*")
    (scores,) = unit.rglob("scores.json")
    measured = json.loads(scores.read_text())
    assert measured["rules"]["surface"]["tolerance_mm"] == 20
    assert any("evaluation.rules: nnunet applies to" in text for text in result["warnings"])


@pytest.mark.usefixtures("quick_workers")
def test_several_units_at_once(folder):
    compare(folder, "--losses", "dice,cross_entropy", "--seeds", "2", "--parallel", "2", "evaluation.overlays=false")
    assert len(pd.read_csv(folder / "out" / "cases.csv")[["loss", "seed"]].drop_duplicates()) == 4
    logs = [file.read_text() for file in (folder / "out" / "logs").iterdir()]
    assert sum(text.count("seed 0") > 0 or text.count("seed 1") > 0 for text in logs) >= 1


def test_a_unit_that_kills_its_process_repeatedly_fails(folder):
    """The other units are trained and compared nevertheless."""
    compare(folder, "--losses", "dice,cross_entropy", "--seeds", "2", "evaluation.overlays=false")
    (unit,) = (folder / "out" / "units").glob("dice-seed1-*")
    shutil.rmtree(unit)
    unit.mkdir()
    (unit / "attempts.json").write_text(json.dumps([time.time() + 600] * 2))
    printed = compare(folder, "--losses", "dice,cross_entropy", "--seeds", "2", code=4)
    assert "dice, seed 1: its training process was killed 2 times" in " ".join(printed.split())
    result = json.loads((folder / "out" / "comparison.json").read_text())
    assert result["pairs"][0]["verdict"] == "undecided"
    (unit / "attempts.json").unlink()
    compare(folder, "--losses", "dice,cross_entropy", "--seeds", "2")


@dataclass(frozen=True)
class Deadly:
    """The attributes of a unit that an executor uses."""

    folder: Path


def kills_its_process_once(unit, _leases, _since, _console):
    """Simulates a unit that runs out of memory."""
    try:
        unit.folder.mkdir(parents=True)
    except FileExistsError:  # the other worker may have made it just now
        (unit.folder / "done").touch()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def raises(_unit, _leases, _since, _console):
    raise KeyError("a programming error")


@pytest.mark.usefixtures("quick_workers")
def test_killed_workers_are_replaced(tmp_path):
    """Every worker is killed once."""
    units = [Deadly(tmp_path / "out" / "units" / str(number)) for number in range(2)]
    LocalExecutor(2).run(units, kills_its_process_once, Console(file=io.StringIO()))
    assert all((unit.folder / "done").exists() for unit in units)


def ends(unit, _leases, _since, _console):
    """Simulates a unit that fails, or that has scores."""
    (unit.folder / "evaluation" / "test").mkdir(parents=True, exist_ok=True)  # the other worker may have made it
    (unit.folder / ("failed.json" if unit.folder.name == "0" else "evaluation/test/scores.json")).touch()
    return True


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("parallel", [1, 2])
def test_the_progress_of_all_units_is_shown(tmp_path, parallel):
    units, printed = [Deadly(tmp_path / "out" / "units" / str(number)) for number in range(3)], io.StringIO()
    for unit in units:  # failures and scores of an earlier command
        (unit.folder / "evaluation" / "test").mkdir(parents=True)
        for name in ("failed.json", "evaluation/test/scores.json"):
            (unit.folder / name).touch()
            os.utime(unit.folder / name, (1, 1))
    LocalExecutor(parallel).run(units, ends, Console(file=printed))
    lines = [line for line in printed.getvalue().splitlines() if "units done" in line]
    assert lines[-1] == "3 of 3 units done"
    assert all(", about 0 s left" in line for line in lines[:-1])
    assert parallel == 2 or len(lines) == 3


@pytest.mark.usefixtures("quick_workers")
def test_an_error_of_a_worker_is_raised(tmp_path):
    units = [Deadly(tmp_path / "out" / "units" / str(number)) for number in range(2)]
    with pytest.raises(RuntimeError, match=r"exit codes \[1, 1\]; see .*logs"):
        LocalExecutor(2).run(units, raises, Console(file=io.StringIO()))
    assert "a programming error" in (tmp_path / "out" / "logs" / "0.txt").read_text()


def test_no_wait(folder):
    arguments = ("--losses", "dice", "--seeds", "2", "evaluation.overlays=false")
    listed = compare(folder, *arguments, "--dry-run")
    first = next(Path(line.split()[-1]) for line in listed.splitlines() if "seed 0" in line)
    ready = FORKS.Event()
    other = FORKS.Process(target=hold, args=(first, ready))
    other.start()
    assert ready.wait(60)
    assert "still training 1 of 2 units" in compare(folder, *arguments, "--no-wait")
    other.kill()
    other.join()
    assert not (folder / "out" / "report.html").exists()
    compare(folder, *arguments, "--no-wait")
    assert (folder / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("losses: [dice], metric: hd95", "is in mm"),
        ("losses: [dice], repeats: 2", "needs comparison.folds"),
        ("losses: [dice], folds: 2, sweep: [0.1, 0.2]", "comparison.folds of at least 3"),
        ("losses: [dice], steps: 3, minutes: 1", "got both"),
        ("losses: [dice], seeds: [1, 1]", "different seeds"),
        ("losses: [dice], folds: 3, seeds: [1, 10000]", "choose smaller seeds than 10000"),
        ("losses: [dice], family: vs_baseline", "needs comparison.baseline"),
        ("losses: {a: {name: dcie}}", "dcie"),
        ("losses: [dice], aggregation: global, metric: nsd", "comparison.aggregation: expected dice or iou"),
        ("seeds: 2", "expected losses to compare"),
    ],
)
def test_invalid_designs_are_refused(folder, section, message):
    (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text() + f"comparison: {{{section}}}\n")
    assert message in compare(folder, code=2)
    assert not (folder / "out").exists()


def test_learning_rates_are_chosen_on_the_validation_set(folder):
    arguments = ("--losses", "dice,cross_entropy", "--seeds", "1", "comparison.sweep=[1e-9, 0.02]", "train.steps=12")
    compare(folder, *arguments)
    result = json.loads((folder / "out" / "comparison.json").read_text())
    assert result["learning_rates"] == {"dice": 0.02, "cross_entropy": 0.02}
    tried = result["tried_rates"]
    assert [(row["loss"], row["rate"]) for row in tried] == [
        (loss, rate) for loss in ("dice", "cross_entropy") for rate in (1e-9, 0.02)
    ]
    file = next((folder / "out" / "sweep").glob("*/evaluation/*/scores.json"))
    assert {row["cases"] for row in tried} == {json.loads(file.read_text())["cases"]}
    assert "| dice | 0.02 | 0." in (folder / "out" / "report.md").read_text()
    assert len(list((folder / "out" / "sweep").glob("*/evaluation/validation/scores.json"))) == 4
    printed = compare(folder, *arguments, "evaluation.split=validation", code=2)
    assert "evaluated on the validation set" in " ".join(printed.split())


def test_a_failed_trial_does_not_fail_its_loss(folder):
    """A learning rate that is too large fails its trial only."""
    arguments = ("--losses", "dice,cross_entropy", "--seeds", "2", "evaluation.overlays=false", "train.nonfinite=1")
    sweep = ("comparison.sweep=[1e30, 0.02]", "train.clip_norm=null", "optimizer.name=sgd")
    printed = compare(folder, *arguments, *sweep)
    result = json.loads((folder / "out" / "comparison.json").read_text())
    assert result["failed"] == {}
    assert result["learning_rates"] == {"dice": 0.02, "cross_entropy": 0.02}
    lost = [words for words in result["warnings"] if "learning rate 1e+30" in words]
    assert lost, printed
    assert all(words.startswith("no score for ") for words in lost)


def test_sweep_needs_validation_cases_with_a_value(folder):
    for part in ("train", "validation", "test"):
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((16, 16), number + 1 if kind == "images" else part != "validation", np.uint8)
                Image.fromarray(pixels).save(folder / kind / part / f"{number}.png")
    splits = ", ".join(f"{part}: {part}" for part in ("train", "validation", "test"))
    given = f"{{name: pairs, images: 'images/{{split}}', masks: 'masks/{{split}}', splits: {{{splits}}}}}"
    arguments = ("labels.names=[background, a]", f"data={given}", "--losses", "dice", "--metric", "recall")
    printed = compare(folder, *arguments, "comparison.sweep=[0.01, 0.02]", code=2)
    assert "none of its cases has a value of recall" in " ".join(printed.split())


def test_two_processes_share_the_units_and_one_is_killed(folder):
    """One of two processes on a folder is killed; every unit finishes and is trained once."""
    arguments = ["--config", "tiny.yaml", "--out", "out", "--losses", "dice,cross_entropy", "--seeds", "2"]
    arguments += ["train.steps=60", "evaluation.overlays=false"]
    shells = [start_tool("compare", *arguments, folder=folder, output=folder / f"shell{n}") for n in range(2)]
    deadline = time.monotonic() + 60
    while len(list((folder / "out" / "units").glob("*/log.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    shells[0].kill()
    for shell in shells:
        shell.join(240)
    assert shells[0].exitcode == -signal.SIGKILL
    assert shells[1].exitcode == 0, (folder / "shell1.err").read_text()
    units = list((folder / "out" / "units").glob("*/evaluation/test/scores.json"))
    assert len(units) == 4
    for unit in units:
        steps = [json.loads(line) for line in (unit.parents[2] / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in steps if line["kind"] == "step"][-1] == 60


def hold(folder, ready):
    folder.parent.parent.mkdir(exist_ok=True)
    with Leases().acquire(folder) as acquired:
        assert acquired
        ready.set()
        time.sleep(60)


def test_a_lease_is_exclusive_and_ends_with_its_process(tmp_path):
    ready = FORKS.Event()
    other = FORKS.Process(target=hold, args=(tmp_path / "unit", ready))
    other.start()
    assert ready.wait(60)
    leases = Leases()
    with leases.acquire(tmp_path / "unit") as acquired:
        assert not acquired
    other.kill()
    other.join()
    with leases.acquire(tmp_path / "unit") as acquired:
        assert acquired


def test_a_lease_of_another_machine_expires(tmp_path, monkeypatch):
    """The processes of another machine cannot be checked, only the heartbeat of the lease."""
    monkeypatch.setattr("segkit.utils.leases.LEASE_SECONDS", 1.0)
    marker, leases = tmp_path / "unit.lease", Leases()
    with Leases().acquire(tmp_path / "unit"):
        written = marker.read_text()
    marker.write_text(written.replace(socket.gethostname(), "another-machine"))
    assert "another-machine" in marker.read_text()
    with leases.acquire(tmp_path / "unit") as acquired:
        assert not acquired
    time.sleep(1.2)
    with leases.acquire(tmp_path / "unit") as acquired:
        assert acquired


def test_a_process_that_lost_its_lease_stops(tmp_path, monkeypatch):
    """For example a process that was suspended for longer than a lease lasts."""
    monkeypatch.setattr("segkit.utils.leases.LEASE_SECONDS", 0.6)
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: told.set())
    try:
        with Leases().acquire(tmp_path / "unit") as acquired:
            assert acquired
            (tmp_path / "unit.lease").rename(tmp_path / "taken")
            (tmp_path / "unit.lease").write_text((tmp_path / "taken").read_text())
            assert told.wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with losses and cases whose names contain markup."""
    out = tmp_path_factory.mktemp("pages")
    values = simulated(np.random.default_rng(11), 3, 3, 60, shift=0.05)
    table = long_table(values, classes=("organ",))
    table["case"] = "<script>alert(1)</script>|" + table["case"]
    table["loss"] = table["loss"].replace({"loss1": "<b>|loss$1$"})
    write_comparison(table, out, Analysis(), ReportContext(), no_material, QUIET)
    return out


def test_the_page_starts_with_the_verdict_and_escapes_names(pages):
    page = (pages / "report.html").read_text()
    text = re.sub(r'src="data:[^"]*"', "", page)
    assert "<script>alert" not in text
    assert text.count("<script") == 1  # by which tables sort
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in text
    assert text.index("loss0 is better than") < text.index("<table>")
    markdown = (pages / "report.md").read_text()
    assert "<script" not in markdown.replace("\\<script", "")
    for line in markdown.splitlines():
        for picture in re.findall(r"\]\(([^)]*)\)", line):
            assert (pages / picture).exists()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (900, "light")])
def test_the_page_in_a_browser(pages, width, scheme):
    """The page loads nothing, shows every figure, fits the window, and has no fault that axe-core calls serious."""
    with browser() as opened:
        visit = Visit(opened, pages / "report.html", width, scheme)
        visit.page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
        assert [found for found in visit.violations() if found[1] in ("serious", "critical")] == []
        visit.check()
        widths = visit.page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
        _check_sorting(visit, json.loads((pages / "comparison.json").read_text()))
    assert len(widths) >= 8
    assert min(widths) > 300


def _check_sorting(visit, result):
    """Numbers sort by value, the largest first; names and verdicts as words."""
    cells = "(rows, column) => rows.map(row => row.cells[column].textContent)"
    losses, pairs = "table.sorts:has(button:text-is('lowest run')) ", "table.sorts:has(button:text-is('verdict')) "
    means = {loss["name"]: loss["mean"] for loss in result["losses"]}
    visit.page.locator(losses + "button:text-is('mean')").click()
    best_first = sorted(means, key=lambda name: -means[name])
    assert visit.page.eval_on_selector_all(losses + "tbody tr", cells, 0) == best_first
    visit.page.locator(losses + "button:text-is('mean')").press("Enter")
    assert visit.page.eval_on_selector_all(losses + "tbody tr", cells, 0) == best_first[::-1]
    visit.page.locator(pairs + "button:text-is('verdict')").click()
    verdicts = visit.page.eval_on_selector_all(pairs + "tbody tr", cells, 1)
    assert verdicts == sorted(verdicts)


def test_the_best_loss_comes_first(tmp_path):
    """For a distance, the smallest is best; names that look like numbers stay names."""
    near, far = np.random.default_rng(13).uniform(1, 2, (2, 3, 60))
    table = long_table({"1": far + 3, "2": near}).rename(columns={"dice": "hd95"})
    table.to_csv(tmp_path / "table.csv", index=False)
    compare_table(tmp_path / "table.csv", tmp_path / "out", Analysis("hd95", margin=0.5), QUIET)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("<tr><td>2</td>") < page.index("<tr><td>1</td>")
    assert "Horizontal axis: 2, the loss with the best mean" in page
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [loss["name"] for loss in result["losses"]] == ["1", "2"]


def test_pixels_of_all_runs_of_a_loss_are_calibrated_together(tmp_path):
    """1 of 4 correct pixels in one run and 9 of 12 in another are 10 of 16 together."""
    units = []
    for seed, (pixels, confidence, accuracy) in enumerate([(4, 0.5, 0.25), (12, 0.9, 0.75)]):
        unit = Unit("a", seed, 0, "test", cast(Config, None), tmp_path / str(seed), Split())
        row = {"pixels": [0, pixels], "confidence": [None, confidence], "accuracy": [None, accuracy]}
        content = {"calibration": {"reliability": {"all": {"top label": row}}}}
        (unit.folder / "evaluation" / "test").mkdir(parents=True)
        (unit.folder / "evaluation" / "test" / "scores.json").write_text(json.dumps(content))
        units.append(unit)
    found = run_artifacts.pooled_reliability(run_artifacts.calibrations(units))
    assert found is not None
    assert found.to_dict("records") == [
        {"loss": "a", "bin": 1, "pixels": 16, "confidence": pytest.approx(0.8), "accuracy": pytest.approx(0.625)}
    ]


def test_the_first_sentence_is_about_the_best_loss():
    values = simulated(np.random.default_rng(11), 4, 5, 60, shift=0.05)
    result = best_first(analyse(long_table(values)))
    first = sentences(result)[0]
    best = result["losses"][0]["name"]
    assert best == "loss0"
    assert first.startswith("loss0 has the best mean and is better than loss")
    against = best_first(analyse(long_table(values), baseline="loss1"))
    assert sentences(against)[0] == first  # a baseline does not change the summary of all pairs
    (only,) = sentences(analyse(long_table({"a": values["loss0"]})))
    assert only == "There is only one loss, a, and nothing to compare it with."


def test_cliques():
    assert cliques("abcd", {("a", "c"), ("d", "a"), ("b", "d")}) == [["a", "b"], ["b", "c"], ["c", "d"]]
    assert cliques("abc", set()) == [["a", "b", "c"]]
    assert cliques("ab", {("b", "a")}) == []


def test_the_better_loss_is_green_whatever_the_metric():
    values = np.array([[1.0], [5.0]])
    for sign, expected in ((1, [-2, 2]), (-1, [2, -2])):
        figure = classes_figure(sign * values, ["a", "b"], ["a", "b"], ["organ"], sign, [1])
        (picture,) = figure.axes[0].get_images()
        assert np.asarray(picture.get_array()).ravel().tolist() == expected
        assert [text.get_text() for text in figure.axes[0].texts] == ["1.000", "5.000"]


def test_cores_of_a_unit_fit_on_a_machine():
    executor = RayExecutor.__new__(RayExecutor)
    assert executor._cores([{"CPU": 2}, {"CPU": 2}], None) == 2
    assert executor._cores([{"CPU": 16, "GPU": 8}], None) == 2
    assert executor._cores([{"CPU": 64}], 32) == 2


# --- several data sets ------------------------------------------------------------------------------------------------


def means_of(table):
    common = {"aggregation": "class_case", "cases": 9, "groups": 9}
    return {
        f"d{n}": {"losses": [{"name": f"l{k}", "mean": m, "runs": []} for k, m in enumerate(row)], **common}
        for n, row in enumerate(table)
    }


def test_friedman_and_nemenyi_tests_over_data_sets():
    """Iman and Davenport's F is that of a two-way analysis of variance of the ranks.

    2.569 is the quantile of Nemenyi's test for four losses at 0.05 (Demšar 2006, table 5).
    """
    table = np.random.default_rng(12).normal([0.5, 0.52, 0.55, 0.6], 0.05, size=(14, 4))
    result = over_datasets(means_of(table.tolist()), "dice")
    ranks = stats.rankdata(-table, axis=1)
    assert list(result["mean_ranks"].values()) == pytest.approx(ranks.mean(0).tolist())
    between = 14 * ((ranks.mean(0) - 2.5) ** 2).sum() / 3
    within = ((ranks - ranks.mean(0)) ** 2).sum() / 39
    assert result["p"] == pytest.approx(stats.f.sf(between / within, 3, 39))
    assert {pair["p_adjusted"] < 0.05 for pair in result["pairs"]} == {True, False}
    for pair in result["pairs"]:
        assert (pair["p_adjusted"] < 0.05) == (abs(pair["rank_difference"]) > 2.569 * np.sqrt(4 * 5 / (6 * 14)))
    assert result["critical_difference"] == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), rel=1e-3)
    few = over_datasets(means_of(table[:4].tolist()), "dice")
    assert (few["p"], few["reason"]) == (None, "a test of 4 losses needs at least 5 data sets, and there are 4")
    two = over_datasets(means_of(table[:, :2].tolist()), "dice")
    assert two["p"] == pytest.approx(stats.wilcoxon(*table[:, :2].T).pvalue)
    with pytest.raises(ValueError, match="got l0 in d1"):
        over_datasets({**means_of([[0.5, 0.6]]), "d1": means_of([[0.5]])["d0"]}, "dice")


def test_data_sets_have_distinct_folders():
    names = ["a/b", "a b", "..", ".", "figures", "Figures", "plain", "A-B"]
    folders = list(folder_names(names).values())
    assert len({folder.lower() for folder in folders}) == len(names)
    assert "plain" in folders
    for folder in folders:
        assert folder.lower() != "figures"
        assert "/" not in folder
        assert folder.strip(".")


def test_number_of_data_sets_for_two_losses():
    """The smallest p-value of a Wilcoxon test with five data sets is 0.0625."""
    table = [[0.5 + 0.01 * n, 0.6 + 0.02 * n] for n in range(6)]
    five = over_datasets(means_of(table[:5]), "dice")
    assert (five["p"], five["reason"]) == (None, "a test of 2 losses needs at least 6 data sets, and there are 5")
    assert over_datasets(means_of(table), "dice")["p"] < 0.05
    assert over_datasets(means_of([[0.5]] * 6), "dice")["reason"] == "there is only one loss"


def test_a_table_of_several_tasks(tmp_path):
    rows = [
        (f"task {t}", f"c{c}", f"a{a}", 0.5 + 0.01 * c + 0.05 * a + 0.02 * t * (a == 1))
        for t in range(5) for c in range(12) for a in range(3)
    ]  # fmt: skip
    pd.DataFrame(rows, columns=["task", "case", "algorithm", "value"]).to_csv(tmp_path / "table.csv", index=False)
    printed = tool("compare", "--from-table", "table.csv", "--out", "out", folder=tmp_path)
    result = json.loads((tmp_path / "out" / "datasets.json").read_text())
    assert len(result["datasets"]) == 5
    assert min(result["mean_ranks"], key=result["mean_ranks"].get) in ("a1", "a2")
    assert "Friedman" in printed
    page = (tmp_path / "out" / "datasets.html").read_text()
    folders = re.findall(r'<a href="([^"]*)">', page)
    assert len(folders) == 5
    assert all((tmp_path / "out" / folder).exists() for folder in folders)
    assert "ranks before" in page
    assert "figures/datasets.png" in (tmp_path / "out" / "datasets.md").read_text()
    assert (tmp_path / "out" / "figures" / "datasets.png").exists()


def test_no_interval_leaves_the_range_of_the_score():
    """Two runs, of which one has failed to learn: Student's interval with one degree of freedom goes far beyond."""
    random = np.random.default_rng(0)
    values = {"a": np.stack([random.uniform(0, 0.1, 30), random.uniform(0.6, 0.7, 30)]), "b": np.full((2, 30), 0.5)}
    result = analyse(long_table(values))
    for loss in result["losses"]:
        low, high = loss["ci95"]
        assert 0 <= low <= loss["mean"] <= high <= 1
    (pair,) = result["pairs"]
    assert -1 <= pair["ci95_adjusted"][0] <= pair["difference"] <= pair["ci95_adjusted"][1] <= 1
    assert pair["verdict"] == "undecided"
    distances = long_table({loss: 100 * value for loss, value in values.items()}).rename(columns={"dice": "hd95"})
    far = analyse(distances, "hd95")
    assert all(loss["ci95"][0] >= 0 for loss in far["losses"])
    assert any(loss["ci95"][1] > 100 for loss in far["losses"])
