"""Comparison of losses: against scipy and statsmodels, against plain loops, and by simulated error rates."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from segkit.compare.run_variances import equal_spread_p
from segkit.compare.statistics import analyse, holm, pair_results
from segkit.compare.variance_models import TwoWay

from support.simulated_tables import SIMULATIONS, long_table, simulated


def only_pair(values, **options):
    """The result of the only pair, without the bootstrap of the ranks, on which it does not depend."""
    (pair,) = analyse(long_table(values), **{"resamples": 0} | options)["pairs"]
    return pair


def half(interval):
    return (interval[1] - interval[0]) / 2


def test_without_case_variance_it_is_the_t_test_over_runs():
    case = np.linspace(0.3, 0.7, 20)
    runs = {"a": [0.02, 0.05, 0.01, 0.04], "b": [0.11, 0.06, 0.09, 0.10]}
    values = {loss: np.add.outer(means, case) for loss, means in runs.items()}
    pair, expected = only_pair(values), stats.ttest_ind(runs["a"], runs["b"])
    assert pair["p"] == pytest.approx(expected.pvalue)
    assert pair["ci95"] == pytest.approx(list(expected.confidence_interval(0.95)))
    unequal = {"a": values["a"][:3], "b": values["b"]}
    expected = stats.ttest_ind(runs["a"][:3], runs["b"])
    assert only_pair(unequal)["p"] == pytest.approx(expected.pvalue)
    assert only_pair(unequal)["ci95"] == pytest.approx(list(expected.confidence_interval(0.95)))


def test_without_run_variance_it_is_the_paired_t_test_over_cases():
    generator = np.random.default_rng(1)
    a, b = generator.uniform(0.4, 0.8, size=(2, 30))
    pair, expected = only_pair({"a": np.stack([a] * 3), "b": np.stack([b] * 3)}), stats.ttest_rel(a, b)
    assert pair["p"] == pytest.approx(expected.pvalue)
    assert pair["ci95"] == pytest.approx(list(expected.confidence_interval(0.95)))


def by_hand(values, a, b):
    """Difference, two-way variance and degrees of freedom of a pair, computed with loops."""
    cases = values[a].shape[1]
    squares, freedom = 0.0, 0
    for array in values.values():
        means = [row.mean() for row in array]
        squares += sum((mean - np.mean(means)) ** 2 for mean in means)
        freedom += len(means) - 1
    v_run = squares / freedom * (1 / len(values[a]) + 1 / len(values[b]))
    difference = [values[a][:, n].mean() - values[b][:, n].mean() for n in range(cases)]
    v_case = np.var(difference, ddof=1) / cases
    v_e = 0.0
    for array in (values[a], values[b]):
        total = sum(
            (array[s, n] - array[s].mean() - array[:, n].mean() + array.mean()) ** 2
            for s in range(len(array))
            for n in range(cases)
        )
        v_e += total / ((len(array) - 1) * (cases - 1)) / (len(array) * cases)
    variance = max(v_run + v_case - v_e, v_run, v_case)
    return np.mean(difference), variance, variance**2 / (v_run**2 / freedom + v_case**2 / (cases - 1))


@pytest.mark.parametrize(("cases", "run_sd"), [(60, 0.02), (12, 0.0), (12, 0.004)])
def test_two_way_test_matches_a_loop(cases, run_sd):
    values = simulated(np.random.default_rng(4), 3, 4, cases, run_sd=run_sd)
    values["loss2"] = values["loss2"][:2]
    pairs = analyse(long_table(values))["pairs"]
    p = []
    for pair in pairs:
        difference, variance, df = by_hand(values, pair["a"], pair["b"])
        p.append(2 * stats.t.sf(abs(difference) / math.sqrt(variance), df))
        assert pair["difference"] == pytest.approx(difference)
        assert pair["p"] == pytest.approx(p[-1])
        for interval, alpha in ((pair["ci95"], 0.05), (pair["ci95_adjusted"], 0.05 / 3)):
            assert half(interval) == pytest.approx(stats.t.ppf(1 - alpha / 2, df) * math.sqrt(variance))
    assert [pair["p_adjusted"] for pair in pairs] == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize("number", [1, 2, 5, 28])
def test_holm_matches_statsmodels(number):
    p = np.random.default_rng(number).uniform(size=number) ** 3
    p[number // 2] = p[0]  # a tie
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_equal_spread_is_the_test_of_bartlett():
    generator = np.random.default_rng(7)
    samples = [generator.normal(0, spread, size) for spread, size in ((1, 3), (2, 5), (0.5, 4))]
    variances, df = np.array([sample.var(ddof=1) for sample in samples]), np.array([len(s) - 1 for s in samples])
    pooled = (variances * df).sum() / df.sum()
    correction = 1 + ((1 / df).sum() - 1 / df.sum()) / (3 * (len(samples) - 1))
    statistic = (df.sum() * np.log(pooled) - (df * np.log(variances)).sum()) / correction
    assert equal_spread_p(samples) == pytest.approx(stats.chi2.sf(statistic, len(samples) - 1))
    assert equal_spread_p(samples[:1]) == equal_spread_p([np.ones(3), np.ones(3)]) == 1
    assert equal_spread_p([np.ones(3), samples[1]]) == 0


def test_holm_adjusts_all_pairs():
    pairs = analyse(long_table(simulated(np.random.default_rng(3), 4, 3, 60, shift=0.02)))["pairs"]
    assert len(pairs) == 6
    assert sum(pair["p_adjusted"] > pair["p"] for pair in pairs) >= 5
    smallest = min(pairs, key=lambda pair: pair["p"])
    assert smallest["p_adjusted"] == pytest.approx(min(1, 6 * smallest["p"]))


def test_interval_of_a_loss_matches_its_formula():
    values = simulated(np.random.default_rng(4), 2, 3, 40)
    result = analyse(long_table(values))["losses"][0]
    array = values["loss0"]
    s_run = np.mean([np.var(v.mean(1), ddof=1) for v in values.values()])
    residual = array - array.mean(1, keepdims=True) - array.mean(0) + array.mean()
    v_run, v_case = s_run / 3, np.var(array.mean(0), ddof=1) / 40
    v_e = (residual**2).sum() / (2 * 39) / (3 * 40)
    variance = max(v_run + v_case - v_e, v_run, v_case)
    df = variance**2 / (v_run**2 / 4 + v_case**2 / 39)
    assert result["mean"] == pytest.approx(array.mean())
    assert half(result["ci95"]) == pytest.approx(stats.t.ppf(0.975, df) * math.sqrt(variance))
    assert [run["mean"] for run in result["runs"]] == pytest.approx(array.mean(1))
    assert [(run["seed"], run["fold"]) for run in result["runs"]] == [(0, 0), (1, 0), (2, 0)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(2, 12))
def test_scores_match_pandas_with_random_missing_values(seed, groups):
    generator = np.random.default_rng(seed)
    values = {loss: generator.uniform(size=(2, 14, 3)) for loss in "ab"}
    for array in values.values():
        array[generator.uniform(size=array.shape) < 0.5] = np.nan
    table = long_table(values, ("x", "y", "background"), [f"g{case % groups}" for case in range(14)])
    result = analyse(table)
    json.dumps(result, allow_nan=False)
    own = table[table["class"] != "background"]
    of_class = own.groupby(["loss", "seed", "class"])["dice"].mean()  # pandas leaves out NaN
    of_run = of_class.groupby(["loss", "seed"]).mean()
    for loss in result["losses"]:
        expected = [of_run[loss["name"], run["seed"]] for run in loss["runs"]]
        assert [run["mean"] for run in loss["runs"]] == pytest.approx(expected)
        assert loss["mean"] == pytest.approx(np.mean(expected))
    (pair,) = result["pairs"]
    assert pair["difference"] == pytest.approx(result["losses"][0]["mean"] - result["losses"][1]["mean"])


def test_classes_without_any_case_are_reported():
    values = {loss: np.full((2, 12, 2), 0.5) for loss in "ab"}
    for array in values.values():
        array[..., 1] = np.nan
    warnings = analyse(long_table(values, ("x", "y")))["warnings"]
    assert any(words.startswith("excluded from the mean") and words.endswith(": y") for words in warnings)


def test_only_the_named_classes_count():
    values = {loss: np.random.default_rng(5).uniform(size=(2, 12, 3)) for loss in "ab"}
    table = long_table(values, ("background", "x", "y"))
    assert analyse(table)["losses"][0]["mean"] == pytest.approx(values["a"][..., 1:].mean())
    assert analyse(table, classes=["y"])["losses"][0]["mean"] == pytest.approx(values["a"][..., 2].mean())
    every = analyse(table, classes=["background", "x", "y"])
    assert every["losses"][0]["mean"] == pytest.approx(values["a"].mean())


def test_groups_of_equal_size_are_the_observations():
    values = simulated(np.random.default_rng(6), 2, 3, 60)
    groups = [f"patient{case // 3}" for case in range(60)]
    grouped = analyse(long_table(values, groups=groups))
    means = {loss: array.reshape(3, 20, 3).mean(2) for loss, array in values.items()}
    expected = analyse(long_table(means))
    assert grouped["groups"] == 20
    assert grouped["pairs"][0]["p"] == pytest.approx(expected["pairs"][0]["p"])
    assert grouped["losses"][0]["ci95"] == pytest.approx(expected["losses"][0]["ci95"])


def test_copies_of_a_case_within_its_group_do_not_narrow_the_interval():
    values = simulated(np.random.default_rng(1), 2, 3, 30, run_sd=0.001)
    copied = {loss: np.repeat(array, 4, axis=1) for loss, array in values.items()}
    groups = [f"patient{case // 4}" for case in range(120)]
    once, grouped, naive = only_pair(values), analyse(long_table(copied, groups=groups))["pairs"][0], only_pair(copied)
    assert grouped["ci95"] == pytest.approx(once["ci95"])
    assert half(naive["ci95"]) < half(once["ci95"])


def test_interval_of_unequal_groups_matches_a_cluster_jackknife():
    """The infinitesimal jackknife agrees with the delete-one-group jackknife up to terms of higher order."""
    generator = np.random.default_rng(8)
    sizes = generator.integers(1, 6, size=150)
    groups = np.repeat(np.arange(150), sizes)
    effect = generator.normal(0, 0.05, size=150)[groups]
    a, b = 0.6 + effect + generator.normal(0, 0.03, size=len(groups)), np.full(len(groups), 0.6)
    values = {"a": np.stack([a, a]).clip(0, 1), "b": np.stack([b, b])}
    interval = analyse(long_table(values, groups=groups.tolist()))["pairs"][0]["ci95"]
    left = np.array([(values["a"][0] - b)[groups != group].mean() for group in range(150)])
    error = math.sqrt(149 / 150 * ((left - left.mean()) ** 2).sum())
    assert half(interval) == pytest.approx(stats.t.ppf(0.975, 149) * error, rel=0.05)


def verdict_of(shift, noise, **options):
    """The pair of two losses with three runs each, which differ by `shift`; runs vary by `noise`."""
    spread = np.array([-1.0, 0.0, 1.0]) * noise
    case = np.linspace(0.2, 0.8, 60)
    return only_pair({"a": np.add.outer(spread + shift, case), "b": np.add.outer(spread, case)}, **options)


@pytest.mark.parametrize(
    ("shift", "noise", "verdict"),
    [
        (0.0, 0.0005, "equivalent"),
        (0.003, 0.0005, "equivalent"),
        (0.05, 0.002, "better"),
        (-0.05, 0.002, "worse"),
        (0.0, 0.02, "undecided"),
        (0.02, 0.02, "undecided"),
        (0.0055, 0.0005, "better"),
    ],
)
def test_verdicts(shift, noise, verdict):
    pair = verdict_of(shift, noise)
    assert pair["verdict"] == verdict
    assert pair["difference"] == pytest.approx(shift)
    mirrored = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert verdict_of(-shift, noise)["verdict"] == mirrored


def test_the_margin_decides_equivalence():
    assert verdict_of(0.003, 0.0005, margin=0.001)["verdict"] == "better"
    assert verdict_of(0.003, 0.0005, margin=0.02)["verdict"] == "equivalent"


def test_the_verdict_follows_the_adjusted_interval():
    case = np.linspace(0.2, 0.8, 60)
    runs = np.array([-0.01, 0.0, 0.01])
    table = {name: np.add.outer(runs + shift, case) for name, shift in zip("abcde", (0.021, 0, 0, 0, 0), strict=True)}
    pair = analyse(long_table(table))["pairs"][0]
    assert pair["ci95"][0] > 0 > pair["ci95_adjusted"][0]
    assert pair["verdict"] == "undecided"


def test_identical_losses_are_equivalent():
    values = simulated(np.random.default_rng(9), 1, 3, 60)["loss0"]
    same = np.stack([values[0]] * 3)
    pair = only_pair({"a": same, "b": same})
    assert (pair["p"], pair["verdict"]) == (1.0, "equivalent")
    assert pair["ci95"] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_families_and_the_baseline():
    table = long_table(simulated(np.random.default_rng(10), 4, 3, 60))
    every = [(pair["a"], pair["b"]) for pair in analyse(table)["pairs"]]
    assert every == list(itertools.combinations([f"loss{number}" for number in range(4)], 2))
    against = analyse(table, baseline="loss1", family="vs_baseline")
    assert [(pair["a"], pair["b"]) for pair in against["pairs"]] == [(f"loss{n}", "loss1") for n in (0, 2, 3)]
    turned = {(pair["a"], pair["b"]) for pair in analyse(table, baseline="loss0")["pairs"]}
    assert {("loss1", "loss0"), ("loss2", "loss0"), ("loss3", "loss0"), ("loss1", "loss2")} < turned


def test_names_and_order_of_losses_do_not_affect_p_values():
    table = long_table(simulated(np.random.default_rng(11), 3, 3, 40))
    shuffled = table.sample(frac=1, random_state=1).replace({"loss0": "z", "loss2": "a"})
    p = {frozenset((pair["a"], pair["b"])): pair["p"] for pair in analyse(table)["pairs"]}
    renamed = {"z": "loss0", "a": "loss2", "loss1": "loss1"}
    for pair in analyse(shuffled)["pairs"]:
        assert pair["p"] == pytest.approx(p[frozenset((renamed[pair["a"]], renamed[pair["b"]]))])


def test_single_runs_give_results_about_checkpoints():
    values = simulated(np.random.default_rng(12), 2, 1, 60)
    result = analyse(long_table(values))
    (pair,) = result["pairs"]
    assert result["scope"] == "checkpoints"
    assert (pair["p"], pair["p_adjusted"], pair["verdict"]) == (None, None, None)
    assert "only one run of loss0 and loss1" in pair["reason"]
    expected = stats.ttest_rel(values["loss0"][0], values["loss1"][0]).confidence_interval(0.95)
    assert pair["ci95"] == pytest.approx(list(expected))
    assert "checkpoints" in result["method"]["speaks_of"]
    assert any("checkpoints" in words for words in result["warnings"])


def test_a_loss_with_one_run_among_others_gets_no_verdict():
    values = simulated(np.random.default_rng(13), 3, 3, 60)
    values["loss1"] = values["loss1"][:1]
    result = analyse(long_table(values))
    verdicts = {(pair["a"], pair["b"]): (pair["verdict"], pair["p"]) for pair in result["pairs"]}
    assert result["scope"] == "losses"
    assert verdicts["loss0", "loss1"] == verdicts["loss1", "loss2"] == (None, None)
    assert None not in verdicts["loss0", "loss2"]
    v_run = np.mean([np.var(values[loss].mean(1), ddof=1) for loss in ("loss0", "loss2")]) * (1 / 3 + 1)
    v_case = np.var(values["loss0"].mean(0) - values["loss1"][0], ddof=1) / 60
    own, other = (residual_variance(values[loss]) for loss in ("loss0", "loss2"))
    variance = max(v_run + v_case - (own / 3 + (own + other) / 2) / 60, v_run, v_case)
    df = variance**2 / (v_run**2 / 4 + v_case**2 / 59)
    expected = stats.t.ppf(0.975, df) * math.sqrt(variance)
    assert half(result["pairs"][0]["ci95"]) == pytest.approx(expected)
    assert variance > max(v_run, v_case)


def residual_variance(array):
    residual = array - array.mean(1, keepdims=True) - array.mean(0) + array.mean()
    return (residual**2).sum() / ((len(array) - 1) * (array.shape[1] - 1))


def test_results_with_few_groups_apply_to_these_cases_only():
    values = simulated(np.random.default_rng(14), 2, 4, 9)
    result = analyse(long_table(values))
    means = [values[loss].mean(1) for loss in values]
    expected = stats.ttest_ind(*means)
    assert result["pairs"][0]["p"] == pytest.approx(expected.pvalue)
    assert result["pairs"][0]["ci95"] == pytest.approx(list(expected.confidence_interval(0.95)))
    assert "on these cases only" in result["method"]["speaks_of"]
    assert any("9 groups" in words for words in result["warnings"])
    ten = analyse(long_table(simulated(np.random.default_rng(14), 2, 4, 10)))
    assert "new cases" in ten["method"]["speaks_of"]
    alone = analyse(long_table(simulated(np.random.default_rng(15), 2, 1, 9)))
    assert alone["pairs"][0]["ci95"] is None
    assert alone["losses"][0]["ci95"] is None
    assert "fewer than 10 groups" in alone["losses"][0]["reason"]


def test_caveats():
    def warned(runs, cases):
        return " ".join(analyse(long_table(simulated(np.random.default_rng(16), 2, runs, cases)))["warnings"])

    assert warned(8, 50) == ""
    assert warned(3, 50).startswith("fewer than 8 runs per loss: an unequal spread")
    assert "fewer than 3 runs (loss0 2, loss1 2)" in warned(2, 50)
    assert "49 cases, fewer than 50" in warned(3, 49)
    table = long_table(simulated(np.random.default_rng(16), 2, 4, 50))
    table["fold"], table["seed"] = table["seed"] % 2, table["seed"] // 2
    assert "folds share training images" in " ".join(analyse(table)["warnings"])


CASES = np.linspace(0.2, 0.6, 60)


def separate_warnings(runs_of, **options):
    """The warnings about losses whose runs do not overlap; `runs_of` has a score for each run of each loss."""
    table = long_table({loss: np.add.outer(np.array(runs), CASES) for loss, runs in runs_of.items()})
    return [text for text in analyse(table, resamples=0, **options)["warnings"] if "although every run" in text]


def share_of_divisions_as_far_apart(a, b):
    """The exact two-sided p-value of the difference of rank sums: a loop over all divisions of the runs."""
    runs = stats.rankdata([*a, *b])
    expected = len(a) * runs.mean()
    far = abs(runs[: len(a)].sum() - expected)
    divisions = list(itertools.combinations(runs, len(a)))
    return sum(abs(sum(part) - expected) >= far for part in divisions) / len(divisions)


def test_separate_runs_of_an_undecided_pair_are_named():
    steady, failing = [0.2, 0.201, 0.202, 0.203, 0.204], [0.199, 0.198, 0.197, 0.196, 0.02]
    (warning,) = separate_warnings({"failing": failing, "steady": steady})
    assert warning.startswith("steady and failing are undecided")
    p = share_of_divisions_as_far_apart(failing, steady)
    assert f"a probability of {p:.2g}" in warning
    assert f"{stats.mannwhitneyu(failing, steady, method='exact').pvalue:.2g}" == f"{p:.2g}"


@pytest.mark.parametrize(
    "runs_of",
    [
        {"failing": [0.199, 0.198, 0.197, 0.2005, 0.02], "steady": [0.2, 0.201, 0.202, 0.203, 0.204]},  # overlap
        {"failing": [0.199, 0.198, 0.02], "steady": [0.2, 0.201, 0.202]},  # 3 and 3: p is 0.1
        {"low": [0.1, 0.101, 0.102, 0.103], "high": [0.2, 0.201, 0.202, 0.203]},  # decided
    ],
)
def test_other_pairs_are_not(runs_of):
    assert separate_warnings(runs_of) == []


def test_separate_runs_are_judged_by_the_number_of_pairs():
    steady = [0.2, 0.201, 0.202, 0.203, 0.204]
    failing = {f"failing{n}": [0.199, 0.198, 0.197, 0.196, 0.02 + n / 1000] for n in range(6)}
    assert len(separate_warnings({"steady": steady} | failing, baseline="steady", family="vs_baseline")) == 6
    assert separate_warnings({"steady": steady} | failing) == []  # 21 pairs


def broken(change):
    table = long_table(simulated(np.random.default_rng(17), 2, 2, 12))
    return change(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="seed"), r"\['seed'\] are missing"),
        (lambda t: t[~((t["seed"] == 1) & (t["loss"] == "loss1") & (t["case"] == "case3"))], "loss1, seed 1.*case3"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "repeated: .*case0"),
        (lambda t: t.assign(dice=t["dice"] * 100), "percentages"),
        (lambda t: t.assign(group=np.arange(len(t))), "case 'case0' is in 4"),
        (lambda t: t.assign(group=None), "blanks"),
        (lambda t: t.assign(dice=np.nan), "found none"),
        (lambda t: t.assign(**{"class": "background"}), "expected rows of the classes"),
    ],
)
def test_invalid_tables_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        analyse(broken(change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "sharpness"}, "one of dice, iou, .*, got 'sharpness'"),
        ({"baseline": "focal"}, "got 'focal'"),
        ({"family": "vs_baseline"}, "needs a baseline"),
        ({"family": "some"}, "got 'some'"),
        ({"margin": -0.1}, "got -0.1"),
        ({"classes": ["organ", "liver"]}, r"'liver'\], got \['organ'\]"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        analyse(broken(lambda table: table), **options)


def false_rejections(count):
    """Rejection rates of our test and of a Wilcoxon test over single runs, for `count` pairs of equal losses."""
    generator = np.random.default_rng(18)
    rejected, naive = 0, 0
    for number in range(count):
        values = simulated(generator, 2, 3, 100)
        (pair,) = pair_results([("loss0", "loss1")], TwoWay(values), 0.005, {})
        if number < 5:  # reading a table takes much longer than testing its values, and changes nothing
            assert only_pair(values)["p"] == pytest.approx(pair["p"])
        rejected += pair["p"] < 0.05
        naive += stats.wilcoxon(values["loss0"][0], values["loss1"][0]).pvalue < 0.05
    return rejected / count, naive / count


def test_false_positive_rate_of_two_equal_losses():
    ours, naive = false_rejections(300)
    assert 0.01 < ours < 0.09
    assert naive > 0.2


def test_false_verdict_rate_of_eight_equal_losses():
    """Short version of the next test: at a rate of 6 %, at most 3 of 12 comparisons fail with 99 % probability."""
    rates = SIMULATIONS.error_rates(8, 3, 100, 12)
    assert rates["equal"] <= 0.25
    assert max(rates["every second wide"], rates["one wide"]) <= 0.34
    assert rates["Wilcoxon"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("cases", [30, 100, 300])
@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("losses", [2, 8])
def test_error_rates_of_long_simulations(losses, runs, cases):
    rates = SIMULATIONS.error_rates(losses, runs, cases, 1000)
    assert rates["equal"] <= 0.06
    assert max(rates["every second wide"], rates["one wide"]) <= 0.09
    assert rates["Wilcoxon"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "shift", "runs", "least"), [(2, 0.006, 5, 0.35), (8, 0.015, 3, 0.45), (8, 0.015, 5, 0.85)]
)
def test_power(losses, shift, runs, least):
    """The power in an independent simulation is 0.39, 0.62 and 0.92."""
    assert SIMULATIONS.power(losses, runs, 100, shift, 300) >= least


def test_true_differences_are_found():
    generator = np.random.default_rng(19)
    verdicts = [only_pair(simulated(generator, 2, 5, 100, shift=0.02))["verdict"] for _ in range(20)]
    assert verdicts.count("better") >= 18


def test_tables_with_left_out_scores_are_refused():
    """A missing value counts as 1 only if the class is absent from both prediction and reference."""
    rows = [
        {"loss": loss, "seed": seed, "fold": 0, "case": case, "group": case, "class": "a", "tp": 0, "predicted": 5}
        | {"reference": 0, "dice": np.nan if case == "c1" else 0.5, "iou": 0.3}
        for loss in ("x", "y")
        for seed in range(2)
        for case in ("c1", "c2")
    ]
    with pytest.raises(ValueError, match=r"got none for class a of case c1 \(4 such rows\)"):
        analyse(pd.DataFrame(rows))
